"""What filters may ask, as columns of a Lance dataset, and filters in its SQL.

Each value of a record's fields is a token, a text in ``tokens``: its kind, the field and the value. So a comparison for
being equal is a look-up of a token, for which Lance has an index. Numbers, and dates as seconds, stand a second time in
``numbers``, each under its name in ``number_names``, for the order operators.

Tokens that are long or hold anything but plain characters stand as their digest. So whatever a user writes into a
filter, nothing of it reaches SQL but letters, digits and a few marks.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from abc_rag.store.filters import OF, All, Condition, Either, Moment, Test, fields_of, moment_of
from abc_rag.types import MetadataValue, Record

__all__ = ["Entries", "entries_of", "is_exact", "number_of", "quoted", "to_sql"]

_PLAIN = re.compile(r"[a-z\[]{1,2}[0-9]+:[A-Za-z0-9_.:=@ -]*", re.ASCII)
_LONGEST = 64
_ORDER = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
# Beyond, float64 has no room for every whole number.
_MOST_EXACT = 2**53


class Entries(NamedTuple):
    """What a record is found by.

    Attributes:
        tokens: For comparisons for being equal.
        names: The names of ``numbers``.
        numbers: For comparisons by order.
    """

    tokens: list[str]
    names: list[str]
    numbers: list[float]


def entries_of(record: Record, *, facet: bool = False) -> Entries:
    """The entries of a record; of a facet, also the picture that it belongs to."""
    fields: dict[str, MetadataValue] = fields_of(record)
    if facet:
        fields[OF] = record.id.rpartition("#")[0]
    tokens: dict[str, None] = {}
    numbers: dict[str, float] = {}
    for field, stored in fields.items():
        prefix, values = ("[", stored) if isinstance(stored, list) else ("", [stored])
        for one in values:
            tokens[_token(prefix, field, one)] = None
            moment = moment_of(one)
            if moment is not None:
                tokens[_token(prefix, field, moment)] = None
            if not prefix:
                if moment is not None:
                    numbers[_name("m", field)] = moment.seconds
                elif _kind(one) == "n":
                    numbers[_name("n", field)] = float(one)
    return Entries(list(tokens), list(numbers), list(numbers.values()))


def _kind(value: object) -> str:
    if isinstance(value, Moment):
        return "m"
    if isinstance(value, bool):
        return "b"
    return "n" if isinstance(value, (int, float)) else "t"


def _token(prefix: str, field: str, value: object) -> str:
    kind = _kind(value)
    if isinstance(value, Moment):
        shown = repr(value.seconds)
    elif isinstance(value, float) and value.is_integer():
        shown = str(int(value))  # 1.0 equals 1
    else:
        shown = str(int(value)) if isinstance(value, bool) else str(value)
    # The length keeps "a=b" = "c" apart from "a" = "b=c".
    return _plain(f"{prefix}{kind}{len(field)}:{field}={shown}")


def _name(kind: str, field: str) -> str:
    return _plain(f"{kind}{len(field)}:{field}")


def _plain(text: str) -> str:
    if len(text) <= _LONGEST and _PLAIN.fullmatch(text):
        return text
    return "#" + base64.b32encode(hashlib.blake2b(text.encode(), digest_size=15).digest()).decode()


def quoted(text: str) -> str:
    """A text as a literal of Lance's SQL."""
    return "'" + text.replace("'", "''") + "'"


def to_sql(condition: Condition | None) -> str | None:
    """The filter in Lance's SQL; see `is_exact`."""
    if condition is None:
        return None
    if isinstance(condition, (All, Either)):
        joined = (" AND " if isinstance(condition, All) else " OR ").join(str(to_sql(part)) for part in condition.parts)
        return f"({joined})"
    if condition.operator in _ORDER:
        return _order(condition)
    values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
    prefix = "[" if condition.operator in ("$contains", "$not_contains") else ""
    wanted = sorted({_token(prefix, condition.key, value) for value in values})
    found = _has_any(wanted)
    return f"NOT {found}" if condition.operator in ("$ne", "$nin", "$not_contains") else found


def _has_any(tokens: Sequence[str]) -> str:
    if len(tokens) == 1:
        return f"array_has(tokens, {quoted(tokens[0])})"
    return f"array_has_any(tokens, [{', '.join(map(quoted, tokens))}])"


def _order(test: Test) -> str:
    value = test.value
    operator = _ORDER[test.operator]
    bound = value.seconds if isinstance(value, Moment) else float(value)  # type: ignore[arg-type]
    if not is_exact(test):
        operator = operator[0] + "="  # numbers that are rounded alike are looked at again
    return f"{number_of(test)} {operator} {bound!r}"


def number_of(test: Test) -> str:
    """The number that a comparison by order compares, in Lance's SQL; null where a row has none."""
    name = _name("m" if isinstance(test.value, Moment) else "n", test.key)
    return f"array_element(numbers, CAST(array_position(number_names, {quoted(name)}) AS BIGINT))"


def is_exact(condition: Condition | None) -> bool:
    """Whether `to_sql` lets through what the filter does; else it lets more through, and records must be checked."""
    if isinstance(condition, (All, Either)):
        return all(is_exact(part) for part in condition.parts)
    if condition is None or condition.operator not in _ORDER or isinstance(condition.value, Moment):
        return True
    return abs(float(condition.value)) < _MOST_EXACT  # type: ignore[arg-type]
