"""One table in several collections of a server: a row is in the one that the hash of its id says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from abc_rag.errors import InputError
from abc_rag.store.chroma.table import ChromaTable
from abc_rag.store.filters import Condition
from abc_rag.store.table import Column, Page, Table
from abc_rag.types import Hit, Record, Vectors

__all__ = ["ShardedTable"]


class ShardedTable(Table):
    """Collections that are read and searched as one: results are those of a single collection.

    The first write makes and marks all of them, so that none can be bound to another model.

    Args:
        tables: The collections, always the same ones in the same order.
        place: The store's name, for messages.
    """

    def __init__(self, tables: Sequence[ChromaTable], place: str) -> None:
        self._tables = tables
        self._place = place

    def fingerprint(self) -> str | None:
        """The mark of the collections, if there is one."""
        return self._tables[0].fingerprint()

    def check(self) -> None:
        """See `ChromaTable.check`."""
        for table in self._tables:
            table.check()

    def identity(self) -> str | None:
        """See `ChromaTable.identity`."""
        # The first one is made last.
        if self._tables[0].identity() is None:
            return None
        return " ".join(str(table.identity()) for table in self._tables)

    def count(self) -> int:
        """See `Table.count`."""
        return sum(table.count() for table in self._tables)

    def dim(self) -> int | None:
        """See `Table.dim`."""
        return next((dim for table in self._tables if (dim := table.dim()) is not None), None)

    def put(self, records: Sequence[Record], vectors: Vectors) -> None:
        """See `Table.put`."""
        dim = self.dim()
        if dim is not None and dim != vectors.shape[1]:
            raise InputError(
                f"{self._place}: the vectors have {vectors.shape[1]} dimensions, but those stored have {dim}; use the "
                "model that made them, or another collection"
            )
        for table in reversed(self._tables):
            table.prepare(vectors[: 1 + len(records) // len(self._tables)])
        for table, places in self._by_table([record.id for record in records]):
            table.put([records[place] for place in places], vectors[places])

    def remove(self, ids: Sequence[str]) -> int:
        """See `Table.remove`."""
        return sum(table.remove([ids[place] for place in places]) for table, places in self._by_table(ids))

    def read(
        self,
        column: Column,
        *,
        ids: Sequence[str] | None = None,
        where: Condition | None = None,
        offset: int = 0,
    ) -> Page | None:
        """See `Table.read`."""
        if ids is None:
            for table in self._tables:
                if page := table.read(column, where=where, offset=offset):
                    return page
                if offset:
                    offset -= sum(len(page.ids) for page in table.scan("ids", where))
            return None
        found = [
            page
            for table, places in self._by_table(ids)
            if (page := table.read(column, ids=[ids[place] for place in places], where=where))
        ]
        if not found:
            return None
        return Page(
            [id_ for page in found for id_ in page.ids],
            [record for page in found for record in page.records],
            [vector for page in found for vector in page.vectors],
        )

    def scan(self, column: Column, where: Condition | None = None) -> Iterator[Page]:
        """See `Table.scan`."""
        for table in self._tables:
            yield from table.scan(column, where)

    def nearest(self, vectors: Vectors, k: int, where: Condition | None) -> list[list[Hit]]:
        """See `Table.nearest`: the best of the best of each collection."""
        found = [table.nearest(vectors, k, where) for table in self._tables]
        return [
            sorted((hit for hits in row for hit in hits), key=lambda hit: (-hit.score, hit.record.id))[:k]
            for row in zip(*found, strict=True)
        ]

    def _by_table(self, ids: Sequence[str]) -> Iterator[tuple[ChromaTable, list[int]]]:
        """Each collection that has some of ``ids``, with their places."""
        places: dict[int, list[int]] = {}
        for place, id_ in enumerate(ids):
            digest = hashlib.sha256(id_.encode()).digest()
            places.setdefault(int.from_bytes(digest[:8], "big") % len(self._tables), []).append(place)
        for number, some in sorted(places.items()):
            yield self._tables[number], some
