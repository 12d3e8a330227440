"""Documents into parts: page pictures, figures and passages, each with its place."""

from __future__ import annotations

from abc_rag.ingest.documents.open import document_records
from abc_rag.ingest.documents.options import DocumentLimits, DocumentOptions, Splitter
from abc_rag.ingest.documents.parts import Box, Figure, PagePicture, Part, Passage, Unread
from abc_rag.ingest.documents.process import DocumentProcess
from abc_rag.ingest.documents.read import read_document
from abc_rag.ingest.documents.reader import Reader
from abc_rag.ingest.documents.readers import READERS
from abc_rag.ingest.documents.splitting import split_text

__all__ = [
    "READERS",
    "Box",
    "DocumentLimits",
    "DocumentOptions",
    "DocumentProcess",
    "Figure",
    "PagePicture",
    "Part",
    "Passage",
    "Reader",
    "Splitter",
    "Unread",
    "document_records",
    "read_document",
    "split_text",
]
