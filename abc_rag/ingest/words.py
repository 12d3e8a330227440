"""The words on picture files: read by OCR, and kept with the picture, where a keyword search finds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from abc_rag.errors import DocumentError
from abc_rag.ingest.documents.parts import Part, Passage, Unread
from abc_rag.ingest.documents.readers import PICTURES
from abc_rag.ingest.files import Found
from abc_rag.ingest.run import Item, Run
from abc_rag.types import MetadataValue, Record

__all__ = ["has_been_read", "lacks_words", "read_words", "unread_in"]

_MARK = "ocr"
_ENGINE = "rapidocr"


def has_been_read(record: Record) -> bool:
    """Whether the words on a picture have been looked for."""
    return _MARK in record.metadata


def lacks_words(record: Record, run: Run) -> bool:
    """Whether a record is a picture file whose words are wanted and were never read."""
    return run.options.ocr and record.modality == "image" and not record.document and record.id not in run.worded


def unread_in(files: Iterable[Found], noted: dict[str, list[str] | None], run: Run) -> set[str]:
    """Ids of picture files that have to be opened for their words.

    Args:
        files: Files, of any kind.
        noted: Path -> ids of what is in it, where that is known.
        run: The run.
    """
    if not run.options.ocr:
        return set()
    ids = (id_ for found in files if found.kind == "image" for id_ in noted[str(found.path)] or ())
    return {id_ for id_ in ids if id_ not in run.worded}


def read_words(item: Item, run: Run) -> None:
    """Put the words on a picture into its record, also where that is stored. A failure is reported.

    They are no passages: the picture is one hit, and nothing but it is embedded.
    """
    record, path = item.record, item.paths[0]
    # What is accepted as a picture may be read.
    options = replace(run.options, limits=replace(run.options.limits, max_pixels=run.limits.max_pixels))
    try:
        parts = list(run.process.parts(item.data, PICTURES, options, str(path)))
        why = next((part.reason for part in parts if isinstance(part, Unread)), "")
    except DocumentError as error:
        why = error.reason
    if why:
        run.report.failed.append((str(path), f"indexed without the words on it: {why}"))
        return
    if item.is_new:
        item.record = _worded(record, parts)
    else:
        stored = run.store.get([record.id])
        vectors = run.store.vectors([record.id])
        run.store.add([_worded(one, parts) for one in stored], [vectors[one.id] for one in stored])
    run.worded[record.id] = ""


def _worded(record: Record, parts: Sequence[Part]) -> Record:
    """A record with the words on its picture behind its own."""
    found = [part for part in parts if isinstance(part, Passage)]
    metadata: dict[str, MetadataValue] = {**record.metadata, _MARK: _ENGINE}
    if found:
        scores = [part.confidence or 0.0 for part in found]
        metadata["boxes"] = [side for part in found for side in part.box or ()]
        metadata["confidences"] = scores
        metadata["confidence"] = round(sum(scores) / len(scores), 3)
    words = "\n\n".join(part.text for part in found)
    return replace(record, text="\n\n".join(filter(None, (record.text, words))), metadata=metadata)
