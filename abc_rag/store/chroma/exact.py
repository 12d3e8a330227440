"""The nearest among some rows of an embedded store, by comparing with each of them.

An index of neighbours finds the nearest of all rows fast, and those among few of them slowly or not at all. Comparing
is exact, and costs less the narrower a filter is. Vectors come from the journal; where a filter lets many through,
they are kept in memory from then on, if they take no more than `MOST_BYTES`. Of many that are searched again, their
codes (`abc_rag.store.codes`) are compared first, which takes no longer than asking the index.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from abc_rag.store.chroma.fields import Keys
from abc_rag.store.chroma.journal import Journal
from abc_rag.store.codes import Codes, Recent
from abc_rag.store.table import PAGE
from abc_rag.types import Record, Vectors

__all__ = ["MOST_BYTES", "Comparison"]

MOST_BYTES = 2**28
"""Of the vectors of one collection that are kept in memory."""

# Between float32 and float64: more than rounding makes of a cosine.
_CLOSE = 1e-5
# Below this share of all vectors, taking some out is faster than comparing with all.
_FEW = 0.125
_MOST_SCORES = 2**22  # at once
_MOST_NUMBERS = 2**18  # that are compared with as they are; of more, their codes come first
_WORTH = 2**21  # numbers from which on codes are made
_SPARSE = 4  # keys that may be missing for each that there is, where places are looked up in a table
_MOST_FILTERS = 16  # of which is kept where their rows stand
_TOGETHER = 128  # scores of which the largest is found first
_TAKEN = 512  # rows that are copied at once: they stay in the processor's cache
_ROWS = 8192  # of vectors, compared at once in float64
_DIGITS = 9  # so that equal vectors have equal distances however the product is blocked

# Distances with records, nearest first, equal ones in the order of ids.
Ranking = list[tuple[float, Record]]


class Comparison:
    """Compares queries with vectors of one collection. Safe to use from many threads.

    Args:
        name: The collection.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._block: _Block | None = None

    def holds(self, journal: Journal) -> bool:
        """Whether the vectors are in memory."""
        return self._journal is journal and self._block is not None

    def nearest(
        self,
        journal: Journal,
        keys: Keys,
        queries: Vectors,
        k: int,
        fits: Callable[[Record], bool],
        *,
        load: bool,
    ) -> list[Ranking]:
        """The ``k`` rows nearest to each query among those of ``keys`` that fit.

        Args:
            journal: Has the rows.
            keys: Where to look.
            queries: Unit vectors of shape ``(n, dim)``.
            k: How many for each.
            fits: Asked about rows from the nearest on.
            load: Keep all vectors in memory from now on, if they are not too many.
        """
        if len(keys) == 0:
            return [[] for _ in queries]
        found = []
        step = max(1, _MOST_SCORES // journal.count(self._name))
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            there, near, off, vectors = self._scored(journal, keys, some, load=load)
            for i, query in enumerate(some):
                lacking = None if off is None else off[i]
                found.append(self._ranked(journal, there, near[i], lacking, query, vectors, k, fits))
        return found

    def _scored(
        self, journal: Journal, keys: Keys, queries: Vectors, *, load: bool
    ) -> tuple[Keys, Vectors, Vectors | None, Callable[[npt.NDArray[np.int64]], Vectors]]:
        """The keys that there are, about the cosines with each, how far these may be off, and how to get vectors."""
        block = self._current(journal, queries.shape[1], load=load)
        if block is not None:
            places = block.places(keys)
            codes = block.codes(len(places))
            if codes is not None:
                near, off = codes.scores(queries, places)
                return block.keys[places], near, off, lambda some: block.rows[places[some]]
            if len(places) > _FEW * len(block.keys):
                scores = _product(queries, block.rows)[:, places]
            else:
                pages = [places[start : start + _TAKEN] for start in range(0, len(places), _TAKEN)]
                products = [_product(queries, np.take(block.rows, page, axis=0)) for page in pages]
                scores = np.concatenate(products or [np.zeros((len(queries), 0), np.float32)], axis=1)
            return block.keys[places], scores, None, lambda some: block.rows[places[some]]
        parts, there = [], []
        for start in range(0, len(keys), PAGE):
            found = journal.by_key(self._name, keys[start : start + PAGE].tolist(), "vector")
            if found:
                parts.append(queries @ np.stack([vector for _, vector in found]).T)
                there += [key for key, _ in found]

        def fetched(some: npt.NDArray[np.int64]) -> Vectors:
            pages = [some[start : start + PAGE] for start in range(0, len(some), PAGE)]
            got = {key: v for page in pages for key, v in journal.by_key(self._name, known[page].tolist(), "vector")}
            empty = np.zeros(queries.shape[1], np.float32)  # deleted since
            return np.stack([got.get(key, empty) for key in known[some].tolist()])

        known = np.array(there, dtype=np.int64)
        scores = np.concatenate(parts, axis=1) if parts else np.zeros((len(queries), 0), np.float32)
        return known, scores, None, fetched

    def _ranked(
        self,
        journal: Journal,
        keys: Keys,
        scores: npt.NDArray[np.float32],
        off: npt.NDArray[np.float32] | None,
        query: npt.NDArray[np.float32],
        vectors: Callable[[npt.NDArray[np.int64]], Vectors],
        k: int,
        fits: Callable[[Record], bool],
    ) -> Ranking:
        most, looked_at, found = k, set[int](), Ranking()
        while True:
            most = min(most, len(keys))
            # All that may be among the nearest: those that are as near as the last of them, but for rounding, too.
            if off is None:
                chosen = _above(scores, most)
            else:
                # The most-th best is at least as near as the most-th best that is as far as it can be.
                chosen = np.flatnonzero(scores + off >= _last(scores - off, most) - _CLOSE)
                chosen = chosen[_above(vectors(chosen) @ query, most)]
            blocks = [chosen[start : start + _ROWS] for start in range(0, len(chosen), _ROWS)]
            far = np.concatenate([np.zeros(0), *(_distances(query, vectors(block)) for block in blocks)])
            farthest = np.partition(far, most - 1)[most - 1] if most else 0.0
            near = [(float(f), int(keys[place])) for f, place in zip(far, chosen, strict=True) if f <= farthest]
            names = self._looked_up(journal, [key for _, key in near], "id")
            order = sorted((f, names[key], key) for f, key in near if key in names)[:most]
            new = [(f, key) for f, _, key in order if key not in looked_at]
            records = self._looked_up(journal, [key for _, key in new], "record")
            found += [(f, records[key]) for f, key in new if key in records and fits(records[key])]
            looked_at.update(key for _, key in new)
            if len(found) >= k or most >= len(keys):
                return found[:k]
            most *= 4

    def _looked_up(self, journal: Journal, keys: list[int], column: Literal["id", "record"]) -> dict[int, Any]:
        return {key: value for page in _pages(keys) for key, value in journal.by_key(self._name, page, column)}

    def _current(self, journal: Journal, dim: int, *, load: bool) -> _Block | None:
        """All vectors, as they are now, if they are or shall be in memory."""
        with self._lock:
            if self._journal is not journal:
                self._journal, self._block = journal, None
            if self._block is not None:
                self._block = self._block.followed(journal, self._name)
            if self._block is None and load and 4 * dim * journal.count(self._name) <= MOST_BYTES:
                self._block = _Block.loaded(journal, self._name, dim)
            return self._block


class _Block:
    """Vectors in the order of their keys. Rows that are deleted stay until it is made anew; what is here never changes.

    Args:
        keys: Ascending.
        room: Their vectors, and room for more.
        changes: Up to which change of the journal they are.
    """

    def __init__(self, keys: Keys, room: Vectors, changes: int) -> None:
        self.keys = keys
        self.rows = room[: len(keys)]
        self._room = room
        self._changes = changes
        self._codes: Codes | None = None
        self._asked = False
        self._table: npt.NDArray[np.int64] | None = None
        self._places = Recent[npt.NDArray[np.int64]](_MOST_FILTERS)

    @classmethod
    def loaded(cls, journal: Journal, name: str, dim: int) -> _Block:
        changes, count = journal.changes(name), journal.count(name)
        room = np.empty((count + count // 8 + PAGE, dim), np.float32)
        keys: list[int] = []
        for some, data in journal.all_vectors(name):
            if len(keys) + len(some) > len(room):  # written meanwhile
                break
            room[len(keys) : len(keys) + len(some)] = np.frombuffer(data, "<f4").reshape(-1, dim)
            keys += some
        return cls(np.array(keys, np.int64), room, changes)

    def places(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Where those of ``keys`` stand that there are."""
        known = self._places.get(keys)
        if known is not None:  # the same filter again
            return known
        found = self._found(keys)
        self._places.put(keys, found)
        return found

    def _found(self, keys: Keys) -> npt.NDArray[np.int64]:
        first, last = (int(self.keys[0]), int(self.keys[-1])) if len(self.keys) else (0, -1)
        keys = keys[np.searchsorted(keys, first) : np.searchsorted(keys, last, side="right")]
        if last - first >= _SPARSE * len(self.keys) or 8 * len(keys) < len(self.keys):
            places = np.searchsorted(self.keys, keys)
            found: npt.NDArray[np.int64] = places[self.keys[places] == keys]
            return found
        if self._table is None:
            table = np.full(last - first + 1, -1, np.int64)
            table[self.keys - first] = np.arange(len(self.keys))
            self._table = table
        placed: npt.NDArray[np.int64] = self._table[keys - first]
        return placed if not len(placed) or int(placed.min()) >= 0 else placed[placed >= 0]

    def codes(self, count: int) -> Codes | None:
        """The rows' codes, if comparing with ``count`` of them first is faster than comparing with the rows."""
        numbers = count * self.rows.shape[1]
        if numbers <= _MOST_NUMBERS or (self._codes is None and numbers <= _WORTH):
            return None
        if self._codes is None and self._asked:  # the second time: encoding takes longer than comparing once
            made = Codes(len(self._room), self.rows.shape[1])
            for start in range(0, len(self.rows), _ROWS):
                made.put(slice(start, min(start + _ROWS, len(self.rows))), self.rows[start : start + _ROWS])
            self._codes = made
        self._asked = True
        return self._codes

    def followed(self, journal: Journal, name: str) -> _Block | None:
        """This with what has been written since; None where making it anew is simpler."""
        changes = journal.changes(name)
        changed = journal.changed_since(name, self._changes)
        if changed is None:
            return None
        if not changed:
            return self
        found = [pair for page in _pages(changed) for pair in journal.by_key(name, page, "vector")]
        last = int(self.keys[-1]) if len(self.keys) else -1
        new = [pair for pair in found if pair[0] > last]
        old = [pair for pair in found if pair[0] <= last]
        if len(self.keys) + len(new) > len(self._room) or len(self.keys) + len(new) > 2 * journal.count(name):
            return None
        room, codes = self._room, self._codes
        if old:
            places = np.searchsorted(self.keys, [key for key, _ in old])
            if not np.array_equal(self.keys[places], [key for key, _ in old]):
                return None
            room = room.copy()  # searches are reading the old one
            room[places] = np.stack([vector for _, vector in old])
            if codes is not None:
                codes = codes.copy()
                codes.put(places, room[places])
        if new:
            added = slice(len(self.keys), len(self.keys) + len(new))
            room[added] = np.stack([vector for _, vector in new])
            if codes is not None:
                codes.put(added, room[added])
        made = _Block(np.append(self.keys, [key for key, _ in new]).astype(np.int64), room, changes)
        made._codes, made._asked = codes, self._asked
        return made


def _last(scores: npt.NDArray[np.float32], most: int) -> float:
    """The ``most``-th largest score, or one that is a little smaller."""
    if not most:
        return 2.0
    if len(scores) >= 8 * most * _TOGETHER:
        # Each of the largest is the largest of its group, but where two are in one.
        whole = len(scores) // _TOGETHER * _TOGETHER
        scores = np.append(scores[:whole].reshape(-1, _TOGETHER).max(axis=1), scores[whole:])
    return float(np.partition(scores, len(scores) - most)[len(scores) - most])


def _above(scores: npt.NDArray[np.float32], most: int) -> npt.NDArray[np.int64]:
    """Where the ``most`` largest scores are, with all that are as large but for rounding."""
    chosen = np.flatnonzero(scores >= _last(scores, most) - _CLOSE)
    some = scores[chosen]
    return chosen[some >= np.partition(some, len(some) - most)[len(some) - most] - _CLOSE] if most else chosen


def _product(queries: Vectors, rows: Vectors) -> Vectors:
    # One query is a product of a matrix and a vector, which takes less than one of two matrices.
    product: Vectors = (rows @ queries[0])[None] if len(queries) == 1 else queries @ rows.T
    return product


def _distances(query: npt.NDArray[np.float32], rows: Vectors) -> npt.NDArray[np.float64]:
    return np.round(1.0 - rows.astype(np.float64) @ query.astype(np.float64), _DIGITS)


def _pages(keys: list[int]) -> Iterator[list[int]]:
    return (keys[start : start + PAGE] for start in range(0, len(keys), PAGE))
