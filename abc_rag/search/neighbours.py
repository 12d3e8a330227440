"""What stands around a part of a document: the passages before and after it, the figures of its page, and that page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abc_rag.errors import InputError
from abc_rag.store.base import Store
from abc_rag.types import Hit, Record

__all__ = ["Neighbours", "neighbours_of", "page_of"]

_PASSAGES = ["passage", "table", "note"]
# How far away a passage is looked for at first, in positions of the reading order; then everywhere.
_NEAR = 64


@dataclass(frozen=True)
class Neighbours:
    """What stands around a part of a document; nothing for what is of no document.

    Attributes:
        before: The passages before it, in reading order; the last one is the nearest.
        after: The passages after it, in reading order.
        figures: The other figures of its page, in reading order; in a document without pages, those between the
            first and the last of these passages.
        page: The picture of its page; None where there is none, and for a page picture itself.
    """

    before: tuple[Record, ...] = ()
    after: tuple[Record, ...] = ()
    figures: tuple[Record, ...] = ()
    page: Record | None = None


def neighbours_of(store: Store, part: Hit | Record, *, before: int = 1, after: int = 1) -> Neighbours:
    """What stands around a part of a document, in any store.

    Args:
        store: Where it is from.
        part: A hit or a record.
        before: Maximum number of passages before it.
        after: Maximum number of passages after it.

    Raises:
        InputError: ``part`` is neither a hit nor a record, or a number is negative.
        StoreError: The store cannot be read.
    """
    record = _record_of(part)
    for name, count in (("before", before), ("after", after)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InputError(f"{name} must be a number of passages, 0 or more, not {count!r}")
    order = record.metadata.get("order")
    if not record.document or type(order) is not int:
        return Neighbours()
    document = _document_of(record)
    earlier = _passages(store, document, order, before, forward=False)[::-1]
    later = _passages(store, document, order, after, forward=True)
    place: dict[str, Any] = {"page": record.page}
    if record.page is None:
        first, last = (_order_of(ends[end]) if ends else order for ends, end in ((earlier, 0), (later, -1)))
        place = {"order": {"$gte": first, "$lte": last}}
    shown = store.records({"$and": [document, place, {"part": {"$in": ["figure", "page"]}}]}, modality="image")
    pictures = sorted((one for one in shown if one.id != record.id), key=_order_of)
    page = next((one for one in pictures if one.metadata["part"] == "page"), None)
    figures = tuple(one for one in pictures if one.metadata["part"] == "figure")
    return Neighbours(tuple(earlier), tuple(later), figures, None if record.page is None else page)


def page_of(store: Store, part: Hit | Record) -> Record | None:
    """The picture of the page that a part of a document is on; of a page picture, itself.

    Args:
        store: Where it is from.
        part: A hit or a record.

    Returns:
        None where it is of no page, or its page was stored without a picture.

    Raises:
        InputError: ``part`` is neither a hit nor a record.
        StoreError: The store cannot be read.
    """
    record = _record_of(part)
    if record.page is None:
        return None
    if record.modality == "image" and record.metadata.get("part") == "page":
        return record
    where = {"$and": [_document_of(record), {"page": record.page}, {"part": "page"}]}
    return min(store.records(where, modality="image"), key=_order_of, default=None)


def _record_of(part: object) -> Record:
    record = part.record if isinstance(part, Hit) else part
    if not isinstance(record, Record):
        raise InputError(f"neighbours are those of a hit or a record, not of a {type(part).__name__}; pass answer[0]")
    return record


def _document_of(record: Record) -> Mapping[str, Any]:
    """A filter for all parts of a record's document."""
    sha256 = record.metadata.get("document_sha256")
    return {"document_sha256": sha256} if isinstance(sha256, str) else {"document": record.document}


def _passages(store: Store, document: Mapping[str, Any], order: int, count: int, *, forward: bool) -> list[Record]:
    """The nearest passages before or after a position, the nearest first."""
    found: list[Record] = []
    for near in (max(_NEAR, 4 * count), None) if count else ():
        if near is not None:
            place = {"$gt": order, "$lte": order + near} if forward else {"$lt": order, "$gte": order - near}
        else:
            place = {"$gt": order} if forward else {"$lt": order}
        parts = {"part": {"$in": _PASSAGES}}
        where = {"$and": [document, parts, {"order": place}]}
        found = sorted(store.records(where, modality="text"), key=_order_of, reverse=not forward)[:count]
        if len(found) == count or (not forward and near is not None and near >= order):
            break
    return found


def _order_of(record: Record) -> int:
    order = record.metadata.get("order")
    return order if type(order) is int else 0
