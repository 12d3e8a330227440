"""A multi-modal index over one store."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from llama_index.core.data_structs.data_structs import IndexDict, MultiModelIndexDict
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.data_structs.struct_type import IndexStructType
from llama_index.core.indices.multi_modal.base import MultiModalVectorStoreIndex
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.schema import BaseNode, Document, MetadataMode
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.embeddings.abc.nodes import caption_vector, has_picture, has_text
from llama_index.vector_stores.abc.base import ABCVectorStore
from llama_index.vector_stores.abc.records import record_id
from typing_extensions import Self

from abc_rag.embedding.threads import Run, awaiting, blocking, either
from abc_rag.errors import FingerprintMismatchError, InputError, PartialIndexError
from abc_rag.search import projected
from abc_rag.store import Store

__all__ = ["ABCMultiModalIndex"]

Failed = dict[int, InputError]

logger = logging.getLogger(__name__)


class ABCIndexDict(MultiModelIndexDict):
    """The part of an `ABCMultiModalIndex` that LlamaIndex persists. Its type names the class to load."""

    @classmethod
    def get_type(cls) -> IndexStructType:
        """The key under which `llama_index.core.load_index_from_storage` finds the class."""
        return cast(IndexStructType, "abc_multi_modal")


class ABCMultiModalIndex(MultiModalVectorStoreIndex):
    """LlamaIndex's multi-modal index over one ``abc_rag.store.Store``, with fixes for that class's faults.

    ```python
    store = ChromaStore("store", fingerprint=embed_model.embedder.fingerprint)
    index = ABCMultiModalIndex(nodes, embed_model=embed_model, store=store)
    ```

    Nothing needs to be persisted but the store: ``ABCMultiModalIndex(embed_model=embed_model, store=store)`` opens the
    same index again. ``load_index_from_storage(storage_context, embed_model=embed_model)`` does so too, for a storage
    context with two `ABCVectorStore`. What is different from ``MultiModalVectorStoreIndex`` (0.14.25):

    - Given nodes at construction, that drops every picture with neither text nor metadata, with a line on standard
      output. Here they stay.
    - That takes ``ImageNode`` and ``TextNode`` only: an ``ImageDocument``, a ``Document`` or a ``Node`` that is
      inserted as it is vanishes. Here they are stored.
    - After pictures are inserted alone, that holds its texts for gone (and the other way round) and finds them no more.
    - That embeds pictures by CLIP unless told otherwise. Here one model makes all vectors.
    - That fetches ``image_url`` itself, from anywhere. Here the embedding model's ``image_limits`` decide.
    - ``delete_nodes`` there deletes a node's text and leaves its picture.
    - ``from_documents`` there doubles documents that are stored already. Here the nodes of a document take the place of
      those that the store has of it, known by its id: give documents ids that last, such as by
      ``SimpleDirectoryReader(..., filename_as_id=True)``.

    Pictures that were given a vector beforehand, for example by ``ABCEmbeddings`` in a pipeline, keep it.

    Its ``as_retriever()`` is LlamaIndex's: it finds pictures by text, each modality by itself, up to twice if
    captioned, and raises where the question is only a picture. `llama_index.retrievers.abc.InstructionRetriever` over
    the same store does all of it.

    Args:
        nodes: What to embed and store.
        embed_model: Embeds both texts and pictures.
        store: Where to. Or give a ``storage_context`` of two `ABCVectorStore`.
        storage_context: As in LlamaIndex; its two vector stores are replaced if ``store`` is given.
        kwargs: As for ``MultiModalVectorStoreIndex``.

    Raises:
        FingerprintMismatchError: The store holds another model's vectors.
        PartialIndexError: Pictures cannot be used; the message names them and their nodes. All other nodes are stored,
            also where it is the constructor that raises: open the index again with ``store`` alone.
    """

    index_struct_cls = ABCIndexDict

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        *,
        embed_model: ABCEmbeddings,
        store: Store | None = None,
        storage_context: StorageContext | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if not isinstance(embed_model, ABCEmbeddings):
            raise InputError(f"embed_model must be an ABCEmbeddings, not {type(embed_model).__name__}")
        context = storage_context or StorageContext.from_defaults()
        if store is not None:
            context.vector_stores[DEFAULT_VECTOR_STORE] = ABCVectorStore(
                store, modality="text", image_limits=embed_model.image_limits
            )
            context.vector_stores[self.image_namespace] = ABCVectorStore(
                store, modality="image", image_limits=embed_model.image_limits
            )
        if kwargs.pop("is_image_to_text", False):
            raise InputError("is_image_to_text is of no use here: captions are stored and found as texts; leave it out")
        kwargs.pop("image_embed_model", None)
        if kwargs.get("index_struct") is None:
            nodes = list(nodes or [])  # with none, the base class asks for an index that was persisted
        self._abc = embed_model
        self._stored: set[str] = set()
        super().__init__(
            nodes=nodes, embed_model=embed_model, image_embed_model=embed_model, storage_context=context, **kwargs
        )

    @classmethod
    def from_documents(cls, documents: Sequence[Document], **kwargs: Any) -> Self:  # type: ignore[override]  # noqa: ANN401
        """Make an index of documents. They replace what the store has of documents with the same ids.

        Args:
            documents: What to split, embed and store.
            kwargs: As for the class, and for ``MultiModalVectorStoreIndex.from_documents``.
        """
        documents = list(documents)
        store = kwargs.get("store")
        views = [ABCVectorStore(store)] if store is not None else []
        context = kwargs.get("storage_context")
        if store is None and context is not None:
            views = [view for view in context.vector_stores.values() if isinstance(view, ABCVectorStore)]
        before = {id(view): view.records_of(document.id_ for document in documents) for view in views}
        made = super().from_documents(documents, **kwargs)
        # Only after the new nodes are stored.
        for view in views:
            view.client.delete(before[id(view)] - made._stored)
        return made

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> IndexDict:  # noqa: ANN401
        """Embed and store nodes, except those without any content."""
        full = [node for node in nodes if has_picture(node) or node.get_content(metadata_mode=MetadataMode.EMBED)]
        if len(full) != len(nodes):
            logger.warning("%d nodes without text, metadata or picture are left out", len(nodes) - len(full))
        self._stored = {record_id(node.node_id, modality) for node in full for modality in ("text", "image")}
        return self._build_index_from_nodes(full, **insert_kwargs)

    @blocking
    async def _add_nodes_to_index(
        self,
        _run: Run,
        /,
        index_struct: IndexDict,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **insert_kwargs: Any,  # noqa: ANN401
    ) -> None:
        self._check_model(nodes)
        failed: Failed = {}
        for start, copies in self._batches(nodes):
            embed, aembed = self._abc.embed_missing, self._abc.aembed_missing
            try:
                await either(_run, embed, aembed, copies, show_progress=show_progress)
            except InputError:  # then each by itself, so that a bad node costs nothing but itself
                failed.update(_at(start, await _run(self._abc.embed_each, copies)))
            for view, part in self._parts(copies):
                failed.update(_at(start, await _run(_added, view, part, insert_kwargs)))
            self._keep(index_struct, [node for place, node in enumerate(copies, start) if place not in failed])
        _complain(nodes, failed)

    _async_add_nodes_to_index = awaiting(_add_nodes_to_index)

    def _parts(self, nodes: Sequence[BaseNode]) -> list[tuple[BasePydanticVectorStore, dict[int, BaseNode]]]:
        """The nodes for each view, by position: texts and captions for one, pictures for the other."""
        # A node that could not be embedded has no vector.
        embedded = {place: node for place, node in enumerate(nodes) if node.embedding is not None}
        pictures = {place: node for place, node in embedded.items() if has_picture(node)}
        texts = {
            place: node.model_copy(update={"embedding": caption_vector(node)}) if place in pictures else node
            for place, node in embedded.items()
            if has_text(node) or place not in pictures
        }
        return [(self._vector_store, texts), (self._image_vector_store, pictures)]

    @blocking
    async def delete_nodes(
        self,
        _run: Run,
        /,
        node_ids: list[str],
        delete_from_docstore: bool = False,
        **delete_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Delete nodes, their pictures included."""
        delete, adelete = super().delete_nodes, super().adelete_nodes
        await either(_run, delete, adelete, node_ids, delete_from_docstore, **delete_kwargs)
        pictures = self._image_vector_store
        await either(_run, pictures.delete_nodes, pictures.adelete_nodes, node_ids, **delete_kwargs)

    adelete_nodes = awaiting(delete_nodes)

    async def adelete_ref_doc(
        self,
        ref_doc_id: str,
        delete_from_docstore: bool = False,
        **delete_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Delete a document's nodes, their pictures included."""
        await super().adelete_ref_doc(ref_doc_id, delete_from_docstore, **delete_kwargs)
        await self._image_vector_store.adelete(ref_doc_id, **delete_kwargs)

    def _batches(self, nodes: Sequence[BaseNode]) -> Iterator[tuple[int, list[BaseNode]]]:
        for start in range(0, len(nodes), self._insert_batch_size):
            yield start, [node.model_copy() for node in nodes[start : start + self._insert_batch_size]]

    def _check_model(self, nodes: Sequence[BaseNode]) -> None:
        store = self._vector_store.client
        if not nodes or not isinstance(store, Store) or store.fingerprint is None:
            return
        own = str(projected(self._abc.embedder, store).fingerprint)
        if store.fingerprint != own:
            raise FingerprintMismatchError(
                f"{store!r} holds vectors of {store.fingerprint}, but embed_model is {own}; "
                "use that model, or another store"
            )

    def _keep(self, index_struct: IndexDict, nodes: Sequence[BaseNode]) -> None:
        """Keep nodes in the document store as well, if the base class would."""
        if self._vector_store.stores_text and not self._store_nodes_override:
            return
        for node in nodes:
            bare = node.model_copy(update={"embedding": None})
            index_struct.add_node(bare, text_id=node.node_id)
            self._docstore.add_documents([bare], allow_update=True)


def _added(view: BasePydanticVectorStore, nodes: Mapping[int, BaseNode], options: Mapping[str, Any]) -> Failed:
    """Store nodes in one call or, if that fails, one by one. Returns errors by position."""
    try:
        if nodes:
            view.add(list(nodes.values()), **options)
    except InputError:
        failed: Failed = {}
        for place, node in nodes.items():
            try:
                view.add([node], **options)
            except InputError as error:
                failed[place] = error
        return failed
    return {}


def _at(start: int, failed: Failed) -> Failed:
    """Errors by position in the whole call."""
    return {start + place: error for place, error in failed.items()}


def _complain(nodes: Sequence[BaseNode], failed: Failed) -> None:
    if failed:
        ids = [None if place in failed else node.node_id for place, node in enumerate(nodes)]
        raise PartialIndexError(ids, sorted(failed.items()))


# Registered, so that a persisted index is loaded as this class and not as one that needs CLIP.
INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[ABCIndexDict.get_type()] = ABCIndexDict
INDEX_STRUCT_TYPE_TO_INDEX_CLASS[ABCIndexDict.get_type()] = ABCMultiModalIndex
