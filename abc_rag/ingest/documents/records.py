"""Parts of documents as records: their ids, their metadata, and what a store knows of a document from them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from abc_rag.ingest.documents.office import is_printed
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.parts import Figure, PagePicture, Part, Passage
from abc_rag.ingest.documents.reader import Reader
from abc_rag.store.base import Store
from abc_rag.types import MetadataValue, Record

__all__ = ["Documents", "Made", "is_part", "moved", "reading_of", "records_of"]

_ID = re.compile("part-[0-9a-f]{32}")
_PRINTED = " printed"
_SHA256, _COUNT, _READING = "document_sha256", "document_parts", "document_reading"


@dataclass(frozen=True)
class Made:
    """A record of a part, and the bytes of its picture."""

    record: Record
    data: bytes


def is_part(record: Record) -> bool:
    """Whether a record was made here."""
    return _ID.fullmatch(record.id) is not None and record.document != ""


def reading_of(reader: Reader, options: DocumentOptions) -> str:
    """How a document is read, in a few words: with another reading it is read again."""
    split = f"{options.max_chars}"
    if options.splitter is not None:
        split = getattr(options.splitter, "__qualname__", type(options.splitter).__qualname__)
    kinds = f"{'pages ' * options.page_pictures}{'figures ' * options.figures}{'ocr ' * options.ocr}"
    return (
        f"{reader.name}/{reader.version} {kinds}dpi={options.dpi} split={split}{_PRINTED * is_printed(reader, options)}"
    )


def records_of(parts: Iterator[Part], sha256: str) -> Iterator[Made]:
    """Records of parts. Ids come from the content of the document and the part, and the part's place.

    A picture has no source yet: `abc_rag.store.Store.keep_picture` gives it one.

    Args:
        parts: Of one document, in reading order.
        sha256: The hash of its content.
    """
    counts: Counter[tuple[str, int | None]] = Counter()
    for order, part in enumerate(parts):
        data = part.data if isinstance(part, (PagePicture, Figure)) else b""
        text = part.text if isinstance(part, Passage) else part.caption if isinstance(part, Figure) else ""
        kind = _kind(part)
        counts[kind, part.page] += 1
        content = hashlib.sha256(data).hexdigest() if data else ""
        place = [sha256, kind, part.page, counts[kind, part.page], content, text]
        metadata: dict[str, MetadataValue] = {"document": part.document, _SHA256: sha256, "part": kind, "order": order}
        if part.page is not None:
            metadata["page"] = part.page
            metadata["page_label"] = part.label or str(part.page)
        if part.time is not None:
            metadata["time"] = part.time
        if part.box is not None:
            metadata["box"] = [float(side) for side in part.box]
        if isinstance(part, Passage) and part.confidence is not None:
            metadata["confidence"] = part.confidence
        if part.heading:
            metadata["heading"] = list(part.heading)
        yield Made(
            Record(
                "part-" + hashlib.sha256(json.dumps(place).encode()).hexdigest()[:32],
                "image" if data else "text",
                text=text,
                source="" if data else part.document,
                metadata=metadata,
                sha256=content,
                mime_type=part.mime_type if isinstance(part, (PagePicture, Figure)) else "",
            ),
            data,
        )


def _kind(part: Part) -> str:
    if isinstance(part, Passage):
        return "passage" if part.kind == "text" else part.kind
    return "page" if isinstance(part, PagePicture) else "figure" if part.time is None else "frame"


def moved(record: Record, path: str) -> Record:
    """A record whose file has another path now."""
    if not is_part(record):
        return replace(record, source=path)
    source = record.source if record.modality == "image" else path
    return replace(record, source=source, metadata={**record.metadata, "document": path})


@dataclass
class Documents:
    """What a store holds of documents.

    A document is complete when its last record says how many there are, and so many there are: that one is stored last.
    """

    _ids: dict[str, dict[str, int | None]] = field(default_factory=dict)
    _pictures: dict[str, list[str]] = field(default_factory=dict)
    _told: dict[str, tuple[object, object]] = field(default_factory=dict)

    def note(self, record: Record) -> None:
        """A record of a document."""
        sha256 = str(record.metadata.get(_SHA256))
        self._ids.setdefault(sha256, {})[record.id] = record.page
        if record.modality == "image":
            self._pictures.setdefault(sha256, []).append(record.id)
        if _COUNT in record.metadata:
            self._told[sha256] = (record.metadata[_COUNT], record.metadata.get(_READING))

    def ids(self, sha256: str) -> set[str]:
        """Of all that is stored of a document."""
        return set(self._ids.get(sha256, ()))

    def on(self, sha256: str, pages: set[int | None]) -> set[str]:
        """Ids of what is stored of a document and stands on one of some pages; with None, all."""
        return {id_ for id_, page in self._ids.get(sha256, {}).items() if page in pages or None in pages}

    def is_complete(self, sha256: str, reading: str, store: Store, facets: Sequence[str]) -> bool:
        """Whether all of a document is stored, read so, with all facets."""
        # Where LibreOffice is missing now, what it printed before stays.
        count = len(self._ids.get(sha256, ()))
        if self._told.get(sha256) not in ((count, reading), (count, reading + _PRINTED)):
            return False
        pictures = self._pictures.get(sha256, [])
        if not facets or not pictures:
            return True
        names = store.facet_names(pictures)
        return all(names.get(id_, set()) >= set(facets) for id_ in pictures)

    @staticmethod
    def closed(record: Record, count: int, reading: str) -> Record:
        """The last record of a document."""
        return replace(record, metadata={**record.metadata, _COUNT: count, _READING: reading})
