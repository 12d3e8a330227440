"""Records and filters in Chroma's words: metadata, documents, uris and ``where``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

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
        return _list_test(key, name == "$in", value)
    if isinstance(value, Moment):
        return {_AT + key: {name: value.seconds}}
    if isinstance(value, str) or isinstance(value, bool):
        return {key: {name: value}}
    if name in ("$contains", "$not_contains"):
        # In lists Chroma tells 1 from 1.0.
        whole = [int(value)] if _is_whole(value) else []
        return _joined("$or" if name == "$contains" else "$and", [{key: {name: one}} for one in [float(value), *whole]])
    return {key: {name: value}} if _is_whole(value) else _fraction_test(key, name, value)


def _list_test(key: str, is_in: bool, values: Sequence[object]) -> dict[str, Any]:
    """``$in`` or ``$nin``; Chroma wants the values of a list to be of one type."""
    groups: dict[str, list[Any]] = {}
    for one in values:
        kind = "number" if isinstance(one, (int, float)) and not isinstance(one, bool) else type(one).__name__
        groups.setdefault(kind, []).append(one)
    parts: list[dict[str, Any]] = []
    for kind, ones in groups.items():
        if kind == "number":
            parts += [_fraction_test(key, "$eq" if is_in else "$ne", one) for one in ones if not _is_whole(one)]
            ones = [int(one) for one in ones if _is_whole(one)]
        name = _AT + key if kind == "Moment" else key
        ones = [one.seconds if isinstance(one, Moment) else one for one in ones]
        if ones:
            parts.append({name: {"$in" if is_in else "$nin": ones}})
    return _joined("$or" if is_in else "$and", parts)


def _is_whole(value: float) -> bool:
    return value == int(value) and -(2**63) <= value < 2**63


def _fraction_test(key: str, name: str, value: float) -> dict[str, Any]:
    """A comparison with a number that has a fraction, which Chroma cuts off before it compares whole numbers."""
    if name == "$eq":
        return {"$and": [_fraction_test(key, "$gte", value), _fraction_test(key, "$lte", value)]}
    if name == "$ne":
        return {"$or": [{key: {"$ne": value}}, {key: {"$eq": int(value)}}]}
    # Towards zero is down for positive numbers and up for negative ones: an operator that goes wrong there is
    # replaced by its neighbour at the next number.
    if value > 0 and name in ("$gte", "$lt"):
        return {key: {{"$gte": "$gt", "$lt": "$lte"}[name]: math.nextafter(value, -math.inf)}}
    if value < 0 and name in ("$gt", "$lte"):
        return {key: {{"$gt": "$gte", "$lte": "$lt"}[name]: math.nextafter(value, math.inf)}}
    return {key: {name: value}}


def _joined(name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return parts[0] if len(parts) == 1 else {name: parts}


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
