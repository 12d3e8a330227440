"""Where records and their vectors are kept."""

from __future__ import annotations

from abc_rag.store.base import Store
from abc_rag.store.chroma import ChromaStore
from abc_rag.store.copying import CopyReport, copy_store
from abc_rag.store.keywords import Keywords
from abc_rag.store.lance import LanceStore
from abc_rag.store.opening import open_store
from abc_rag.store.parquet import export_parquet
from abc_rag.store.projection import Projection, Shortening, fit_projection, kept_projection, reduce_store
from abc_rag.store.records import filterable, image_id, text_id
from abc_rag.store.roots import Roots

__all__ = [
    "ChromaStore",
    "CopyReport",
    "Keywords",
    "LanceStore",
    "Projection",
    "Roots",
    "Shortening",
    "Store",
    "copy_store",
    "export_parquet",
    "filterable",
    "fit_projection",
    "image_id",
    "kept_projection",
    "open_store",
    "reduce_store",
    "text_id",
]
