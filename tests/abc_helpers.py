"""ABC's fixture: copies to break, and how far vectors are from its figures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import FIXTURE, as_input

from abc_rag.embedding.embedder import Embedder
from abc_rag.models.abc.family import ABCFamily

ATTENTIONS = ("sdpa", "eager")
SQUARE = ("img_shapes_56x56", "i_224", "i_20_left")


def family_of(embedder: Embedder) -> ABCFamily:
    family = embedder.family  # type: ignore[attr-defined]
    assert isinstance(family, ABCFamily)
    return family


def worst(embedder: Embedder, cases: list[dict[str, Any]], goldens: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest coordinate difference of each case, embedded by itself."""
    return {
        case["id"]: float(
            np.abs(embedder.embed([as_input(case)])[0] - goldens[f"{case['id']}.embedding"].numpy()).max()
        )
        for case in cases
    }


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("images", "goldens*")))
