"""A folder to index, a store, and a function that does it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ingest_helpers import Counting, Index

from abc_rag import ChromaStore
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.images.limits import ImageLimits
from abc_rag.ingest import paths as ingest
from abc_rag.ingest.paths import index_paths
from abc_rag.ingest.report import IndexReport


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made.resolve()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChromaStore]:
    with ChromaStore(path=tmp_path / "store", fingerprint=FakeEmbedder().fingerprint) as opened:
        yield opened


@pytest.fixture
def index(folder: Path, store: ChromaStore) -> Index:
    """Index paths (the whole folder if none); what was done, and how many items were embedded for it."""

    def run(*paths: Path, limits: ImageLimits = ingest.DEFAULT_LIMITS) -> tuple[IndexReport, int]:
        embedder = Counting()
        report = index_paths(paths or [folder], embedder, store, limits=limits)
        return report, embedder.embedded

    return run
