"""A run over folders and files: what it finds, what it has embedded and not stored yet, what it reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from abc_rag.embedding.ahead import Part, named
from abc_rag.embedding.progress import Progress
from abc_rag.errors import ABCRagError
from abc_rag.images.limits import ImageLimits
from abc_rag.ingest.documents.options import DEFAULT_OPTIONS, DocumentOptions
from abc_rag.ingest.documents.process import DocumentProcess
from abc_rag.ingest.documents.records import Documents
from abc_rag.ingest.facets import store_facets
from abc_rag.ingest.notes import FileNotes
from abc_rag.ingest.ondisk import OnDisk
from abc_rag.ingest.report import IndexReport
from abc_rag.store.base import Store
from abc_rag.types import Record, Vectors

__all__ = ["Item", "Run"]

# Vectors and seconds after which what is finished is stored: an interrupted run loses no more.
_MOST_ITEMS = 256
_COMMIT_S = 3.0


@dataclass
class Item(Part):
    """A picture or a passage that lacks a vector, and the files that hold it.

    Attributes:
        record: What is stored of it.
        paths: The files.
        data: Of a picture, its bytes.
        is_new: It is not stored yet.
        lacks: Of a picture, the facets that it gets.
        files: How many files are finished with it, for the progress bar.
    """

    record: Record
    paths: list[Path | str]
    data: bytes
    is_new: bool = True
    lacks: Sequence[str] = ()
    files: int = 0


@dataclass
class Run:
    """What a run needs to know from its first file to its last.

    Attributes:
        sources: Id -> where the store says that it came from, at the start.
        known: Id -> file, of those that were made from files before.
        seen: Id -> the first file in which it was found now; only what is stored.
        worded: Ids of pictures whose words have been read, with nothing.
        stale: Ids that are no longer in the file they came from -> that file.
        pending: What is embedded and not stored yet, with the results.
        in_flight: Ids of what is being embedded or pending.
        notes: What was in which file when it was read last.
        stored_at: When anything was stored last, by the monotonic clock.
        options: How documents are read.
        process: Where.
        documents: What was stored of documents at the start.
        read: Hashes of the documents that were found.
        closed: Documents whose last record is stored, but does not say yet that all are.
    """

    store: Store
    limits: ImageLimits
    facets: Sequence[str]
    report: IndexReport
    bar: Progress
    notes: FileNotes
    sources: OnDisk = field(default_factory=OnDisk)
    known: OnDisk = field(default_factory=OnDisk)
    seen: OnDisk = field(default_factory=OnDisk)
    stale: OnDisk = field(default_factory=OnDisk)
    worded: OnDisk = field(default_factory=OnDisk)
    pending: list[tuple[Item, list[Vectors | ABCRagError]]] = field(default_factory=list)
    in_flight: set[str] = field(default_factory=set)
    stored_at: float = field(default_factory=time.monotonic)
    options: DocumentOptions = DEFAULT_OPTIONS
    process: DocumentProcess = field(default_factory=DocumentProcess)
    documents: Documents = field(default_factory=Documents)
    read: set[str] = field(default_factory=set)
    closed: list[Record] = field(default_factory=list)

    def fail(self, error: ABCRagError, *paths: Path | str) -> None:
        """Report files that cannot be used."""
        reason = str(named(error, str(paths[0]))).removeprefix(f"{paths[0]}: ")
        self.report.failed += [(str(path), reason) for path in paths]

    def has(self, sha256: str, reading: str) -> bool:
        """Whether a document has been found already, or all of it is stored."""
        return sha256 in self.read or self.documents.is_complete(sha256, reading, self.store, self.facets)

    def finish(self, item: Item, results: list[Vectors | ABCRagError]) -> None:
        """Take what came of an item; store it together with others, soon."""
        self.pending.append((item, results))
        item.inputs, item.data = [], b""
        many = sum(len(results) for _, results in self.pending) >= _MOST_ITEMS
        if many or time.monotonic() - self.stored_at >= _COMMIT_S:
            self.commit()

    def commit(self) -> None:
        """Store what is pending. Of a picture's facets, all or none."""
        records: list[Record] = []
        vectors: list[Vectors] = []
        facets: dict[tuple[str, str], Vectors] = {}
        for item, results in self.pending:
            found = [result for result in results if not isinstance(result, ABCRagError)]
            if item.is_new and not isinstance(results[0], ABCRagError):
                records.append(item.record)
                vectors.append(results[0])
            if len(found) == len(results):
                own = found[-len(item.lacks) :] if item.lacks else []
                facets.update(zip(((item.record.id, facet) for facet in item.lacks), own, strict=True))
            else:
                self.fail(next(result for result in results if isinstance(result, ABCRagError)), *item.paths)
        if records:
            self.store.add(records, vectors)
        store_facets(self.store, facets)
        self.report.added += len(records)
        self.report.facets += len(facets)
        self.seen.put((record.id, record.document or record.source) for record in records)
        self.in_flight.difference_update(item.record.id for item, _ in self.pending)
        self.pending.clear()
        self.stored_at = time.monotonic()

    def close(self) -> None:
        """Remove temporary files."""
        for kept in (self.sources, self.known, self.seen, self.stale, self.worded):
            kept.close()
