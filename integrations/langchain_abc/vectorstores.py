"""One LangChain vector store for texts and pictures."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from typing_extensions import Self

from abc_rag import ChromaStore, Embedder, ImageLimits, ImageSource, Record
from abc_rag.embedding.threads import Worker
from abc_rag.errors import InputError, PartialIndexError
from abc_rag.images.limits import DEFAULT_LIMITS
from abc_rag.ingest.pictures import index_images
from abc_rag.types import MetadataValue
from langchain_abc._documents import document_id, to_document
from langchain_abc._incoming import one_each, picture_metadatas, text_records
from langchain_abc._searches import Searches, refuse_keywords
from langchain_abc._stores import LazyStore
from langchain_abc.retrievers import InstructionRetriever

__all__ = ["ABCVectorStore"]

# What is embedded and stored together: what is cut short loses no more, and others get their turn in between.
_TEXTS = 256
_PICTURES = 64


class ABCVectorStore(Searches):
    """Texts and pictures in one Chroma collection, found by questions, pictures, and pictures under an instruction.

    Setup:
        ``pip install abc-rag``.

    Key init args:
        embedding: `ABCEmbeddings`; or, for texts alone, any LangChain embeddings.
        path: Directory of an embedded store, made if missing.
        url: A Chroma server, ``http://host:port`` or ``https://host``.
        collection: Name of the collection.
        headers: HTTP headers for the server, for example a token.
        store: An open ``abc_rag.ChromaStore`` in place of these; its caller closes it.
        image_limits: Which pictures are taken in, and whether URLs are fetched; by default those of the embeddings.

        With none of ``path``, ``url`` and ``store``, everything is in a temporary directory, which is **removed with
        this object**. The store is opened, and `ABCEmbeddings` are loaded, on first use. The collection is bound to
        the model: one that holds another model's vectors is refused.

    Instantiate:
        .. code-block:: python

            from langchain_abc import ABCEmbeddings, ABCVectorStore

            store = ABCVectorStore(ABCEmbeddings(model="abc-mini"), path="store")

    Add Documents:
        .. code-block:: python

            from langchain_core.documents import Document

            store.add_documents([Document("A rose has thorns.", metadata={"source": "plants.md", "page": 3})])
            store.add_images(["rose.jpg", "pig.jpg"], captions=["", "a pig"], metadatas=[{"year": 2024}, {}])

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
        store: ChromaStore | None = None,
        image_limits: ImageLimits | None = None,
    ) -> None:
        if not isinstance(embedding, Embeddings):
            raise InputError(
                f"embedding must be LangChain embeddings, such as ABCEmbeddings(), not {type(embedding).__name__}"
            )
        self._embedding = embedding
        self._worker = Worker("langchain-abc-store")
        self._lazy = LazyStore(path=path, url=url, collection=collection, headers=headers, store=store)
        own = getattr(embedding, "image_limits", None)
        self.image_limits = image_limits or (own if isinstance(own, ImageLimits) else DEFAULT_LIMITS)
        # An open store holds the right to write to its directory, and nobody closes vector stores.
        self._closing = weakref.finalize(self, self._lazy.close_later)

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings that this was made with."""
        return self._embedding

    @property
    def embedder(self) -> Embedder | None:
        """The `abc_rag.Embedder` behind the embeddings; None where they have none, and so embed no pictures."""
        embedder = getattr(self._embedding, "embedder", None)
        return embedder if isinstance(embedder, Embedder) else None

    @property
    def store(self) -> ChromaStore:
        """The `abc_rag.ChromaStore` underneath; opens it.

        Raises:
            abc_rag.errors.FingerprintMismatchError: It holds another model's vectors.
            abc_rag.errors.StoreError: It cannot be opened, or has been closed.
        """
        return self._lazy.get(self.embedder)

    def close(self) -> None:
        """Close the store, unless it was given; a temporary directory is removed. Idempotent."""
        self._closing.detach()
        self._lazy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- texts -----------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        batch_size: int = _TEXTS,
        **kwargs: object,
    ) -> list[str]:
        """Embed and store texts. An id that is stored already gets the new text.

        Args:
            texts: The texts.
            metadatas: One dict for each: None, bools, numbers, strings, dates and times, and lists, tuples and dicts
                of these.
            ids: One for each; None for one that is made of text and metadata. Such a text, when it is stored already,
                is not embedded again (with `ABCEmbeddings`).
            batch_size: How many texts are embedded and stored together.
            **kwargs: Refused: what is not known is not ignored.

        Returns:
            The ids, in order.

        Raises:
            abc_rag.errors.InputError: A text, its metadata or its id cannot be stored; the message names it. Nothing
                has been stored then, unless only the model refused the text: then batches before it may have been.
            abc_rag.errors.StoreLockedError: Another process is writing to the directory.
        """
        refuse_keywords(kwargs)
        records = text_records(texts, metadatas, ids)
        for part in self._new(records, batch_size):
            self.store.add(part, self._embedding.embed_documents([record.text for record in part]))
        return [record.id for record in records]

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        batch_size: int = _TEXTS,
        **kwargs: object,
    ) -> list[str]:
        """See `add_texts`; does not block the event loop, and can be cancelled between batches."""
        refuse_keywords(kwargs)
        records = text_records(texts, metadatas, ids)
        parts = await self._worker.run(lambda: list(self._new(records, batch_size)))
        for part in parts:
            passages = [record.text for record in part]
            if type(self._embedding).aembed_documents is Embeddings.aembed_documents:
                # LangChain's default, which would occupy the loop's shared pool.
                vectors = await self._worker.run(self._embedding.embed_documents, passages)
            else:
                vectors = await self._embedding.aembed_documents(passages)
            await self._worker.run(self.store.add, part, vectors)
        return [record.id for record in records]

    def _new(self, records: Sequence[Record], size: int) -> Iterator[list[Record]]:
        """What has to be embedded, in parts; refuses to put a text in a picture's place."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"batch_size must be a positive int, not {size!r}")
        made = {record.id for record in records if record.id == document_id(record.text, record.metadata)}
        for stored in self.store.get(dict.fromkeys(record.id for record in records if record.id not in made)):
            if stored.modality == "image":
                raise InputError(f"id {stored.id!r} is that of a stored picture; delete it first, or use another id")
        # Only vectors of a known model are known to be the same again.
        known = self.store.has(made) if self.embedder is not None else set()
        new = [record for record in records if record.id not in known]
        for start in range(0, len(new), size):
            yield new[start : start + size]

    # -- pictures --------------------------------------------------------------------------------

    def add_images(
        self,
        images: Sequence[ImageSource],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        ids: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        facets: Sequence[str] = (),
        keep: bool = False,
    ) -> list[str]:
        """Embed and store pictures.

        Args:
            images: Paths (a ``str`` is always a path), ``abc_rag.URL`` where the limits allow it, ``abc_rag.DataURI``,
                bytes or PIL images.
            metadatas: One dict for each, as for `add_texts`.
            ids: One for each; by default made of the picture's content.
            captions: One for each, shown as the text; not embedded.
            facets: Instructions under which every picture gets a further vector that it can be found by.
            keep: Keep a copy of each picture in the store's folder. Otherwise a file or an address is referred to, and
                a picture that came as bytes, as a data URI or as a PIL image can be found but not shown.

        Returns:
            The ids, in order.

        Raises:
            abc_rag.errors.InputError: The embeddings embed no pictures, or metadata cannot be stored.
            abc_rag.errors.PartialIndexError: Some pictures cannot be used; all others are stored. ``.failed`` says
                which and why, ``.ids`` has the ids of the others.
        """
        prepared = picture_metadatas(images, metadatas)
        each = one_each(len(images), ids=ids, captions=captions)
        return self._index(images, prepared, each["ids"], each["captions"], facets, keep)

    async def aadd_images(
        self,
        images: Sequence[ImageSource],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        ids: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        facets: Sequence[str] = (),
        keep: bool = False,
    ) -> list[str]:
        """See `add_images`; does not block the event loop, and can be cancelled between each 64 pictures."""
        prepared = picture_metadatas(images, metadatas)
        each = one_each(len(images), ids=ids, captions=captions)
        stored: list[str | None] = []
        failed: list[tuple[int, InputError]] = []
        for start in range(0, len(images), _PICTURES):
            part = slice(start, start + _PICTURES)
            cut = {name: None if values is None else values[part] for name, values in each.items()}
            try:
                stored += await self._worker.run(
                    self._index, images[part], prepared[part], cut["ids"], cut["captions"], facets, keep
                )
            except PartialIndexError as error:
                stored += error.ids
                failed += [(start + position, reason) for position, reason in error.failed]
        if failed:
            raise PartialIndexError(stored, failed)
        return [id_ for id_ in stored if id_ is not None]

    def _index(
        self,
        images: Sequence[ImageSource],
        metadatas: Sequence[Mapping[str, MetadataValue]],
        ids: Sequence[str] | None,
        captions: Sequence[str] | None,
        facets: Sequence[str],
        keep: bool,
    ) -> list[str]:
        return index_images(
            images,
            self._need_embedder(),
            self.store,
            ids=ids,
            captions=captions,
            metadatas=metadatas,
            facets=facets,
            keep=keep,
            limits=self.image_limits,
            progress=bool(getattr(self._embedding, "show_progress", False)),
        )

    def _need_embedder(self) -> Embedder:
        embedder = self.embedder
        if embedder is None:
            raise InputError(f"{type(self._embedding).__name__} embeds no pictures; use ABCEmbeddings")
        return embedder

    # -- by id -----------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of ``ids``, in the order asked; ids that are not stored are left out."""
        return [to_document(record) for record in self.store.get(ids)]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """See `get_by_ids`; does not block the event loop."""
        return await self._worker.run(self.get_by_ids, ids)

    def delete(self, ids: list[str] | None = None, **kwargs: object) -> bool:
        """Delete documents.

        Args:
            ids: Which; those that are not stored are passed over. **None deletes everything.**
            **kwargs: Refused: what is not known is not ignored.

        Returns:
            True.
        """
        refuse_keywords(kwargs)
        self.store.delete(list(self.store.ids()) if ids is None else ids)
        return True

    async def adelete(self, ids: list[str] | None = None, **kwargs: object) -> bool:
        """See `delete`; does not block the event loop."""
        return await self._worker.run(self.delete, ids, **kwargs)

    # -- making one ------------------------------------------------------------------------------

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
        """A vector store that holds ``texts``.

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
