"""Where records and their vectors are kept."""

from __future__ import annotations

from abc_rag.store.base import image_id, text_id
from abc_rag.store.chroma import ChromaStore

__all__ = ["ChromaStore", "image_id", "text_id"]
