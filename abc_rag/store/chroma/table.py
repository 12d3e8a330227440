"""One Chroma collection as a table: read, write and search it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from abc_rag.errors import InputError, StoreError
from abc_rag.store.chroma.client import translated
from abc_rag.store.chroma.collections import RECORD, check, create, mark_of, marked, upsert
from abc_rag.store.chroma.rows import batches, records_of, size_of, to_where
from abc_rag.store.filters import MODALITY, ORDER, All, Condition, Either, matches
from abc_rag.store.table import PAGE, Column, Page, Table
from abc_rag.types import Hit, Record, Vectors

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.models.Collection import Collection
    from chromadb.api.types import Include

    from abc_rag.store.chroma.client import Server
    from abc_rag.store.chroma.lock import Lease

T = TypeVar("T")

__all__ = ["ChromaTable", "Ranking", "hit_of", "kind_of"]

# A Chroma server refuses requests of 40 MB.
_REQUEST_BYTES = 30_000_000
_QUERIES = 256
# How many equal scores behind the last hit the index is asked for before every vector is compared.
_MOST_TIES = 1000
_COLUMNS: dict[Column, Include] = {"ids": [], "records": RECORD, "vectors": ["embeddings"]}
# Chroma looks up everything that a filter lets through before it searches. Where enough of the nearest records pass,
# looking at these costs less; where only few pass at all, comparing with each of them does.
_LEAST_CANDIDATES = 16
_MOST_CANDIDATES = 2000
# Rows that are fetched whole, with their vectors, in one request.
_FEW = 200
# How many kinds of filters are remembered with what they took, and for how many searches.
_MOST_KINDS = 100
_AFRESH = 16

# Distances with ids, nearest first, equal ones in the order of ids.
Ranking = list[tuple[float, str]]


class ChromaTable(Table):
    """A collection, which the first `put` creates and marks.

    Args:
        backend: The directory or the server.
        place: Its name, for messages.
        name: The name of the collection.
        wanted: The fingerprint of the vectors; None opens whatever there is, and marks nothing.
        shards: Of how many collections this is the first.
    """

    def __init__(self, backend: Lease | Server, place: str, name: str, wanted: str | None, *, shards: int = 1) -> None:
        self._backend = backend
        self._shards = shards
        self._place = place
        self._name = name
        self._wanted = wanted
        self._known: tuple[Client, Collection] | None = None
        self._dim: tuple[object, int] | None = None
        self._candidates: dict[str, int] = {}
        self._searches = 0

    def fingerprint(self) -> str | None:
        """The mark of the collection, if there is one."""
        return self._use(mark_of, None)

    def load(self, client: Client) -> None:
        """Check that the collection can be used."""
        self._collection(client)

    def check(self) -> None:
        """Check that the collection can be used.

        Raises:
            FingerprintMismatchError: It holds another model's vectors.
            StoreError: It was made with another distance.
        """
        self._use(lambda _: None, None)

    def identity(self) -> str | None:
        """The id of the collection, which another one of this name would not have; None while there is none."""
        return self._use(lambda collection: str(collection.id), None)

    def prepare(self, vectors: Vectors) -> None:
        """Make and mark the collection, if need be, for as many more vectors of this length."""
        with translated(self._place):
            self._write(lambda client: self._writable(client, len(vectors), vectors))

    # -- reading -------------------------------------------------------------------------------

    def count(self) -> int:
        """See `Table.count`."""
        return self._use(lambda collection: collection.count(), 0)

    def dim(self) -> int | None:
        """See `Table.dim`."""
        return self._use(self._stored_dim, None)

    def read(
        self,
        column: Column,
        *,
        ids: Sequence[str] | None = None,
        where: Condition | None = None,
        offset: int = 0,
    ) -> Page | None:
        """See `Table.read`."""
        return self._use(partial(self._page, column, ids, to_where(where), offset), None)

    def _page(
        self,
        column: Column,
        ids: Sequence[str] | None,
        where: dict[str, Any] | None,
        offset: int,
        collection: Collection,
    ) -> Page | None:
        asked: dict[str, Any] = {"ids": list(ids)} if ids is not None else {"limit": PAGE, "offset": offset}
        found: Any = collection.get(where=where, include=_COLUMNS[column], **asked)
        if not found["ids"]:
            return None
        if column == "records":
            return Page(found["ids"], records_of(found["ids"], *(found[name] for name in RECORD)))
        if column == "vectors":
            return Page(found["ids"], vectors=list(np.asarray(found["embeddings"], dtype=np.float32)))
        return Page(found["ids"])

    # -- writing -------------------------------------------------------------------------------

    def put(self, records: Sequence[Record], vectors: Vectors) -> None:
        """See `Table.put`. Requests are cut by number and by bytes."""
        sizes = [size_of(record, vectors.shape[1]) for record in records]
        with translated(self._place):
            most = self._backend.read(lambda client: client.get_max_batch_size())
            for part in batches(sizes, most, _REQUEST_BYTES):
                self._write(partial(self._put, records[part], vectors[part]))

    def remove(self, ids: Sequence[str]) -> int:
        """See `Table.remove`."""
        pages = [list(ids[start : start + PAGE]) for start in range(0, len(ids), PAGE)]
        with translated(self._place):
            return sum(self._write(partial(self._remove, page)) for page in pages)

    def _put(self, records: Sequence[Record], vectors: Vectors, client: Client) -> None:
        collection = self._writable(client, len(records), vectors)
        upsert(collection, records, vectors)

    def _remove(self, page: list[str], client: Client) -> int:
        collection = self._collection(client)
        if collection is None:
            return 0
        # Chroma counts ids that were never there as deleted.
        there = collection.get(ids=page, include=[])["ids"]
        if there:
            collection.delete(ids=there)
        return len(there)

    # -- searching -----------------------------------------------------------------------------

    def nearest(self, vectors: Vectors, k: int, where: Condition | None) -> list[list[Hit]]:
        """See `Table.nearest`."""
        found: list[list[Hit]] = []
        for start in range(0, len(vectors), _QUERIES):
            part = vectors[start : start + _QUERIES]
            found += self._use(partial(self._query, part, k, where), [[] for _ in part], where=where)
        return found

    def _query(self, rows: Vectors, k: int, where: Condition | None, collection: Collection) -> list[list[Hit]]:
        dim = self._stored_dim(collection)
        if dim is None:
            return [[] for _ in rows]
        self._check_dim(rows, dim, "the vector has", "search with the model that made them")
        records: dict[str, Record] = {}
        wanted = k
        while True:
            if where is None:
                ranked = self._ranked(rows, wanted, None, collection)
            else:
                ranked = self._filtered(rows, wanted, where, records, collection)
            self._look_up((id_ for ranking in ranked for _, id_ in ranking), records, collection)
            # Damaged records are left out, and leave no gap.
            gaps = max(sum(id_ not in records for _, id_ in ranking) for ranking in ranked)
            if wanted >= k + gaps:
                break
            wanted = k + gaps
        return [[hit_of(records[id_], far) for far, id_ in ranking if id_ in records][:k] for ranking in ranked]

    def _look_up(self, ids: Iterable[str], records: dict[str, Record], collection: Collection) -> None:
        """Add the records of ``ids`` to those that are known."""
        missing = [id_ for id_ in dict.fromkeys(ids) if id_ not in records]
        for start in range(0, len(missing), PAGE):
            if page := self._page("records", missing[start : start + PAGE], None, 0, collection):
                records.update((record.id, record) for record in page.records)

    def _ask(self, rows: Vectors, n: int, where: dict[str, Any] | None, collection: Collection) -> list[Ranking]:
        """The index's ``n`` nearest of each row."""
        return _sorted(collection.query(query_embeddings=rows, n_results=n, where=where, include=["distances"]))

    def _ranked(self, rows: Vectors, k: int, where: dict[str, Any] | None, collection: Collection) -> list[Ranking]:
        """The ``k`` nearest of each row, by the index, or by comparison where it finds fewer than there are."""
        # One more than asked shows whether the last place is tied.
        wanted, most = k + 1, k + _MOST_TIES
        if wanted > PAGE:
            wanted = most = max(1, min(wanted, collection.count()))
        found: dict[int, Ranking] = {}
        complete: dict[int, bool] = {}
        numbers = list(range(len(rows)))
        while numbers:
            tied = []
            for i, ranking in zip(numbers, self._ask(rows[numbers], wanted, where, collection), strict=True):
                if len(ranking) < wanted:
                    if len(ranking) not in complete:
                        complete[len(ranking)] = not _more_than(len(ranking), where, collection)
                    if not complete[len(ranking)]:
                        continue
                elif wanted < most and ranking[k - 1][0] == ranking[-1][0]:
                    tied.append(i)
                    continue
                found[i] = ranking[:k]
            numbers, wanted = tied, min(2 * wanted, most)
        missing = [i for i in range(len(rows)) if i not in found]
        if missing:
            # Beside many equal vectors, or behind a narrow filter, the index is blind.
            pages = self._vector_pages(where, collection)
            found.update(zip(missing, _compared(rows[missing], k, pages), strict=True))
        return [found[i] for i in range(len(rows))]

    def _filtered(
        self, rows: Vectors, k: int, where: Condition, records: dict[str, Record], collection: Collection
    ) -> list[Ranking]:
        """The ``k`` nearest of each row that match; the records that were looked at are added to ``records``."""
        found: dict[int, Ranking] = {}
        first, kind = max(_LEAST_CANDIDATES, 3 * k), kind_of(where)
        learnt = self._candidates.pop(repr(where), 0) or self._candidates.pop(kind, 0)
        numbers, n = list(range(len(rows))), max(first, learnt)
        enough = n
        while numbers and n <= _MOST_CANDIDATES:
            rankings = self._asked_whole(rows[numbers], n, records, collection)
            passing = []
            for i, ranking in zip(numbers, rankings, strict=True):
                fit = [(far, id_) for far, id_ in ranking if id_ in records and matches(where, records[id_])]
                # What is farther than all candidates cannot come before the last hit.
                if len(fit) >= k and (fit[k - 1][0] < ranking[-1][0]):
                    found[i] = fit[:k]
                passing.append(len(fit))
            numbers = [i for i in numbers if i not in found]
            enough = n
            # As many more as the share that passed so far asks for, and half as many again.
            n = int(1.5 * n * k / min(passing)) if min(passing) and n < _MOST_CANDIDATES // 4 else _MOST_CANDIDATES + 1
        if numbers:
            chroma = to_where(where)
            few = self._few(chroma, records, collection) if n <= _MOST_CANDIDATES + 1 else None
            if few is not None:
                rest = _compared(rows[numbers], k, [few] if few.ids else [])
            else:
                rest = self._ranked(rows[numbers], k, chroma, collection)
            found.update(zip(numbers, rest, strict=True))
            enough = _MOST_CANDIDATES + (2 if few is None else 1)
            if few is not None and len(few.ids) > _FEW:
                enough = first  # neither the one nor the other: begin as if nothing were known
        # More than can be asked for stands for rows that are few, and still more for rows that are many and far away.
        # Filters of the same kind often let through as much; what was learnt is tried again now and then.
        self._searches += 1
        if enough > first and self._searches % _AFRESH:
            self._candidates[kind if enough <= _MOST_CANDIDATES + 1 else repr(where)] = enough
            while len(self._candidates) > _MOST_KINDS:
                self._candidates.pop(next(iter(self._candidates)), None)
        return [found[i] for i in range(len(rows))]

    def _asked_whole(self, rows: Vectors, n: int, records: dict[str, Record], collection: Collection) -> list[Ranking]:
        """`_ask` without a filter; adds the records to those that are known, in the same request."""
        answer: Any = collection.query(query_embeddings=rows, n_results=n, include=["distances", *RECORD])
        for ids, *columns in zip(answer["ids"], *(answer[name] for name in RECORD), strict=True):
            new = [place for place, id_ in enumerate(ids) if id_ not in records]
            some = [[column[place] for place in new] for column in (ids, *columns)]
            records.update((record.id, record) for record in records_of(some[0], *some[1:]))
        return _sorted(answer)

    def _few(self, where: dict[str, Any] | None, records: dict[str, Record], collection: Collection) -> Page | None:
        """All rows that a filter lets through, if they are few; their records are added to those that are known."""
        some: Any = collection.get(where=where, include=["embeddings", *RECORD], limit=_FEW + 1)
        if len(some["ids"]) <= _FEW:
            found = records_of(some["ids"], *(some[name] for name in RECORD))
            records.update((record.id, record) for record in found)
            return Page(some["ids"], vectors=list(np.asarray(some["embeddings"], dtype=np.float32)))
        ids = collection.get(where=where, include=[], limit=_MOST_CANDIDATES + 1)["ids"]
        if len(ids) > _MOST_CANDIDATES:
            return None
        pages = list(self._vectors_of(ids, collection))
        return Page(
            [id_ for page in pages for id_ in page.ids], vectors=[one for page in pages for one in page.vectors]
        )

    def _vectors_of(self, ids: Sequence[str], collection: Collection) -> Iterator[Page]:
        for start in range(0, len(ids), PAGE):
            if page := self._page("vectors", ids[start : start + PAGE], None, 0, collection):
                yield page

    def _vector_pages(self, where: dict[str, Any] | None, collection: Collection) -> Iterator[Page]:
        offset = 0
        while page := self._page("vectors", None, where, offset, collection):
            yield page
            offset += len(page.ids)

    # -- the collection ------------------------------------------------------------------------

    def _use(self, use: Callable[[Collection], T], empty: T, *, where: object = None) -> T:
        """``use(collection)``, or ``empty`` while there is no collection."""

        def run(client: Client) -> T:
            collection = self._collection(client)
            return empty if collection is None else use(collection)

        with translated(self._place, where):
            return self._backend.read(partial(self._retried, run))

    def _write(self, use: Callable[[Client], T]) -> T:
        return self._backend.write(partial(self._retried, use))

    def _retried(self, use: Callable[[Client], T], client: Client) -> T:
        from chromadb.errors import NotFoundError

        try:
            return use(client)
        except NotFoundError:
            # Somebody deleted the collection since it was looked up, and may have made it anew.
            self._look_again()
            return use(client)

    def _look_again(self) -> None:
        """Forget what is known of the collection."""
        self._known = None

    def _collection(self, client: Client) -> Collection | None:
        known = self._known
        if known is not None and known[0] is client:
            return known[1]
        from chromadb.errors import NotFoundError

        try:
            collection = client.get_collection(self._name, embedding_function=None)
        except NotFoundError:
            return None
        check(collection, self._place, self._wanted, shards=self._shards)
        self._known = client, collection
        return collection

    def _writable(self, client: Client, count: int, vectors: Vectors) -> Collection:
        """The collection, made and marked if need be, for ``count`` more vectors of this length."""
        collection = self._collection(client)
        if collection is not None and self._wanted is not None and mark_of(collection) is None:
            self._look_again()  # another client may have marked it since
            collection = self._collection(client)
        if collection is None:
            create(client, self._name, self._wanted, count, vectors.shape[1], shards=self._shards)
        elif self._wanted is not None and mark_of(collection) is None:
            marked(collection, self._wanted)
        else:
            self._check_writable(vectors, collection)
            return collection
        self._look_again()
        collection = self._collection(client)
        if collection is None:
            raise StoreError(f"{self._place}: collection {self._name!r} was deleted while it was written to; try again")
        self._check_writable(vectors, collection)
        return collection

    def _check_writable(self, vectors: Vectors, collection: Collection) -> None:
        dim = self._stored_dim(collection)
        if dim is not None:
            remedy = "use the model that made them, or another collection"
            self._check_dim(vectors, dim, "the vectors have", remedy)

    def _check_dim(self, rows: Vectors, dim: int, whose: str, remedy: str) -> None:
        if rows.shape[1] != dim:
            raise InputError(
                f"{self._place}: {whose} {rows.shape[1]} dimensions, but those in collection "
                f"{self._name!r} have {dim}; {remedy}"
            )

    def _stored_dim(self, collection: Collection) -> int | None:
        known = self._dim
        if known is not None and known[0] == collection.id:
            return known[1]
        rows = collection.get(limit=1, include=["embeddings"])["embeddings"]
        if rows is None or len(rows) == 0:
            return None
        self._dim = collection.id, len(rows[0])
        return self._dim[1]


def _sorted(answer: Any) -> list[Ranking]:  # noqa: ANN401  (a dict of Chroma's)
    """The rankings of an answer."""
    return [
        sorted((float(far), id_) for far, id_ in zip(distances, ids, strict=True))
        for distances, ids in zip(answer["distances"], answer["ids"], strict=True)
    ]


def kind_of(where: Condition, *, bounds: bool = True) -> str:
    """What a filter compares, and how; with values where these decide how much it lets through.

    Args:
        where: The filter.
        bounds: Whether values of comparisons by order are among these.
    """
    if isinstance(where, (All, Either)):
        return f"{type(where).__name__}({', '.join(kind_of(part, bounds=bounds) for part in where.parts)})"
    # Of one field, equal to one value or another lets through about as much, but of few values such as modalities.
    alike = where.key != MODALITY and (where.operator in ("$eq", "$in") or (not bounds and where.operator in ORDER))
    return f"{where.key} {where.operator} {'' if alike else where.value!r}"


def hit_of(record: Record, far: float) -> Hit:
    """A record at a cosine distance."""
    return Hit(record, min(1.0, max(0.0, 1.0 - far / 2.0)))


def _more_than(n: int, where: dict[str, Any] | None, collection: Collection) -> bool:
    if where is None:
        return collection.count() > n
    return len(collection.get(where=where, limit=n + 1, include=[])["ids"]) > n


def _compared(rows: Vectors, k: int, pages: Iterable[Page]) -> list[Ranking]:
    """The ``k`` nearest of each row among all vectors of some pages."""
    best: list[Ranking] = [[] for _ in rows]
    for page in pages:
        # In float64 and rounded, so that equal vectors have equal distances however the product is blocked.
        far = np.round(1.0 - rows.astype(np.float64) @ np.stack(page.vectors).T.astype(np.float64), 9)
        for i, distances in enumerate(far):
            best[i] = sorted([*best[i], *zip(map(float, distances), page.ids, strict=True)])[:k]
    return best
