"""One Chroma collection: read, write and search it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from abc_rag.errors import FingerprintMismatchError, InputError, StoreError
from abc_rag.store.chroma.client import Backend, translated
from abc_rag.store.chroma.rows import batches, metadata_of, records_of, size_of, to_where
from abc_rag.store.filters import Condition
from abc_rag.store.table import PAGE, Column, Page, Table
from abc_rag.types import Hit, Record, Vectors

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.collection_configuration import CreateHNSWConfiguration
    from chromadb.api.models.Collection import Collection
    from chromadb.api.types import Include

T = TypeVar("T")

_FINGERPRINT = "abc:fingerprint"
# A Chroma server refuses requests of 40 MB.
_REQUEST_BYTES = 30_000_000
_QUERIES = 256
# How many equal scores behind the last hit the index is asked for before every vector is compared.
_MOST_TIES = 1000
# With Chroma's 16 neighbours, records beside a few dozen equal vectors cannot be found.
_INDEX: CreateHNSWConfiguration = {"space": "cosine", "max_neighbors": 64, "ef_search": 200}
_RECORD: Include = ["metadatas", "documents", "uris"]
_COLUMNS: dict[Column, Include] = {"ids": [], "records": _RECORD, "vectors": ["embeddings"]}


class ChromaTable(Table):
    """A collection, which the first `put` creates and marks.

    Args:
        backend: The directory or the server.
        place: Its name, for messages.
        name: The name of the collection.
        wanted: The fingerprint of the vectors; None opens whatever there is, and marks nothing.
    """

    def __init__(self, backend: Backend[Client], place: str, name: str, wanted: str | None) -> None:
        self._backend = backend
        self._place = place
        self._name = name
        self._wanted = wanted
        self._known: tuple[Client, Collection] | None = None
        self._dim: tuple[object, int] | None = None

    def fingerprint(self) -> str | None:
        """The mark of the collection, if there is one."""
        return self._read(_mark, None)

    def load(self, client: Client) -> None:
        """Check the collection, and bring its index into memory."""
        collection = self._collection(client)
        if collection is not None:
            rows = collection.get(limit=1, include=["embeddings"])["embeddings"]
            if rows is not None and len(rows):
                collection.query(query_embeddings=rows, n_results=1, include=[])

    # -- reading -------------------------------------------------------------------------------

    def count(self) -> int:
        """See `Table.count`."""
        return self._read(lambda collection: collection.count(), 0)

    def dim(self) -> int | None:
        """See `Table.dim`."""
        return self._read(self._stored_dim, None)

    def read(
        self,
        column: Column,
        *,
        ids: Sequence[str] | None = None,
        where: Condition | None = None,
        offset: int = 0,
    ) -> Page | None:
        """See `Table.read`."""
        asked: dict[str, Any] = {"ids": ids} if ids is not None else {"limit": PAGE, "offset": offset}
        include = _COLUMNS[column]
        found = self._read(lambda c: c.get(where=to_where(where), include=include, **asked), None)
        if found is None or not found["ids"]:
            return None
        if column == "records":
            return Page(found["ids"], records_of(found["ids"], found["metadatas"], found["documents"], found["uris"]))
        if column == "vectors":
            return Page(found["ids"], vectors=list(np.asarray(found["embeddings"], dtype=np.float32)))
        return Page(found["ids"])

    # -- writing -------------------------------------------------------------------------------

    def put(self, records: Sequence[Record], vectors: Vectors, of: Sequence[str] = ()) -> None:
        """See `Table.put`. Requests are cut by number and by bytes."""
        metadatas = [metadata_of(record, of[i] if of else "") for i, record in enumerate(records)]
        sizes = [size_of(metadatas[i], record.text, vectors.shape[1]) for i, record in enumerate(records)]
        with translated(self._place):
            most = self._backend.read(lambda client: client.get_max_batch_size())
            for part in batches(sizes, most, _REQUEST_BYTES):
                self._write(partial(self._upsert, records[part], vectors[part], metadatas[part]))

    def remove(self, ids: Sequence[str]) -> int:
        """See `Table.remove`."""
        pages = [list(ids[start : start + PAGE]) for start in range(0, len(ids), PAGE)]
        with translated(self._place):
            return sum(self._write(partial(self._delete, page)) for page in pages)

    def _delete(self, page: list[str], client: Client) -> int:
        collection = self._collection(client)
        if collection is None:
            return 0
        # Chroma counts ids that were never there as deleted.
        there = collection.get(ids=page, include=[])["ids"]
        if there:
            collection.delete(ids=there)
        return len(there)

    def _upsert(
        self, records: Sequence[Record], rows: Vectors, metadatas: list[dict[str, Any]], client: Client
    ) -> None:
        collection = self._writable(client)
        dim = self._stored_dim(collection)
        if dim is not None and rows.shape[1] != dim:
            raise InputError(
                f"{self._place}: the vectors have {rows.shape[1]} dimensions, but those in collection "
                f"{self._name!r} have {dim}; use the model that made them, or another collection"
            )
        # Chroma merges a record's old metadata into the new; None takes a key away.
        new = {record.id: dict(metadata) for record, metadata in zip(records, metadatas, strict=True)}
        for start in range(0, len(records), PAGE):
            old = collection.get(ids=[r.id for r in records[start : start + PAGE]], include=["metadatas"])
            for id_, metadata in zip(old["ids"], old["metadatas"] or [], strict=True):
                new[id_].update((key, None) for key in metadata or {} if key not in new[id_])
        collection.upsert(
            ids=list(new),
            embeddings=rows,
            metadatas=list(new.values()),
            documents=[record.text for record in records],
            # Empty rather than None, which would leave the old one in place.
            uris=[record.source for record in records],
        )

    # -- searching -----------------------------------------------------------------------------

    def nearest(self, vectors: Vectors, k: int, where: Condition | None) -> list[list[Hit]]:
        """See `Table.nearest`."""
        condition = to_where(where)
        found: list[list[Hit]] = []
        for start in range(0, len(vectors), _QUERIES):
            part = vectors[start : start + _QUERIES]
            found += self._read(partial(self._query, part, k, condition), [[] for _ in part], where=condition)
        return found

    def _query(self, rows: Vectors, k: int, where: dict[str, Any] | None, collection: Collection) -> list[list[Hit]]:
        dim = self._stored_dim(collection)
        if dim is None:
            return [[] for _ in rows]
        if dim != rows.shape[1]:
            raise InputError(
                f"{self._place}: the vector has {rows.shape[1]} dimensions, but those in collection "
                f"{self._name!r} have {dim}; search with the model that made them"
            )
        found = dict(_indexed(rows, k, where, collection))
        missing = [i for i in range(len(rows)) if i not in found]
        if missing:
            found.update(zip(missing, _exact(rows[missing], k, where, collection), strict=True))
        return [found[i] for i in range(len(rows))]

    # -- the collection ------------------------------------------------------------------------

    def _read(self, use: Callable[[Collection], T], empty: T, *, where: object = None) -> T:
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
            self._known = None
            return use(client)

    def _collection(self, client: Client) -> Collection | None:
        known = self._known
        if known is not None and known[0] is client:
            return known[1]
        from chromadb.errors import NotFoundError

        try:
            collection = client.get_collection(self._name, embedding_function=None)
        except NotFoundError:
            return None
        self._check(collection)
        self._known = client, collection
        return collection

    def _check(self, collection: Collection) -> None:
        configuration = collection.configuration_json
        space = (configuration.get("hnsw") or configuration.get("spann") or {}).get("space")
        if space != "cosine":
            raise StoreError(
                f"{self._place}: collection {self._name!r} was made with the distance {space!r}, and only 'cosine' is "
                "supported; use another collection name and index again"
            )
        mark = _mark(collection)
        if self._wanted is None or mark == self._wanted:
            return
        if mark is not None:
            raise FingerprintMismatchError(
                f"{self._place}: collection {self._name!r} holds vectors of {mark}, which cannot be compared with "
                f"those of {self._wanted}; use another collection or path, or delete this one and index again"
            )
        if collection.count():
            raise FingerprintMismatchError(
                f"{self._place}: collection {self._name!r} holds vectors but not the name of the model that made them, "
                f"so they cannot be compared with those of {self._wanted}; use another collection or path and index "
                "again, or open it without a fingerprint"
            )

    def _writable(self, client: Client) -> Collection:
        """The collection, made and marked if need be."""
        collection = self._collection(client)
        if collection is not None and self._wanted is not None and _mark(collection) is None:
            self._known = None  # another client may have marked it since
            collection = self._collection(client)
        mark = None if self._wanted is None else {_FINGERPRINT: self._wanted}
        if collection is None:
            client.get_or_create_collection(
                self._name, embedding_function=None, metadata=mark, configuration={"hnsw": _INDEX}
            )
        elif mark is not None and _mark(collection) is None:
            # The space cannot be changed, and Chroma takes naming it for an attempt.
            kept = {key: value for key, value in (collection.metadata or {}).items() if not key.startswith("hnsw:")}
            collection.modify(metadata={**kept, **mark})
        else:
            return collection
        self._known = None
        collection = self._collection(client)
        if collection is None:
            raise StoreError(f"{self._place}: collection {self._name!r} was deleted while it was written to; try again")
        return collection

    def _stored_dim(self, collection: Collection) -> int | None:
        known = self._dim
        if known is not None and known[0] == collection.id:
            return known[1]
        rows = collection.get(limit=1, include=["embeddings"])["embeddings"]
        if rows is None or len(rows) == 0:
            return None
        self._dim = collection.id, len(rows[0])
        return self._dim[1]


def _mark(collection: Collection) -> str | None:
    mark = (collection.metadata or {}).get(_FINGERPRINT)
    return None if mark is None else str(mark)


def _more_than(n: int, where: dict[str, Any] | None, collection: Collection) -> bool:
    if where is None:
        return collection.count() > n
    return len(collection.get(where=where, limit=n + 1, include=[])["ids"]) > n


def _indexed(
    rows: Vectors, k: int, where: dict[str, Any] | None, collection: Collection
) -> Iterator[tuple[int, list[Hit]]]:
    """Ask the index; yield row numbers with hits, except where the index finds fewer than there are."""
    # One more than asked shows whether the last place is tied.
    wanted, most = k + 1, k + _MOST_TIES
    if wanted > PAGE:
        wanted = most = max(1, min(wanted, collection.count()))
    complete: dict[int, bool] = {}
    numbers = list(range(len(rows)))
    while numbers:
        answer: Any = collection.query(
            query_embeddings=rows[numbers], n_results=wanted, where=where, include=[*_RECORD, "distances"]
        )
        tied = []
        for position, i in enumerate(numbers):
            far = answer["distances"][position]
            if len(far) < wanted:
                if len(far) not in complete:
                    complete[len(far)] = not _more_than(len(far), where, collection)
                if not complete[len(far)]:
                    continue
            elif wanted < most and far[k - 1] == far[-1]:
                tied.append(i)
                continue
            ids = answer["ids"][position]
            columns = [answer[name][position] for name in _RECORD]
            yield i, _hits(dict(zip(ids, far, strict=True)), records_of(ids, *columns), k)
        numbers, wanted = tied, min(2 * wanted, most)


def _exact(rows: Vectors, k: int, where: dict[str, Any] | None, collection: Collection) -> list[list[Hit]]:
    """Compare with every vector: beside many equal vectors, or behind a narrow filter, the index is blind."""
    ids: list[str] = []
    parts: list[Vectors] = [np.zeros((0, rows.shape[1]), dtype=np.float32)]
    while (page := collection.get(where=where, limit=PAGE, offset=len(ids), include=["embeddings"]))["ids"]:
        ids += page["ids"]
        parts.append(np.asarray(page["embeddings"], dtype=np.float32))
    order = sorted(range(len(ids)), key=ids.__getitem__)
    # In float64 and rounded, so that equal vectors have equal distances however the product is blocked.
    distances = np.round(1.0 - rows.astype(np.float64) @ np.concatenate(parts)[order].T.astype(np.float64), 9)
    ranked = [{ids[order[j]]: float(row[j]) for j in np.argsort(row, kind="stable")[:k]} for row in distances]
    wanted = list({id_ for found in ranked for id_ in found})
    records: dict[str, Record] = {}
    for start in range(0, len(wanted), PAGE):
        page = collection.get(ids=wanted[start : start + PAGE], include=_RECORD)
        some = records_of(page["ids"], page["metadatas"], page["documents"], page["uris"])
        records.update((record.id, record) for record in some)
    return [_hits(found, [records[id_] for id_ in found if id_ in records], k) for found in ranked]


def _hits(far: dict[str, float], records: Sequence[Record], k: int) -> list[Hit]:
    ranked = sorted(records, key=lambda record: (far[record.id], record.id))[:k]
    return [Hit(record, min(1.0, max(0.0, 1.0 - float(far[record.id]) / 2.0))) for record in ranked]
