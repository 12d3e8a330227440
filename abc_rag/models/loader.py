"""Which family a checkpoint belongs to, and how it is loaded: what `abc_rag.load_embedder` asks of each family.

A family has a short name, such as ``vlm2vec``. ``vlm2vec:NAME`` asks for it; what has no such prefix is a name that one
family knows, or a folder whose own files say which family it belongs to.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from abc_rag.errors import InputError

if TYPE_CHECKING:
    import torch

    from abc_rag.images.limits import ImageLimits
    from abc_rag.models.family import Family

__all__ = [
    "AUTO",
    "GENERATING",
    "Adapters",
    "Attention",
    "Checkpoint",
    "DType",
    "LoadOptions",
    "ModelLoader",
    "Weights",
    "as_folder",
    "find_checkpoint",
    "known_names",
    "loaders",
    "portable_name",
    "register_loader",
    "token_limits",
    "unregister_loader",
]

DType = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]
Weights = Literal["full", "int8", "int4"]
Adapters = Literal["merged", "beside"]
"""Whether adapters are merged into their base, or stay beside it, so that the base can also compute without them."""


AUTO = "auto"
"""The name that stands for the best model for this machine; see `abc_rag.embedding.choose`."""
GENERATING = "ABC, and VLM2Vec's adapters on Qwen2-VL, can: load_generator('abc')"
"""Which families generate, for messages."""


@dataclass(frozen=True)
class LoadOptions:
    """What a caller of `load_embedder` wants of a network; see there.

    Attributes:
        device: Where it computes.
        dtype: What it computes in; never ``"auto"``.
        min_tokens: Fewest image tokens, or None for the checkpoint's own.
        max_tokens: Most image tokens, or None.
        resolution: What the family calls a resolution, or None for its own.
        attention: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``; never ``"auto"``.
        weights: ``"full"``, ``"int8"`` or ``"int4"``.
        image_limits: Which pictures are accepted.
        compiled: Use ``torch.compile``.
        adapters: ``"beside"`` keeps the base as it was published, and loads its output layer, so that it can generate.
        dims: Length of a vector, or None for the full one.
        query_instruction: What a query is told, or None for the family's own prompt.
        document_instruction: What a document is told, or None.
    """

    device: torch.device
    dtype: torch.dtype
    min_tokens: int | None
    max_tokens: int | None
    resolution: int | str | None
    attention: str
    weights: Weights
    image_limits: ImageLimits
    compiled: bool = False
    adapters: Adapters = "merged"
    dims: int | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None

    def refuse(self, family: str, **reasons: str) -> None:
        """Refuse options that a family cannot follow.

        Args:
            family: Its name, for the message.
            **reasons: Option -> why not, and what to do instead.

        Raises:
            InputError: One of them was given.
        """
        defaults = {"weights": "full", "compiled": False, "attention": "sdpa", "adapters": "merged"}
        for name, reason in reasons.items():
            if getattr(self, name) != defaults.get(name):
                raise InputError(f"{name}={getattr(self, name)!r} is not available for family {family!r}: {reason}")

    def length_of(self, dim: int, model: str) -> int:
        """How many of a model's ``dim`` numbers a vector keeps.

        Raises:
            InputError: More are asked for than there are.
        """
        if self.dims is not None and self.dims > dim:
            raise InputError(f"dims={self.dims} is more than the {dim} numbers of a vector of {model}; take fewer")
        return self.dims or dim


class Checkpoint(ABC):
    """A model on the disk, or one that can be fetched by its name."""

    generates: ClassVar[bool] = False
    """Whether it can be built with ``adapters="beside"``; what speaks against one checkpoint is said by `build`."""

    @abstractmethod
    def local_revision(self, weights: Weights, resolution: int | str | None = None) -> str | None:
        """The revision of the fingerprint if all files are local; None if the hub decides it.

        Loads and fetches nothing.
        """

    @abstractmethod
    def fetch(self, device: str) -> None:
        """Fetch missing files. Called once, before `build`. ``device`` is what the caller asked for.

        Raises:
            CheckpointError: They cannot be fetched.
        """

    @abstractmethod
    def build(self, options: LoadOptions) -> Family:
        """Load the network; once for each device.

        Raises:
            CheckpointError: Files are missing or do not fit.
            InputError: An option cannot be followed.
        """


class ModelLoader(ABC):
    """Finds and loads the checkpoints of one family, for `load_embedder`.

    A module in `abc_rag.models` has one as ``LOADER``; others come through `register_loader`. Importing the module
    must be quick: torch and the like are imported where they are used.
    """

    name: ClassVar[str]
    """The family's short name: lower case, digits, hyphens."""

    models: ClassVar[tuple[str, ...]] = ()
    """Names that need no prefix."""

    model_types: ClassVar[tuple[type, ...]] = ()
    """Types other than ``str`` and ``Path`` that name a model of this family."""

    @abstractmethod
    def refusal(self, folder: Path) -> str | None:
        """Why a folder is no checkpoint of this family, or None if it is one. Looks at file names and JSON only."""

    @abstractmethod
    def checkpoint(self, model: Any) -> Checkpoint:  # noqa: ANN401
        """Find a checkpoint.

        Args:
            model: One of `models` or of `model_types`; a folder, as a ``Path``; or a ``str`` that stood behind the
                family's prefix.

        Raises:
            InputError: There is no such model.
        """


_registered: dict[str, ModelLoader] = {}


def register_loader(loader: ModelLoader) -> None:
    """Make a family from another package known to `load_embedder`.

    Raises:
        InputError: Its name is taken or malformed.
    """
    if not loader.name or not all(c.isascii() and (c.islower() or c.isdigit() or c == "-") for c in loader.name):
        raise InputError(f"a family's name has lower case letters, digits and hyphens, unlike {loader.name!r}")
    if len(loader.name) == 1:
        raise InputError(f"a family's name of one letter would look like a drive: {loader.name!r}; choose a longer one")
    if loader.name in loaders():
        raise InputError(f"family {loader.name!r} is registered already; choose another name")
    _registered[loader.name] = loader


def unregister_loader(name: str) -> None:
    """Undo `register_loader`; unknown names are ignored."""
    _registered.pop(name, None)


def loaders() -> Mapping[str, ModelLoader]:
    """All families by name: those of this package, then the registered ones."""
    package = __name__.rpartition(".")[0]
    found: dict[str, ModelLoader] = {}
    for folder in pkgutil.iter_modules(sys.modules[package].__path__, f"{package}."):
        if folder.ispkg and find_spec(f"{folder.name}.loader") is not None:
            loader = import_module(f"{folder.name}.loader").LOADER
            found[loader.name] = loader
    return {**found, **_registered}


def known_names() -> tuple[str, ...]:
    """All names that need no prefix."""
    return tuple(name for loader in loaders().values() for name in loader.models)


def find_checkpoint(model: object) -> Checkpoint:
    """Find the checkpoint that ``model`` names; see `abc_rag.load_embedder`.

    Raises:
        InputError: There is none, or several families could load it; the message says how to choose.
    """
    known = loaders()
    for loader in known.values():
        if isinstance(model, loader.model_types) or (isinstance(model, str) and model in loader.models):
            return loader.checkpoint(model)
    if isinstance(model, str):
        prefix, colon, rest = model.partition(":")
        if colon and prefix in known:
            return known[prefix].checkpoint(rest)
    if not isinstance(model, (str, os.PathLike)):
        raise InputError(f"model must be a name or a folder, not {type(model).__name__}")
    folder = as_folder(model)
    if folder is None:
        short = [repr(name) for name in known_names() if "/" not in name]
        hub_ids = [repr(name) for name in known_names() if "/" in name]
        raise InputError(
            f"model {str(model)[:200]!r} is neither {', '.join(short)}, {AUTO!r} nor a folder; known hub ids are "
            f"{', '.join(hub_ids)}; for other hub ids pass abc_rag.ABCCheckpoint(base=..., pretrain=..., "
            "instruct=...), or write the family before them: 'vlm2vec:ORGANISATION/NAME', 'st:ORGANISATION/NAME'"
        )
    refusals = {name: loader.refusal(folder) for name, loader in known.items()}
    taking = [name for name, refusal in refusals.items() if refusal is None]
    if len(taking) == 1:
        return known[taking[0]].checkpoint(folder)
    if taking:
        choices = " or ".join(repr(f"{name}:{model}") for name in taking)
        raise InputError(f"{folder} could be a checkpoint of {' or of '.join(taking)}; say which: model={choices}")
    reasons = "; ".join(f"{name}: {refusal}" for name, refusal in refusals.items())
    raise InputError(f"{folder} is no checkpoint of a known family ({reasons})")


def as_folder(model: str | os.PathLike[str]) -> Path | None:
    """The folder of that name, or None if there is none."""
    if not os.fspath(model):
        return None  # Path("") is the working folder
    try:
        folder = Path(model).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, an unknown ~user, a null byte
        return None


def token_limits(least: int | None, most: int | None, *, defaults: tuple[int, int]) -> tuple[int, int]:
    """Fewest and most image tokens: the caller's, else the defaults; one limit alone does not contradict the other."""
    found_least, found_most = defaults[0] if least is None else least, defaults[1] if most is None else most
    if found_least > found_most:
        bound = found_most if most is not None else found_least
        found_least, found_most = min(found_least, bound), bound
    return found_least, found_most


def portable_name(model: str | os.PathLike[str]) -> str:
    """A model's name that means the same in any working folder: folders become absolute."""
    if isinstance(model, str):
        if model == AUTO or model in known_names():
            return model
        prefix, colon, rest = model.partition(":")
        if colon and prefix in loaders():
            return model if as_folder(rest) is None else f"{prefix}:{_absolute(rest)}"
    return _absolute(model)


def _absolute(folder: str | os.PathLike[str]) -> str:
    # expanduser alone raises for an unknown user, which load_embedder says better.
    return os.path.abspath(os.path.expanduser(folder))
