"""A multi-modal index that loses no picture."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.indices.multi_modal.base import MultiModalVectorStoreIndex
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.embeddings.abc.nodes import caption_vector, has_picture, has_text
from llama_index.vector_stores.abc.base import ABCVectorStore

from abc_rag import ChromaStore
from abc_rag.errors import FingerprintMismatchError, InputError, PartialIndexError

__all__ = ["ABCMultiModalIndex"]

Failed = list[tuple[int, InputError]]

logger = logging.getLogger(__name__)


class ABCMultiModalIndex(MultiModalVectorStoreIndex):
    """LlamaIndex's multi-modal index over one ``abc_rag.ChromaStore``, with what that class gets wrong put right.

    ```python
    store = ChromaStore("store", fingerprint=embed_model.embedder.fingerprint)
    index = ABCMultiModalIndex(nodes, embed_model=embed_model, store=store)
    ```

    Nothing needs to be persisted but the store: ``ABCMultiModalIndex(embed_model=embed_model, store=store)`` opens the
    same index again. What is different from ``MultiModalVectorStoreIndex`` (0.14.25):

    - Given nodes at construction, that drops every picture with neither text nor metadata, with a line on standard
      output. Here they stay.
    - That takes ``ImageNode`` and ``TextNode`` only: an ``ImageDocument``, a ``Document`` or a ``Node`` that is
      inserted as it is vanishes. Here they are stored.
    - After pictures are inserted alone, that holds its texts for gone (and the other way round) and finds them no more.
    - That embeds pictures by CLIP unless told otherwise. Here one model makes all vectors.
    - That fetches ``image_url`` itself, from anywhere. Here the embedding model's ``image_limits`` decide.
    - ``delete_nodes`` there deletes a node's text and leaves its picture.

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

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        *,
        embed_model: ABCEmbeddings,
        store: ChromaStore | None = None,
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
        super().__init__(
            nodes=nodes, embed_model=embed_model, image_embed_model=embed_model, storage_context=context, **kwargs
        )

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> IndexDict:  # noqa: ANN401
        """Embed and store nodes; only those without any content at all are left out."""
        full = [node for node in nodes if has_picture(node) or node.get_content(metadata_mode=MetadataMode.EMBED)]
        if len(full) != len(nodes):
            logger.warning("%d nodes without text, metadata or picture are left out", len(nodes) - len(full))
        return self._build_index_from_nodes(full, **insert_kwargs)

    def _add_nodes_to_index(
        self,
        index_struct: IndexDict,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **insert_kwargs: Any,  # noqa: ANN401
    ) -> None:
        self._check_model(nodes)
        failed: Failed = []
        for start, batch in self._batches(nodes):
            copies = [node.model_copy() for node in batch]
            failed += self._embed(copies, start, show_progress)
            texts, pictures = _parts(copies)
            if texts:
                self._vector_store.add(texts, **insert_kwargs)
            if pictures:
                self._image_vector_store.add(pictures, **insert_kwargs)
            self._keep(index_struct, copies)
        _complain(nodes, failed)

    async def _async_add_nodes_to_index(
        self,
        index_struct: IndexDict,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **insert_kwargs: Any,  # noqa: ANN401
    ) -> None:
        self._check_model(nodes)
        failed: Failed = []
        for start, batch in self._batches(nodes):
            copies = [node.model_copy() for node in batch]
            failed += await self._aembed(copies, start, show_progress)
            texts, pictures = _parts(copies)
            if texts:
                await self._vector_store.async_add(texts, **insert_kwargs)
            if pictures:
                await self._image_vector_store.async_add(pictures, **insert_kwargs)
            self._keep(index_struct, copies)
        _complain(nodes, failed)

    def _embed(self, nodes: Sequence[BaseNode], start: int, show_progress: bool = False) -> Failed:
        """Embed together; where that fails, by halves, so that a bad picture costs nothing but itself."""
        try:
            self._abc.embed_missing(nodes, show_progress=show_progress)
        except InputError as error:
            half = len(nodes) // 2
            if not half:
                return [(start, error)]
            return self._embed(nodes[:half], start) + self._embed(nodes[half:], start + half)
        return []

    async def _aembed(self, nodes: Sequence[BaseNode], start: int, show_progress: bool = False) -> Failed:
        try:
            await self._abc.aembed_missing(nodes, show_progress=show_progress)
        except InputError as error:
            half = len(nodes) // 2
            if not half:
                return [(start, error)]
            return await self._aembed(nodes[:half], start) + await self._aembed(nodes[half:], start + half)
        return []

    def delete_nodes(
        self,
        node_ids: list[str],
        delete_from_docstore: bool = False,
        **delete_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Delete nodes, their pictures included."""
        super().delete_nodes(node_ids, delete_from_docstore, **delete_kwargs)
        self._image_vector_store.delete_nodes(node_ids, **delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str],
        delete_from_docstore: bool = False,
        **delete_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Delete nodes, their pictures included."""
        await super().adelete_nodes(node_ids, delete_from_docstore, **delete_kwargs)
        await self._image_vector_store.adelete_nodes(node_ids, **delete_kwargs)

    async def adelete_ref_doc(
        self,
        ref_doc_id: str,
        delete_from_docstore: bool = False,
        **delete_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Delete a document's nodes, their pictures included."""
        await super().adelete_ref_doc(ref_doc_id, delete_from_docstore, **delete_kwargs)
        await self._image_vector_store.adelete(ref_doc_id, **delete_kwargs)

    def _batches(self, nodes: Sequence[BaseNode]) -> Iterator[tuple[int, Sequence[BaseNode]]]:
        for start in range(0, len(nodes), self._insert_batch_size):
            yield start, nodes[start : start + self._insert_batch_size]

    def _check_model(self, nodes: Sequence[BaseNode]) -> None:
        store = self._vector_store.client
        if not nodes or not isinstance(store, ChromaStore) or store.fingerprint is None:
            return
        own = str(self._abc.embedder.fingerprint)
        if store.fingerprint != own:
            raise FingerprintMismatchError(
                f"{store!r} holds vectors of {store.fingerprint}, but embed_model is {own}; "
                "use that model, or another store"
            )

    def _keep(self, index_struct: IndexDict, nodes: Sequence[BaseNode]) -> None:
        """What the base class does where the vector store does not keep whole nodes, or is not to be relied on."""
        if self._vector_store.stores_text and not self._store_nodes_override:
            return
        for node in nodes:
            if node.embedding is None:  # one that failed
                continue
            bare = node.model_copy(update={"embedding": None})
            index_struct.add_node(bare, text_id=node.node_id)
            self._docstore.add_documents([bare], allow_update=True)


def _parts(nodes: Sequence[BaseNode]) -> tuple[list[BaseNode], list[BaseNode]]:
    """Nodes for the store of texts, captions with their own vectors, and for that of pictures."""
    # What could not be embedded has no vector.
    nodes = [node for node in nodes if node.embedding is not None]
    texts = [
        node.model_copy(update={"embedding": caption_vector(node)}) if has_picture(node) else node
        for node in nodes
        if has_text(node) or not has_picture(node)
    ]
    return texts, [node for node in nodes if has_picture(node)]


def _complain(nodes: Sequence[BaseNode], failed: Sequence[tuple[int, InputError]]) -> None:
    if failed:
        bad = {position for position, _ in failed}
        ids = [None if position in bad else node.node_id for position, node in enumerate(nodes)]
        raise PartialIndexError(ids, list(failed))
