"""The stores of a server's collections, each opened once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from abc_rag.answering.generator import Generator
from abc_rag.answering.retriever import Retriever
from abc_rag.embedding.embedder import Embedder
from abc_rag.images.limits import ImageLimits
from abc_rag.search.projected import opened_for
from abc_rag.search.rewriting.rules import RuleRewriter
from abc_rag.store.base import Store
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.types import Fingerprint

__all__ = ["OpenStore", "Stores", "chroma"]

OpenStore = Callable[[str, Fingerprint | None], Store]
"""Opens the collection of a name for a model; for None, whatever is there."""


def chroma(path: Path | None = None, *, url: str | None = None, beside: Path | None = None) -> OpenStore:
    """Collections in Chroma.

    Args:
        path: Folder of an embedded one; or
        url: a server.
        beside: With a server, the folder for kept pictures and the keyword index.
    """

    def open_(name: str, fingerprint: Fingerprint | None) -> Store:
        if url is None:
            return ChromaStore(path, collection=name, fingerprint=fingerprint)
        return ChromaStore(
            url=url,
            collection=name,
            fingerprint=fingerprint,
            pictures=beside and beside / "pictures",
            keywords=beside and beside / "keywords",
        )

    return open_


class Stores:
    """Stores and their retrievers, by the store's own name of a collection.

    Args:
        open_: Opens one.
        embedder: Makes vectors; of a collection that was reduced from them, they are projected.
        limits: Which pictures are opened.
        generator: Judges and answers, if there is one.
    """

    def __init__(
        self, open_: OpenStore, embedder: Embedder, limits: ImageLimits, generator: Generator | None = None
    ) -> None:
        self.embedder = embedder
        self._open = open_
        self._limits = limits
        self._generator = generator
        self._lock = threading.Lock()
        self._stores: dict[str, tuple[Embedder, Store]] = {}

    def open(self, stored: str) -> Store:
        """A collection's store.

        Raises:
            StoreError: It cannot be opened, or holds another model's vectors.
        """
        return self.opened(stored)[1]

    def opened(self, stored: str) -> tuple[Embedder, Store]:
        """A collection's store with the embedder for it.

        Raises:
            StoreError: As for `open`.
        """
        with self._lock:
            found = self._stores.get(stored)
            if found is None:
                found = self._stores[stored] = opened_for(self.embedder, partial(self._open, stored))
            return found

    def retriever(self, stored: str) -> Retriever:
        """A retriever over it."""
        # The rules rewrite: a search should not wait for a model that generates, unless it is to judge.
        return Retriever(
            *self.opened(stored),
            generator=self._generator,
            rewriter=RuleRewriter(),
            image_limits=self._limits,
        )

    @property
    def generates(self) -> bool:
        """Whether there is a model that answers."""
        return self._generator is not None

    def answering(self, stored: str) -> Retriever:
        """A retriever that answers: its generator also rewrites, as only that reads earlier turns."""
        return Retriever(*self.opened(stored), generator=self._generator, image_limits=self._limits)

    def empty(self, stored: str) -> None:
        """Delete everything in a collection, and close it."""
        store = self.open(stored)
        while page := list(_first(store.ids())):
            store.delete(page)
        with self._lock:
            self._stores.pop(stored, None)
        store.close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            stores, self._stores = list(self._stores.values()), {}
        for _, one in stores:
            one.close()


def _first(ids: Iterable[str]) -> Iterable[str]:
    for number, id_ in enumerate(ids):
        if number == 1000:
            return
        yield id_
