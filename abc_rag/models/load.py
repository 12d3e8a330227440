"""``load_embedder``: a name, a folder or three parts in, an embedder out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from abc_rag.errors import CheckpointError, InputError

if TYPE_CHECKING:
    import torch

    from abc_rag.embedder import Embedder
    from abc_rag.engine.settings import EngineSettings
    from abc_rag.images import ImageLimits
    from abc_rag.models.family import Family

__all__ = [
    "MODEL_NAMES",
    "ABCCheckpoint",
    "Attention",
    "DType",
    "Weights",
    "checkpoint_folder",
    "default_model",
    "is_folder",
    "load_embedder",
    "local_revision",
    "part_folder",
]

DType = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]
Weights = Literal["full", "int8", "int4"]
MODEL_NAMES = ("abc", "abc-mini")
"""What `load_embedder` takes by name; everything else is a folder or an `ABCCheckpoint`."""
_PARTS = ("base", "pretrain", "instruct")
ModelName = Union[str, "os.PathLike[str]", "ABCCheckpoint"]

# What a Qwen2-VL-7B without its output layer weighs in bfloat16, for the warning before a download.
_PUBLISHED_GB = 15.6


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


def default_model() -> str:
    """What is loaded when no model is named: the environment variable ``ABC_RAG_MODEL``, else ``"abc"``."""
    return os.environ.get("ABC_RAG_MODEL") or "abc"


def load_embedder(
    model: ModelName | None = None,
    *,
    device: str = "auto",
    dtype: DType = "auto",
    min_tokens: int | None = None,
    max_tokens: int | None = None,
    attention: Attention = "auto",
    weights: Weights = "full",
    image_limits: ImageLimits | None = None,
    engine: EngineSettings | None = None,
) -> Embedder:
    """An embedder for a model. The weights are loaded on first use.

    Args:
        model: ``"abc-mini"`` (the small checkpoint in this package); ``"abc"`` (the published 7B model, fetched from
            the hub on first use); a folder with ``base/``, ``pretrain/`` and ``instruct/``, or one that
            ``abc-rag train instruct`` wrote; or an `ABCCheckpoint`.
            If not given: the environment variable ``ABC_RAG_MODEL``, else ``"abc"``.
        device: ``"auto"`` (a CUDA GPU, else Apple's, else the CPU), any torch device, or ``"cuda:*"``: all GPUs, each
            with its own copy of the weights.
        dtype: ``"auto"`` is bfloat16 on CUDA and float32 elsewhere. All three work on both. float16 is slow on a CPU,
            and some models exceed its range: then there is an error, and no vector.
        min_tokens: Fewest image tokens (of 28x28 pixels) that a picture is resized to. If not given: what the
            checkpoint was made for, which is 256 for ABC and 9 for abc-mini.
        max_tokens: Most image tokens; 1024 for ABC, 9 for abc-mini. More tokens show more detail and cost more time.
        attention: ``"auto"`` is torch's own kernels (``"sdpa"``); or ``"eager"``, or ``"flash_attention_2"`` where
            that package is installed.
        weights: ``"int8"`` or ``"int4"`` keeps the language model's matrices in 8 or 4 bits, on a CPU or a CUDA GPU;
            they are multiplied in ``dtype``. Saves memory, not time, and the vectors are not those of full weights,
            as the fingerprint says. Loading still needs the whole model in the computer's own memory once. Needs
            the extra ``quantized``.
        image_limits: Which pictures are accepted, and whether URLs are fetched.
        engine: What the engine may use: workers, batches, caches. See `abc_rag.engine.EngineSettings`.

    Returns:
        An `Embedder`.

    Raises:
        InputError: An argument is unusable, or there is no such folder.
        MissingExtraError: ``weights`` needs a package that is not installed.
        CheckpointError: On first use: files are missing or do not fit.
    """
    if model is None:
        model = default_model()
    for name, value, allowed in (
        ("dtype", dtype, ("auto", "float32", "bfloat16", "float16")),
        ("attention", attention, ("auto", "sdpa", "eager", "flash_attention_2")),
        ("weights", weights, ("full", "int8", "int4")),
    ):
        if value not in allowed:
            raise InputError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    for name, tokens in (("min_tokens", min_tokens), ("max_tokens", max_tokens)):
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
            raise InputError(f"{name} must be a positive number of image tokens, not {tokens!r}")
    if min_tokens is not None and max_tokens is not None and min_tokens > max_tokens:
        raise InputError(f"min_tokens ({min_tokens}) is larger than max_tokens ({max_tokens})")
    load = _source(model)
    if weights != "full":
        import abc_rag.models._quantize  # noqa: F401  (says now if the extra is missing, not after a download)

    from abc_rag.engine.local import LocalEmbedder
    from abc_rag.engine.settings import EngineSettings

    settings = engine or EngineSettings()

    def build() -> list[Family]:
        parts, devices = load(device), _devices(device)
        return [
            _build(
                parts, one, dtype, min_tokens, max_tokens, attention, weights, image_limits, compiled=settings.compile
            )
            for one in devices
        ]

    return LocalEmbedder(build, settings)


def local_revision(model: ModelName, weights: Weights = "full") -> str | None:
    """The revision that the model's fingerprint will have, if all its files are local; None where the hub decides.

    Reads the files' hashes; loads and fetches nothing.

    Raises:
        InputError: There is no such model.
        CheckpointError: A folder of an `ABCCheckpoint` is missing.
    """
    if isinstance(model, ABCCheckpoint):
        if not all(is_folder(part) for part in (model.base, model.pretrain, model.instruct)):
            return None
    elif model == "abc" or _has_hub_parts(model):
        return None
    parts = _source(model)("cpu")
    return _revision(parts, weights)


def _revision(parts: _Parts, weights: Weights) -> str:
    """What identifies the weights that compute: rounded ones give vectors of their own."""
    from abc_rag.models._checkpoint import folder_revision

    files = parts.revision or folder_revision(parts.base, parts.pretrain, parts.instruct)
    return files if weights == "full" else f"{files}+{weights}"


@dataclass(frozen=True)
class _Parts:
    """Local folders, and what identifies them."""

    base: Path
    pretrain: Path
    instruct: Path
    settings_in: Path | None
    name: str
    revision: str | None = None


def _source(model: ModelName) -> Callable[[str], _Parts]:
    """How to get at the files of ``model``; checked now, fetched when called."""
    if isinstance(model, ABCCheckpoint):
        return lambda device: _resolve(model, "+".join(str(p) for p in (model.base, model.pretrain, model.instruct)))
    if model == "abc":
        return _published
    if model == "abc-mini":
        return lambda _: _folder_parts(_bundled("abc-mini"))
    try:
        folder = Path(model).expanduser()
        found = folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name too long, an unknown ~user, a null byte
        found = False
    if not found:
        raise InputError(
            f"model {str(model)[:200]!r} is neither 'abc', 'abc-mini' nor a folder; for other hub ids pass "
            "abc_rag.ABCCheckpoint(base=..., pretrain=..., instruct=...)"
        )
    if (folder / "parts.json").is_file():
        return lambda _: _named_parts(folder)
    for part in _PARTS:
        if not (folder / part).is_dir():
            raise InputError(f"{folder} holds no {part}/; an ABC checkpoint has base/, pretrain/ and instruct/")
    return lambda _: _folder_parts(folder)


def _read_parts(folder: Path) -> dict[str, str | None]:
    from abc_rag.models._checkpoint import read_json

    raw = read_json(folder / "parts.json")
    known = set(ABCCheckpoint.__dataclass_fields__)
    if not (
        all(isinstance(raw.get(name), str) for name in _PARTS)
        and set(raw) <= known
        and all(value is None or isinstance(value, str) for value in raw.values())
    ):
        raise CheckpointError(f"{folder / 'parts.json'}: must name base, pretrain and instruct, as hub ids or folders")
    return raw


def _has_hub_parts(model: ModelName) -> bool:
    """Whether a folder names parts that may have to be fetched."""
    if isinstance(model, ABCCheckpoint) or not (Path(model).expanduser() / "parts.json").is_file():
        return False
    parts = _read_parts(Path(model).expanduser())
    return not all(is_folder(str(parts[name])) for name in _PARTS)


def _named_parts(folder: Path) -> _Parts:
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


def _folder_parts(folder: Path) -> _Parts:
    return _Parts(folder / "base", folder / "pretrain", folder / "instruct", folder, folder.resolve().name)


def _bundled(name: str) -> Path:
    # A wheel is always unpacked on disk; as_file is the documented way to say so.
    with as_file(files("abc_rag.bundled").joinpath(name)) as folder:
        if not (folder / "base").is_dir():
            raise CheckpointError(f"{name} is missing from this installation; reinstall abc-rag")
        return Path(folder)


def _published(device: str) -> _Parts:
    import torch

    if device == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        warnings.warn(
            f"model 'abc' without a GPU: about {_PUBLISHED_GB} GB to download, twice that in memory in float32 "
            f"({_PUBLISHED_GB} GB with dtype='bfloat16'), and many seconds for each picture. "
            "Use model='abc-mini' to develop without a GPU, or name another device.",
            stacklevel=2,
        )
    return _resolve(PUBLISHED, "abc")


def is_folder(part: str | os.PathLike[str]) -> bool:
    """Whether a part of an `ABCCheckpoint` is a folder, and no hub id."""
    return not isinstance(part, str) or part.startswith(("/", "./", "../", "~"))


def _resolve(checkpoint: ABCCheckpoint, name: str) -> _Parts:
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
    return _Parts(folders[0], folders[1], folders[2], settings, name, "+".join(known) if len(known) == 3 else None)


def part_folder(part: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Where a part of an `ABCCheckpoint` is on the disk; fetches it if it is a hub id that is not there yet.

    Raises:
        InputError: It is no hub id, or a folder with a revision.
        CheckpointError: There is no such folder, or the hub does not give it.
    """
    if not is_folder(part):
        return _fetch(str(part), revision)
    if revision is not None:
        raise InputError(f"{part} is a folder and has no revision {revision!r}")
    folder = Path(part).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{part}: no such folder")
    return folder


def _fetch(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja"],
            )
        )
    except HFValidationError as error:
        raise InputError(f"{repository!r} is not a hub id; write a folder as a pathlib.Path") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repository} could not be fetched from the hub ({type(error).__name__}); check the network and the name, "
            "or use model='abc-mini', which needs neither"
        ) from error


def _devices(device: str) -> list[torch.device]:
    """One device, or with ``"cuda:*"`` all GPUs."""
    import torch

    if device != "cuda:*":
        return [_device(device)]
    count = torch.cuda.device_count()
    if not count:
        raise InputError("device 'cuda:*' cannot be used here (there is no CUDA GPU); use 'auto' or 'cpu'")
    return [_device(f"cuda:{index}") for index in range(count)]


def _device(device: str) -> torch.device:
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return found


def _build(
    parts: _Parts,
    found: torch.device,
    dtype: DType,
    min_tokens: int | None,
    max_tokens: int | None,
    attention: Attention,
    weights: Weights,
    image_limits: ImageLimits | None,
    *,
    compiled: bool = False,
) -> Family:
    import torch

    from abc_rag.images import ImageLimits
    from abc_rag.models.abc import ABCFamily, ABCSettings, load_network, load_prompts
    from abc_rag.types import Fingerprint

    precision = getattr(torch, dtype if dtype != "auto" else "bfloat16" if found.type == "cuda" else "float32")
    settings = ABCSettings.read(parts.settings_in) if parts.settings_in else ABCSettings(name=parts.name)
    limits = replace(
        settings,
        min_tokens=settings.min_tokens if min_tokens is None else min_tokens,
        max_tokens=settings.max_tokens if max_tokens is None else max_tokens,
    )
    # One limit given by the caller must not contradict the other one's default.
    if limits.min_tokens > limits.max_tokens:
        most = limits.max_tokens if max_tokens is not None else limits.min_tokens
        limits = replace(limits, min_tokens=min(limits.min_tokens, most), max_tokens=most)
    network = load_network(
        parts.base,
        parts.pretrain,
        parts.instruct,
        attention="sdpa" if attention == "auto" else attention,
        dtype=precision,
        device=str(found),
        head_hidden=settings.head_hidden,
        weights=weights,
    )
    network.compiled = compiled
    revision = _revision(parts, weights)
    return ABCFamily(
        network,
        load_prompts(parts.base),
        fingerprint=Fingerprint(settings.name or parts.name, revision, limits.min_tokens, limits.max_tokens),
        image_limits=image_limits or ImageLimits(),
    )
