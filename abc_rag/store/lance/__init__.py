"""The store on Lance, in a folder or on an object store."""

from __future__ import annotations

from abc_rag.store.lance.store import LanceStore

__all__ = ["LanceStore"]
