"""Which readers there are, and which one reads a file."""

from __future__ import annotations

import os
from pathlib import Path

from abc_rag.ingest.documents.csv import CSVReader
from abc_rag.ingest.documents.docx import DOCXReader
from abc_rag.ingest.documents.epub import EPUBReader
from abc_rag.ingest.documents.html import HTMLReader
from abc_rag.ingest.documents.mail import MailReader
from abc_rag.ingest.documents.markdown import MarkdownReader
from abc_rag.ingest.documents.pdf import PDFReader
from abc_rag.ingest.documents.photo import PictureReader
from abc_rag.ingest.documents.pptx import PPTXReader
from abc_rag.ingest.documents.reader import HEAD_BYTES, TAIL_BYTES, Reader
from abc_rag.ingest.documents.video import VideoReader
from abc_rag.ingest.documents.web import WebReader
from abc_rag.ingest.documents.xlsx import XLSXReader
from abc_rag.ingest.regular import open_regular

__all__ = ["PICTURES", "READERS", "head_and_tail", "reader_named", "reader_of"]

READERS: tuple[Reader, ...] = (
    *(PDFReader(), DOCXReader(), PPTXReader(), XLSXReader(), EPUBReader(), HTMLReader(), MailReader()),
    *(MarkdownReader(), CSVReader(), VideoReader(), WebReader()),
)
"""In the order in which they are asked."""
PICTURES = PictureReader()
"""Reads the words on picture files; never asked."""


def reader_of(head: bytes, tail: bytes, name: str | os.PathLike[str]) -> Reader | None:
    """The reader of a document, by its first `HEAD_BYTES`, its last `TAIL_BYTES` and its name; None for others."""
    suffix = os.path.splitext(name)[1].lower()
    return next((reader for reader in READERS if reader.recognises(head, tail, suffix)), None)


def head_and_tail(path: Path) -> tuple[bytes, bytes]:
    """The bytes of a file by which readers recognise it.

    Raises:
        InputError: It is not a regular file.
        OSError: It cannot be opened.
    """
    with open(open_regular(path), "rb", buffering=0) as file:
        head = file.read(HEAD_BYTES)
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        return head, file.read(TAIL_BYTES)


def reader_named(name: str) -> Reader:
    """The reader with a name.

    Raises:
        KeyError: There is none.
    """
    return {reader.name: reader for reader in (*READERS, PICTURES)}[name]
