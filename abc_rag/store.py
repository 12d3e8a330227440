"""Chroma: records and vectors in, hits out.

One collection holds pictures and passages together, in cosine space. `ChromaStore` keeps it either in
a directory (embedded) or on a Chroma server. What it adds to Chroma: a collection remembers whose
vectors it holds, one process at a time writes to a directory, requests are cut by number and by bytes,
and every failure is one of `abc_rag.errors`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from abc_rag._lock import Lease
from abc_rag.embedder import Vectors
from abc_rag.errors import ABCRagError, FingerprintMismatchError, InputError, MissingExtraError, StoreError
from abc_rag.types import Fingerprint, Hit, MetadataValue, Modality, Record

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.collection_configuration import CreateHNSWConfiguration
    from chromadb.api.models.Collection import Collection

__all__ = ["ChromaStore", "image_id", "text_id"]

T = TypeVar("T")
Item = tuple[Record, dict[str, MetadataValue], npt.NDArray[np.float32], int]

_OWN = "abc:"
_MODALITY = "abc:modality"
_SOURCE = "abc:source"
_FINGERPRINT = "abc:fingerprint"
# A Chroma server refuses requests of 40 MB.
_REQUEST_BYTES = 30_000_000
# Ids go to SQLite as variables, of which one statement takes 32,766.
_PAGE = 1000
_QUERIES = 256
# With Chroma's 16 neighbours, records beside a few dozen equal vectors cannot be found.
_INDEX: CreateHNSWConfiguration = {"space": "cosine", "max_neighbors": 64, "ef_search": 200}
_MOST_TIES = 1000


def text_id(text: str) -> str:
    """Id of a passage: equal texts have equal ids."""
    return "text-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def image_id(sha256: str) -> str:
    """Id of a picture, from the SHA-256 of its content (64 hexadecimal digits).

    Raises:
        InputError: ``sha256`` is not one.
    """
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"sha256 must be 64 hexadecimal digits, not {sha256!r}")
    return "image-" + sha256[:32].lower()


class ChromaStore:
    """A Chroma collection of pictures and passages.

    Safe to use from many threads. Embedded, one process at a time may write: the first `add` or
    `delete` locks the directory until `close`, or until the process ends. Other processes may read
    meanwhile; a search that follows another process's write reloads the index from disk, so where
    many processes write or a big store is read while it is written to, run a Chroma server. A plain
    ``chromadb.PersistentClient`` or ``chroma run`` on the same directory does not know these locks:
    let none write while a `ChromaStore` is open. An embedded store cannot be used in a child forked after
    its parent used one (Chroma would hang; this raises `StoreError`): start such processes by ``spawn``.

    A collection is created by the first `add`, so opening a store to read changes nothing in it.

    Args:
        path: Directory of an embedded store; made if missing. Exactly one of ``path`` and ``url``.
        url: A Chroma server, ``http://host:port`` or ``https://host``.
        collection: Name of the collection: 3 to 512 characters of ``[a-zA-Z0-9._-]``.
        fingerprint: Whose vectors go in and out. The first `add` marks the collection with it, and
            from then on no other may open it. None opens whatever is there, and marks nothing; a
            collection that holds vectors without a mark can be opened only so.
        headers: HTTP headers for the server, for example a token.
        lock_timeout_s: How long a write waits for another process to stop writing, in seconds.

    Raises:
        InputError: Both or none of ``path`` and ``url``, or one of them is unusable.
        FingerprintMismatchError: The collection holds another model's vectors.
        StoreError: The directory or the server cannot be used; the message says what to do.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        url: str | None = None,
        collection: str = "abc",
        fingerprint: Fingerprint | None = None,
        headers: Mapping[str, str] | None = None,
        lock_timeout_s: float = 0.0,
    ) -> None:
        if (path is None) == (url is None):
            raise InputError("give exactly one of path (a directory) and url (a Chroma server)")
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]", collection):
            raise InputError(
                f"collection {collection!r}: a name has 3 to 512 characters of [a-zA-Z0-9._-] "
                "and begins and ends with a letter or a digit"
            )
        if headers is not None and url is None:
            raise InputError("headers are for a server: give url instead of path")
        self._name = collection
        self._wanted = None if fingerprint is None else str(fingerprint)
        self._known: tuple[Client, Collection] | None = None
        self._dim: tuple[object, int] | None = None
        self._backend: Lease[Client] | _Server
        if url is not None:
            self._place = url
            self._backend = _Server(url, dict(headers or {}))
        else:
            self._place = os.fspath(path)  # type: ignore[arg-type]
            if not self._place:
                raise InputError("path is empty: name a directory")
            with _translated(self._place):
                os.makedirs(self._place, exist_ok=True)
                self._backend = Lease(
                    self._place, _open_embedded, _close, watched="chroma.sqlite3", timeout_s=lock_timeout_s
                )
        try:
            self._read(lambda _: None, None)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"ChromaStore({self._place!r}, collection={self._name!r})"

    def __enter__(self) -> ChromaStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the store, and the right to write to its directory. Idempotent."""
        self._known = None
        with _translated(self._place):
            self._backend.close()

    # -- what is there -------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str | None:
        """The mark of the collection; before there is one, the mark it will get, if any."""
        return self._read(_mark, None) or self._wanted

    @property
    def dim(self) -> int | None:
        """Length of the stored vectors; None while there are none."""
        return self._read(self._stored_dim, None)

    def count(self) -> int:
        """How many records there are."""
        return self._read(lambda collection: collection.count(), 0)

    def ids(self) -> Iterator[str]:
        """Every id, a page at a time. Do not write meanwhile: pages would shift."""
        for page in self._pages([]):
            yield from page["ids"]

    def records(self) -> Iterator[Record]:
        """Every record, a page at a time. Do not write meanwhile: pages would shift."""
        for page in self._pages(["metadatas", "documents", "uris"]):
            yield from _records(page["ids"], page["metadatas"], page["documents"], page["uris"])

    def has(self, ids: Iterable[str]) -> set[str]:
        """Which of ``ids`` are stored."""
        return {id_ for page in self._fetch(ids, []) for id_ in page["ids"]}

    def get(self, ids: Iterable[str]) -> list[Record]:
        """The records of ``ids``, in the order asked; ids that are not stored are left out."""
        asked = _checked_ids(ids)
        found: dict[str, Record] = {}
        for page in self._fetch(asked, ["metadatas", "documents", "uris"]):
            rows = _records(page["ids"], page["metadatas"], page["documents"], page["uris"])
            found.update((record.id, record) for record in rows)
        return [found[id_] for id_ in asked if id_ in found]

    def vectors(self, ids: Iterable[str]) -> dict[str, Vectors]:
        """The vectors of those of ``ids`` that are stored: float32 unit vectors of shape ``(dim,)``."""
        return {
            id_: np.asarray(row, dtype=np.float32)
            for page in self._fetch(ids, ["embeddings"])
            for id_, row in zip(page["ids"], page["embeddings"], strict=True)
        }

    # -- writing -------------------------------------------------------------------------------

    def add(self, records: Sequence[Record], vectors: npt.ArrayLike) -> list[str]:
        """Store records with their vectors. A record whose id is there already is replaced whole.

        Of records with the same id in one call the last one counts. Nothing is written unless all
        records are sound. They are written in several requests: if one fails, those before it stay,
        and adding everything again is safe.

        Args:
            records: What to store; ids are required (see `text_id` and `image_id`). Metadata values
                are str, int, float or bool; keys starting with ``abc:`` or ``chroma:`` are reserved.
            vectors: Shape ``(len(records), dim)``. Rows need not have unit length; they are stored so.

        Returns:
            The ids, in the order of ``records``.

        Raises:
            InputError: A record or a vector cannot be stored; the message names its id. Or ``dim``
                is not that of the stored vectors.
            FingerprintMismatchError: Meanwhile the collection got another model's mark.
            StoreLockedError: Another process is writing to the directory.
            StoreError: The directory or the server cannot be written to.
        """
        rows = _unit_rows(vectors, [record.id for record in records])
        items: dict[str, Item] = {}
        for record, row in zip(records, rows, strict=True):
            items[record.id] = _item(record, row)
        if not items:
            return []
        chosen = list(items.values())
        with _translated(self._place):
            most = self._backend.read(self._name, lambda client: client.get_max_batch_size())
            for part in _batches([item[3] for item in chosen], most, _REQUEST_BYTES):
                batch = chosen[part]
                self._backend.write(partial(self._retried, partial(self._upsert, batch)))
        return [record.id for record in records]

    def delete(self, ids: Iterable[str]) -> int:
        """Delete records; return how many of ``ids`` were there.

        Raises:
            StoreLockedError: Another process is writing to the directory.
            StoreError: The directory or the server cannot be written to.
        """
        asked = list(dict.fromkeys(_checked_ids(ids)))

        with _translated(self._place):
            pages = [asked[start : start + _PAGE] for start in range(0, len(asked), _PAGE)]
            return sum(self._backend.write(partial(self._retried, partial(self._remove, page))) for page in pages)

    def _remove(self, page: list[str], client: Client) -> int:
        collection = self._collection(client)
        if collection is None:
            return 0
        # Chroma counts ids that were never there as deleted.
        there = collection.get(ids=page, include=[])["ids"]
        if there:
            collection.delete(ids=there)
        return len(there)

    def _upsert(self, batch: Sequence[Item], client: Client) -> None:
        collection = self._writable(client)
        dim = self._stored_dim(collection)
        rows = np.stack([item[2] for item in batch])
        if dim is not None and rows.shape[1] != dim:
            raise InputError(
                f"{self._place}: the vectors have {rows.shape[1]} dimensions, but those in collection "
                f"{self._name!r} have {dim}; use the model that made them, or another collection"
            )
        records = [item[0] for item in batch]
        metadatas: list[dict[str, Any]] = [dict(item[1]) for item in batch]
        # Chroma merges a record's old metadata into the new; None takes a key away.
        new = {record.id: metadata for record, metadata in zip(records, metadatas, strict=True)}
        for start in range(0, len(records), _PAGE):
            old = collection.get(ids=[r.id for r in records[start : start + _PAGE]], include=["metadatas"])
            for id_, metadata in zip(old["ids"], old["metadatas"] or [], strict=True):
                new[id_].update((key, None) for key in metadata or {} if key not in new[id_])
        collection.upsert(
            ids=[record.id for record in records],
            embeddings=rows,
            metadatas=metadatas,  # type: ignore[arg-type]
            documents=[record.text for record in records],
            # Empty rather than None, which would leave the old one in place.
            uris=[record.source for record in records],
        )

    # -- searching -----------------------------------------------------------------------------

    def search(
        self,
        vector: npt.ArrayLike,
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        *,
        modality: Modality | None = None,
    ) -> list[Hit]:
        """The ``k`` records nearest to a vector, best first; equal scores in the order of their ids.

        Args:
            vector: Shape ``(dim,)``; need not have unit length.
            k: How many; all there are where that is fewer.
            where: Chroma's metadata filter, such as ``{"page": {"$gte": 3}}``. Own fields can be
                filtered too: ``abc:source`` and ``abc:modality``.
            modality: Only pictures, or only passages.

        Returns:
            Hits with scores ``(1 + cosine) / 2``, in [0, 1]. An empty store gives none.

        Raises:
            InputError: The vector, ``k`` or the filter cannot be used.
            StoreError: The directory or the server cannot be read.
        """
        row = np.asarray(vector)
        if row.ndim != 1:
            raise InputError(f"vector must have shape (dim,), not {row.shape}; for several use search_many")
        return self.search_many(row[None], k, where, modality=modality)[0]

    def search_many(
        self,
        vectors: npt.ArrayLike,
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        *,
        modality: Modality | None = None,
    ) -> list[list[Hit]]:
        """`search` for each row of ``vectors``, shape ``(n, dim)``; one list of hits a row."""
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise InputError(f"k must be a positive int, not {k!r}")
        rows = _unit_rows(vectors, None)
        condition = _condition(where, modality)
        found: list[list[Hit]] = []
        for start in range(0, len(rows), _QUERIES):
            part = rows[start : start + _QUERIES]
            found += self._read(
                partial(self._query, part, int(k), condition),
                [[] for _ in part],
                where=condition,
            )
        return found

    def _query(
        self, rows: Vectors, k: int, condition: dict[str, Any] | None, collection: Collection
    ) -> list[list[Hit]]:
        dim = self._stored_dim(collection)
        if dim is not None and dim != rows.shape[1]:
            raise InputError(
                f"{self._place}: the vector has {rows.shape[1]} dimensions, but those in collection "
                f"{self._name!r} have {dim}; search with the model that made them"
            )
        found = dict(self._indexed(rows, k, condition, collection))
        if dim is not None:
            self._backend.mark_loaded(self._name)
        missing = [i for i in range(len(rows)) if i not in found]
        if missing:
            found.update(zip(missing, _exact(rows[missing], k, condition, collection), strict=True))
        return [found[i] for i in range(len(rows))]

    def _indexed(
        self, rows: Vectors, k: int, condition: dict[str, Any] | None, collection: Collection
    ) -> Iterator[tuple[int, list[Hit]]]:
        """Ask the index; yield row numbers with hits, except where the index finds fewer than there are."""
        # One more than asked shows whether the last place is tied.
        wanted, most = k + 1, k + _MOST_TIES
        if wanted > _PAGE:
            wanted = most = max(1, min(wanted, collection.count()))
        complete: dict[int, bool] = {}
        numbers = list(range(len(rows)))
        while numbers:
            answer = collection.query(
                query_embeddings=rows[numbers],
                n_results=wanted,
                where=condition,
                include=["metadatas", "documents", "uris", "distances"],
            )
            tied = []
            for position, i in enumerate(numbers):
                far = (answer["distances"] or [])[position]
                if len(far) < wanted:
                    if len(far) not in complete:
                        complete[len(far)] = not _more_than(len(far), condition, collection)
                    if not complete[len(far)]:
                        continue
                elif wanted < most and far[k - 1] == far[-1]:
                    tied.append(i)
                    continue
                columns = [(answer[column] or [])[position] for column in ("metadatas", "documents", "uris")]
                yield i, _hits(zip(far, _records(answer["ids"][position], *columns), strict=True), k)
            numbers, wanted = tied, min(2 * wanted, most)

    # -- the collection ------------------------------------------------------------------------

    def _read(self, use: Callable[[Collection], T], empty: T, *, where: object = None) -> T:
        """``use(collection)``, or ``empty`` while there is no collection."""

        def run(client: Client) -> T:
            collection = self._collection(client)
            return empty if collection is None else use(collection)

        with _translated(self._place, where):
            return self._backend.read(self._name, partial(self._retried, run))

    def _retried(self, use: Callable[[Client], T], client: Client) -> T:
        from chromadb.errors import NotFoundError

        try:
            return use(client)
        except NotFoundError:
            # Somebody deleted the collection since it was looked up, and may have made it anew.
            self._known = None
            return use(client)

    def _collection(self, client: Client) -> Collection | None:
        from chromadb.errors import NotFoundError

        known = self._known
        if known is not None and known[0] is client:
            return known[1]
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

    def _pages(self, include: list[str]) -> Iterator[dict[str, Any]]:
        offset = 0
        while page := self._read(partial(_got, include=include, limit=_PAGE, offset=offset), None):
            yield page
            offset += len(page["ids"])

    def _fetch(self, ids: Iterable[str], include: list[str]) -> Iterator[dict[str, Any]]:
        asked = list(dict.fromkeys(_checked_ids(ids)))
        for start in range(0, len(asked), _PAGE):
            page = self._read(partial(_got, include=include, ids=asked[start : start + _PAGE]), None)
            if page:
                yield page


# -- what Chroma is given and gives back -------------------------------------------------------


def _got(collection: Collection, **arguments: Any) -> dict[str, Any] | None:  # noqa: ANN401
    page: dict[str, Any] = dict(collection.get(**arguments))
    return page if page["ids"] else None


def _more_than(n: int, condition: dict[str, Any] | None, collection: Collection) -> bool:
    if condition is None:
        return collection.count() > n
    return len(collection.get(where=condition, limit=n + 1, include=[])["ids"]) > n


def _exact(rows: Vectors, k: int, condition: dict[str, Any] | None, collection: Collection) -> list[list[Hit]]:
    """Compare with every vector: beside many equal vectors, or behind a narrow filter, the index is blind."""
    ids: list[str] = []
    parts: list[Vectors] = [np.zeros((0, rows.shape[1]), dtype=np.float32)]
    while page := _got(collection, where=condition, limit=_PAGE, offset=len(ids), include=["embeddings"]):
        ids += page["ids"]
        parts.append(np.asarray(page["embeddings"], dtype=np.float32))
    order = sorted(range(len(ids)), key=ids.__getitem__)
    # In float64 and rounded, so that equal vectors have equal distances however the product is blocked.
    distances = np.round(1.0 - rows.astype(np.float64) @ np.concatenate(parts)[order].T.astype(np.float64), 9)
    ranked = [[(float(row[j]), ids[order[j]]) for j in np.argsort(row, kind="stable")[:k]] for row in distances]
    wanted = list({id_ for pairs in ranked for _, id_ in pairs})
    records: dict[str, Record] = {}
    for start in range(0, len(wanted), _PAGE):
        page = _got(collection, ids=wanted[start : start + _PAGE], include=["metadatas", "documents", "uris"])
        if page:
            found = _records(page["ids"], page["metadatas"], page["documents"], page["uris"])
            records.update((record.id, record) for record in found)
    return [_hits(((far, records[id_]) for far, id_ in pairs if id_ in records), k) for pairs in ranked]


def _hits(pairs: Iterable[tuple[float, Record]], k: int) -> list[Hit]:
    ranked = sorted(pairs, key=lambda pair: (pair[0], pair[1].id))[:k]
    return [Hit(record, min(1.0, max(0.0, 1.0 - float(distance) / 2.0))) for distance, record in ranked]


def _mark(collection: Collection) -> str | None:
    mark = (collection.metadata or {}).get(_FINGERPRINT)
    return None if mark is None else str(mark)


def _records(ids: Sequence[str], metadatas: Any, documents: Any, uris: Any) -> list[Record]:  # noqa: ANN401
    made = []
    for id_, metadata, document, uri in zip(ids, metadatas, documents, uris, strict=True):
        values = dict(metadata or {})
        # A record that something else wrote has no modality: one with a reference alone is a picture.
        guess = "image" if uri and not document else "text"
        modality: Modality = "image" if values.pop(_MODALITY, guess) == "image" else "text"
        source = values.pop(_SOURCE, None) or uri or ""
        made.append(Record(id_, modality, document or "", source, values))
    return made


def _item(record: Record, row: npt.NDArray[np.float32]) -> Item:
    """A checked record with what is stored of it, and the bytes it takes in a request."""
    if not isinstance(record, Record):
        raise InputError(f"records must be abc_rag.Record values, not {type(record).__name__}")
    _checked_ids([record.id])
    if record.modality not in ("text", "image"):
        raise InputError(f"record {record.id!r}: modality must be 'text' or 'image', not {record.modality!r}")
    size = len(row) * 6 + 200  # base64 of float32, and what is around it
    for name, text in (("text", record.text), ("source", record.source)):
        if not isinstance(text, str):
            raise InputError(f"record {record.id!r}: {name} must be a str, not {type(text).__name__}")
        size += 2 * _bytes(text, f"record {record.id!r}: {name}")
    metadata: dict[str, MetadataValue] = {_MODALITY: record.modality, _SOURCE: record.source}
    for key, value in record.metadata.items():
        where = f"record {record.id!r}: metadata key {key!r}"
        if not isinstance(key, str) or not key:
            raise InputError(f"{where}: keys must be non-empty str")
        if key.startswith((_OWN, "chroma:")):
            raise InputError(f"{where}: keys starting with 'abc:' or 'chroma:' are reserved; rename it")
        metadata[key] = _plain(value, where)
        size += _bytes(key, where) + (_bytes(value, where) if isinstance(value, str) else 24)
    return record, metadata, row, size


def _plain(value: object, where: str) -> MetadataValue:
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InputError(f"{where}: {value} does not fit into 64 bits; store it as a str")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where}: {value} cannot be stored; leave the key out")
        return float(value)
    raise InputError(f"{where}: values must be str, int, float or bool, not {type(value).__name__}")


def _bytes(text: str, where: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is not valid Unicode ({error.reason}); clean it first") from error


def _checked_ids(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        raise InputError("ids must be a list; got a single str: pass [id]")
    checked = list(ids)
    for id_ in checked:
        if not isinstance(id_, str) or not id_:
            raise InputError(f"an id must be a non-empty str, not {id_!r}; abc_rag.store.text_id makes one")
        _bytes(id_, f"id {id_!r}")
    return checked


def _unit_rows(vectors: npt.ArrayLike, ids: Sequence[str] | None) -> Vectors:
    """Checked float32 unit rows of shape ``(n, dim)``; ``ids`` name the rows in messages."""
    try:
        rows = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"vectors must be an array of shape (n, dim): {error}") from error
    if rows.size == 0 and not ids and rows.ndim <= 2:
        return np.zeros((0, 0), dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"vectors must have shape (n, dim), not {rows.shape}")
    if ids is not None and len(ids) != len(rows):
        raise InputError(f"{len(ids)} records but {len(rows)} vectors; give one for each")
    largest = np.abs(rows).max(axis=1, initial=0.0)
    for bad, what in ((~np.isfinite(largest), "holds NaN or infinity"), (largest == 0, "is zero")):
        if bad.any():
            first = int(bad.argmax())
            name = f"row {first}" if ids is None else f"record {ids[first]!r}"
            raise InputError(f"{name}: its vector {what}; embed it again")
    rows = rows / largest[:, None]
    unit: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _condition(where: Mapping[str, Any] | None, modality: Modality | None) -> dict[str, Any] | None:
    if where is not None and not isinstance(where, Mapping):
        raise InputError(f"where must be a dict such as {{'page': 3}}, not {type(where).__name__}")
    if modality not in (None, "text", "image"):
        raise InputError(f"modality must be 'text', 'image' or None, not {modality!r}")
    parts: list[dict[str, Any]] = [dict(where)] if where else []
    if modality is not None:
        parts.append({_MODALITY: modality})
    return {"$and": parts} if len(parts) > 1 else parts[0] if parts else None


def _batches(sizes: Sequence[int], most: int, most_bytes: int) -> Iterator[slice]:
    """Cut a sequence so that no part exceeds ``most`` items or, unless it is a single item, ``most_bytes``."""
    start = held = 0
    for position, size in enumerate(sizes):
        if position > start and (position - start >= most or held + size > most_bytes):
            yield slice(start, position)
            start, held = position, 0
        held += size
    if start < len(sizes):
        yield slice(start, len(sizes))


# -- clients -----------------------------------------------------------------------------------


def _open_embedded(path: str) -> Client:
    import chromadb
    from chromadb.config import Settings

    return cast("Client", chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False)))


def _close(client: Client) -> None:
    # Chroma stops but never closes its HTTP sessions, which would leave sockets behind.
    for owner in (client, client._admin_client):
        session = getattr(getattr(owner, "_server", None), "_session", None)
        if session is not None:
            session.close()
    client.close()


class _Server:
    """A Chroma server: it keeps order among its clients by itself."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InputError(f"url {url!r}: {error}") from error
        if parts.username or parts.password:
            raise InputError(f"url of {parts.hostname}: give credentials as headers, not in the url")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise InputError(f"url {url!r}: expected http://host:port or https://host")
        self._ssl = parts.scheme == "https"
        self._host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self._port = port or (443 if self._ssl else 8000)
        self._url, self._headers = url, headers
        self._open: tuple[int, Client] | None = None
        self._closed = False

    def _client(self) -> Client:
        if self._closed:
            raise StoreError(f"{self._url}: this store has been closed; open a new one")
        # A forked child must not talk through its parent's connections.
        if self._open is None or self._open[0] != os.getpid():
            import chromadb
            from chromadb.config import Settings

            client = chromadb.HttpClient(
                self._host, self._port, self._ssl, self._headers or None, Settings(anonymized_telemetry=False)
            )
            self._open = os.getpid(), cast("Client", client)
        return self._open[1]

    def read(self, key: str, use: Callable[[Client], T]) -> T:
        return use(self._client())

    def write(self, use: Callable[[Client], T]) -> T:
        return use(self._client())

    def mark_loaded(self, key: str) -> None:
        """Nothing: the server loads its own indexes."""

    def close(self) -> None:
        opened, self._open, self._closed = self._open, None, True
        if opened is not None and opened[0] == os.getpid():
            _close(opened[1])


# -- errors ------------------------------------------------------------------------------------

# What Chroma, SQLite and the system say, and what to do about it. The first that fits counts.
_REMEDIES = (
    ("connect|refused|timed out|timeout|unreachable|disconnected|name or service|nodename",
     "start a Chroma server ('chroma run --path DIRECTORY --port PORT') or correct the url"),
    ("too large|length limit|payload", "a single record is too big for the server: shorten its text"),
    ("forbidden|unauthor|authent", "pass the server's token in headers"),
    ("no space left|disk is full|disk full", "free some space on the disk"),
    ("readonly|read-only|permission denied|unable to open", "make the directory writable, or use another path"),
    ("file exists|not a directory|no such file", "path must name a directory: use another one"),
    ("not a database|malformed|migration|no such table|no such column|unsupported",
     "the files are damaged or of another chromadb version: restore a copy, or use another path and index again"),
    ("different settings", "close your own chromadb client of this directory first"),
    ("locked", "another program is using the directory: close it"),
)  # fmt: skip


@contextlib.contextmanager
def _translated(place: str, where: object = None) -> Iterator[None]:
    """The one way out for errors of Chroma, its transport and the file system."""
    try:
        yield
    except ABCRagError:
        raise
    except BaseException as error:
        # A panic in Chroma's native code is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise _translate(error, place, where) from error
        raise


def _translate(error: BaseException, place: str, where: object) -> ABCRagError:
    if isinstance(error, ImportError):
        return MissingExtraError(f"chromadb cannot be imported ({error}); pip install chromadb")
    from chromadb.errors import InvalidArgumentError, InvalidDimensionException

    text = " ".join(str(error).split()) or type(error).__name__
    refused = isinstance(error, (InvalidArgumentError, InvalidDimensionException))
    if where is not None and (refused or isinstance(error, (ValueError, TypeError))):
        return InputError(f"the filter {where!r} cannot be used: {text}")
    if refused:
        return InputError(f"{place}: {text}; correct the input, or use another collection")
    found = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE))
    return StoreError(f"{place}: {text}; {next(found, 'try again, or use another path or collection')}")
