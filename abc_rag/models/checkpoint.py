"""Weights in files: safetensors or what ``torch.save`` wrote, every tensor accounted for before memory is taken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from abc_rag.errors import CheckpointError
from abc_rag.models.config import part_file, read_json, shown

__all__ = [
    "TORCH_ADAPTER",
    "StoredTensors",
    "allocate",
    "fill",
    "folder_revision",
    "match_tensors",
    "stored_tensors",
    "weight_files",
]

TORCH_ADAPTER = "adapter_model.bin"
"""An adapter as ``torch.save`` writes it; see `abc_rag.models.torch_file`."""
_SHOWN = 8
_MAX_TENSORS = 100_000
_MAX_HEADER_BYTES = 32 * 2**20
_MAX_INDEX_BYTES = 16 * 2**20
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class StoredTensors:
    """Tensors in files; names, shapes and types are known before any of them is read.

    Attributes:
        where: The files, for messages.
        shapes: By name.
        read: Yields each name with its tensor.
        others: Names of those that are no floating-point numbers.
    """

    where: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[], Iterator[tuple[str, torch.Tensor]]]
    others: frozenset[str] = frozenset()

    def check_layers(self, config: object, name: str, count: int) -> None:
        """Refuse more layers than there are tensors, before any are built.

        Raises:
            CheckpointError: ``count``, which ``config`` calls ``name``, is larger.
        """
        if count > len(self.shapes):
            raise CheckpointError(
                f"{config}: {name} is {count}, but there are only {len(self.shapes)} tensors in {self.where}"
            )

    def check_size(self, name: str, size: int) -> None:
        """Refuse a size that no tensor has, before anything of that size is built.

        Raises:
            CheckpointError: No tensor is that wide.
        """
        if not any(size in shape and 0 not in shape for shape in self.shapes.values()):
            raise CheckpointError(f"{self.where}: {name} is {size}, but no tensor is that wide")


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a model: ``stem.safetensors``, or the shards that its index names.

    Args:
        folder: Where to look; nothing outside is opened.
        stem: ``"model"`` or ``"adapter_model"``.

    Raises:
        CheckpointError: There are none, or they lie elsewhere. Pickled weights (``.bin``) are never read.
    """
    single = part_file(folder, f"{stem}.safetensors")
    if single.is_file():
        return [single]
    index = part_file(folder, f"{stem}.safetensors.index.json")
    if index.is_file():
        shards = read_json(index, max_bytes=_MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{index}: weight_map is {shown(shards)}; expected the file of each tensor")
        try:
            files = [part_file(folder, name) for name in sorted(set(shards.values()))]
        except CheckpointError as error:
            raise CheckpointError(f"{index}: names files elsewhere ({error})") from error
        missing = [f.name for f in files if not f.is_file()]
        if missing or not files:
            raise CheckpointError(f"{index}: shards are missing: {', '.join(missing[:_SHOWN]) or 'none are named'}")
        return files
    pickled = sorted(p.name for p in folder.glob(f"{'pytorch_model' if stem == 'model' else stem}*.bin"))
    hint = f" ({pickled[0]} is a pickle and is never read; convert it to safetensors)" if pickled else ""
    raise CheckpointError(f"{folder}: no {stem}.safetensors here{hint}")


def stored_tensors(folder: Path, stem: str) -> StoredTensors:
    """What is in the safetensors files of a model; only their headers are read. See `weight_files`.

    Raises:
        CheckpointError: There are none, or they cannot be read.
    """
    files = weight_files(folder, stem)
    shapes: dict[str, tuple[int, ...]] = {}
    others = set()
    for file in files:
        try:
            with file.open("rb") as raw:
                header = int.from_bytes(raw.read(8), "little")
            if header > _MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{file}: its header has {header:,} bytes; at most {_MAX_HEADER_BYTES:,} are read"
                )
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():
                    if name in shapes:
                        raise CheckpointError(f"{file}: tensor {shown(name)} is in another file too")
                    entry = handle.get_slice(name)
                    shapes[name] = tuple(entry.get_shape())
                    if entry.get_dtype() not in _FLOATS:
                        others.add(name)
        except (SafetensorError, OSError, OverflowError, ValueError) as error:
            raise CheckpointError(f"{file}: not readable as safetensors ({error}); fetch it again") from error
        if len(shapes) > _MAX_TENSORS:
            raise CheckpointError(f"{file}: more than {_MAX_TENSORS:,} tensors")
    return StoredTensors(str(folder), shapes, lambda: _read(files), frozenset(others))


def _read(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():
                    yield name, handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not readable as safetensors ({error}); fetch it again") from error


def match_tensors(
    wanted: Mapping[str, torch.Tensor], stored: StoredTensors, rename: Callable[[str], str | None]
) -> dict[str, str]:
    """Find the parameter of every stored tensor, and check that none is over on either side. Reads no tensor.

    Args:
        wanted: Parameters by name; they may be on the meta device.
        stored: What is in the files.
        rename: Stored name -> parameter name, or None for a tensor that is known not to be needed.

    Returns:
        Stored name -> parameter name.

    Raises:
        CheckpointError: A tensor is missing, left over, or of another shape or type. The message names it.
    """
    left = dict(wanted)
    found: dict[str, str] = {}
    extra, misshapen, mistyped = [], [], []
    for name, shape in stored.shapes.items():
        target = rename(name)
        if target is None:
            continue
        parameter = left.pop(target, None)
        if parameter is None:
            extra.append(name)
        elif tuple(parameter.shape) != shape:
            misshapen.append(f"{name} is {shape}, expected {tuple(parameter.shape)}")
        elif name in stored.others:
            mistyped.append(name)
        else:
            found[name] = target
    problems = [
        f"{len(names)} tensor(s) {what}: {', '.join(sorted(names)[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
        for what, names in (
            ("left over", extra),
            ("of another shape", misshapen),
            ("not of floating-point numbers", mistyped),
            ("missing", list(left)),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{stored.where}: {'; '.join(problems)}. The files do not belong to this configuration")
    return found


def allocate(module: nn.Module, device: torch.device | str) -> None:
    """Give the parameters of a module that are on the meta device memory on another."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_meta:
                # Not empty_like, which imports a second's worth of torch for a tensor on the meta device.
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                setattr(part, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))


def fill(
    wanted: Mapping[str, torch.Tensor],
    stored: StoredTensors,
    names: Mapping[str, str],
    *,
    change: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Copy stored tensors into parameters.

    Args:
        wanted: Parameters by name.
        stored: What is in the files.
        names: From `match_tensors`.
        change: Called with a parameter's name and its stored tensor; gives what is copied.
    """
    with torch.no_grad():
        for name, tensor in stored.read():
            if target := names.get(name):
                wanted[target].copy_(tensor if change is None else change(target, tensor))


def folder_revision(*folders: Path) -> str:
    """A short hash of local checkpoint folders, for the fingerprint.

    Small files are hashed whole. Of a weight file over 64 MiB, only its size and its first and last MiB are: hashing
    15 GB at every start would take too long.
    """
    digest = hashlib.sha256()
    whole = 64 * 2**20
    for folder in folders:
        for file in sorted(folder.iterdir()):
            part_file(folder, file.name)
            counts = file.suffix in {".safetensors", ".json", ".txt", ".jinja"} or file.name == TORCH_ADAPTER
            if not file.is_file() or not counts:
                continue
            if file.name in {"run.json", "parts.json", "results.json"}:
                continue  # records of a run or an evaluation are no part of a model
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}\n".encode())
            with file.open("rb") as handle:
                if size <= whole:
                    digest.update(handle.read())
                else:
                    digest.update(handle.read(2**20))
                    handle.seek(-(2**20), 2)
                    digest.update(handle.read())
    return digest.hexdigest()[:12]
