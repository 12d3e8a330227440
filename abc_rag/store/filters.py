"""Filters over metadata: what a user writes as a dict, checked once and the same for every store.

A filter names keys and what their values must be::

    {"page": 3}                                       equal
    {"page": 3, "lang": "en"}                         both hold
    {"page": {"$gte": 3, "$lt": 9}}                   likewise
    {"lang": {"$in": ["en", "de"]}}                   one of these; "$nin": none of these
    {"taken": {"$gte": "2024-01-01"}}                 dates: ISO 8601 text, or a date or datetime object
    {"tags": {"$contains": "red"}}                    a stored list holds it; "$not_contains": does not
    {"$or": [{"page": 3}, {"lang": {"$ne": "en"}}]}   one of these holds; "$and": all of these

Numbers compare with numbers, texts with texts, bools with bools; ``1`` equals ``1.0`` and differs from ``True``. The
order operators (``$gt``, ``$gte``, ``$lt``, ``$lte``) compare numbers with numbers, and dates with stored ISO 8601
text; a time without an offset is UTC. A record without the key differs from everything, so ``$ne``, ``$nin`` and
``$not_contains`` hold for it. A record's own fields are the keys ``abc:modality``, ``abc:source``, ``abc:source_type``
(unless it is ``"path"``), ``abc:sha256`` and ``abc:mime_type``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any, Literal, cast, get_args

import numpy as np

from abc_rag.errors import InputError
from abc_rag.types import MetadataValue, Modality, Record

__all__ = [
    "MIME_TYPE",
    "MODALITY",
    "OF",
    "ORDER",
    "SHA256",
    "SOURCE",
    "SOURCE_TYPE",
    "All",
    "Condition",
    "Either",
    "Moment",
    "Test",
    "by_shown_names",
    "fields_of",
    "matches",
    "moment_of",
    "parse",
]

Operator = Literal["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$contains", "$not_contains"]
Scalar = str | int | float | bool

MODALITY = "abc:modality"
SOURCE = "abc:source"
SOURCE_TYPE = "abc:source_type"
SHA256 = "abc:sha256"
MIME_TYPE = "abc:mime_type"
OF = "abc:of"
"""The picture that a facet belongs to."""
ORDER = ("$gt", "$gte", "$lt", "$lte")
"""The operators that compare numbers and dates by order."""

_SHOWN = frozenset({"source", "source_type", "modality", "mime_type", "sha256"})
_MOST_DEEP = 50
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9}))?\s?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII | re.IGNORECASE
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Moment:
    """A date or a time to compare stored ISO 8601 text with: seconds since 1970 in UTC."""

    seconds: float


@dataclass(frozen=True)
class Test:
    """One comparison: the value stored under ``key`` against ``value``, a tuple for ``$in`` and ``$nin``."""

    key: str
    operator: Operator
    value: Scalar | Moment | tuple[Scalar | Moment, ...]


@dataclass(frozen=True)
class All:
    """All parts hold; there are at least two."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Either:
    """At least one part holds; there are at least two."""

    parts: tuple[Condition, ...]


Condition = Test | All | Either


def parse(where: Mapping[str, Any] | None, modality: Modality | None = None) -> Condition | None:
    """Check a filter.

    Args:
        where: As described in this module; None or an empty one lets everything through.
        modality: Only pictures, or only passages.

    Returns:
        None where everything matches.

    Raises:
        InputError: The filter cannot be used; the message names the part and says what to write.
    """
    if modality not in (None, "text", "image"):
        raise InputError(f"modality must be 'text', 'image' or None, not {modality!r}")
    if where is not None and not isinstance(where, Mapping):
        raise InputError(f"where must be a dict such as {{'page': 3}}, not {type(where).__name__}")
    parts = _parts(where, 0) if where else []
    if modality is not None:
        parts.append(Test(MODALITY, "$eq", modality))
    return _joined(All, parts) if parts else None


def by_shown_names(where: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Translate a filter that names a record's own fields as they are shown: ``modality`` for ``abc:modality``.

    A key that metadata may have as well, such as ``source``, matches either.

    Args:
        where: A filter that has not been checked; what is no filter comes back as it is.
    """
    if not isinstance(where, Mapping):
        return where
    parts: list[dict[str, Any]] = []
    for key, wanted in where.items():
        if key in ("$and", "$or") and isinstance(wanted, (list, tuple)):
            parts.append({key: [by_shown_names(one) for one in wanted]})
        elif key == "source_type" and wanted == "path":
            # Only other types are stored.
            parts.append({"$or": [{key: wanted}, {MODALITY: "image", SOURCE_TYPE: {"$ne": "url"}}]})
        elif key in _SHOWN:
            operators = wanted if isinstance(wanted, Mapping) else {"$eq": wanted}
            for operator, value in operators.items():
                both = [{name: {operator: value}} for name in (key, f"abc:{key}")]
                parts.append({"$and" if operator in ("$ne", "$nin", "$not_contains") else "$or": both})
        else:
            parts.append({key: wanted})
    return {"$and": parts} if len(parts) > 1 else parts[0] if parts else {}


def matches(condition: Condition | None, record: Record) -> bool:
    """Whether a filter lets a record through."""
    return condition is None or _holds(condition, fields_of(record))


def fields_of(record: Record) -> dict[str, MetadataValue]:
    """What a filter can name: metadata, and the record's own fields that are not empty."""
    own = {MODALITY: record.modality, SOURCE: record.source, SHA256: record.sha256, MIME_TYPE: record.mime_type}
    fields: dict[str, MetadataValue] = {key: value for key, value in own.items() if value}
    if record.source_type != "path":
        fields[SOURCE_TYPE] = record.source_type
    return fields | dict(record.metadata)


def moment_of(value: object) -> Moment | None:
    """A date, a datetime or ISO 8601 text as a moment; None for anything else. Without an offset it is UTC."""
    if isinstance(value, str):
        found = _ISO.fullmatch(value)
        if found is None:
            return None
        day, clock, fraction, offset = found.groups()
        offset = "+00:00" if offset in (None, "Z", "z") else offset
        offset = offset if ":" in offset else f"{offset[:3]}:{offset[3:]}"
        try:
            value = datetime.fromisoformat(f"{day}T{clock or '00:00'}{offset}")
        except ValueError:  # the 31st of February
            return None
        value += timedelta(seconds=float(f"0.{fraction or 0}"))
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime) or value != value:  # pandas' NaT is a datetime that equals nothing
        return None
    if value.tzinfo is None:
        value = value.replace(tzinfo=timezone.utc)
    return Moment((value - _EPOCH) / timedelta(seconds=1))


def _joined(kind: type[All] | type[Either], parts: Sequence[Condition]) -> Condition:
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


def _bad(key: object, wanted: object, reason: str) -> InputError:
    return InputError(f"filter part {{{key!r}: {wanted!r}}}"[:300] + f": {reason}")


def _parts(where: Mapping[str, Any], depth: int) -> list[Condition]:
    if depth > _MOST_DEEP:
        raise InputError(f"the filter is nested more than {_MOST_DEEP} deep, perhaps in itself; write a flatter one")
    return [_part(key, wanted, depth) for key, wanted in where.items()]


def _part(key: object, wanted: object, depth: int) -> Condition:
    if not isinstance(key, str) or not key:
        raise _bad(key, wanted, "keys must be non-empty str")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise _bad(key, wanted, f"the key is not valid Unicode ({error.reason})") from error
    if key in ("$and", "$or"):
        if not isinstance(wanted, (list, tuple)) or not wanted or not all(isinstance(p, Mapping) and p for p in wanted):
            raise InputError(f"the filter's {key} takes a list of filters, such as [{{'page': 3}}, {{'page': 4}}]")
        inner = [_joined(All, _parts(part, depth + 1)) for part in wanted]
        return _joined(All if key == "$and" else Either, inner)
    if key.startswith("$"):
        raise _bad(key, wanted, "an operator stands behind a key, as in {'page': {'$gte': 3}}")
    if not isinstance(wanted, Mapping):
        return _test(key, "$eq", wanted)
    if not wanted:
        raise _bad(key, wanted, "no operator is given; write for example {'$eq': 3}")
    return _joined(All, [_test(key, name, value) for name, value in wanted.items()])


def _test(key: str, name: object, value: object) -> Test:
    if name not in get_args(Operator):
        raise _bad(key, {name: value}, f"there is no operator {name!r}; these are: {', '.join(get_args(Operator))}")
    operator = cast("Operator", name)
    if operator in ("$in", "$nin"):
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, (list, tuple, set, frozenset)) or not value:
            raise _bad(key, {name: value}, f"{name} takes a list with at least one value")
        return Test(key, operator, tuple(_operand(key, name, one) for one in value))
    found = _operand(key, name, value)
    if operator in ORDER and not isinstance(found, Moment) and (isinstance(found, (str, bool))):
        moment = moment_of(found)
        if moment is None:
            raise _bad(key, {name: value}, f"{name} compares numbers and dates (ISO 8601, such as '2024-01-31')")
        found = moment
    return Test(key, operator, found)


def _operand(key: str, name: object, value: object) -> Scalar | Moment:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple, set, np.ndarray)):
        raise _bad(key, {name: value}, "takes one value; write {'$in': [...]} for one of several, or {'$contains': X}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _bad(key, {name: value}, f"the text is not valid Unicode ({error.reason})") from error
        return value
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    moment = moment_of(value)
    if moment is None:
        reason = (
            "nothing stored has such a value; a value is a str, an int of 64 bits, a finite float, a bool or a date"
        )
        raise _bad(key, {name: value}, reason)
    return moment


def _holds(condition: Condition, fields: Mapping[str, Any]) -> bool:
    if isinstance(condition, All):
        return all(_holds(part, fields) for part in condition.parts)
    if isinstance(condition, Either):
        return any(_holds(part, fields) for part in condition.parts)
    key, name, wanted = condition.key, condition.operator, condition.value
    stored = fields.get(key)
    if name in ("$ne", "$nin", "$not_contains"):
        opposite = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}[name]
        return not _holds(Test(key, cast("Operator", opposite), wanted), fields)
    if stored is None:
        return False
    if name == "$in":
        return any(_equal(stored, one) for one in cast("tuple[Scalar | Moment, ...]", wanted))
    if name == "$contains":
        return isinstance(stored, list) and any(_equal(one, wanted) for one in stored)
    if name == "$eq":
        return _equal(stored, wanted)
    if isinstance(wanted, Moment):
        found = moment_of(stored)
        order = None if found is None else found.seconds - wanted.seconds
    else:
        order = stored - cast("float", wanted) if _kind(stored) == "number" else None
    if order is None:
        return False
    return order > 0 if name == "$gt" else order >= 0 if name == "$gte" else order < 0 if name == "$lt" else order <= 0


def _equal(stored: object, wanted: object) -> bool:
    if isinstance(wanted, Moment):
        return moment_of(stored) == wanted
    return _kind(stored) == _kind(wanted) and stored == wanted


def _kind(value: object) -> str:
    return "bool" if isinstance(value, bool) else "number" if isinstance(value, (int, float)) else type(value).__name__
