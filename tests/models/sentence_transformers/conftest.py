"""Models, their embedders, and the library itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from st_helpers import (
    MAKERS,
    load,
)

from abc_rag.embedding.embedder import Embedder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def embedders(folders: dict[str, Path]) -> dict[str, Embedder]:
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def library(folders: dict[str, Path]) -> dict[str, SentenceTransformer]:
    return {
        name: SentenceTransformer(str(folder), device="cpu", local_files_only=True) for name, folder in folders.items()
    }
