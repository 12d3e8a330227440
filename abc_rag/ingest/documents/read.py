"""A document's parts, as people read them: `read_document`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from abc_rag.errors import DocumentError, ImageError, InputError, MissingExtraError
from abc_rag.images.fetch import fetch_page
from abc_rag.ingest.documents.options import DEFAULT_OPTIONS, DocumentOptions
from abc_rag.ingest.documents.parts import Part
from abc_rag.ingest.documents.process import DocumentProcess
from abc_rag.ingest.documents.reader import HEAD_BYTES, TAIL_BYTES, Reader
from abc_rag.ingest.documents.readers import READERS, reader_named, reader_of
from abc_rag.ingest.documents.resolve import install_hint, resolved_parts
from abc_rag.ingest.documents.splitting import passages
from abc_rag.ingest.regular import open_regular
from abc_rag.types import URL

__all__ = ["opened_document", "read_document"]


def _fetched(url: URL, options: DocumentOptions) -> tuple[bytes, URL]:
    """The bytes behind a URL, and the URL after redirects.

    Raises:
        DocumentError: Fetching is not allowed or failed, or there is more than allowed.
    """
    if not options.allow_web:
        reason = "fetching web pages is off; pass --allow-web or DocumentOptions(allow_web=True) to allow it"
        raise DocumentError(url.url, reason)
    limits = options.limits
    try:
        data, final = fetch_page(url.url, max_bytes=limits.max_bytes, timeout_s=limits.url_timeout_s)
    except ImageError as error:
        raise DocumentError(url.url, error.reason) from error
    return data, URL(final)


def _bytes(path: Path, options: DocumentOptions) -> bytes:
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


def _reader(data: bytes, name: str, *, from_web: bool = False) -> Reader:
    """The reader of a document, by its content; of a text, by its name as well.

    Args:
        data: The document.
        name: Its path or its URL.
        from_web: It was fetched: HTML is read as an article.

    Raises:
        DocumentError: No reader knows it.
        MissingExtraError: Its reader's library is not installed.
    """
    reader = reader_of(data[:HEAD_BYTES], data[-TAIL_BYTES:], urlsplit(name).path if from_web else name)
    if from_web and reader is not None and reader.name == "HTML":
        reader = reader_named("web page")
    if reader is None:
        known = ", ".join(reader.name for reader in READERS)
        raise DocumentError(name, f"is no document of a kind that is read; these are: {known}")
    if (missing := reader.missing()) is not None:
        raise MissingExtraError(f"{name}: {install_hint(reader, missing)}")
    return reader


def read_document(
    path: str | os.PathLike[str] | URL,
    *,
    options: DocumentOptions = DEFAULT_OPTIONS,
    process: DocumentProcess | None = None,
) -> Iterator[Part]:
    """The parts of a document in reading order, as they are read.

    Args:
        path: The file; its kind is told by its content, that of a text by its name as well. Or a URL, where
            ``options.allow_web`` is set.
        options: How it is read.
        process: Where it is read, so that many documents share one. If not given, a process for this document alone.

    Yields:
        `PagePicture`, `Figure` and `Passage` values; an `Unread` for each page that could not be read.

    Raises:
        DocumentError: It cannot be read, is encrypted, exceeds a limit, or is not fetched.
        MissingExtraError: Its reader's library is not installed.
        InputError: The splitter does not return a list of str.
    """
    name, place, data, reader = opened_document(path, options)
    if process is not None:
        yield from passages(resolved_parts(process, data, reader, options, name, place), options)
        return
    with DocumentProcess() as own, closing(resolved_parts(own, data, reader, options, name, place)) as parts:
        yield from passages(parts, options)


def opened_document(
    path: str | os.PathLike[str] | URL, options: DocumentOptions
) -> tuple[str, Path | URL, bytes, Reader]:
    """A document's name, the folder or the URL that what it links is relative to, its bytes and its reader.

    Raises:
        DocumentError: It cannot be read or fetched, or is no document.
        MissingExtraError: Its reader's library is not installed.
    """
    if isinstance(path, URL):
        data, final = _fetched(path, options)
        return path.url, final, data, _reader(data, path.url, from_web=True)
    try:
        name = os.path.abspath(os.path.expanduser(os.fsdecode(path)))
    except TypeError as error:
        raise InputError(f"a document must be a path or a URL, not {type(path).__name__}") from error
    data = _bytes(Path(name), options)
    return name, Path(name).parent, data, _reader(data, name)
