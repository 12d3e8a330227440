"""The models, and the one function that loads any of them."""

from __future__ import annotations

from abc_rag.models.load import ABCCheckpoint, load_embedder

__all__ = ["ABCCheckpoint", "load_embedder"]
