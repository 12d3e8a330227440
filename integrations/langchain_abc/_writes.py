"""What `ABCVectorStore` stores and deletes, each call with its async twin."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from abc_rag import ImageSource, Record
from abc_rag.embedding.threads import Run, async_twin, awaiting, blocking, core_of, inline
from abc_rag.errors import InputError
from abc_rag.ingest import IndexReport, index_images, index_paths
from abc_rag.search import Pictures
from abc_rag.types import MetadataValue
from langchain_abc._documents import document_id, to_documents
from langchain_abc._incoming import (
    Stored,
    listed,
    one_each,
    picture_metadatas,
    placed,
    split_documents,
    text_records,
)
from langchain_abc._searches import Searches, refuse_keywords

# Batch sizes. An interrupted call loses at most one batch, and other calls run in between.
_TEXTS = 256
_PICTURES = 64


class Writes(Searches):
    """The writes. A subclass provides the store."""

    # -- texts -----------------------------------------------------------------------------------

    @blocking
    async def add_texts(
        self,
        _run: Run,
        /,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = _TEXTS,
        **kwargs: object,
    ) -> list[str]:
        """Embed and store texts. A text with a stored id replaces what is stored.

        Args:
            texts: The texts.
            metadatas: One dict for each: None, bools, numbers, strings, dates and times, and lists, tuples and dicts
                of these.
            ids: One for each; None for one that is made of text and metadata. Such a text, when it is stored already,
                is not embedded again (with `ABCEmbeddings`).
            batch_size: How many texts are embedded and stored together.
            **kwargs: Refused, because unknown options must not be ignored.

        Returns:
            The ids, in order.

        Raises:
            abc_rag.errors.InputError: A text, its metadata or its id cannot be stored; the message names it. Nothing
                has been stored then, unless only the model refused the text: then batches before it may have been.
            abc_rag.errors.StoreLockedError: Another process is writing to the directory.
        """
        refuse_keywords(kwargs)
        records = text_records(texts, metadatas, ids)
        for part in await _run(self._new, records, batch_size):
            passages = [record.text for record in part]
            with placed(part, records):
                if _run is inline or type(self._embedding).aembed_documents is Embeddings.aembed_documents:
                    # LangChain's default would run in the event loop's shared pool.
                    vectors = await _run(self._embedding.embed_documents, passages)
                else:
                    vectors = await self._embedding.aembed_documents(passages)
            await _run(self._add, part, vectors)
        return [record.id for record in records]

    aadd_texts = awaiting(add_texts)

    def _add(self, records: Sequence[Record], vectors: list[list[float]]) -> None:
        self.store.add(records, self._shortened(vectors))

    def _new(self, records: Sequence[Record], size: int) -> list[list[Record]]:
        """Batches of what has to be embedded; refuses to replace a picture by a text."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"batch_size must be a positive int, not {size!r}")
        made = {record.id for record in records if record.id == document_id(record.text, record.metadata)}
        for stored in self.store.get(dict.fromkeys(record.id for record in records if record.id not in made)):
            if stored.modality == "image":
                raise InputError(f"id {stored.id!r} is that of a stored picture; delete it first, or use another id")
        # Without a known model, an old vector may be another model's.
        known = self.store.has(made) if self.embedder is not None else set()
        new = [record for record in records if record.id not in known]
        return [new[start : start + size] for start in range(0, len(new), size)]

    # -- documents -------------------------------------------------------------------------------

    @blocking
    async def add_documents(
        self,
        _run: Run,
        /,
        documents: Iterable[Document],
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> list[str]:
        """Embed and store documents: texts, and pictures.

        A document whose metadata has ``modality: "image"`` is a picture; its ``source``, or else its text, is the
        path. What a search added to a document, such as its score, is not stored.

        Args:
            documents: Of one's own, or out of any `ABCVectorStore`.
            ids: One for each; by default the documents' own.
            **kwargs: As for `add_texts`.

        Returns:
            The ids, in order.

        Raises:
            abc_rag.errors.InputError: As `add_texts` does.
            abc_rag.errors.PartialIndexError: Some pictures cannot be used; everything else is stored.
        """
        refuse_keywords({key: value for key, value in kwargs.items() if key != "batch_size"})
        worded, pictured = await _run(split_documents, documents, ids, self._pictures())
        stored = Stored(len(worded.places) + sum(len(part.places) for part in pictured))
        if worded.texts:
            texts = core_of(Writes.add_texts)
            found = await texts(self, _run, worded.texts, worded.metadatas, ids=worded.ids, **kwargs)
            stored.take(worded.places, found)
        for part in pictured:
            images, named = core_of(Writes.add_images), part.ids or None
            with stored.failing(part.places):
                found = await images(self, _run, part.images, part.metadatas, ids=named, captions=part.captions)
                stored.take(part.places, found)
        return stored.ids()

    aadd_documents = awaiting(add_documents)

    def _pictures(self) -> Pictures:
        return Pictures(roots=self.roots, limits=self.image_limits)

    # -- pictures --------------------------------------------------------------------------------

    @blocking
    async def add_images(
        self,
        _run: Run,
        /,
        images: Iterable[ImageSource],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        ids: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        facets: Sequence[str] = (),
        keep: bool = False,
    ) -> list[str]:
        """Embed and store pictures.

        Args:
            images: Any iterable of paths (a ``str`` is always a path), ``abc_rag.URL`` where the limits allow it,
                ``abc_rag.DataURI``, bytes or PIL images.
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
        images = listed(images)
        prepared = picture_metadatas(images, metadatas)
        each = one_each(len(images), ids=ids, captions=captions)
        stored = Stored(len(images))
        size = max(1, len(images)) if _run is inline else _PICTURES
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            places = range(len(images))[part]
            cut = {name: None if values is None else values[part] for name, values in each.items()}
            with stored.failing(places):
                found = await _run(self._index, images[part], prepared[part], cut["ids"], cut["captions"], facets, keep)
                stored.take(places, found)
        return stored.ids()

    aadd_images = awaiting(add_images)

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

    # -- files and folders -----------------------------------------------------------------------

    def index_paths(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        facets: Sequence[str] = (),
        exclude: Sequence[str] = (),
        follow_links: bool = False,
        prune: bool = False,
    ) -> IndexReport:
        """Embed and store the pictures and passages of files and folders, as ``abc-rag index`` does.

        Args:
            paths: Files and folders.
            facets: Instructions under which every picture gets a further vector that it can be found by.
            exclude: Patterns of what to leave out, in the syntax of ``.gitignore``.
            follow_links: Also read what links in the folders point to outside of them.
            prune: Remove what came from files of the folders that are gone.

        Returns:
            What was done, with every file that failed; see ``abc_rag.ingest.index_paths``.

        Raises:
            abc_rag.errors.InputError: The embeddings embed no pictures, or a path does not exist.
        """
        return index_paths(
            paths,
            self._need_embedder(),
            self.store,
            facets=facets,
            exclude=exclude,
            follow_links=follow_links,
            prune=prune,
            limits=self.image_limits,
            progress=bool(getattr(self._embedding, "show_progress", False)),
        )

    aindex_paths = async_twin(index_paths)

    # -- by id -----------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of ``ids``, in the order asked; ids that are not stored are left out."""
        return to_documents(self.store.get(ids))

    aget_by_ids = async_twin(get_by_ids)

    def delete(self, ids: list[str] | None = None, **kwargs: object) -> bool:
        """Delete documents.

        Args:
            ids: Ids to delete; unknown ones are ignored. **None deletes everything.**
            **kwargs: Refused, because unknown options must not be ignored.

        Returns:
            True.
        """
        refuse_keywords(kwargs)
        self.store.delete(list(self.store.ids()) if ids is None else ids)
        return True

    adelete = async_twin(delete)  # type: ignore[arg-type]
