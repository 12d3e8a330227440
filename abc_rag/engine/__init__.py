"""What makes a model family an embedder: preprocessing, scheduling, one owner of the model."""

from __future__ import annotations

from abc_rag.engine.local import LocalEmbedder

__all__ = ["LocalEmbedder"]
