"""Inputs in, unit vectors out: the seam, loading a model behind it, and a fake for tests."""

from __future__ import annotations

from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.embedding.load import ABCCheckpoint, load_embedder
from abc_rag.embedding.projected import ProjectedEmbedder
from abc_rag.embedding.settings import EngineSettings, WorkerKind

__all__ = [
    "ABCCheckpoint",
    "BatchSize",
    "Embedder",
    "EngineSettings",
    "FakeEmbedder",
    "ProjectedEmbedder",
    "WorkerKind",
    "load_embedder",
]
