"""What the tests of both VLM2Vec backbones share: records of a fixture's cases.json as inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from abc_rag import Image, Input, Interleaved, Text

FIXTURES = Path(__file__).parent / "fixtures"
QWEN = FIXTURES / "vlm2vec_qwen2vl"
TOLERANCE = 1e-5


def read_cases(folder: Path) -> dict[str, Any]:
    """Of cases.json, ``single`` by id."""
    found = json.loads((folder / "cases.json").read_text())
    return {**found, "single": {case["id"]: case for case in found["single"]}}


def read_goldens(folder: Path) -> dict[str, np.ndarray]:
    """``goldens_pillow12.safetensors`` where there is one, for Pillow's versions differ."""
    file = folder / "goldens_pillow12.safetensors"
    return {
        name: tensor.numpy()
        for name, tensor in load_file(file if file.exists() else folder / "goldens.safetensors").items()
    }


def as_input(folder: Path, case: dict[str, Any], tag: str) -> Input:
    """The prompt of a case to the letter, with its picture where the tag stands."""
    if case["image"] is None:
        return Text(case["text"])
    before, _, after = case["text"].partition(tag)
    parts = [Text(before) if before else None, Image(folder / case["image"]), Text(after) if after else None]
    return Interleaved([part for part in parts if part is not None])


def unrolled(ids: list[Any], picture: int | None = None) -> list[int]:
    """Token ids, of which runs are written ``{"id": ..., "times": ...}``; ``picture`` replaces those of pictures."""
    found: list[int] = []
    for one in ids:
        if isinstance(one, dict):
            found += [one["id"] if picture is None else picture] * one["times"]
        else:
            found.append(one)
    return found


def change_tensors(file: Path, change: Any) -> None:
    """Rewrite a safetensors file by ``change(tensors)``."""
    tensors: dict[str, torch.Tensor] = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
