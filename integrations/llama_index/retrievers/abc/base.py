"""Questions about pictures, and pictures as questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, ImageNode, Node, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.retrievers.abc.rewriter import llm_rewriter
from llama_index.vector_stores.abc.filters import all_of, to_where
from llama_index.vector_stores.abc.records import OF_KIND, node_id_of, nodes_of

from abc_rag import ChromaStore, Hit
from abc_rag.embedding.threads import Worker
from abc_rag.errors import FingerprintMismatchError, InputError
from abc_rag.search.retriever import Retriever
from abc_rag.search.rewriting.rewriter import Rewriter
from abc_rag.types import Modality

__all__ = ["InstructionRetriever"]

# Under which a hit's trace is in its node's metadata.
_TRACE = "abc_trace"
_MISSING = "missing_picture"


class InstructionRetriever(BaseRetriever):
    """Finds pictures and passages for a question, a picture, or a picture with a question about it.

    ```python
    store = ChromaStore("store", fingerprint=embed_model.embedder.fingerprint)
    retriever = InstructionRetriever(embed_model, store)
    retriever.retrieve("show me a rose")
    retriever.retrieve(QueryBundle("what is on the left?", image_path="photo.jpg"))
    retriever.retrieve(QueryBundle("", image_path="photo.jpg"))
    ```

    The store may have been filled through `llama_index.vector_stores.abc`, by ``abc-rag index``, or by both. A picture
    and its caption are one hit, with the better score. `abc_rag.search.retriever` says what happens in a search: a
    question is rewritten into what pictures should be looked at for, and those that were found are looked at again.

    Works as the ``retriever`` of ``RetrieverQueryEngine.from_args(..., multimodal=True)``, which hands pictures to a
    chat model as they are. A picture whose file has gone comes back as a ``TextNode`` with its caption and
    ``missing_picture`` in its metadata, since one ``ImageNode`` without a file would fail the whole answer.

    Works behind a ``TransformRetriever``: strings that a transform wants embedded (HyDE) are averaged with the
    question, or with the picture seen under it, and an ``embedding`` that is set is searched for as it is. LlamaIndex's
    own retrievers leave their vector in a bundle, so pass each retriever a bundle of its own. Its HyDE drops
    ``image_path``, and its ``TransformRetriever`` blocks the event loop.

    Args:
        embed_model: Embeds questions; must be the one that filled the store.
        store: What is searched.
        similarity_top_k: Most hits.
        rewriter: Makes instructions of questions. If not given: rules (`abc_rag.search.rewriting.llm.RuleRewriter`).
        llm: A LlamaIndex LLM to rewrite questions with, in place of ``rewriter``; if it fails, the rules do.
        rerank: Whether found pictures are looked at again: True, False or ``"auto"``.
        mmr: Weight of the score against difference from the hits before, in [0, 1]; None: off.
        min_score: Least score of a hit, in [0, 1].
        where: A filter in Chroma's own words.
        filters: A filter in LlamaIndex's; both hold if both are given.
        modality: Only pictures (``"image"``; found by their captions too), or only passages (``"text"``).
        candidates: How many are found at first, to be looked at again.
        trace: Put how each score came about into ``metadata["abc_trace"]``, which no model gets to see.
        callback_manager: As for every retriever.

    Raises:
        InputError: An argument is unusable, or, in a search, there is neither a question nor a picture.
        FingerprintMismatchError: In the first search: the store holds another model's vectors.
    """

    def __init__(
        self,
        embed_model: ABCEmbeddings,
        store: ChromaStore,
        *,
        similarity_top_k: int = 4,
        rewriter: Rewriter | None = None,
        llm: BaseLLM | None = None,
        rerank: bool | Literal["auto"] = "auto",
        mmr: float | None = None,
        min_score: float | None = None,
        where: Mapping[str, Any] | None = None,
        filters: MetadataFilters | None = None,
        modality: Modality | None = None,
        candidates: int = 50,
        trace: bool = False,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        if not isinstance(embed_model, ABCEmbeddings):
            raise InputError(f"embed_model must be an ABCEmbeddings, not {type(embed_model).__name__}")
        if rewriter is not None and llm is not None:
            raise InputError("give rewriter or llm, not both: llm stands for rewriter=llm_rewriter(llm)")
        if isinstance(similarity_top_k, bool) or not isinstance(similarity_top_k, int) or similarity_top_k < 1:
            raise InputError(f"similarity_top_k must be a positive int, not {similarity_top_k!r}")
        self.similarity_top_k = similarity_top_k
        self._embed_model = embed_model
        self._store = store
        self._retriever = Retriever(
            embed_model.embedder,
            store,
            rewriter=rewriter if llm is None else llm_rewriter(llm),
            candidates=candidates,
            image_limits=embed_model.image_limits,
            query_instruction=embed_model.query_instruction,
            kinds=OF_KIND,
        )
        self._options: dict[str, Any] = {
            "where": all_of(where, to_where(filters)),
            "modality": modality,
            "rerank": rerank,
            "mmr": mmr,
            "min_score": min_score,
            "trace": trace,
        }
        self._checked = False
        # More than one: a search may wait for a language model.
        self._worker = Worker("llama-index-abc-search", threads=4)
        super().__init__(callback_manager=callback_manager)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._check_model()
        query = self._retriever.prepare(
            query_bundle.query_str if query_bundle.query_str.strip() else None,
            image=query_bundle.image_path or None,
            texts=query_bundle.custom_embedding_strs or (),
            vector=query_bundle.embedding,
        )
        # Twice as many, because a captioned picture is found at most twice.
        found = self._retriever.search(query, k=2 * self.similarity_top_k, **self._options)
        hits = _once(found.hits)[: self.similarity_top_k]
        nodes = nodes_of([hit.record for hit in hits], self._store)
        return [
            NodeWithScore(node=_traced(_with_file(node, hit), hit), score=hit.score)
            for node, hit in zip(nodes, hits, strict=True)
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await self._worker.run(self._retrieve, query_bundle)

    def _check_model(self) -> None:
        if self._checked:
            return
        theirs, ours = self._store.fingerprint, str(self._embed_model.embedder.fingerprint)
        if theirs is not None and theirs != ours:
            raise FingerprintMismatchError(
                f"{self._store!r} holds vectors of {theirs}, but embed_model is {ours}; "
                "use that model, or another store"
            )
        self._checked = theirs is not None


def _once(hits: Sequence[Hit]) -> list[Hit]:
    """One hit a node, at the place of the first and with the better score."""
    found: dict[str, Hit] = {}
    for hit in hits:
        known = found.setdefault(node_id_of(hit.record), hit)
        if hit.score > known.score:
            found[node_id_of(hit.record)] = hit
    return list(found.values())


def _with_file(node: BaseNode, hit: Hit) -> BaseNode:
    """The node, if a chat model can be shown its picture; else one that does not pretend to have one."""
    if isinstance(node, ImageNode):
        here, path = bool(node.image or (node.image_url and not node.image_path)), node.image_path
    elif isinstance(node, Node) and node.image_resource is not None:
        resource = node.image_resource
        here, path = resource.path is None, str(resource.path)
    else:
        return node
    if here or (path and Path(path).is_file()):
        return node
    if path and hit.source and Path(hit.source).is_file():
        # The node has a path relative to where it was made; the record has the whole.
        if isinstance(node, ImageNode):
            return node.model_copy(update={"image_path": hit.source})
        return node.model_copy(update={"image_resource": resource.model_copy(update={"path": Path(hit.source)})})
    return TextNode(
        id_=node.node_id,
        text=hit.text,
        metadata={**node.metadata, _MISSING: path or "stored without a source"},
        excluded_embed_metadata_keys=[*node.excluded_embed_metadata_keys, _MISSING],
        excluded_llm_metadata_keys=node.excluded_llm_metadata_keys,
        relationships=node.relationships,
    )


def _traced(node: BaseNode, hit: Hit) -> BaseNode:
    if hit.trace is not None:
        node.metadata[_TRACE] = asdict(hit.trace)
        node.excluded_embed_metadata_keys = [*node.excluded_embed_metadata_keys, _TRACE]
        node.excluded_llm_metadata_keys = [*node.excluded_llm_metadata_keys, _TRACE]
    return node
