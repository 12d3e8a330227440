"""What filters may ask, as an index in the journal: from the value of a field to the rows that have it.

Chroma answers a filter by looking up all that it lets through. Here each value of a record's fields is a row of a
table in the order of fields and values, so that a comparison reads what it finds and nothing else. Numbers compare as
numbers, texts are compared for being equal only, and dates stand a second time as seconds, as `abc_rag.store.filters`
has it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from abc_rag.store.chroma.collections import FACETS
from abc_rag.store.filters import OF, All, Condition, Either, Moment, Test, fields_of, moment_of
from abc_rag.store.table import pages
from abc_rag.types import MetadataValue, Record

__all__ = [
    "FIELD_TABLES",
    "Asked",
    "FieldChanges",
    "Keys",
    "as_keys",
    "asked_of",
    "change_fields",
    "few_keys",
    "forget_fields",
    "opposite_of",
    "statements_of",
    "united",
]

FIELD_TABLES = """
CREATE TABLE IF NOT EXISTS labels (
    label INTEGER PRIMARY KEY, name TEXT NOT NULL, field TEXT NOT NULL, kind TEXT NOT NULL, UNIQUE (name, field, kind)
);
CREATE TABLE IF NOT EXISTS fields (
    label INTEGER NOT NULL, value, key INTEGER NOT NULL, PRIMARY KEY (label, value, key)
) WITHOUT ROWID;
"""

Keys = npt.NDArray[np.int64]
"""Keys of rows, ascending."""

# A longer text stands as its digest, which is longer than any text that stands as it is.
_LONGEST_TEXT = 32
_VALUES = 500  # in one statement
_OPPOSITE: dict[str, Literal["$eq", "$in", "$contains"]] = {
    "$ne": "$eq",
    "$nin": "$in",
    "$not_contains": "$contains",
}
_ORDER = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}

_FieldRow = tuple[int, str | float, int]
"""A row of the table of fields: the label, the value and the key."""


class FieldChanges(NamedTuple):
    """What went from the table of fields, and what came."""

    gone: list[_FieldRow]
    new: list[_FieldRow]


class Asked(NamedTuple):
    """Which values of one field and kind a test asks for; ``kind`` is behind ``[`` for the entries of a list."""

    label: int
    kind: str
    values: list[str | float]


class _Entry(NamedTuple):
    """One value of a field; ``kind`` is its type, behind ``[`` for the entries of a list."""

    field: str
    kind: str
    value: str | float


def _text(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= _LONGEST_TEXT:
        return text
    return "#" + hashlib.blake2b(encoded, digest_size=16).hexdigest()


def _value(value: object) -> tuple[str, str | float]:
    """The kind of a single value, and how it stands in the table."""
    if isinstance(value, Moment):
        return "moment", value.seconds
    if isinstance(value, bool):
        return "bool", int(value)
    if isinstance(value, (int, float)):
        return "number", value
    return "text", _text(str(value))


def _entries(name: str, record: Record) -> set[_Entry]:
    fields: dict[str, MetadataValue] = fields_of(record)
    if name.endswith(FACETS):
        fields[OF] = record.id.rpartition("#")[0]
    found = set()
    for field, stored in fields.items():
        prefix, values = ("[", stored) if isinstance(stored, list) else ("", [stored])
        for one in values:
            kind, value = _value(one)
            found.add(_Entry(field, prefix + kind, value))
            moment = moment_of(one)
            if moment is not None:
                found.add(_Entry(field, prefix + "moment", moment.seconds))
    return found


def change_fields(
    to: sqlite3.Connection, name: str, changes: Iterable[tuple[int, Record | None, Record | None]]
) -> FieldChanges:
    """Index rows anew.

    Args:
        to: The journal, within a transaction.
        name: The collection.
        changes: The key of each row, and its old and its new record, if there is one.

    Returns:
        What has changed in the table.
    """
    labels: dict[tuple[str, str], int] = {}

    def row(entry: _Entry, key: int) -> _FieldRow:
        label = labels.get((entry.field, entry.kind))
        if label is None:
            to.execute(
                "INSERT OR IGNORE INTO labels (name, field, kind) VALUES (?, ?, ?)", (name, entry.field, entry.kind)
            )
            label = labels[entry.field, entry.kind] = _label(to, name, entry.field, entry.kind) or 0
        return label, entry.value, key

    gone: list[_FieldRow] = []
    new: list[_FieldRow] = []
    for key, old, record in changes:
        before = set() if old is None else _entries(name, old)
        after = set() if record is None else _entries(name, record)
        gone += [row(entry, key) for entry in before - after]
        new += [row(entry, key) for entry in after - before]
    to.executemany("DELETE FROM fields WHERE label = ? AND value = ? AND key = ?", gone)
    new.sort(key=lambda one: one[0])  # what stands together is written together
    to.executemany("INSERT OR IGNORE INTO fields VALUES (?, ?, ?)", new)
    return FieldChanges(gone, new)


def forget_fields(to: sqlite3.Connection, name: str) -> None:
    """Drop what is indexed of a collection."""
    to.execute("DELETE FROM fields WHERE label IN (SELECT label FROM labels WHERE name = ?)", (name,))
    to.execute("DELETE FROM labels WHERE name = ?", (name,))


def _label(of: sqlite3.Connection, name: str, field: str, kind: str) -> int | None:
    row = of.execute(
        "SELECT label FROM labels WHERE name = ? AND field = ? AND kind = ?", (name, field, kind)
    ).fetchone()
    return None if row is None else int(row[0])


# -- answering ---------------------------------------------------------------------------------------


def few_keys(of: sqlite3.Connection, name: str, condition: Condition, most: int) -> Keys | None:
    """At most ``most`` rows that include all that a filter lets through; None where there may be more of them.

    Of a filter with several parts that must all hold, a narrow one is enough: the others remain to be checked.
    """
    if isinstance(condition, All):
        narrow = [found for part in condition.parts if (found := few_keys(of, name, part, most)) is not None]
        if not narrow:
            return None
        found = narrow[0]
        for other in narrow[1:]:
            found = np.intersect1d(found, other, assume_unique=True)
        return found
    if isinstance(condition, Either):
        parts = []
        for part in condition.parts:
            keys = few_keys(of, name, part, most)
            if keys is None:
                return None
            parts.append(keys)
        found = united(parts)
        return found if len(found) <= most else None
    if opposite_of(condition) is not None:
        return None
    statements = [one for asked in asked_of(of, name, condition) for one in statements_of(condition, asked)]
    for statement, arguments in statements:
        # SQLite counts faster than it hands over.
        counted = of.execute(f"SELECT count(*) FROM ({statement} LIMIT ?)", (*arguments, most + 1)).fetchone()
        if counted[0] > most:
            return None
    found = united([as_keys(of.execute(*one)) for one in statements])
    return found if len(found) <= most else None


def opposite_of(test: Test) -> Test | None:
    """What must not hold for a test that also holds where the field is missing."""
    name = _OPPOSITE.get(test.operator)
    return None if name is None else Test(test.key, name, test.value)


def asked_of(of: sqlite3.Connection, name: str, test: Test) -> Iterator[Asked]:
    """What a test asks for, by kind of value; the rows may overlap."""
    values: Sequence[object] = test.value if isinstance(test.value, tuple) else [test.value]
    wanted: dict[str, list[str | float]] = {}
    for one in values:
        kind, value = _value(one)
        wanted.setdefault(("[" if test.operator == "$contains" else "") + kind, []).append(value)
    for kind, ones in wanted.items():
        label = _label(of, name, test.key, kind)
        if label is not None:
            yield Asked(label, kind, ones)


def statements_of(test: Test, asked: Asked) -> Iterator[tuple[str, tuple[str | float, ...]]]:
    """What to ask SQLite for the rows for which a test holds; the answers may overlap."""
    if test.operator in _ORDER:
        yield (
            f"SELECT key FROM fields WHERE label = ? AND value {_ORDER[test.operator]} ?",
            (asked.label, *asked.values),
        )
        return
    for some in pages(asked.values, _VALUES):
        marks = ", ".join("?" * len(some))
        yield f"SELECT key FROM fields WHERE label = ? AND value IN ({marks})", (asked.label, *some)


def as_keys(rows: Iterable[tuple[int]]) -> Keys:
    """Keys that SQLite hands over."""
    return np.sort(np.fromiter((row[0] for row in rows), dtype=np.int64))


def united(parts: Sequence[Keys]) -> Keys:
    """All keys of some parts."""
    if len(parts) == 1:
        return parts[0]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
