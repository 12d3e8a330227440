"""A document's parts, as people read them: `read_document`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from abc_rag.errors import DocumentError, InputError, MissingExtraError
from abc_rag.ingest.documents.options import DEFAULT_OPTIONS, DocumentOptions
from abc_rag.ingest.documents.parts import Part
from abc_rag.ingest.documents.process import DocumentProcess
from abc_rag.ingest.documents.reader import HEAD_BYTES, TAIL_BYTES, Reader
from abc_rag.ingest.documents.readers import READERS, reader_of
from abc_rag.ingest.documents.resolve import install_hint, resolved_parts
from abc_rag.ingest.documents.splitting import passages
from abc_rag.ingest.regular import open_regular

__all__ = ["document_bytes", "read_document", "reader_for"]


def document_bytes(path: Path, options: DocumentOptions) -> bytes:
    """The bytes of a document.

    Raises:
        DocumentError: It cannot be read, or is larger than allowed.
    """
    most = options.limits.max_bytes
    try:
        with open(open_regular(path), "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > most:
                reason = f"{size:,} bytes exceed DocumentLimits.max_bytes={most:,}; raise it, or leave the document out"
                raise DocumentError(str(path), reason)
            return file.read(most + 1)[:most]
    except OSError as error:
        raise DocumentError(str(path), f"cannot be read ({error.strerror}); check the path and its rights") from error


def reader_for(data: bytes, name: str) -> Reader:
    """The reader of a document, by its content; of a text, by its name as well.

    Raises:
        DocumentError: No reader knows it.
        MissingExtraError: Its reader's library is not installed.
    """
    reader = reader_of(data[:HEAD_BYTES], data[-TAIL_BYTES:], name)
    if reader is None:
        known = ", ".join(reader.name for reader in READERS)
        raise DocumentError(name, f"is no document of a kind that is read; these are: {known}")
    if (missing := reader.missing()) is not None:
        raise MissingExtraError(f"{name}: {install_hint(reader, missing)}")
    return reader


def read_document(
    path: str | os.PathLike[str], *, options: DocumentOptions = DEFAULT_OPTIONS, process: DocumentProcess | None = None
) -> Iterator[Part]:
    """The parts of a document in reading order, as they are read.

    Args:
        path: The file; its kind is told by its content, that of a text by its name as well.
        options: How it is read.
        process: Where it is read, so that many documents share one. If not given, a process for this document alone.

    Yields:
        `PagePicture`, `Figure` and `Passage` values; an `Unread` for each page that could not be read.

    Raises:
        DocumentError: It cannot be read, is encrypted, or exceeds a limit.
        MissingExtraError: Its reader's library is not installed.
        InputError: The splitter does not return a list of str.
    """
    try:
        name = os.path.abspath(os.path.expanduser(os.fsdecode(path)))
    except TypeError as error:
        raise InputError(f"a document must be a path, not {type(path).__name__}") from error
    data = document_bytes(Path(name), options)
    reader = reader_for(data, name)
    if process is not None:
        yield from passages(resolved_parts(process, data, reader, options, Path(name)), options)
        return
    with DocumentProcess() as own, closing(resolved_parts(own, data, reader, options, Path(name))) as parts:
        yield from passages(parts, options)
