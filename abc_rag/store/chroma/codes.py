"""Vectors with a byte a number: a quarter of what has to be read to tell which rows may be among the nearest.

Each row is rounded to multiples of a 127th of its largest number. How far it is from its code is kept, and bounds how
far a cosine can be off (Cauchy-Schwarz, as queries have unit length): whoever looks at all rows that may be near enough
misses none.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from abc_rag.types import Vectors

__all__ = ["Codes", "Recent"]

_LARGEST = 127
_CHUNK = 512  # rows that are widened at once: they stay in the processor's cache
# Of the rows that are asked for again and again, copies stand together: bytes of one, and how many.
_MOST_BYTES = 2**25
_MOST_COPIES = 4

Places = npt.NDArray[np.int64]


V = TypeVar("V")


class Recent(Generic[V]):
    """Values by the very object that they belong to, those that were asked for last. Safe to use from many threads.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: tuple[tuple[object, V], ...] = ()

    def get(self, owner: object) -> V | None:
        """The value of an object."""
        kept = self._kept
        found = next((pair for pair in kept if pair[0] is owner), None)
        if found is None:
            return None
        if kept[0] is not found:
            self._kept = (found, *(pair for pair in kept if pair is not found))
        return found[1]

    def put(self, owner: object, value: V) -> None:
        """Keep a value."""
        others = (pair for pair in self._kept if pair[0] is not owner)
        self._kept = ((owner, value), *others)[: self._most]


class Codes:
    """Codes of the rows of a table.

    Args:
        room: How many rows there can be.
        dim: Length of a row.
    """

    def __init__(self, room: int, dim: int) -> None:
        self._codes = np.empty((room, dim), np.int8)
        self._scales = np.empty(room, np.float32)
        self._off = np.empty(room, np.float32)
        self._copies = Recent[npt.NDArray[np.int8]](_MOST_COPIES)
        self._asked = Recent[bool](4 * _MOST_COPIES)

    def put(self, places: slice | Places, rows: Vectors) -> None:
        """Encode rows."""
        scales = np.maximum(np.abs(rows).max(axis=1) / np.float32(_LARGEST), np.finfo(np.float32).tiny)
        codes = np.rint(rows / scales[:, None])
        self._codes[places] = codes
        self._scales[places] = scales
        self._off[places] = np.linalg.norm(rows - codes * scales[:, None], axis=1)

    def copy(self) -> Self:
        """The same in memory of its own."""
        made = type(self)(0, 0)
        made._codes, made._scales, made._off = self._codes.copy(), self._scales.copy(), self._off.copy()
        return made

    def scores(self, queries: Vectors, places: Places) -> tuple[Vectors, npt.NDArray[np.float32]]:
        """About the cosine of each query with each of some rows, and how far that may be off for each row.

        Args:
            queries: Unit vectors of shape ``(n, dim)``.
            places: Ascending.

        Returns:
            Shapes ``(n, len(places))`` and ``(len(places),)``.
        """
        found = np.empty((len(queries), len(places)), np.float32)
        buffer = np.empty((_CHUNK, self._codes.shape[1]), np.float32)
        together = self._together(places)
        for start in range(0, len(places), _CHUNK):
            part = slice(start, start + _CHUNK)
            codes = np.take(self._codes, places[part], axis=0) if together is None else together[part]
            rows = buffer[: len(codes)]
            np.copyto(rows, codes)
            found[:, part] = rows @ queries[0] if len(queries) == 1 else queries @ rows.T
        found *= self._scales[places]
        return found, self._off[places]

    def _together(self, places: Places) -> npt.NDArray[np.int8] | None:
        """The codes of rows that stand together, or have been asked for before."""
        if len(places) and int(places[-1]) - int(places[0]) == len(places) - 1:
            return self._codes[int(places[0]) : int(places[-1]) + 1]
        copied = self._copies.get(places)
        if copied is None and self._asked.get(places) and places.size * self._codes.shape[1] <= _MOST_BYTES:
            copied = np.take(self._codes, places, axis=0)
            self._copies.put(places, copied)
        self._asked.put(places, True)
        return copied
