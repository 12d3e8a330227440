"""What filters let through in a dataset, remembered until something is written.

Lance looks at every row to compare numbers, and evaluates a filter anew in each search. Here it is evaluated once. A
field whose numbers are compared again, with other bounds, is read into an array. So are the vectors behind a filter
that is asked again, if these are not too many: comparing with all of them is exact and takes less than an index.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from abc_rag.store.codes import Codes
from abc_rag.store.filters import ORDER, All, Condition, Either, Moment, Test
from abc_rag.store.lance.exact import Block, Keys, Ranking, keys_of, ranked, ranked_by_codes
from abc_rag.store.lance.rows import dim_of
from abc_rag.store.lance.where import is_exact, number_of, to_sql
from abc_rag.types import Vectors

if TYPE_CHECKING:
    import lance

__all__ = ["Answers", "Kept", "Version", "version_of"]

Version = tuple[str | None, int]

_MOST_KEYS = 2**25  # bytes
_MOST_COLUMNS = 4
_MOST_ROWS = 2**22  # of which a field is read into an array
_MOST_BLOCKS = 1000
_MOST_NUMBERS = 2**20  # that are compared with as they are; of more, their codes come first
_ROWS = 8192  # encoded at once
_LATELY = 50  # searches: what was used since is not let go for another filter
_COMPARED = {"$gt": np.greater, "$gte": np.greater_equal, "$lt": np.less, "$lte": np.less_equal}


class _Column(NamedTuple):
    """The numbers of a field, by ascending keys; NaN where a row has none."""

    keys: Keys
    values: npt.NDArray[np.float64]

    def passing(self, tests: Iterable[Test]) -> Keys:
        """The rows for which all comparisons hold."""
        mask = np.ones(len(self.keys), np.bool_)
        for test in tests:
            mask &= _COMPARED[test.operator](self.values, _bound(test))
        return self.keys[np.flatnonzero(mask)]


class Kept(NamedTuple):
    """The rows that a filter lets through; many of them with their codes."""

    block: Block
    codes: Codes | None

    @classmethod
    def of(cls, block: Block) -> Kept:
        """With codes, if comparing these first is faster."""
        if block.rows.size <= _MOST_NUMBERS:
            return cls(block, None)
        codes = Codes(*block.rows.shape)
        for start in range(0, len(block.rows), _ROWS):
            codes.put(slice(start, min(start + _ROWS, len(block.rows))), block.rows[start : start + _ROWS])
        return cls(block, codes)

    def ranked(self, queries: Vectors, k: int) -> list[Ranking]:
        """The ``k`` rows nearest to each unit vector."""
        if self.codes is None:
            return ranked(queries, k, [self.block])
        return ranked_by_codes(queries, k, self.block, self.codes)


class Answers:
    """Answers to filters over one dataset. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._at: Version | None = None
            self._keys: OrderedDict[str, Keys] = OrderedDict()
            self._columns: OrderedDict[str, _Column | None] = OrderedDict()
            self._blocks: OrderedDict[str, Kept | None] = OrderedDict()
            self._used: dict[str, int] = {}
            self._searches = 0

    def keys(self, dataset: lance.LanceDataset, condition: Condition) -> Keys:
        """The keys of the rows that `abc_rag.store.lance.where.to_sql` lets through, ascending."""
        at = version_of(dataset)
        with self._lock:
            if self._at != at:
                self.clear()
                self._at = at
            return self._answered(dataset, condition)

    def _answered(self, dataset: lance.LanceDataset, condition: Condition) -> Keys:
        sql = str(to_sql(condition))
        known = self._keys.get(sql)
        if known is not None:
            self._keys.move_to_end(sql)
            return known
        found = self._joined(dataset, condition)
        if found is None:
            found = keys_of(dataset, sql)
        self._keys[sql] = found
        while sum(keys.nbytes for keys in self._keys.values()) > _MOST_KEYS and len(self._keys) > 1:
            self._keys.popitem(last=False)
        return found

    def _joined(self, dataset: lance.LanceDataset, condition: Condition) -> Keys | None:
        """The answer where an array has a part of it."""
        if isinstance(condition, Test):
            column = self._column(dataset, condition)
            return None if column is None else column.passing([condition])
        if isinstance(condition, Either):
            if not any(_has_order(part) for part in condition.parts):
                return None
            return np.unique(np.concatenate([self._answered(dataset, part) for part in condition.parts]))
        compared: dict[str, list[Test]] = {}
        others: list[Condition] = []
        for part in condition.parts:
            if isinstance(part, Test) and (name := _name(part)) is not None:
                compared.setdefault(name, []).append(part)
            else:
                others.append(part)
        columns = [(self._column(dataset, tests[0]), tests) for tests in compared.values()]
        if not columns or any(column is None for column, _ in columns):
            return None
        found = [column.passing(tests) for column, tests in columns if column is not None]
        found += [self._answered(dataset, part) for part in others]
        found.sort(key=len)
        least = found[0]
        for keys in found[1:]:
            least = least[_among(least, keys)]
        return least

    def _column(self, dataset: lance.LanceDataset, test: Test) -> _Column | None:
        """The numbers that a test compares, from the second comparison on."""
        name = _name(test)
        if name is None:
            return None
        if name not in self._columns:
            self._columns[name] = None
            while len(self._columns) > _MOST_COLUMNS:
                self._columns.popitem(last=False)
            return None
        self._columns.move_to_end(name)
        column = self._columns[name]
        if column is None and dataset.count_rows() <= _MOST_ROWS:
            table = dataset.scanner(columns={"number": name}, with_row_id=True).to_table()
            keys = np.asarray(table.column("_rowid").to_numpy(), np.int64)
            values = np.asarray(table.column("number").to_numpy(), np.float64)  # what is missing becomes NaN
            order = np.argsort(keys)
            column = self._columns[name] = _Column(keys[order], values[order])
        return column

    def block(
        self, dataset: lance.LanceDataset, condition: Condition, count: int, most: int, read: Callable[[], Block]
    ) -> Kept | None:
        """The rows that a filter lets through, in memory, from its second search on.

        Args:
            dataset: With the rows.
            condition: The filter.
            count: How many it lets through, at least one.
            most: Bytes of the vectors behind all filters.
            read: Reads them.
        """
        at, sql = version_of(dataset), str(to_sql(condition))
        size = 4 * dim_of(dataset.schema) * count
        with self._lock:
            if self._at != at or size > most:
                return None
            self._searches += 1
            asked_before = sql in self._blocks
            known = self._blocks.setdefault(sql, None)
            self._blocks.move_to_end(sql)
            self._used[sql] = self._searches
            while len(self._blocks) > _MOST_BLOCKS:
                self._drop_oldest()
            if known is not None or not asked_before or self._busy(sql) + size > most:
                return known
        made = Kept.of(read())
        with self._lock:
            if self._at == at and sql in self._blocks:
                self._blocks[sql] = made
                while self._bytes() > most:
                    self._drop_oldest()
        return made

    def _busy(self, sql: str) -> int:
        """Bytes of what other filters have used lately."""
        since = self._searches - _LATELY
        return sum(
            kept.block.rows.nbytes
            for name, kept in self._blocks.items()
            if kept is not None and name != sql and self._used[name] > since
        )

    def _bytes(self) -> int:
        return sum(kept.block.rows.nbytes for kept in self._blocks.values() if kept is not None)

    def _drop_oldest(self) -> None:
        del self._used[self._blocks.popitem(last=False)[0]]


def version_of(dataset: lance.LanceDataset) -> Version:
    """What a dataset holds: its identity and its version."""
    return dataset.schema_metadata.get("abc:identity"), int(dataset.version)


def _has_order(condition: Condition) -> bool:
    if isinstance(condition, (All, Either)):
        return any(map(_has_order, condition.parts))
    return _name(condition) is not None


def _name(test: Test) -> str | None:
    """The SQL of the number that a test compares by order; None where it is another test, or not exact."""
    return number_of(test) if test.operator in ORDER and is_exact(test) else None


def _bound(test: Test) -> float:
    return test.value.seconds if isinstance(test.value, Moment) else float(test.value)  # type: ignore[arg-type]


def _among(keys: Keys, others: Keys) -> npt.NDArray[np.bool_]:
    """Which of ``keys`` are in ``others``, both ascending."""
    if not len(others):
        return np.zeros(len(keys), np.bool_)
    found: npt.NDArray[np.bool_] = others[np.minimum(np.searchsorted(others, keys), len(others) - 1)] == keys
    return found
