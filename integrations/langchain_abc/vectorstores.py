"""One LangChain vector store for texts and pictures."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy.typing as npt
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from typing_extensions import Self

from abc_rag import ImageLimits
from abc_rag.embedding.threads import Worker
from abc_rag.errors import InputError, StoreError
from abc_rag.images.limits import DEFAULT_LIMITS
from abc_rag.store import Store
from langchain_abc._stores import LazyStore
from langchain_abc._writes import Writes
from langchain_abc.retrievers import InstructionRetriever

__all__ = ["ABCVectorStore"]


# What the settings are called in langchain_chroma.
_NAMES = {"persist_directory": "path", "collection_name": "collection", "embedding_function": "embedding"}


class ABCVectorStore(Writes):
    """Texts and pictures in one Chroma collection, found by questions, pictures, and pictures under an instruction.

    Setup:
        ``pip install 'abc-rag[langchain]'``.

    Key init args:
        embedding: `ABCEmbeddings`; or, for texts alone, any LangChain embeddings.
        path: Directory of an embedded store, made if missing; or what else ``abc_rag.store.open_store`` takes, such as
            ``lance://FOLDER``.
        url: A Chroma server, ``http://host:port`` or ``https://host``.
        collection: Name of the collection.
        headers: HTTP headers for the server, for example a token.
        store: An open ``abc_rag.store.Store`` in place of these; its caller closes it.
        image_limits: Which pictures are taken in, and whether URLs are fetched; by default those of the embeddings.
        roots: Further files and folders from which pictures may be opened again, besides those that were indexed on
            this machine; see ``abc_rag.search.Pictures``.

        With none of ``path``, ``url`` and ``store``, everything is in a temporary directory, which is **removed with
        this object**. The store is opened, and `ABCEmbeddings` are loaded, on first use. The collection is bound to
        the model: one that holds another model's vectors is refused. Where a store was reduced from vectors of this
        model (``abc-rag store reduce``), what comes in is projected, and `embeddings` stay the model's own.

    Instantiate:
        .. code-block:: python

            from langchain_abc import ABCEmbeddings, ABCVectorStore

            store = ABCVectorStore(ABCEmbeddings(model="abc-mini"), path="store")

    Add Documents:
        .. code-block:: python

            from langchain_core.documents import Document

            store.add_documents([Document("A rose has thorns.", metadata={"source": "plants.md", "page": 3})])
            store.add_images(["rose.jpg", "pig.jpg"], captions=["", "a pig"], metadatas=[{"year": 2024}, {}])
            store.index_paths(["photos"])

        A document without an id gets one of its content, so that adding it again changes nothing. Metadata comes back
        as it was: plain values can be filtered by, dates as their ISO text. A picture stays where it is, and is
        referred to.

    Delete Documents:
        .. code-block:: python

            store.delete(ids=["3"])

    Search:
        .. code-block:: python

            store.similarity_search("a plant with thorns", k=3, modality="image")
            store.similarity_search_by_image("scene.jpg", instruction="the animal", filter={"year": 2024})

        A picture's ``page_content`` is its caption or, without one, its source; its metadata has ``source``,
        ``source_type``, ``modality``, ``mime_type`` and ``sha256`` beside your own. `to_content_blocks` makes of the
        documents what a chat model sees.

    Search with score:
        .. code-block:: python

            for document, score in store.similarity_search_with_score("a rose"):
                ...

        Scores are in [0, 1], and higher is nearer.

    Async:
        .. code-block:: python

            await store.aadd_documents(documents)
            found = await store.asimilarity_search("a rose", k=1)

        Awaited calls work in one thread of this object's own: neither the event loop nor its shared pool waits.

    Use as Retriever:
        .. code-block:: python

            retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "lambda_mult": 0.5})
            retriever.invoke("a rose")
            retriever = store.as_instruction_retriever(k=2)
            retriever.invoke({"question": "what is on the left?", "image": "scene.jpg"})
    """

    def __init__(
        self,
        embedding: Embeddings,
        *,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        collection: str = "abc",
        headers: Mapping[str, str] | None = None,
        store: Store | None = None,
        image_limits: ImageLimits | None = None,
        roots: Iterable[str | os.PathLike[str]] = (),
        **kwargs: object,
    ) -> None:
        for name in kwargs:
            meant = f"; here it is called {_NAMES[name]!r}" if name in _NAMES else ""
            raise TypeError(f"unexpected keyword {name!r}{meant}")
        if not isinstance(embedding, Embeddings):
            raise InputError(
                f"embedding must be LangChain embeddings, such as ABCEmbeddings(), not {type(embedding).__name__}"
            )
        self._embedding = embedding
        self._place: dict[str, Any] = {"path": path, "url": url, "collection": collection, "headers": headers}
        self._given = store
        self._limits = image_limits
        self._worker = Worker("langchain-abc-store")
        self._lazy = LazyStore(path=path, url=url, collection=collection, headers=headers, store=store)
        own = getattr(embedding, "image_limits", None)
        self.image_limits = image_limits or (own if isinstance(own, ImageLimits) else DEFAULT_LIMITS)
        self.roots = tuple(roots)
        self._original: ABCVectorStore | None = None
        # Users do not close vector stores, but an open store holds the lock on its directory.
        self._closing = weakref.finalize(self, self._lazy.close_later)

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings."""
        return self._embedding

    @property
    def store(self) -> Store:
        """The underlying `abc_rag.store.Store`; opens it.

        Raises:
            abc_rag.errors.FingerprintMismatchError: It holds another model's vectors.
            abc_rag.errors.StoreError: It cannot be opened, or has been closed.
        """
        return self._lazy.get(self.embedder)

    def _shortened(self, vectors: npt.ArrayLike) -> npt.ArrayLike:
        return self._lazy.shortened(self.embedder, vectors)

    def close(self) -> None:
        """Close the store, unless the caller opened it, and remove a temporary directory. Idempotent."""
        self._closing.detach()
        self._lazy.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle contains the settings; reading it opens the store again.
        if self._given is None and self._place["path"] is None and self._place["url"] is None:
            raise StoreError(
                "this vector store is in a temporary directory, which goes with it, so it cannot be pickled; give it "
                "path=FOLDER or url=..."
            )
        return self._like(store=self._given, **self._place), ()

    def _like(self, **place: Any) -> Callable[[], Self]:  # noqa: ANN401
        return partial(type(self), self._embedding, image_limits=self._limits, roots=self.roots, **place)

    def __copy__(self) -> Self:
        if self._given is None and self._place["path"] is None and self._place["url"] is None:
            copied = self._like(store=self.store)()
            copied._original = self  # whose directory it is
            return copied
        return self._like(store=self._given, **self._place)()

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()  # model and store are shared

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- construction ------------------------------------------------------------------------------

    @classmethod
    def from_documents(cls, documents: Iterable[Document], embedding: Embeddings, **kwargs: Any) -> Self:  # noqa: ANN401
        """Make a vector store with ``documents``; see `add_documents` and `from_texts`."""
        ids = kwargs.pop("ids", None)
        made = cls(embedding, **kwargs)
        made.add_documents(documents, ids=ids)
        return made

    @classmethod
    async def afrom_documents(cls, documents: Iterable[Document], embedding: Embeddings, **kwargs: Any) -> Self:  # noqa: ANN401
        """See `from_documents`; does not block the event loop."""
        ids = kwargs.pop("ids", None)
        made = cls(embedding, **kwargs)
        await made.aadd_documents(list(documents), ids=ids)
        return made

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Self:
        """Make a vector store with ``texts``.

        Args:
            texts: As for `add_texts`.
            embedding: As for the class.
            metadatas: As for `add_texts`.
            ids: As for `add_texts`.
            **kwargs: Further arguments of the class, such as ``path``.
        """
        made = cls(embedding, **kwargs)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Self:
        """See `from_texts`; does not block the event loop."""
        made = cls(embedding, **kwargs)
        await made.aadd_texts(texts, metadatas, ids=ids)
        return made

    def as_instruction_retriever(self, **kwargs: Any) -> InstructionRetriever:  # noqa: ANN401
        """An `InstructionRetriever` over this store.

        Args:
            **kwargs: Its settings, such as ``k``.
        """
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return InstructionRetriever(vectorstore=self, tags=tags, **kwargs)
