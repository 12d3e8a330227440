"""What makes a model family an embedder: preprocessing, scheduling, caches, one owner of the model."""

from __future__ import annotations

from abc_rag.engine._runner import BatchReport
from abc_rag.engine.local import LocalEmbedder
from abc_rag.engine.settings import EngineSettings, WorkerKind

__all__ = ["BatchReport", "EngineSettings", "LocalEmbedder", "WorkerKind"]
