"""One collection of an embedded store: the journal has the rows, Chroma finds them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from abc_rag.store.chroma.client import translated
from abc_rag.store.chroma.collections import check_mark, tuned, upsert
from abc_rag.store.chroma.exact import Comparison
from abc_rag.store.chroma.fields import Keys
from abc_rag.store.chroma.journal import Journal
from abc_rag.store.chroma.lock import Lease
from abc_rag.store.chroma.recovery import adopt, rebuild
from abc_rag.store.chroma.table import ChromaTable, Ranking, hit_of, kind_of
from abc_rag.store.filters import Condition, matches
from abc_rag.store.keywords import Keywords
from abc_rag.store.table import PAGE, Column, Page, hits_of, pages
from abc_rag.types import Hit, Record, Vectors

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.models.Collection import Collection

T = TypeVar("T")

__all__ = ["EmbeddedTable"]

# How many rows are compared with rather than asking the index, where their vectors are read from the disk.
_FEW = 1000
# Numbers: of more, the index is asked.
_MOST_COMPARED = 2**24
_MOST_TAKEN = 2**22
# Numbers that are compared with as fast as Chroma's index answers, and how many more are until Chroma is opened for it.
_FEW_COMPARED = 2**21
_MOST_SPENT = 2**31
# What the index is asked for where a filter lets many through.
_LEAST_CANDIDATES = 64
_MOST_CANDIDATES = 2000
# After a search in which too few passed: how many with such a filter do without, and of how many kinds of filters.
_SKIPPED = 15
_MOST_FAR = 100


class EmbeddedTable(ChromaTable):
    """A collection in a directory. Rows are read from the journal, which is faster than Chroma and always whole.

    Args:
        lease: The directory.
        place: Its name, for messages.
        name: The name of the collection.
        wanted: The fingerprint of the vectors; None opens whatever there is, and marks nothing.
    """

    def __init__(self, lease: Lease, place: str, name: str, wanted: str | None) -> None:
        super().__init__(lease, place, name, wanted)
        self._lease = lease
        self._absent: Journal | None = None
        self._checked: Journal | None = None
        self._has_words = False
        self._by_index = False
        self._far: dict[str, int] = {}
        self._spent = 0
        self._comparison = Comparison(name)

    @property
    def _journal(self) -> Journal:
        return self._lease.journal

    def load(self, client: Client) -> None:
        """Check the collection, and bring its index into memory."""
        collection = self._collection(client)
        if collection is None:
            return
        if self._name not in self._journal.marks():
            adopt(client, self._journal, self._name)
            self._journal.done()
        dim = self._stored_dim(collection)
        if dim is not None:
            collection.query(query_embeddings=np.ones((1, dim), np.float32), n_results=1, include=[])
            self._journal.done()  # loading has rewritten index files

    def rebuild(self) -> None:
        """Build Chroma's collection anew from the journal."""

        def run(client: Client) -> None:
            self._look_again()
            rebuild(client, self._journal, self._name)
            self._journal.words.rebuild()
            self._journal.done()

        self._write(run)

    def has_words(self) -> bool:
        """See `Table.has_words`."""
        if not self._has_words:  # once there, it stays: SQLite can keep one
            with translated(self._place):
                self._has_words = self._lease.glance(lambda _: self._journal.words.available)
        return self._has_words

    def matching(self, keywords: Keywords, k: int, where: Condition | None) -> list[Hit]:
        """See `Table.matching`."""
        return self._glance(lambda: self._matching(keywords, k, where), [])

    def _matching(self, keywords: Keywords, k: int, where: Condition | None) -> list[Hit]:
        # All at once where the first do not suffice: the index ranks everything in any case.
        limits = (k,) if where is None else (max(PAGE, 4 * k), -1)
        journal = self._journal
        for limit in limits:
            ranked = journal.words.search(self._name, keywords, limit)
            hits: list[Hit] = []
            for page in map(dict, pages(ranked)):
                hits += hits_of(page, journal.records(self._name, list(page)), where)
                if len(hits) >= k:
                    return hits[:k]
            if len(ranked) < limit:
                break
        return hits

    def meeting(self, keywords: Keywords, ids: Sequence[str]) -> set[str]:
        """See `Table.meeting`."""
        return self._glance(lambda: self._journal.words.meeting(self._name, keywords, ids), set())

    def word_problems(self) -> list[str]:
        """See `Table.word_problems`."""
        return self._glance(lambda: self._journal.words.problems(), [])

    def fingerprint(self) -> str | None:
        """See `ChromaTable.fingerprint`."""
        return self._glance(lambda: self._journal.marks().get(self._name), None)

    def dim(self) -> int | None:
        """See `Table.dim`."""
        return self._glance(self._stored_dim, None)

    def count(self) -> int:
        """See `Table.count`."""
        return self._glance(lambda: self._journal.count(self._name), 0)

    def _glance(self, use: Callable[[], T], empty: T) -> T:
        """``use()`` for what the journal answers, or ``empty`` while there is no collection."""

        def run(client: Client | None) -> T:
            known = self._is_known() if client is None else self._collection(client) is not None
            return use() if known else empty

        with translated(self._place):
            return self._lease.glance(run)

    def _is_known(self) -> bool:
        """Whether the journal has the collection; checks it once."""
        journal = self._journal
        if self._checked is not journal:
            marks = journal.marks()
            if self._name not in marks:
                return False
            check_mark(marks[self._name], self._place, self._name, self._wanted, partial(journal.count, self._name))
            self._checked = journal
        return True

    def check(self) -> None:
        """See `ChromaTable.check`."""
        self._glance(lambda: None, None)

    def _look_again(self) -> None:
        super()._look_again()
        self._absent = None

    def _collection(self, client: Client) -> Collection | None:
        # Asking Chroma for one that is not there takes as long as a search. Whoever makes one here tells the journal.
        absent = self._absent
        if absent is not None and absent is self._journal and self._name not in absent.marks():
            return None
        collection = super()._collection(client)
        self._absent = self._journal if collection is None else None
        return collection

    def _stored_dim(self, collection: Collection | None = None) -> int | None:
        known, journal = self._dim, self._journal
        if known is None or known[0] is not journal:
            dim = journal.dim(self._name)
            if dim is None:
                return None
            self._dim = known = journal, dim
        return known[1]

    def read(
        self,
        column: Column,
        *,
        ids: Sequence[str] | None = None,
        where: Condition | None = None,
        offset: int = 0,
    ) -> Page | None:
        """See `Table.read`."""
        if ids is not None or where is None:
            return self._glance(partial(self._rows, column, ids, offset), None)
        return self._glance(
            lambda: self._by_key(column, self._journal.matching(self._name, where)[offset : offset + PAGE].tolist()),
            None,
        )

    def scan(self, column: Column, where: Condition | None = None) -> Iterator[Page]:
        """See `Table.scan`. Pages do not shift under a writer, as keys stay what they are."""
        if where is None:
            nothing: list[int] = []
            keys = self._glance(partial(self._after, -1), nothing)
            while keys:
                if page := self._glance(partial(self._by_key, column, keys), None):
                    yield page
                keys = self._glance(partial(self._after, keys[-1]), nothing)
            return
        found = self._glance(lambda: self._journal.matching(self._name, where), np.zeros(0, np.int64))
        for some in pages(found):
            if page := self._glance(partial(self._by_key, column, some.tolist()), None):
                yield page

    def _after(self, key: int) -> list[int]:
        return self._journal.after(self._name, key)

    def _by_key(self, column: Column, keys: Sequence[int]) -> Page | None:
        names = [id_ for _, id_ in self._journal.by_key(self._name, keys, "id")]
        if not names:
            return None
        if column == "records":
            return Page(names, [record for _, record in self._journal.by_key(self._name, keys, "record")])
        if column == "vectors":
            return Page(names, vectors=[vector for _, vector in self._journal.by_key(self._name, keys, "vector")])
        return Page(names)

    def _page(
        self,
        column: Column,
        ids: Sequence[str] | None,
        where: dict[str, Any] | None,
        offset: int,
        collection: Collection,
    ) -> Page | None:
        assert where is None, "filters are answered by the journal"
        return self._rows(column, ids, offset)

    def _rows(self, column: Column, ids: Sequence[str] | None, offset: int) -> Page | None:
        if ids is None:
            ids = self._journal.page(self._name, offset)
        if column == "vectors":
            vectors = self._journal.vectors(self._name, ids)
            return Page(list(vectors), vectors=list(vectors.values())) if vectors else None
        if column == "records":
            return Page(list(ids), list(self._journal.records(self._name, ids).values())) if ids else None
        known = self._journal.ids(self._name, ids)
        return Page(known) if known else None

    # -- searching -----------------------------------------------------------------------------

    def nearest(self, vectors: Vectors, k: int, where: Condition | None) -> list[list[Hit]]:
        """See `Table.nearest`. While Chroma is not open, a small collection is compared with."""

        def run(client: Client | None) -> list[list[Hit]] | None:
            return self._compared(vectors, k, where) if client is None else None

        if not self._by_index:
            with translated(self._place):
                found = self._lease.glance(run)
            if found is not None:
                return found
            self._by_index = True
        return super().nearest(vectors, k, where)

    def _compared(self, rows: Vectors, k: int, where: Condition | None) -> list[list[Hit]] | None:
        """The nearest rows by the journal alone; None where there are too many."""
        dim = self._stored_dim() if self._is_known() else None
        if dim is None:
            return [[] for _ in rows]
        self._check_dim(rows, dim, "the vector has", "search with the model that made them")
        journal = self._journal
        size = journal.count(self._name) * dim
        if size > _MOST_COMPARED or self._spent > _MOST_SPENT:
            return None
        if size > _FEW_COMPARED:
            self._spent += size * len(rows)
        keys = journal.matching(self._name, where)
        load = len(keys) > _FEW
        near = self._comparison.nearest(journal, keys, rows, k, partial(matches, where), load=load)
        return [[hit_of(record, far) for far, record in ranking] for ranking in near]

    def _filtered(
        self, rows: Vectors, k: int, where: Condition, records: dict[str, Record], collection: Collection
    ) -> list[Ranking]:
        """See `ChromaTable._filtered`: few rows and vectors in memory are compared with; else the index comes first."""
        journal = self._journal
        count, dim = journal.count(self._name), rows.shape[1]
        keys: Keys | None
        if self._comparison.holds(journal) or count <= _FEW:
            keys = journal.matching(self._name, where)
            # Comparing with a large part of very many takes longer than asking the index, if that succeeds.
            wide = count * dim > _MOST_COMPARED and len(keys) * dim > _MOST_TAKEN
        else:
            keys = journal.few_matching(self._name, where, _FEW)
            wide = keys is None
        found: dict[int, Ranking] = {}
        if wide and not self._skips(where):
            found = self._near(rows, k, where, collection, records)
            self._note_near(where, found=bool(found))
        rest = [i for i in range(len(rows)) if i not in found]
        if rest:
            keys = journal.matching(self._name, where) if keys is None else keys
            nearest = self._comparison.nearest(journal, keys, rows[rest], k, partial(matches, where), load=wide)
            for i, ranking in zip(rest, nearest, strict=True):
                records.update((record.id, record) for _, record in ranking)
                found[i] = [(far, record.id) for far, record in ranking]
        return [found[i] for i in range(len(rows))]

    def _skips(self, where: Condition) -> bool:
        """Whether the index's nearest are not looked at, as shortly before too few passed a filter of this kind."""
        kind = kind_of(where, bounds=False)
        left = self._far.get(kind, 0)
        if left:
            self._far[kind] = left - 1
        return left > 0

    def _note_near(self, where: Condition, *, found: bool) -> None:
        kind = kind_of(where, bounds=False)
        if found:
            self._far.pop(kind, None)
        else:
            while len(self._far) >= _MOST_FAR:
                self._far.pop(next(iter(self._far)), None)
            self._far[kind] = _SKIPPED

    def _near(
        self, rows: Vectors, k: int, where: Condition, collection: Collection, records: dict[str, Record]
    ) -> dict[int, Ranking]:
        """The ``k`` nearest that match, of those rows for which the index's nearest records hold as many."""
        found = {}
        n = max(_LEAST_CANDIDATES, 15 * k)
        if n > _MOST_CANDIDATES:
            return {}
        for i, ranking in enumerate(self._ask(rows, n, None, collection)):
            fit: Ranking = []
            for part in pages(ranking, 4 * k):
                self._look_up((id_ for _, id_ in part), records, collection)
                fit += [one for one in part if one[1] in records and matches(where, records[one[1]])]
                # What is farther than all candidates cannot come before the last hit.
                if len(fit) >= k and fit[k - 1][0] < ranking[-1][0]:
                    found[i] = fit[:k]
                    break
        return found

    # -- writing -------------------------------------------------------------------------------

    def _put(self, records: Sequence[Record], vectors: Vectors, client: Client) -> None:
        collection = self._writable(client, len(records), vectors)
        if self._stored_dim(collection) is None:
            # Chroma remembers the length of vectors that have been deleted, and would refuse others too late.
            collection.query(query_embeddings=vectors[:1], n_results=1, include=[])
        ids = [record.id for record in records]
        with self._changing(ids) as old:
            self._journal.begin(self._name, zip(records, vectors, strict=True), [], self._wanted)
            upsert(collection, records, vectors, known=list(old))
            self._journal.done()
        if len(old) < len(ids) and tuned(collection, self._journal.count(self._name), vectors.shape[1]):
            self._journal.done()
            self._lease.reopen()

    def _remove(self, page: list[str], client: Client) -> int:
        collection = self._collection(client)
        there = self._journal.ids(self._name, page)
        if collection is None or not there:
            return 0
        with self._changing(there):
            self._journal.begin(self._name, [], there, None)
            collection.delete(ids=there)
            self._journal.done()
        return len(there)

    @contextmanager
    def _changing(self, ids: Sequence[str]) -> Iterator[dict[str, tuple[Record, Vectors]]]:
        """Yield what is stored under ``ids``, and put it back where Chroma refuses what shall take its place."""
        old: dict[str, tuple[Record, Vectors]] = {}
        for page in pages(ids):
            records, vectors = self._journal.records(self._name, page), self._journal.vectors(self._name, page)
            old.update((id_, (records[id_], vector)) for id_, vector in vectors.items())
        try:
            yield old
        except Exception:
            # What Chroma has done by then is unknown: the rows stay pending, and are written to it again.
            with suppress(sqlite3.Error):
                self._journal.begin(self._name, old.values(), [id_ for id_ in ids if id_ not in old], None)
            raise
