"""`ChromaStore`: records and vectors in Chroma, in a directory or on a server."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_rag.errors import InputError, StoreError
from abc_rag.store.base import Store
from abc_rag.store.chroma.client import Server, translated
from abc_rag.store.chroma.collections import FACETS, shards_in
from abc_rag.store.chroma.embedded import EmbeddedTable
from abc_rag.store.chroma.lock import Lease
from abc_rag.store.chroma.served import ServedTable
from abc_rag.store.chroma.shards import ShardedTable
from abc_rag.store.chroma.table import ChromaTable
from abc_rag.store.pictures import KeptPictures
from abc_rag.store.roots import Roots
from abc_rag.types import Fingerprint

if TYPE_CHECKING:
    from chromadb.api.client import Client

__all__ = ["ChromaStore"]

_Table = ChromaTable | ShardedTable | ServedTable
# A search asks each of them.
_MOST_SHARDS = 64


def _check_name(collection: str) -> None:
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,503}[a-zA-Z0-9]", collection):
        raise InputError(
            f"collection {collection!r}: a name has 3 to 505 characters of [a-zA-Z0-9._-] "
            "and begins and ends with a letter or a digit"
        )
    if collection.endswith(FACETS):
        raise InputError(f"collection {collection!r}: names ending in {FACETS!r} are reserved; use another")


def _check_shards(shards: object, url: str | None) -> None:
    if shards is None:
        return
    if url is None:
        raise InputError("shards is for a server: give url instead of path")
    if type(shards) is not int or not 1 <= shards <= _MOST_SHARDS:
        raise InputError(f"shards must be an int from 1 to {_MOST_SHARDS}, not {shards!r}")


def _shards_there(server: Server, url: str, collection: str) -> int:
    try:
        with translated(url):
            return server.read(partial(shards_in, name=collection))
    except BaseException:
        server.close()
        raise


def _served(server: Server, url: str, name: str, wanted: str | None, shards: int) -> ChromaTable | ShardedTable:
    first = ChromaTable(server, url, name, wanted, shards=shards)
    if shards == 1:
        return first
    stem, facets = name.removesuffix(FACETS), FACETS if name.endswith(FACETS) else ""
    others = [ChromaTable(server, url, f"{stem}.{number}{facets}", wanted) for number in range(1, shards)]
    return ShardedTable([first, *others], url)


class ChromaStore(Store):
    """A Chroma collection of pictures and passages, in cosine space.

    Safe to use from many threads. Embedded, one process at a time may write: `add` and `delete` lock the directory
    while they write and for ``hold_s`` after. Other processes may read meanwhile, and write afterwards. Whoever
    follows another process's write reloads the index from disk, so where many processes write, or a big store is read
    while it is written to, run a Chroma server. What is acknowledged survives a kill at any moment and a full disk:
    it is in a journal (``abc-records.sqlite3``) from which the index is built anew where that is damaged. A plain
    ``chromadb.PersistentClient`` or ``chroma run`` on the same directory does not know these locks:
    let none write while a `ChromaStore` is open. An embedded store cannot be used in a child forked after
    its parent used one (Chroma would hang; this raises `StoreError`): start such processes by ``spawn``.

    A collection is created by the first `add`, so opening a store to read changes nothing in it. Facets are a
    collection of their own beside it. Who only reads an embedded store uses the journal: Chroma, which takes a second
    to import, is opened for the first write, and for a search among more than 16 million numbers (87,000 vectors of
    192) or after many among more than 2 million. Until then a search compares with all vectors, which is exact.

    Args:
        path: Directory of an embedded store; made if missing. Exactly one of ``path`` and ``url``.
        url: A Chroma server, ``http://host:port`` or ``https://host``.
        collection: Name of the collection: 3 to 505 characters of ``[a-zA-Z0-9._-]``, not ending in ``.facets``.
        fingerprint: Whose vectors go in and out. The first `add` marks the collection with it, and
            from then on no other may open it. None opens whatever is there, and marks nothing; a
            collection that holds vectors without a mark can be opened only so.
        headers: HTTP headers for the server, for example a token.
        lock_timeout_s: How long a write waits for another process to stop writing, in seconds.
        hold_s: How long the right to write is kept after a write, in seconds; then another process may write.
        pictures: Folder of the pictures that `keep_picture` copies, those of each collection in a folder of its
            own within it. If not given: ``pictures`` within ``path``; with a server, none.
        keywords: With a server: folder on this machine for the keyword index, which follows what the server has;
            several stores and processes may share it. If not given, none. An embedded store has its own index.
        shards: With a server: of how many collections a new store is, where one would become too large. A record is in
            the one that the hash of its id says; what is found is the same. If not given: as it was made, else 1.

    Raises:
        InputError: Both or none of ``path`` and ``url``, or one of them is unusable; or the store has other shards.
        FingerprintMismatchError: The collection holds another model's vectors.
        StoreError: The directory or the server cannot be used; the message says what to do.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        url: str | None = None,
        collection: str = "abc",
        fingerprint: Fingerprint | str | None = None,
        headers: Mapping[str, str] | None = None,
        lock_timeout_s: float = 5.0,
        hold_s: float = 1.0,
        pictures: str | os.PathLike[str] | None = None,
        keywords: str | os.PathLike[str] | None = None,
        shards: int | None = None,
    ) -> None:
        if (path is None) == (url is None):
            raise InputError("give exactly one of path (a directory) and url (a Chroma server)")
        _check_name(collection)
        if headers is not None and url is None:
            raise InputError("headers are for a server: give url instead of path")
        if keywords is not None and url is None:
            raise InputError("keywords is for a server: an embedded store has its keyword index in path")
        _check_shards(shards, url)
        self._settings: dict[str, Any] = {
            "path": None if path is None else os.path.abspath(os.fspath(path)),
            "url": url,
            "collection": collection,
            "fingerprint": fingerprint,
            "headers": None if headers is None else dict(headers),
            "lock_timeout_s": lock_timeout_s,
            "hold_s": hold_s,
            "pictures": None if pictures is None else os.path.abspath(os.fspath(pictures)),
            "keywords": None if keywords is None else os.path.abspath(os.fspath(keywords)),
            "shards": shards,
        }
        self._wanted = wanted = None if fingerprint is None else str(fingerprint)
        names = (collection, collection + FACETS)
        self._backend: Lease | Server
        self._tables: tuple[_Table, ...]
        if url is not None:
            self._place = url
            self._backend = server = Server(url, dict(headers or {}))
            count = shards or _shards_there(server, url, collection)
            served, beside = (_served(server, url, name, wanted, count) for name in names)
            words = self._settings["keywords"]
            self._tables = (
                served if words is None else ServedTable(served, server, url, collection, words),
                beside,
            )
        else:
            self._place = place = os.fspath(path)  # type: ignore[arg-type]
            if not place:
                raise InputError("path is empty: name a directory")
            with translated(place):
                os.makedirs(place, exist_ok=True)
                self._backend = lease = Lease(place, self._load, timeout_s=lock_timeout_s, hold_s=hold_s)
            self._tables = tuple(EmbeddedTable(lease, place, name, wanted) for name in names)
            pictures = pictures if pictures is not None else Path(place, "pictures")
        # By collection, as whether a copy is still referred to is known within one only.
        folder = None if pictures is None else Path(pictures, collection)
        # Links on the way to the store are followed, but none that whoever filled the store put in the folder's place.
        where = url.rstrip("/") if url is not None else os.path.realpath(self._place)
        folders = [one for one in (folder, path and Path(where, "pictures", collection)) if one is not None]
        records, facets = self._tables
        super().__init__(
            records,
            facets,
            None if folder is None else KeptPictures(folder),
            Roots(f"{where}#{collection}", own=folders),
        )
        try:
            with translated(self._place):
                for table in self._tables:
                    table.check()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"ChromaStore({self._place!r}, collection={self._settings['collection']!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ChromaStore, **self._settings), ()

    def _load(self, client: Client) -> None:
        # Both at once: what is loaded later would have to wait for writers of other processes.
        for table in self._tables:
            if isinstance(table, EmbeddedTable):
                table.load(client)

    @property
    def fingerprint(self) -> str | None:
        """The mark of the collection; before there is one, the mark it will get, if any."""
        return self._tables[0].fingerprint() or self._wanted

    @property
    def notes_file(self) -> Path:
        """Where `abc_rag.ingest.index_paths` notes which files it has read: in the store's folder, if it has one."""
        path = self._settings["path"]
        return super().notes_file if path is None else Path(path, "abc-files.sqlite3")

    def repair(self) -> int:
        """Build the index of an embedded store anew from its journal; return how many records there are.

        Damage that is noticed when a directory is opened is repaired by itself. This is for an index that looks sound
        and still misses something, which `check` tells.

        Raises:
            StoreError: This is a server, which looks after its own files. Only its ``keywords`` are made anew.
        """
        for table in self._tables:
            if isinstance(table, (EmbeddedTable, ServedTable)):
                table.rebuild()
            elif self._settings["keywords"] is None:
                raise StoreError(f"{self._place}: a Chroma server keeps its own files; repair or restore them there")
        return self.count()

    def check(self) -> list[str]:
        """See `Store.check`. An embedded store opens Chroma for it, as its index is what may lack something."""
        with translated(self._place):
            self._backend.read(lambda _: None)
        return super().check()

    def close(self) -> None:
        """Release the store, and the right to write to its directory. Idempotent."""
        with translated(self._place):
            self._backend.close()
        if isinstance(self._tables[0], ServedTable):
            self._tables[0].close()
