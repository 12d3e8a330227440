"""What people have, into a store."""

from __future__ import annotations

from abc_rag.ingest.files import IMAGE_SUFFIXES, TEXT_SUFFIXES
from abc_rag.ingest.passages import passages_of
from abc_rag.ingest.paths import index_paths
from abc_rag.ingest.pictures import index_images
from abc_rag.ingest.report import IndexReport

__all__ = ["IMAGE_SUFFIXES", "TEXT_SUFFIXES", "IndexReport", "index_images", "index_paths", "passages_of"]
