from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch
from helpers import FIXTURE
from safetensors.torch import load_file

from abc_rag import load_embedder
from abc_rag.embedder import Embedder

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def cases() -> list[dict[str, Any]]:
    return json.loads((FIXTURE / "cases.json").read_text())["single"]


@pytest.fixture(scope="session")
def goldens() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE / "goldens_pillow12.safetensors")


@pytest.fixture(scope="session")
def tiny() -> Embedder:
    """The fixture's checkpoint: random weights, figures by the original research code."""
    return load_embedder(FIXTURE, device="cpu")


@pytest.fixture(scope="session")
def mini() -> Embedder:
    return load_embedder("abc-mini", device="cpu")
