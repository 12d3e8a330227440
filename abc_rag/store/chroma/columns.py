"""Which rows a filter lets through, as masks over all rows of a collection.

SQLite hands over one row at a time, so what lets many rows through costs more there than a search. A field that is
asked for such a thing again is read once into an array. A comparison is one pass over that array then, and parts of a
filter are joined as masks. Writes change the arrays as they change the table; nothing is read twice.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from abc_rag.store.chroma.fields import Asked, FieldChanges, Keys, as_keys, asked_of, opposite_of, statements_of, united
from abc_rag.store.filters import All, Condition, Either, Test

__all__ = ["Change", "Columns"]

Mask = npt.NDArray[np.bool_]

# Whole numbers up to this are exact as floats.
_MOST_EXACT = 2**53
# Rows and fields that are kept in memory: 32 MB a field.
_MOST_ROWS = 2**22
_MOST_COLUMNS = 8
# Rows of one answer from which on it is worth reading the field.
_MANY = 1000
# Of the rows, different texts: where there are more, a text lets few rows through.
_TEXTS = 8
_MOST_MASKS = 2**25  # bytes of what tests let through
_EQUALS = 4  # numbers that are compared one by one


class Change(NamedTuple):
    """A write of one collection: the keys of rows that came and went, and what their fields became."""

    new: Sequence[int]
    gone: Sequence[int]
    fields: FieldChanges


class _Column(Protocol):
    """The values of a field and a kind, one a row."""

    def passing(self, operator: str, wanted: Sequence[str | float]) -> Mask | None:
        """The rows for which a test holds; None where SQLite has to be asked."""

    def kept(self, rows: Mask) -> None:
        """Rows are gone."""

    def grown(self, places: npt.NDArray[np.int64]) -> None:
        """Rows without a value have come before these places."""

    def changed(self, places: npt.NDArray[np.int64], values: Sequence[str | float | None]) -> bool:
        """Rows have other values, or none. Returns whether the column can hold them."""


class Columns:
    """Answers the filters of one journal. Whoever uses it holds the journal's lock."""

    def __init__(self) -> None:
        self._rows: dict[str, Keys] = {}
        self._asked: set[int] = set()
        self._columns: OrderedDict[int, tuple[str, _Column | None]] = OrderedDict()
        self._masks: OrderedDict[tuple[str, str], Mask] = OrderedDict()

    def clear(self) -> None:
        """Forget everything: what has been written is unknown."""
        for kept in (self._rows, self._asked, self._columns, self._masks):
            kept.clear()

    def rows(self, of: sqlite3.Connection, name: str) -> Keys:
        """All rows of a collection."""
        if name not in self._rows:
            self._rows[name] = as_keys(of.execute("SELECT key FROM rows WHERE name = ?", (name,)))
        return self._rows[name]

    def keys(self, of: sqlite3.Connection, name: str, condition: Condition) -> Keys:
        """The rows of a collection that a filter lets through."""
        if isinstance(condition, Test) and opposite_of(condition) is None:
            found, mask = self._tested(of, name, condition)
            if mask is None:
                return found
        mask = self._mask(of, name, condition)
        return self.rows(of, name)[np.flatnonzero(mask)]  # several times as fast as by the mask itself

    def _mask(self, of: sqlite3.Connection, name: str, condition: Condition) -> Mask:
        if isinstance(condition, (All, Either)):
            join = np.logical_and if isinstance(condition, All) else np.logical_or
            mask: Mask = self._mask(of, name, condition.parts[0]).copy()
            for part in condition.parts[1:]:
                join(mask, self._mask(of, name, part), out=mask)
            return mask
        opposite = opposite_of(condition)
        if opposite is not None:
            others: Mask = ~self._mask(of, name, opposite)
            return others
        asked = name, repr(condition)  # by its text, as 1, 1.0 and True are one key of a dict
        known = self._masks.get(asked)
        if known is not None:
            self._masks.move_to_end(asked)
            return known
        found, tested = self._tested(of, name, condition)
        rows = self.rows(of, name)
        mask = np.zeros(len(rows), np.bool_) if tested is None else tested
        mask[_places(rows, found)[0]] = True
        if len(found) > _MANY:  # the arrays answer as fast as this is looked up
            self._masks[asked] = mask
            while sum(one.nbytes for one in self._masks.values()) > _MOST_MASKS:
                self._masks.popitem(last=False)
        return mask

    def _tested(self, of: sqlite3.Connection, name: str, test: Test) -> tuple[Keys, Mask | None]:
        """The rows for which a test holds that is no opposite: by SQLite, and by the arrays, if any has been asked."""
        masks: list[Mask] = []
        keys: list[Keys] = []
        for asked in asked_of(of, name, test):
            column = self._column(of, name, asked)
            mask = None if column is None else column.passing(test.operator, asked.values)
            if mask is not None:
                masks.append(mask)
                continue
            found = [as_keys(of.execute(*one)) for one in statements_of(test, asked)]
            keys += found
            if sum(map(len, found)) > _MANY:
                self._asked.add(asked.label)
        return united(keys), np.logical_or.reduce(masks) if masks else None

    # -- what is kept in memory ------------------------------------------------------------------

    def _column(self, of: sqlite3.Connection, name: str, asked: Asked) -> _Column | None:
        """The values of what is asked, where it is worth keeping them."""
        label = asked.label
        if label in self._columns:
            self._columns.move_to_end(label)
            return self._columns[label][1]
        if label not in self._asked or asked.kind.startswith("["):
            return None
        rows = self.rows(of, name)
        if len(rows) > _MOST_ROWS:
            return None
        self._columns[label] = name, self._read(of, rows, asked)
        while len(self._columns) > _MOST_COLUMNS:
            self._asked.discard(self._columns.popitem(last=False)[0])
        return self._columns[label][1]

    @staticmethod
    def _read(of: sqlite3.Connection, rows: Keys, asked: Asked) -> _Column | None:
        found = of.execute("SELECT key, value FROM fields WHERE label = ?", (asked.label,)).fetchall()
        places, there = _places(rows, [key for key, _ in found])
        values = [value for (_, value), known in zip(found, there.tolist(), strict=True) if known]
        column: _Column = _Texts(len(rows)) if asked.kind == "text" else _Numbers(len(rows))
        return column if column.changed(places, values) else None

    def follow(self, name: str, change: Change) -> None:
        """Take in what has been written, and committed."""
        self._masks = OrderedDict((asked, mask) for asked, mask in self._masks.items() if asked[0] != name)
        rows = self._rows.get(name)
        if rows is None:
            return
        columns = {label: one for label, (of, one) in self._columns.items() if of == name and one is not None}
        if change.gone:
            stay = np.ones(len(rows), np.bool_)
            stay[_places(rows, change.gone)[0]] = False
            rows = rows[stay]
            for column in columns.values():
                column.kept(stay)
        if change.new:
            new = np.sort(np.array(change.new, np.int64))
            places = np.searchsorted(rows, new)
            rows = np.insert(rows, places, new)
            for column in columns.values():
                column.grown(places)
        self._rows[name] = rows
        values: dict[int, dict[int, str | float | None]] = {}
        for label, _, key in change.fields.gone:
            values.setdefault(label, {})[key] = None
        for label, value, key in change.fields.new:
            values.setdefault(label, {})[key] = value
        for label in values.keys() & columns.keys():
            changed, column = sorted(values[label]), columns[label]
            places, there = _places(rows, changed)
            new_values = [values[label][key] for key, known in zip(changed, there.tolist(), strict=True) if known]
            if not column.changed(places, new_values):
                self._columns[label] = name, None


class _Numbers:
    """Numbers, moments and bools; NaN where a row has none."""

    def __init__(self, count: int) -> None:
        self._values = np.full(count, np.nan)
        self._coded: tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]] | None = None

    def passing(self, operator: str, wanted: Sequence[str | float]) -> Mask | None:
        if any(isinstance(one, str) or abs(one) > _MOST_EXACT for one in wanted):
            return None
        numbers = np.array(wanted, np.float64)
        if operator in _COMPARED:
            compared: Mask = _COMPARED[operator](self._values, numbers[0])
            return compared
        if len(numbers) <= _EQUALS:
            equal: Mask = np.logical_or.reduce([self._values == one for one in numbers])
            return equal
        if self._coded is None:
            self._coded = np.unique(self._values, return_inverse=True)
        different, codes = self._coded
        among: Mask = np.isin(different, numbers)[codes]
        return among

    def kept(self, rows: Mask) -> None:
        self._values, self._coded = self._values[rows], None

    def grown(self, places: npt.NDArray[np.int64]) -> None:
        self._values, self._coded = np.insert(self._values, places, np.nan), None

    def changed(self, places: npt.NDArray[np.int64], values: Sequence[str | float | None]) -> bool:
        # Larger whole numbers are exact in SQLite, and not as floats.
        if any(type(value) is int and abs(value) > _MOST_EXACT for value in values):
            return False
        self._values[places] = np.array([np.nan if value is None else value for value in values], np.float64)
        self._coded = None
        return True


class _Texts:
    """Texts, each by its number; 0 where a row has none."""

    def __init__(self, count: int) -> None:
        self._numbers: dict[str | float, int] = {}
        self._codes = np.zeros(count, np.int32)

    def passing(self, operator: str, wanted: Sequence[str | float]) -> Mask | None:
        passes = np.zeros(len(self._numbers) + 1, np.bool_)
        passes[[self._numbers[one] for one in wanted if one in self._numbers]] = True
        return passes[self._codes]

    def kept(self, rows: Mask) -> None:
        self._codes = self._codes[rows]

    def grown(self, places: npt.NDArray[np.int64]) -> None:
        self._codes = np.insert(self._codes, places, 0)

    def changed(self, places: npt.NDArray[np.int64], values: Sequence[str | float | None]) -> bool:
        numbers = self._numbers
        self._codes[places] = [0 if value is None else numbers.setdefault(value, len(numbers) + 1) for value in values]
        return len(numbers) <= max(_MANY, len(self._codes) // _TEXTS)


_COMPARED = {"$gt": np.greater, "$gte": np.greater_equal, "$lt": np.less, "$lte": np.less_equal}


def _places(rows: Keys, keys: Sequence[int] | Keys) -> tuple[npt.NDArray[np.int64], Mask]:
    """Where those of ``keys`` stand in ``rows`` that there are, and which these are."""
    wanted = np.asarray(keys, np.int64)
    places = np.searchsorted(rows, wanted)
    there: Mask = places < len(rows)
    there[there] = rows[places[there]] == wanted[there]
    return places[there], there
