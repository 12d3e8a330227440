"""Records and filters in Chroma's words: metadata, documents, uris and ``where``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

from abc_rag.errors import InputError
from abc_rag.store.filters import (
    MIME_TYPE,
    MODALITY,
    OF,
    SHA256,
    SOURCE,
    SOURCE_TYPE,
    All,
    Condition,
    Either,
    Moment,
    fields_of,
    moment_of,
)
from abc_rag.store.records import checked_records
from abc_rag.types import MetadataValue, Record

__all__ = ["batches", "metadata_of", "records_of", "size_of", "to_where"]

logger = logging.getLogger(__name__)

_OWN = "abc:"
# Beside ISO 8601 text: the same moment in seconds, as Chroma orders numbers only.
_AT = "abc:at:"


def metadata_of(record: Record, of: str) -> dict[str, Any]:
    """What Chroma keeps as a record's metadata."""
    stored: dict[str, Any] = {SOURCE: "", **fields_of(record)}
    for key, value in record.metadata.items():
        seconds = _seconds(value)
        if seconds is not None:
            stored[_AT + key] = seconds
    if of:
        stored[OF] = of
    return stored


def _seconds(value: MetadataValue) -> float | None:
    moment = moment_of(value)
    return None if moment is None else moment.seconds


def size_of(record: Record, dim: int) -> int:
    """The bytes of a record in a request, rather too many than too few."""
    # base64 of float32, and what is around it; texts and the source are indexed a second time.
    size = 6 * dim + 200 + 2 * sum(len(text.encode()) for text in (record.text, record.source)) + 200
    return size + sum(len(key.encode()) + len(str(value).encode()) + 48 for key, value in record.metadata.items())


def records_of(ids: Sequence[str], metadatas: Any, documents: Any, uris: Any) -> list[Record]:  # noqa: ANN401
    """The records of an answer. A damaged one is left out with a warning that names it."""
    found = []
    for id_, metadata, document, uri in zip(ids, metadatas, documents, uris, strict=True):
        values = dict(metadata or {})
        # A record that something else wrote has no modality: one with a reference alone is a picture.
        guess = "image" if uri and not document else "text"
        record = Record(
            id_,
            values.get(MODALITY, guess),
            document or "",
            values.get(SOURCE) or uri or "",
            {key: value for key, value in values.items() if not key.startswith(_OWN)},
            values.get(SOURCE_TYPE, "path"),
            values.get(SHA256, ""),
            values.get(MIME_TYPE, ""),
        )
        try:
            # What was written here is sound; only what something else wrote needs a look.
            found += [record] if _plain(record) else checked_records([record])
        except InputError as error:
            logger.warning("a damaged record is left out; delete it and add it again: %s", error)
    return found


def _plain(record: Record) -> bool:
    own = (record.source, record.sha256, record.mime_type)
    return (
        all(type(value) is str for value in own)
        and record.modality in ("text", "image")
        and record.source_type in ("path", "url", "kept")
        and all(type(value) in (str, int, float, bool, list) for value in record.metadata.values())
    )


def to_where(condition: Condition | None) -> dict[str, Any] | None:
    """Chroma's ``where`` for a filter."""
    if condition is None:
        return None
    if isinstance(condition, (All, Either)):
        return {"$and" if isinstance(condition, All) else "$or": [to_where(part) for part in condition.parts]}
    key, name, value = condition.key, condition.operator, condition.value
    if isinstance(value, tuple):
        # Chroma wants the values of a list to be of one type.
        groups: dict[str, list[Any]] = {}
        for one in value:
            kind = type(one).__name__
            groups.setdefault("float" if kind == "int" else kind, []).append(one)
        parts = [_list_test(key, name, kind, ones) for kind, ones in groups.items()]
        return parts[0] if len(parts) == 1 else {"$or" if name == "$in" else "$and": parts}
    if isinstance(value, Moment):
        return {_AT + key: {name: value.seconds}}
    if name in ("$contains", "$not_contains") and isinstance(value, (int, float)) and not isinstance(value, bool):
        # In lists Chroma tells 1 from 1.0.
        whole = [int(value)] if value == int(value) else []
        parts = [{key: {name: one}} for one in [float(value), *whole]]
        return parts[0] if len(parts) == 1 else {"$or" if name == "$contains" else "$and": parts}
    return {key: {name: value}}


def _list_test(key: str, name: str, kind: str, values: list[Any]) -> dict[str, Any]:
    if kind == "Moment":
        return {_AT + key: {name: [cast("Moment", one).seconds for one in values]}}
    if kind == "float":
        whole = all(isinstance(one, int) for one in values)
        return {key: {name: values if whole else [float(one) for one in values]}}
    return {key: {name: values}}


def batches(sizes: Sequence[int], most: int, most_bytes: int) -> Iterator[slice]:
    """Cut a sequence so that no part exceeds ``most`` items or, unless it is a single item, ``most_bytes``."""
    start = held = 0
    for position, size in enumerate(sizes):
        if position > start and (position - start >= most or held + size > most_bytes):
            yield slice(start, position)
            start, held = position, 0
        held += size
    if start < len(sizes):
        yield slice(start, len(sizes))
