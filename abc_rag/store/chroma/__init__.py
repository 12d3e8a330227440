"""The store on Chroma, embedded or on a server."""

from __future__ import annotations

from abc_rag.store.chroma.store import ChromaStore

__all__ = ["ChromaStore"]
