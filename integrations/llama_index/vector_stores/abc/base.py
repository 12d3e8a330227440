"""A view of one store: its texts, its pictures, or both."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.embeddings.abc.nodes import caption_vector, picture_of
from llama_index.vector_stores.abc.filters import all_of, to_where
from llama_index.vector_stores.abc.records import NODE_ID, REF_DOC_ID, node_id_of, nodes_of, record_id, record_of
from typing_extensions import Self

from abc_rag import Hit, ImageLimits, Record
from abc_rag.embedding.threads import Worker, async_twin
from abc_rag.errors import InputError
from abc_rag.images.limits import DEFAULT_LIMITS
from abc_rag.search import Pictures, diverse, hybrid
from abc_rag.store import Keywords, Shortening, Store
from abc_rag.store.filters import matches, parse
from abc_rag.types import Modality

__all__ = ["ABCVectorStore"]

# MMR candidates per requested node, as in LlamaIndex's own Chroma store.
_MMR_CANDIDATES = 4
_CANDIDATES = 50
_HYBRID = (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SEMANTIC_HYBRID)
_WORDS = (VectorStoreQueryMode.TEXT_SEARCH, *_HYBRID)
_MODES = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR, *_WORDS)


class ABCVectorStore(BasePydanticVectorStore):
    """The texts, the pictures, or all of an ``abc_rag.store.Store``, as a LlamaIndex vector store.

    LlamaIndex's multi-modal index wants two vector stores. Over one Chroma collection, its own ``ChromaVectorStore``
    loses every captioned picture: the caption is added first, and Chroma ignores the second ``add`` of the same id
    without a word. Two views of this class over one `abc_rag.ChromaStore` give the caption and the picture records of
    their own (``text:ID`` and ``image:ID``), so one search finds either:

    ```python
    store = ChromaStore("store", fingerprint=embed_model.embedder.fingerprint)
    context = StorageContext.from_defaults(
        vector_store=ABCVectorStore(store, modality="text"), image_store=ABCVectorStore(store, modality="image")
    )
    ```

    Nodes come back as they were, ``ImageDocument`` and ``Node(image_resource=...)`` included, except that a picture
    given as base64 comes back as the path of a copy in the store's folder. Vectors are not kept in nodes. Adding a node
    again replaces it. What was indexed without LlamaIndex (``abc-rag index``) is found too. Everything is stored at
    once: ``persist`` has nothing to do.

    Filters: ``==``, ``!=``, ``>``, ``>=``, ``<``, ``<=``, ``in`` and ``nin``, joined by ``and`` and ``or``, over
    metadata values that are str, int or float; ``ref_doc_id`` is among them. Query modes: ``default``; ``mmr`` with
    ``mmr_threshold``, the weight of relevance in [0, 1]; ``text_search``, by keywords alone; and ``hybrid``, also named
    ``semantic_hybrid``, by vectors and keywords, whose ranks are fused. Scores are ``(1 + cosine) / 2``, for
    ``text_search`` ``bm25 / (1 + bm25)``.

    A store that was reduced (``abc-rag store reduce``) is opened without a fingerprint, by
    ``abc_rag.store.open_store``: vectors that nodes and questions bring are then projected.

    Args:
        store: What is viewed.
        modality: ``"text"`` or ``"image"``; None for both, which suits ``IngestionPipeline(vector_store=...)``: a
            picture's node then gives one record for its picture and one for its caption, if ``ABCEmbeddings`` was
            among the transformations and so gave it both vectors. Not for a plain ``VectorStoreIndex``, which
            embeds every node as text: see `ABCMultiModalIndex`.
        image_limits: Which pictures are read, and whether URLs are fetched.
        roots: Further files and folders from which pictures may be opened; see `abc_rag.search.Pictures`.
    """

    stores_text: bool = True
    flat_metadata: bool = False
    modality: Modality | None = None

    _store: Store = PrivateAttr()
    _shortened: Shortening = PrivateAttr()
    _pictures: Pictures = PrivateAttr()
    _roots: tuple[str | os.PathLike[str], ...] = PrivateAttr()
    _worker: Worker = PrivateAttr()

    def __init__(
        self,
        store: Store,
        *,
        modality: Modality | None = None,
        image_limits: ImageLimits | None = None,
        roots: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        fields: dict[str, Any] = {"modality": modality}
        super().__init__(**fields)
        self._store = store
        self._shortened = Shortening(store)
        self._roots = tuple(roots)
        self._pictures = Pictures(store, roots=roots, limits=image_limits or DEFAULT_LIMITS)
        self._worker = Worker("llama-index-abc-store")

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle contains the settings. The base class would silently drop what it cannot pickle, such as the store.
        limits = self._pictures.limits
        make = partial(type(self), self._store, modality=self.modality, image_limits=limits, roots=self._roots)
        return make, ()

    def __copy__(self) -> Self:
        make, arguments = self.__reduce__()
        copied: Self = make(*arguments)
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()  # the store is shared

    @classmethod
    def class_name(cls) -> str:
        """The class's name in LlamaIndex."""
        return "ABCVectorStore"

    @property
    def client(self) -> Store:
        """The underlying store."""
        return self._store

    # -- writing -------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **_: Any) -> list[str]:  # noqa: ANN401
        """Store nodes with their vectors. A node that is stored already is replaced.

        Args:
            nodes: What to store; ``embedding`` must be set.

        Returns:
            Their ids, in order.

        Raises:
            InputError: A node has no vector, or is no picture where pictures are stored; the message names it.
            StoreError: The store cannot be written to.
        """
        records: list[Record] = []
        vectors: list[Embedding] = []
        for node in nodes:
            for modality, vector in self._vectors(node):
                records.append(record_of(node, modality, self._store, self._pictures.limits))
                vectors.append(vector)
        if records:
            self._store.roots.add(record.source for record in records if record.sha256 and record.source_type == "path")
            self._store.add(records, self._shortened(vectors))
        return [node.node_id for node in nodes]

    def _vectors(self, node: BaseNode) -> list[tuple[Modality, Embedding]]:
        """The modality and the vector of each record that a node gets in this view."""
        if node.embedding is None:
            raise InputError(f"node {node.node_id!r} has no embedding; embed it first, for example by an index")
        pictured = self.modality != "text" and picture_of(node) is not None
        caption = caption_vector(node)
        if self.modality == "text":
            return [("text", caption or node.embedding)]
        if self.modality == "image":
            return [("image", node.embedding)]
        if not pictured:
            return [("text", node.embedding)]
        return [("image", node.embedding), *([("text", caption)] if caption else [])]  # type: ignore[list-item]

    def delete(self, ref_doc_id: str, **_: Any) -> None:  # noqa: ANN401
        """Delete the nodes of a source document."""
        self._remove({REF_DOC_ID: ref_doc_id})

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **_: Any,  # noqa: ANN401
    ) -> None:
        """Delete nodes by id and by filter. If both are given, both must match.

        Raises:
            InputError: Neither is given (`clear` deletes all), or the filter cannot be used.
        """
        where = to_where(filters)
        if node_ids is None and where is None:
            raise InputError("nothing says which nodes to delete: pass node_ids or filters; clear() deletes all")
        self._remove(where, node_ids)

    def clear(self) -> None:
        """Delete everything in this view, including what was indexed without LlamaIndex."""
        self._remove(None)

    def _remove(self, where: Mapping[str, Any] | None, node_ids: Sequence[str] | None = None) -> None:
        found = [record.id for record in self._records(where, node_ids)]
        if found:
            self._store.delete(found)

    # -- reading -------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes by id (in that order) and by filter; all, if neither is given. Each node occurs once.

        Raises:
            InputError: The filter cannot be used.
        """
        records = _once(self._records(to_where(filters), node_ids))
        return [node for node in nodes_of(records, self._store, self._pictures, with_bytes=False) if node is not None]

    def _records(self, where: Mapping[str, Any] | None, node_ids: Sequence[str] | None) -> list[Record]:
        if node_ids is None:
            found = list(self._store.records())
        else:
            modalities: tuple[Modality, ...] = ("image", "text")
            # A record that was stored without LlamaIndex has the bare id.
            asked = [name for id_ in node_ids for name in (*(record_id(id_, m) for m in modalities), id_)]
            found = self._store.get(dict.fromkeys(asked))
        condition = parse(where, self.modality)
        return [record for record in found if matches(condition, record)]

    def records_of(self, ref_doc_ids: Iterable[str]) -> set[str]:
        """Ids of the records in the underlying store that came from source documents."""
        wanted = set(ref_doc_ids)
        return {record.id for record in self._records(None, None) if record.metadata.get(REF_DOC_ID) in wanted}

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:  # noqa: ANN401
        """The nodes nearest to a vector, best first; see the class for filters and modes.

        Args:
            query: With ``query_embedding``, with ``query_str`` or with both, as the mode needs; ``similarity_top_k``,
                ``filters``, ``node_ids``, ``doc_ids`` and ``mode`` are used, in hybrid modes also ``hybrid_top_k`` and
                ``sparse_top_k``, the number of candidates.
            kwargs: ``where``, a filter in Chroma's own words; ``mmr_threshold``.

        Raises:
            InputError: There is no vector or no text, or a mode, filter or keyword that is not supported.
            StoreError: The mode needs a keyword index, and the store has none.
        """
        threshold, where = kwargs.pop("mmr_threshold", None), kwargs.pop("where", None)
        if kwargs:
            raise InputError(f"unknown query options {sorted(kwargs)}; these are known: mmr_threshold, where")
        if query.mode not in _MODES:
            known = ", ".join(repr(mode.value) for mode in _MODES)
            raise InputError(f"query mode {query.mode.value!r} is not supported; use one of {known}")
        if not query.query_embedding and query.mode != VectorStoreQueryMode.TEXT_SEARCH:
            raise InputError("the query has no embedding; search with an embedding model, or use get_nodes to look up")
        if query.mode in _WORDS and not (query.query_str or "").strip():
            raise InputError(f"query mode {query.mode.value!r} needs the question's words: set query_str")
        if query.mode in _HYBRID and query.alpha is not None:
            raise InputError("alpha is not used: the ranks of vectors and keywords are fused; leave it out")
        k = query.similarity_top_k
        where = all_of(
            to_where(query.filters),
            where,
            {NODE_ID: {"$in": list(query.node_ids)}} if query.node_ids else None,
            {REF_DOC_ID: {"$in": list(query.doc_ids)}} if query.doc_ids else None,
        )
        if query.mode == VectorStoreQueryMode.MMR:
            hits = self._nearest(query.query_embedding or [], _MMR_CANDIDATES * k, where)
            hits = self._diverse(hits, k, query.mmr_threshold if threshold is None else threshold)
        elif query.mode in _WORDS:
            k = k if query.mode == VectorStoreQueryMode.TEXT_SEARCH else query.hybrid_top_k or k
            hits = self._by_words(query, k, where)
        else:
            hits = self._nearest(query.query_embedding or [], k, where)
        nodes = nodes_of([hit.record for hit in hits], self._store, self._pictures, with_bytes=True)
        found = [(node, hit.score) for node, hit in zip(nodes, hits, strict=True) if node is not None]
        return VectorStoreQueryResult(
            nodes=[node for node, _ in found],
            similarities=[score for _, score in found],
            ids=[node.node_id for node, _ in found],
        )

    def _nearest(self, vector: Embedding, k: int, where: Mapping[str, Any] | None) -> list[Hit]:
        found = self._store.search(self._shortened(vector), self._wanted(k), where, modality=self.modality)
        return _nodes_once(found, k)

    def _wanted(self, k: int) -> int:
        # A captioned picture is found up to twice.
        return 2 * k if self.modality is None else k

    def _by_words(self, query: VectorStoreQuery, k: int, where: Mapping[str, Any] | None) -> list[Hit]:
        words, wanted = Keywords.of(query.query_str or ""), self._wanted(k)
        if query.mode == VectorStoreQueryMode.TEXT_SEARCH:
            return _nodes_once(self._store.search_words(words, wanted, where, modality=self.modality), k)
        depth = _CANDIDATES if query.sparse_top_k is None else query.sparse_top_k
        vector = self._shortened(query.query_embedding or [])
        found = hybrid(self._store, vector, words, wanted, where, modality=self.modality, candidates=depth)
        return _nodes_once(found, k)

    def _diverse(self, hits: Sequence[Hit], k: int, weight: float | None) -> list[Hit]:
        """Maximal marginal relevance. LlamaIndex's own function compares with the last one chosen only."""
        weight = 0.5 if weight is None else weight
        if isinstance(weight, bool) or not 0.0 <= weight <= 1.0:
            raise InputError(f"mmr_threshold must be a number in [0, 1], not {weight!r}")
        return diverse(hits, self._store.vectors(hit.id for hit in hits), k, weight)

    # -- async twins: the base class would block the event loop --------------------------------

    async_add = async_twin(add)  # type: ignore[arg-type]
    adelete = async_twin(delete)  # type: ignore[arg-type]
    adelete_nodes = async_twin(delete_nodes)  # type: ignore[arg-type]
    aclear = async_twin(clear)
    aget_nodes = async_twin(get_nodes)
    aquery = async_twin(query)  # type: ignore[arg-type]


def _nodes_once(found: Iterable[Hit], k: int) -> list[Hit]:
    """The first hit of each of ``k`` nodes."""
    hits: dict[str, Hit] = {}
    for hit in found:
        hits.setdefault(node_id_of(hit.record), hit)
    return list(hits.values())[:k]


def _once(records: Sequence[Record]) -> list[Record]:
    """One record per node; a picture's own rather than its caption's."""
    found: dict[str, Record] = {}
    for record in records:
        known = found.setdefault(node_id_of(record), record)
        if known.modality == "text" and record.modality == "image":
            found[node_id_of(record)] = record
    return list(found.values())
