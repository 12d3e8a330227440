"""ABC checkpoints: by name, from the hub, in one folder, or in three parts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from abc_rag.errors import CheckpointError, InputError
from abc_rag.models.hub import is_folder, part_folder
from abc_rag.models.loader import Checkpoint, LoadOptions, ModelLoader, Weights, as_folder, token_limits

if TYPE_CHECKING:
    from abc_rag.models.family import Family
    from abc_rag.models.qwen2_vl.network import SpeakingBase

__all__ = ["LOADER", "ABCCheckpoint", "ABCLoader", "ABCParts", "abc_parts", "checkpoint_folder"]

_PARTS = ("base", "pretrain", "instruct")
ABCModelName = Union[str, "os.PathLike[str]", "ABCCheckpoint"]

# What a Qwen2-VL-7B without its output layer weighs in bfloat16, for the warning before a download.
_PUBLISHED_GB = 15.6
_SMALLER = "TIGER-Lab/VLM2Vec-Qwen2VL-2B"


@dataclass(frozen=True)
class ABCCheckpoint:
    """The three parts of an ABC model, each a local folder (a path object) or a hub id (a ``str``).

    A ``str`` is a hub id, whatever exists on the disk, unless it starts with ``/``, ``./``, ``../`` or ``~``.

    Attributes:
        base: Qwen2-VL.
        pretrain: LoRA adapter with the MLP head and the temperature.
        instruct: LoRA adapter for pictures with an instruction.
        base_revision: Hub commit, tag or branch of ``base``.
        pretrain_revision: The same for ``pretrain``.
        instruct_revision: The same for ``instruct``.
    """

    base: str | os.PathLike[str]
    pretrain: str | os.PathLike[str]
    instruct: str | os.PathLike[str]
    base_revision: str | None = None
    pretrain_revision: str | None = None
    instruct_revision: str | None = None


PUBLISHED = ABCCheckpoint(
    base="Qwen/Qwen2-VL-7B-Instruct",
    pretrain="TIGER-Lab/ABC-Qwen2VL-Pretrain",
    instruct="TIGER-Lab/ABC-Qwen2VL-Instruct",
)


@dataclass(frozen=True)
class ABCParts:
    """Local folders, and what identifies them."""

    base: Path
    pretrain: Path
    instruct: Path
    settings_in: Path | None
    name: str
    revision: str | None = None

    def revision_with(self, weights: Weights) -> str:
        """What identifies the weights that compute: rounded ones give vectors of their own."""
        from abc_rag.models.checkpoint import folder_revision

        files = self.revision or folder_revision(self.base, self.pretrain, self.instruct)
        return files if weights == "full" else f"{files}+{weights}"


class ABCLoader(ModelLoader):
    """ABC's part of `abc_rag.load_embedder`."""

    name = "abc"
    models = ("abc", "abc-mini")
    model_types = (ABCCheckpoint,)

    def refusal(self, folder: Path) -> str | None:
        """See `ModelLoader.refusal`."""
        if (folder / "parts.json").is_file():
            return None
        for part in _PARTS:
            if not (folder / part).is_dir():
                return f"holds no {part}/; an ABC checkpoint has base/, pretrain/ and instruct/"
        return None

    def checkpoint(self, model: Any) -> Checkpoint:  # noqa: ANN401
        """See `ModelLoader.checkpoint`."""
        return _ABCModel(model, _source(model))


class _ABCModel(Checkpoint):
    generates = True

    def __init__(self, model: ABCModelName, source: Callable[[str], ABCParts]) -> None:
        self._model = model
        self._source = source
        self._parts: ABCParts | None = None

    def local_revision(self, weights: Weights, resolution: int | str | None = None) -> str | None:
        model = self._model
        if isinstance(model, ABCCheckpoint):
            if not all(is_folder(part) for part in (model.base, model.pretrain, model.instruct)):
                return None
        elif model == "abc" or _has_hub_parts(model):
            return None
        return self._source("cpu").revision_with(weights)

    def fetch(self, device: str) -> None:
        self._parts = self._source(device)

    def build(self, options: LoadOptions) -> Family:
        alike = "it reads queries and documents alike"
        options.refuse(
            "abc",
            resolution="it is set by min_tokens and max_tokens",
            dims="it was trained for vectors of one length",
            query_instruction=alike,
            document_instruction=alike,
        )
        return _build(self._parts or self._source(str(options.device)), options)


def _source(model: ABCModelName) -> Callable[[str], ABCParts]:
    """A function that locates the files of ``model``, fetching them if need be; the name is checked now."""
    if isinstance(model, ABCCheckpoint):
        return lambda device: _resolve(model, "+".join(str(p) for p in (model.base, model.pretrain, model.instruct)))
    if model == "abc":
        return _published
    if model == "abc-mini":
        return lambda _: _folder_parts(_bundled("abc-mini"))
    folder = as_folder(model)
    if folder is None:
        raise InputError(
            f"model {str(model)[:200]!r} is neither 'abc', 'abc-mini' nor a folder; for other hub ids pass "
            "abc_rag.ABCCheckpoint(base=..., pretrain=..., instruct=...)"
        )
    if (folder / "parts.json").is_file():
        return lambda _: _named_parts(folder)
    if refusal := LOADER.refusal(folder):
        raise InputError(f"{folder} {refusal}")
    return lambda _: _folder_parts(folder)


def abc_parts(model: ABCModelName, device: str) -> ABCParts:
    """The parts of an ABC model on the disk; those of a hub id are fetched.

    Raises:
        InputError: There is no such model.
        CheckpointError: A part cannot be fetched.
    """
    return _source(model)(device)


def _read_parts(folder: Path) -> dict[str, str | None]:
    from abc_rag.models.config import read_json

    raw = read_json(folder / "parts.json")
    known = set(ABCCheckpoint.__dataclass_fields__)
    if not (
        all(isinstance(raw.get(name), str) for name in _PARTS)
        and set(raw) <= known
        and all(value is None or isinstance(value, str) for value in raw.values())
    ):
        raise CheckpointError(f"{folder / 'parts.json'}: must name base, pretrain and instruct, as hub ids or folders")
    return raw


def _has_hub_parts(model: ABCModelName) -> bool:
    """Whether a folder names parts that may have to be fetched."""
    if isinstance(model, ABCCheckpoint) or not (Path(model).expanduser() / "parts.json").is_file():
        return False
    parts = _read_parts(Path(model).expanduser())
    return not all(is_folder(str(parts[name])) for name in _PARTS)


def _named_parts(folder: Path) -> ABCParts:
    """What ``abc-rag train instruct`` writes: an adapter, and in ``parts.json`` what it was trained on."""
    raw = _read_parts(folder)
    parts: dict[str, Any] = dict(raw)
    for name in _PARTS:
        if is_folder(parts[name]):  # relative to the file
            parts[name] = str((folder / parts[name]).resolve())
    return replace(_resolve(ABCCheckpoint(**parts), folder.resolve().name), settings_in=folder)


def checkpoint_folder(model: str) -> Path:
    """The folder of ``"abc-mini"``, or of a local checkpoint that has all three parts in it.

    Raises:
        InputError: It is neither.
    """
    parts = None if model == "abc" or _has_hub_parts(model) else _source(model)("cpu")
    if parts is None or parts.settings_in is None or parts.base.parent != parts.settings_in:
        raise InputError(f"{model!r} is neither 'abc-mini' nor a folder with base/, pretrain/ and instruct/")
    return parts.settings_in


def _folder_parts(folder: Path) -> ABCParts:
    return ABCParts(folder / "base", folder / "pretrain", folder / "instruct", folder, folder.resolve().name)


def _bundled(name: str) -> Path:
    # A wheel is always unpacked on disk; as_file is the documented way to say so.
    with as_file(files("abc_rag.models.bundled").joinpath(name)) as folder:
        if not (folder / "base").is_dir():
            raise CheckpointError(f"{name} is missing from this installation; reinstall abc-rag")
        return Path(folder)


def _published(device: str) -> ABCParts:
    import torch

    if device == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        warnings.warn(
            f"model 'abc' without a GPU: about {_PUBLISHED_GB} GB to download, twice that in memory in float32 "
            f"({_PUBLISHED_GB} GB with dtype='bfloat16'), and many seconds for each picture. For photographs without a "
            f"GPU use a smaller model, such as {_SMALLER!r}; 'abc-mini' knows drawings of its small world only.",
            stacklevel=2,
        )
    return _resolve(PUBLISHED, "abc")


def _resolve(checkpoint: ABCCheckpoint, name: str) -> ABCParts:
    folders: list[Path] = []
    revisions: list[str | None] = []
    for part, revision in (
        (checkpoint.base, checkpoint.base_revision),
        (checkpoint.pretrain, checkpoint.pretrain_revision),
        (checkpoint.instruct, checkpoint.instruct_revision),
    ):
        folders.append(part_folder(part, revision))
        # A snapshot's folder is named by its commit.
        revisions.append(None if is_folder(part) else folders[-1].name[:12])
    known = [r for r in revisions if r is not None]
    # What was trained here says what it was trained for; the published adapters say nothing.
    settings = next((f for f in (folders[2], folders[1]) if (f / "abc.json").is_file()), None)
    return ABCParts(folders[0], folders[1], folders[2], settings, name, "+".join(known) if len(known) == 3 else None)


def _build(parts: ABCParts, options: LoadOptions) -> Family:
    from abc_rag.models.abc.family import ABCFamily
    from abc_rag.models.abc.network import ABCSettings, load_beside, load_network
    from abc_rag.models.abc.prompts import load_prompts
    from abc_rag.models.chat import refuse_options
    from abc_rag.models.placement import Placement
    from abc_rag.types import Fingerprint

    settings = ABCSettings.read(parts.settings_in) if parts.settings_in else ABCSettings(name=parts.name)
    least, most = token_limits(
        options.min_tokens, options.max_tokens, defaults=(settings.min_tokens, settings.max_tokens)
    )
    folders = (parts.base, parts.pretrain, parts.instruct)
    speaking: SpeakingBase | None = None
    if options.adapters == "beside":
        refuse_options(options)
        network, speaking = load_beside(*folders, Placement.of(options), head_hidden=settings.head_hidden)
    else:
        network = load_network(
            *folders, Placement.of(options), head_hidden=settings.head_hidden, weights=options.weights
        )
    network.compiled = options.compiled
    family = ABCFamily(
        network,
        load_prompts(parts.base),
        fingerprint=Fingerprint(settings.name or parts.name, parts.revision_with(options.weights), least, most),
        image_limits=options.image_limits,
    )
    if speaking is not None:
        from abc_rag.models.qwen2_vl.chat import load_chat

        family.chat = load_chat(parts.base, speaking, family.facts)
    return family


LOADER = ABCLoader()
