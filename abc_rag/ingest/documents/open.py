"""A document on its way into a store: what it is, and its records a few at a time."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from abc_rag.errors import DocumentError
from abc_rag.ingest.documents.options import DEFAULT_OPTIONS, DocumentOptions
from abc_rag.ingest.documents.parts import Part, Unread
from abc_rag.ingest.documents.process import DocumentProcess
from abc_rag.ingest.documents.read import opened_document
from abc_rag.ingest.documents.reader import Reader
from abc_rag.ingest.documents.readers import READERS
from abc_rag.ingest.documents.records import Documents, Made, reading_of, records_of
from abc_rag.ingest.documents.resolve import resolved_parts
from abc_rag.ingest.documents.splitting import passages
from abc_rag.store.pictures import KeptPictures
from abc_rag.types import URL, Record

__all__ = ["OpenDocument", "document_records", "noted_reading"]

logger = logging.getLogger(__name__)

_CHUNK = 32
_MOST_BYTES = 16 * 2**20


@dataclass
class OpenDocument:
    """A document whose kind is known.

    Attributes:
        name: Its path or its URL.
        place: The folder or the URL that what it links is relative to.
        data: Its content.
        sha256: The hash of that.
        reader: What reads it.
        reading: How it is read; see `abc_rag.ingest.documents.records.reading_of`.
        options: The same, as options.
        unread: Pages that could not be read; complete when `chunks` has ended.
        last: The last record, which says how many there are; None if not all pages could be read.
    """

    name: str
    place: Path | URL
    data: bytes = field(repr=False)
    sha256: str
    reader: Reader
    reading: str
    options: DocumentOptions
    unread: list[Unread] = field(default_factory=list)
    last: Made | None = None

    @classmethod
    def of(cls, path: Path | URL, options: DocumentOptions) -> OpenDocument:
        """Open a file, or fetch what is behind a URL.

        Raises:
            DocumentError: It cannot be read or fetched, or is no document.
            MissingExtraError: Its reader's library is not installed.
        """
        name, place, data, reader = opened_document(path, options)
        return cls(name, place, data, hashlib.sha256(data).hexdigest(), reader, reading_of(reader, options), options)

    def chunks(self, process: DocumentProcess) -> Iterator[list[Made]]:
        """The records, some at a time; the last one of a document that could be read whole says so.

        Raises:
            DocumentError: It cannot be read, or has nothing to index; what was yielded before is sound.
        """
        chunk: list[Made] = []
        count = 0
        with closing(resolved_parts(process, self.data, self.reader, self.options, self.name, self.place)) as parts:
            for made in records_of(passages(self._readable(parts), self.options), self.sha256):
                # The newest record is held back, as it may be the last one.
                if len(chunk) > _CHUNK or sum(len(one.data) for one in chunk) > _MOST_BYTES:
                    yield chunk[:-1]
                    chunk = chunk[-1:]
                chunk.append(made)
                count += 1
        if not count and not self.unread:
            raise DocumentError(self.name, "has nothing to index: no text and no pictures; leave it out")
        if chunk and not self.unread:
            self.last = replace(chunk[-1], record=Documents.closed(chunk[-1].record, count, self.reading))
            chunk[-1] = self.last
        if chunk:
            yield chunk

    def _readable(self, parts: Iterator[Part]) -> Iterator[Part]:
        for part in parts:
            if isinstance(part, Unread):
                self.unread.append(part)
            else:
                yield part


def noted_reading(noted: Sequence[str], options: DocumentOptions) -> str:
    """How a document is read of which hash and reader are noted; empty if there is no such reader."""
    return next((reading_of(reader, options) for reader in READERS if [reader.name] == list(noted[1:])), "")


def document_records(
    path: str | os.PathLike[str],
    *,
    options: DocumentOptions = DEFAULT_OPTIONS,
    pictures: str | os.PathLike[str] | None = None,
    process: DocumentProcess | None = None,
) -> Iterator[Record]:
    """A document's parts as records, as `abc_rag.ingest.index_paths` stores them, without a store; read lazily.

    A page that cannot be read is left out with a logged warning.

    Args:
        path: The file; its kind is told by its content.
        options: How it is read.
        pictures: A folder that receives the pictures of pages and figures; made if missing. Without, passages alone.
        process: Where it is read, so that many documents share one. If not given, a process for this document alone.

    Raises:
        DocumentError: It cannot be read, is encrypted, or has nothing to index.
        MissingExtraError: Its reader's library is not installed.
        StoreError: A picture cannot be written.
    """
    if pictures is None:
        options = replace(options, page_pictures=False, figures=False)
    kept = None if pictures is None else KeptPictures(Path(os.path.expanduser(pictures)))
    document = OpenDocument.of(Path(os.path.abspath(os.path.expanduser(path))), options)
    with nullcontext(process) if process is not None else DocumentProcess() as shared:
        for chunk in document.chunks(shared):
            for made in chunk:
                source = kept.keep(made.data, made.record.mime_type) if kept and made.data else made.record.source
                yield replace(made.record, source=source)
    for unread in document.unread:
        logger.warning("%s, p. %s is left out: %s", document.name, unread.page, unread.reason)
