"""Chroma: records and vectors in, hits out.

One collection holds pictures and passages together, in cosine space. `ChromaStore` keeps it either in
a directory (embedded) or on a Chroma server. What it adds to Chroma: a collection remembers whose
vectors it holds, one process at a time writes to a directory, requests are cut by number and by bytes,
and every failure is one of `abc_rag.errors`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from abc_rag.errors import InputError, StoreError
from abc_rag.store.base import _checked_ids, _checked_rows, _unit_rows
from abc_rag.store.chroma.client import _close, _open_embedded, _Server, _translated
from abc_rag.store.chroma.facets import _SUFFIX, _Facets
from abc_rag.store.chroma.lock import Lease
from abc_rag.store.chroma.records import (
    _FINGERPRINT,
    _PAGE,
    _SOURCE,
    Item,
    _batches,
    _check,
    _condition,
    _exact,
    _got,
    _indexed,
    _items,
    _mark,
    _records,
)
from abc_rag.store.chroma.table import _INDEX, _QUERIES, _REQUEST_BYTES, T
from abc_rag.store.pictures import _KEPT, _Pictures
from abc_rag.types import Fingerprint, Hit, Modality, Record, Vectors

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.models.Collection import Collection

__all__ = ["ChromaStore"]


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
        collection: Name of the collection: 3 to 505 characters of ``[a-zA-Z0-9._-]``, not ending in ``.facets``.
        fingerprint: Whose vectors go in and out. The first `add` marks the collection with it, and
            from then on no other may open it. None opens whatever is there, and marks nothing; a
            collection that holds vectors without a mark can be opened only so.
        headers: HTTP headers for the server, for example a token.
        lock_timeout_s: How long a write waits for another process to stop writing, in seconds.
        pictures: Folder of the pictures that `keep_picture` copies, those of each collection in a folder of its
            own within it. If not given: ``pictures`` within ``path``; with a server, none.

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
        pictures: str | os.PathLike[str] | None = None,
    ) -> None:
        if (path is None) == (url is None):
            raise InputError("give exactly one of path (a directory) and url (a Chroma server)")
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,503}[a-zA-Z0-9]", collection):
            raise InputError(
                f"collection {collection!r}: a name has 3 to 505 characters of [a-zA-Z0-9._-] "
                "and begins and ends with a letter or a digit"
            )
        if collection.endswith(_SUFFIX):
            raise InputError(f"collection {collection!r}: names ending in {_SUFFIX!r} are reserved; use another")
        if headers is not None and url is None:
            raise InputError("headers are for a server: give url instead of path")
        self._name = collection
        self._wanted = None if fingerprint is None else str(fingerprint)
        self._known: tuple[Client, Collection] | None = None
        self._dim: tuple[object, int] | None = None
        self._is_table = False
        if pictures is None and path is not None:
            pictures = Path(path, "pictures")
        # By collection, as whether a copy is still referred to is known within one only.
        self._pictures = None if pictures is None else _Pictures(Path(pictures, collection))
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

    @cached_property
    def _facets(self) -> _Facets:
        table = object.__new__(ChromaStore)
        # The same place, client and locks; a collection of its own.
        table.__dict__ |= self.__dict__ | {
            "_name": self._name + _SUFFIX,
            "_known": None,
            "_dim": None,
            "_is_table": True,
            "_pictures": None,
        }
        return _Facets(table, self)

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
            found = _records(page["ids"], page["metadatas"], page["documents"], page["uris"])
            yield from map(self._public, found)

    def has(self, ids: Iterable[str]) -> set[str]:
        """Which of ``ids`` are stored."""
        return {id_ for page in self._fetch(ids, []) for id_ in page["ids"]}

    def get(self, ids: Iterable[str]) -> list[Record]:
        """The records of ``ids``, in the order asked; ids that are not stored are left out."""
        return [self._public(record) for record in self._raw(ids)]

    def _raw(self, ids: Iterable[str]) -> list[Record]:
        """Records as the database has them."""
        asked = _checked_ids(ids)
        found: dict[str, Record] = {}
        for page in self._fetch(asked, ["metadatas", "documents", "uris"]):
            rows = _records(page["ids"], page["metadatas"], page["documents"], page["uris"])
            found.update((record.id, record) for record in rows)
        return [found[id_] for id_ in asked if id_ in found]

    def _public(self, record: Record) -> Record:
        return record if self._pictures is None else self._pictures.to_public(record)

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
        if self._pictures is not None:
            records = [self._pictures.to_stored(r) if isinstance(r, Record) else r for r in records]
        rows = _checked_rows(records, vectors)
        items = _items(records, rows)
        self._facets.forget_changed(records, rows)
        self._write(items)
        self._facets.follow(records)
        return [record.id for record in records]

    def _put(self, records: Sequence[Record], vectors: npt.ArrayLike, own: Sequence[Mapping[str, str]]) -> None:
        self._write(_items(records, _checked_rows(records, vectors), own))

    def _write(self, items: Sequence[Item]) -> None:
        if not items:
            return
        with _translated(self._place):
            most = self._backend.read(self._name, lambda client: client.get_max_batch_size())
            for part in _batches([item[3] for item in items], most, _REQUEST_BYTES):
                self._backend.write(partial(self._retried, partial(self._upsert, items[part])))

    def delete(self, ids: Iterable[str]) -> int:
        """Delete records; return how many of ``ids`` were there.

        Raises:
            StoreLockedError: Another process is writing to the directory.
            StoreError: The directory or the server cannot be written to.
        """
        asked = list(dict.fromkeys(_checked_ids(ids)))
        kept: dict[str, None] = {}
        if not self._is_table:
            # First, so that a deletion that is cut short leaves no facet without its picture.
            self._facets.delete(asked)
            kept.update((record.source, None) for record in self._raw(asked) if record.source_type == _KEPT)
        with _translated(self._place):
            pages = [asked[start : start + _PAGE] for start in range(0, len(asked), _PAGE)]
            removed = sum(self._backend.write(partial(self._retried, partial(self._remove, page))) for page in pages)
        if self._pictures is not None:
            for source in kept:
                if next(self._pages([], where={_SOURCE: source}), None) is None:
                    self._pictures.forget(source)
        return removed

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

    def add_facets(self, ids: Sequence[str], instruction: str, vectors: npt.ArrayLike) -> None:
        """Store a further vector of each of some pictures: what it is under ``instruction``.

        A search takes the best of a picture's vectors. Facets go with their picture: they are deleted with it, and
        dropped when it is stored again with another vector. Storing one again replaces it.

        Args:
            ids: Stored pictures.
            instruction: What was looked at.
            vectors: Shape ``(len(ids), dim)``.

        Raises:
            InputError: The instruction is blank, or an id is not that of a stored picture.
            StoreError: As `add` does.
        """
        self._facets.add(ids, instruction, vectors)

    def facet_names(self, ids: Iterable[str]) -> dict[str, set[str]]:
        """The instructions under which each of ``ids`` has a facet; ids without any are left out."""
        return self._facets.names(ids)

    def facet_vectors(self, ids: Iterable[str], instruction: str) -> dict[str, Vectors]:
        """The vectors of those of ``ids`` that have a facet of exactly this instruction."""
        return self._facets.vectors(ids, instruction)

    def keep_picture(self, data: bytes, mime_type: str) -> str:
        """Copy a picture's encoded bytes into the store's folder; return the path, to be a record's source.

        The copy is named by its content, and goes when the last record that has it as its source is deleted.
        Records refer to it relative to that folder, so a store's directory can be moved.

        Args:
            data: The encoded bytes.
            mime_type: What they are, such as ``"image/jpeg"``.

        Raises:
            InputError: The type is not that of a picture that is read, or this is a server without ``pictures``.
            StoreError: The copy cannot be written.
        """
        if self._pictures is None:
            raise InputError(
                f"{self._place}: a Chroma server holds no pictures; open the store with pictures=FOLDER to keep them"
            )
        return self._pictures.keep(data, mime_type)

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
        hits = self._search_own(rows, int(k), where, modality)
        if modality != "text":
            hits = self._facets.merged(rows, int(k), where, hits)
        return [[replace(hit, record=self._public(hit.record)) for hit in found] for found in hits]

    def _search_own(
        self, rows: Vectors, k: int, where: Mapping[str, Any] | None, modality: Modality | None
    ) -> list[list[Hit]]:
        """Search this collection alone."""
        condition = _condition(where, modality)
        found: list[list[Hit]] = []
        for start in range(0, len(rows), _QUERIES):
            part = rows[start : start + _QUERIES]
            found += self._read(
                partial(self._query, part, k, condition),
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
        found = dict(_indexed(rows, k, condition, collection))
        if dim is not None:
            self._backend.mark_loaded(self._name)
        missing = [i for i in range(len(rows)) if i not in found]
        if missing:
            found.update(zip(missing, _exact(rows[missing], k, condition, collection), strict=True))
        return [found[i] for i in range(len(rows))]

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
        _check(collection, self._place, self._name, self._wanted)
        self._known = client, collection
        return collection

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

    def _pages(self, include: list[str], where: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        offset = 0
        while page := self._read(partial(_got, include=include, where=where, limit=_PAGE, offset=offset), None):
            yield page
            offset += len(page["ids"])

    def _fetch(self, ids: Iterable[str], include: list[str]) -> Iterator[dict[str, Any]]:
        asked = list(dict.fromkeys(_checked_ids(ids)))
        for start in range(0, len(asked), _PAGE):
            page = self._read(partial(_got, include=include, ids=asked[start : start + _PAGE]), None)
            if page:
                yield page
