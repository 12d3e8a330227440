"""Backbones and prompts that the tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from phi3_v_helpers import (
    ATTENTIONS,
    MODEL,
)

from abc_rag.models.phi3_v.network import Phi3VBackbone
from abc_rag.models.phi3_v.prompts import Phi3VPrompts, load_phi3_v_prompts
from abc_rag.models.phi3_v.weights import load_phi3_v
from abc_rag.models.placement import Placement


@pytest.fixture(scope="module", params=ATTENTIONS)
def any_backbone(request: pytest.FixtureRequest) -> Phi3VBackbone:
    return load_phi3_v(MODEL, place=Placement(request.param))


@pytest.fixture(scope="module")
def backbone() -> Phi3VBackbone:
    return load_phi3_v(MODEL)


@pytest.fixture(scope="module")
def prompts() -> Phi3VPrompts:
    return load_phi3_v_prompts(MODEL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the model to break."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))
