"""A store that is opened on first use."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping

import numpy.typing as npt

from abc_rag import ChromaStore, Embedder, Fingerprint
from abc_rag.errors import FingerprintMismatchError, InputError, StoreError
from abc_rag.search import opened_for, projected
from abc_rag.store import Shortening, Store, open_store


class LazyStore:
    """Opens a store on first use, because checking its fingerprint needs the loaded model.

    Args:
        path: Where the store is; see `abc_rag.store.open_store`.
        url: A Chroma server.
        collection: Name of the collection.
        headers: For the server.
        store: A store that the caller opened, and will close.
    """

    def __init__(
        self,
        *,
        path: str | os.PathLike[str] | None,
        url: str | None,
        collection: str,
        headers: Mapping[str, str] | None,
        store: Store | None,
    ) -> None:
        if sum(given is not None for given in (path, url, store)) > 1:
            raise InputError("give at most one of path (a directory), url (a Chroma server) and store")
        if headers is not None and url is None:
            raise InputError("headers are for a server: give url too")
        self._path = None if path is None else os.fspath(path)
        self._url = url
        self._collection = collection
        self._headers = headers
        self._given = store
        self._temporary = path is None and url is None and store is None
        self._lock = threading.Lock()
        self._open: tuple[Store, Shortening] | None = None
        self._closed = False

    def get(self, embedder: Embedder | None) -> Store:
        """The open store, after checking that it holds vectors of ``embedder``, or such as were reduced from them.

        Args:
            embedder: Whose vectors go in and out; None for embeddings that do not say.

        Raises:
            FingerprintMismatchError: It holds another model's vectors.
            InputError: The place cannot be used, or a given store is bound to no model.
            StoreError: As for `open_store`; or this was closed.
        """
        return self._ready(embedder)[0]

    def shortened(self, embedder: Embedder | None, vectors: npt.ArrayLike) -> npt.ArrayLike:
        """Vectors of ``embedder`` as the store holds them: see `abc_rag.store.Shortening`."""
        return self._ready(embedder)[1](vectors)

    def _ready(self, embedder: Embedder | None) -> tuple[Store, Shortening]:
        with self._lock:
            if self._closed:
                raise StoreError("this vector store has been closed; make a new one")
            if self._open is None:
                store = self._opened(embedder) if self._given is None else self._given
                try:
                    _check(store, embedder if embedder is None else projected(embedder, store))
                except BaseException:
                    self._release(store)
                    raise
                self._open = store, Shortening(store)
            return self._open

    def close(self) -> None:
        """Close the store if it was opened here, and delete a temporary directory. Idempotent."""
        with self._lock:
            self._closed = True
            self._forget()
            if self._temporary and self._path is not None:
                shutil.rmtree(self._path, ignore_errors=True)
                self._path = None

    def close_later(self) -> None:
        """Close from a finalizer, which may run anywhere, even within a call of another store that holds its locks.

        At the end of the process, no thread can be started, but none holds a lock either.
        """
        if threading.main_thread().is_alive():
            threading.Thread(target=self.close, name="langchain-abc-close").start()
        else:
            self.close()

    def _opened(self, embedder: Embedder | None) -> Store:
        if self._temporary and self._path is None:
            self._path = tempfile.mkdtemp(prefix="langchain-abc-")
        return self._opened_as(None) if embedder is None else opened_for(embedder, self._opened_as)[1]

    def _opened_as(self, fingerprint: Fingerprint | None) -> Store:
        if self._path is not None:
            return open_store(self._path, collection=self._collection, fingerprint=fingerprint)
        return ChromaStore(url=self._url, collection=self._collection, fingerprint=fingerprint, headers=self._headers)

    def _forget(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            self._release(opened[0])

    def _release(self, store: Store) -> None:
        if store is not self._given:
            if self._temporary:
                store.roots.forget()
            store.close()


def _check(store: Store, embedder: Embedder | None) -> None:
    held = store.fingerprint
    own = None if embedder is None else str(embedder.fingerprint)
    if own is not None and held is None:
        raise InputError(
            f"{store!r} is bound to no model, so vectors of any would be mixed in it; open it as "
            "ChromaStore(..., fingerprint=embeddings.embedder.fingerprint)"
        )
    if held != own:
        whose = own or "these embeddings, which do not say of what model they are"
        raise FingerprintMismatchError(
            f"{store!r} holds vectors of {held}, which cannot be compared with those of {whose}; "
            "use another collection or path, or the embeddings that made it"
        )
