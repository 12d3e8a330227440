"""A table of records and their vectors: what a backend implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from abc_rag.errors import StoreError
from abc_rag.store.filters import Condition, matches
from abc_rag.store.keywords import Keywords
from abc_rag.types import Hit, Record, Vectors

__all__ = ["PAGE", "Column", "Page", "Table", "hits_of", "pages"]

S = TypeVar("S", bound="Sequence[Any] | npt.NDArray[Any]")

# SQLite takes at most 32,766 variables in a statement, and servers bound the size of a request.
PAGE = 1000

# How far the score of a record's own vector may be from 1: float32 rounds.
_SAME = 1e-4
# How far the length of a vector may be from 1: float16 rounds.
_UNIT = 2e-3

Column = Literal["ids", "records", "vectors"]


def pages(items: S, size: int = PAGE) -> list[S]:
    """A sequence in parts of ``size``, in its order."""
    return [items[start : start + size] for start in range(0, len(items), size)]  # type: ignore[misc]


def hits_of(bm25: Mapping[str, float], records: Mapping[str, Record], where: Condition | None) -> list[Hit]:
    """The hits of a keyword search: of ids with their BM25, those that have a record and match."""
    return [
        Hit(records[id_], score / (1.0 + score))
        for id_, score in bm25.items()
        if id_ in records and matches(where, records[id_])
    ]


class Page(NamedTuple):
    """Some rows of a table.

    Attributes:
        ids: The id of each row.
        records: The records, if they were asked for; a damaged one is left out.
        vectors: The vectors, if they were asked for: shape ``(len(ids), dim)``.
    """

    ids: list[str]
    records: Sequence[Record] = ()
    vectors: Sequence[Vectors] = ()


class Table(ABC):
    """Rows of a record and a vector, by id. What comes in has been checked by `abc_rag.store.base.Store`.

    Every method may be called from many threads. Each raises `abc_rag.errors.StoreError` where the backend fails.
    """

    @abstractmethod
    def count(self) -> int:
        """The number of rows."""

    @abstractmethod
    def dim(self) -> int | None:
        """The length of the stored vectors; None while there are none."""

    @abstractmethod
    def put(self, records: Sequence[Record], vectors: Vectors) -> None:
        """Write rows, whole; a row whose id exists is replaced, metadata included.

        In the table of facets, a filter on `abc_rag.store.filters.OF` finds rows by their id up to the last ``#``.

        Args:
            records: Each id at most once.
            vectors: float32 unit vectors of shape ``(len(records), dim)``.

        Raises:
            InputError: ``dim`` is not that of the stored vectors; nothing has been written.
        """

    @abstractmethod
    def remove(self, ids: Sequence[str]) -> int:
        """Delete rows; return how many of ``ids`` (each at most once) there were."""

    @abstractmethod
    def read(
        self,
        column: Column,
        *,
        ids: Sequence[str] | None = None,
        where: Condition | None = None,
        offset: int = 0,
    ) -> Page | None:
        """At most `PAGE` rows: those of ``ids``, in any order, or those that match ``where``, from an offset on.

        Returns:
            None where there are none (left).
        """

    @abstractmethod
    def nearest(self, vectors: Vectors, k: int, where: Condition | None) -> list[list[Hit]]:
        """For each unit vector the ``k`` rows with the largest cosine, all rows if there are fewer.

        Returns:
            Hits with scores ``(1 + cosine) / 2``, best first; equal scores in the order of ids. Ties at the end of
            the list are broken by id too, and equal vectors hide nothing.

        Raises:
            InputError: The vectors' length is not that of the stored ones.
        """

    def kept(self, vectors: Vectors) -> Vectors:
        """Vectors as they come back: where numbers are kept with less precision, they are rounded."""
        return vectors

    def problems(self, what: str) -> Iterator[str]:
        """A line for each row that is damaged, there twice, or whose vector has not unit length.

        Args:
            what: What a row is called.
        """
        seen: set[str] = set()
        for page in self.scan("records"):
            sound = {record.id for record in page.records}
            for id_ in page.ids:
                if id_ in seen:
                    yield f"{what} {id_!r} is there twice"
                elif id_ not in sound:
                    yield f"{what} {id_!r} is damaged"
                seen.add(id_)
        for page in self.scan("vectors"):
            for id_, length in zip(page.ids, np.linalg.norm(np.stack(page.vectors), axis=1), strict=True):
                if not abs(length - 1.0) < _UNIT:
                    yield f"{what} {id_!r}: its vector has length {length:.4g} instead of 1"

    def unfound(self, what: str) -> Iterator[str]:
        """A line for each row that its own vector does not find; something as near as itself must be found.

        Args:
            what: What a row is called.
        """
        for page in self.scan("vectors"):
            for id_, found in zip(page.ids, self.nearest(np.stack(page.vectors), 1, None), strict=True):
                if not found or found[0].score < 1.0 - _SAME:
                    yield f"{what} {id_!r} is not found by its own vector"

    # -- keywords, where a backend has an index of them ------------------------------------------

    def has_words(self) -> bool:
        """Whether this table has a keyword index."""
        return False

    def matching(self, keywords: Keywords, k: int, where: Condition | None) -> list[Hit]:
        """At most ``k`` rows that keywords find and ``where`` lets through.

        Returns:
            Hits with scores ``bm25 / (1 + bm25)``, best first; equal scores in the order of ids.

        Raises:
            StoreError: There is no keyword index.
        """
        raise StoreError(f"{self!r} has no keyword index; search with keywords=False")

    def meeting(self, keywords: Keywords, ids: Sequence[str]) -> set[str]:
        """Which of ``ids`` have all phrases, and nothing that must not be there.

        Raises:
            StoreError: There is no keyword index.
        """
        raise StoreError(f"{self!r} has no keyword index; search with keywords=False")

    def word_problems(self) -> list[str]:
        """A line for each part of the keyword index that does not fit to the rows."""
        return []

    # -- built on these ------------------------------------------------------------------------

    def has(self, ids: Iterable[str]) -> set[str]:
        """Which of ``ids`` there are."""
        return {id_ for page in self._of("ids", ids) for id_ in page.ids}

    def get(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records of ``ids``, by id."""
        return {record.id: record for page in self._of("records", ids) for record in page.records}

    def vectors(self, ids: Iterable[str]) -> dict[str, Vectors]:
        """The vectors of ``ids``, by id."""
        found: dict[str, Vectors] = {}
        for page in self._of("vectors", ids):
            found.update(zip(page.ids, page.vectors, strict=True))
        return found

    def scan(self, column: Column, where: Condition | None = None) -> Iterator[Page]:
        """Every row that matches, a page at a time. Pages shift under a writer."""
        offset = 0
        while page := self.read(column, where=where, offset=offset):
            yield page
            offset += len(page.ids)

    def _of(self, column: Column, ids: Iterable[str]) -> Iterator[Page]:
        for some in pages(list(dict.fromkeys(ids))):
            if page := self.read(column, ids=some):
                yield page
