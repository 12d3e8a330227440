"""Reading checkpoints: safetensors only, and every tensor accounted for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from abc_rag.errors import CheckpointError

__all__ = ["TORCH_ADAPTER", "assign_tensors", "folder_revision", "iter_tensors", "read_json", "weight_files"]

_SHOWN = 8
TORCH_ADAPTER = "adapter_model.bin"
"""An adapter as ``torch.save`` writes it; see `abc_rag.models.torch_file`."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or malformed file is a `CheckpointError` that names it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not found; the folder is not a complete checkpoint") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a model: ``stem.safetensors``, or the shards its index names.

    Args:
        folder: Where to look.
        stem: ``"model"`` or ``"adapter_model"``.

    Raises:
        CheckpointError: There are none. Pickled weights (``.bin``) are never read.
    """
    single = folder / f"{stem}.safetensors"
    if single.is_file():
        return [single]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        files = [folder / name for name in names]
        missing = [f.name for f in files if not f.is_file()]
        if missing or not files:
            raise CheckpointError(f"{index}: shards are missing: {', '.join(missing) or 'none are named'}")
        return files
    pickled = sorted(p.name for p in folder.glob(f"{'pytorch_model' if stem == 'model' else stem}*.bin"))
    hint = f" ({pickled[0]} is a pickle and is never read; convert it to safetensors)" if pickled else ""
    raise CheckpointError(f"{folder}: no {stem}.safetensors here{hint}")


def iter_tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every (name, tensor) of some safetensors files."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():
                    yield name, handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not readable as safetensors ({error}); fetch it again") from error


def assign_tensors(
    wanted: Mapping[str, torch.Tensor],
    tensors: Iterator[tuple[str, torch.Tensor]],
    rename: Callable[[str], str | None],
    *,
    where: str,
    put: Callable[[str, torch.Tensor], None],
) -> None:
    """Hand every checkpoint tensor to the parameter it belongs to, and check that none is over on either side.

    Args:
        wanted: Parameter name -> parameter (its shape is checked).
        tensors: (name, tensor) pairs of the checkpoint.
        rename: Checkpoint name -> parameter name, or ``None`` for a tensor that is known not to be needed.
        where: What is being loaded, for messages.
        put: Called with (parameter name, tensor).

    Raises:
        CheckpointError: A tensor is missing, left over, or of another shape. The message names it.
    """
    left = dict(wanted)
    extra, misshapen = [], []
    for name, tensor in tensors:
        target = rename(name)
        if target is None:
            continue
        parameter = left.pop(target, None)
        if parameter is None:
            extra.append(name)
        elif parameter.shape != tensor.shape:
            misshapen.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(parameter.shape)}")
        else:
            put(target, tensor)
    problems = [
        f"{len(names)} tensor(s) {what}: {', '.join(sorted(names)[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
        for what, names in (("left over", extra), ("of another shape", misshapen), ("missing", list(left)))
        if names
    ]
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}. The files do not belong to this configuration")


def folder_revision(*folders: Path) -> str:
    """A short hash of local checkpoint folders, for the fingerprint.

    Small files count whole. Of a weight file over 64 MiB the size, the header and both ends count:
    hashing 15 GB at every start would cost more than it tells.
    """
    digest = hashlib.sha256()
    whole = 64 * 2**20
    for folder in folders:
        for file in sorted(folder.iterdir()):
            counts = file.suffix in {".safetensors", ".json", ".txt", ".jinja"} or file.name == TORCH_ADAPTER
            if not file.is_file() or not counts:
                continue
            if file.name in {"run.json", "parts.json", "results.json"}:
                continue  # what a run or an evaluation says beside a model is no part of it
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
