"""Vectors with a byte a number: a quarter of what has to be read to tell which rows may be among the nearest.

Each row is rounded to multiples of a 127th of its largest number, and so is a query. How far each is from its code is
known, and bounds how far a cosine can be off (Cauchy-Schwarz, as both have unit length): whoever looks at all rows that
may be near enough misses none. Products of bytes are NumKong's: NumPy has none that are faster than those of floats.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from abc_rag.types import Vectors

__all__ = ["Codes", "Recent"]

_LARGEST = 127
# Rows that are taken out at once: they stay in the processor's cache.
_CHUNK = 2048
# Taking a row out costs as much as comparing with so many that stand one behind the other.
_TAKING = 6

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

    def put(self, places: slice | Places, rows: Vectors) -> None:
        """Encode rows."""
        self._codes[places], self._scales[places], self._off[places] = _encoded(rows)

    def copy(self) -> Self:
        """The same in memory of its own."""
        made = type(self)(0, 0)
        made._codes, made._scales, made._off = self._codes.copy(), self._scales.copy(), self._off.copy()
        return made

    def scores(self, queries: Vectors, places: Places) -> tuple[Vectors, Vectors]:
        """About the cosine of each query with each of some rows, and how far that may be off.

        Args:
            queries: Unit vectors of shape ``(n, dim)``.
            places: Ascending.

        Returns:
            Twice the shape ``(n, len(places))``.
        """
        asked, scales, lost = _encoded(queries)
        found = np.multiply(self._products(asked, places), scales[:, None], dtype=np.float32)
        found *= self._scales[places]
        # What the rows have lost, and what the query has lost of codes that are that much longer than one.
        return found, self._off[places] * (1.0 + lost[:, None]) + lost[:, None]

    def _products(self, asked: npt.NDArray[np.int8], places: Places) -> npt.NDArray[np.int32]:
        import numkong

        packed = numkong.dots_pack(asked)

        def products(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
            found: npt.NDArray[np.int32] = np.asarray(numkong.dots_packed(codes, packed)).T
            return found

        if not len(places):
            return np.zeros((len(asked), 0), np.int32)
        first, end = int(places[0]), int(places[-1]) + 1
        if end - first <= _TAKING * len(places):
            found = products(self._codes[first:end])
            return found if end - first == len(places) else np.take(found, places - first, axis=1)
        parts = [places[start : start + _CHUNK] for start in range(0, len(places), _CHUNK)]
        return np.concatenate([products(np.take(self._codes, part, axis=0)) for part in parts], axis=1)


def _encoded(rows: Vectors) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The codes of rows, their scales, and how far each row is from its code."""
    scales = np.maximum(np.abs(rows).max(axis=1) / np.float32(_LARGEST), np.finfo(np.float32).tiny)
    codes = np.rint(rows / scales[:, None])
    return codes.astype(np.int8), scales, np.linalg.norm(rows - codes * scales[:, None], axis=1)
