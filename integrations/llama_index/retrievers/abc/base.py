"""A LlamaIndex retriever that asks by questions, pictures, and pictures under an instruction."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager
from llama_index.core.memory import BaseMemory
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.retrievers.abc.history import last_picture, turns_before
from llama_index.retrievers.abc.rewriter import llm_rewriter
from llama_index.vector_stores.abc.filters import all_of, to_where
from llama_index.vector_stores.abc.records import OF_KIND, node_id_of, nodes_of

from abc_rag import Hit
from abc_rag.answering import GenerativeRewriter, Generator, Retriever
from abc_rag.embedding.threads import Worker
from abc_rag.errors import FingerprintMismatchError, InputError
from abc_rag.search import page_of
from abc_rag.search.rewriting import Rewriter, follows_up
from abc_rag.store import Store
from abc_rag.types import Modality

__all__ = ["InstructionRetriever"]

_PASSED = (
    "modality", "same", "different", "rerank", "keywords", "facet_map", "mmr", "min_score", "min_confidence", "trace",
)  # fmt: skip
# Metadata key of a hit's trace.
_TRACE = "abc_trace"


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
    chat model: nodes hold their pictures, without what else the files say, such as where a photo was taken. A picture
    that is gone, has changed or may not be opened comes back as a ``TextNode`` with its caption, and with
    ``missing_picture`` and ``missing_picture_reason`` in its metadata: one ``ImageNode`` without a picture would fail
    the whole answer.

    Works behind a ``TransformRetriever``: strings that a transform wants embedded (HyDE) are averaged with the
    question, or with the picture seen under it, and an ``embedding`` that is set is searched for as it is. LlamaIndex's
    own retrievers leave their vector in a bundle, so pass each retriever a bundle of its own. Its HyDE drops
    ``image_path``, and its ``TransformRetriever`` blocks the event loop.

    In a chat engine, give the engine and the retriever the same ``memory``, and put the picture that the chat is about
    into it: ``memory.put(ChatMessage(role="user", blocks=[ImageBlock(path="photo.jpg")]))``. A follow-up without a
    picture ("and on the right?") is then about the last picture that the user sent. ``docs/llama-index.md`` has a chat.

    Args:
        embed_model: Embeds questions; must be the one that filled the store.
        store: What is searched. One that was reduced (``abc-rag store reduce``) is opened without a fingerprint, by
            ``abc_rag.store.open_store``: what is asked is then projected.
        similarity_top_k: Most hits.
        rewriter: Makes instructions of questions. If not given: rules (`abc_rag.search.rewriting.llm.RuleRewriter`).
        llm: A LlamaIndex LLM to rewrite questions with, in place of ``rewriter``; if it fails, the rules do.
        generator: From `abc_rag.answering.load_generator`: rewrites questions, with the turns in ``memory`` before
            them, and judges what is found.
        rerank: Whether found pictures are looked at again: True, False or ``"auto"``; or ``"judge"``, by the generator.
        keywords: Whether to search for the words of the question too: True, False or ``"auto"``.
        same: Instructions under which hits are to be like the picture, such as ``["what is on the left?"]``; every
            question is then a picture without words. See `abc_rag.search.alike`.
        different: Instructions under which they are to be unlike it.
        facet_map: Whether a second look also gets the candidates of a facet map: True, False or ``"auto"``; see
            `abc_rag.search.facet_maps`.
        mmr: Weight of the score against difference from the hits before, in [0, 1]; None: off.
        min_score: Least score of a hit, in [0, 1].
        min_confidence: Least confidence of a hit, which the generator judges, in [0, 1].
        where: A filter in Chroma's own words.
        filters: A filter in LlamaIndex's; both hold if both are given.
        modality: Only pictures (``"image"``; found by their captions too), or only passages (``"text"``).
        candidates: How many are found at first, to be looked at again.
        roots: Further files and folders from which pictures may be opened; see `abc_rag.search.Pictures`.
        trace: Put how each score came about into ``metadata["abc_trace"]``, which no model gets to see.
        memory: The memory of the chat engine that asks; see above.
        with_pages: Put the picture of its page behind each part of a document, every page once and on top of
            ``similarity_top_k``, for a model that reads tables and drawings as they stand there.
        callback_manager: As for every retriever.

    Raises:
        InputError: An argument is unusable, or, in a search, there is neither a question nor a picture.
        FingerprintMismatchError: In the first search: the store holds another model's vectors; at once where these were
            reduced.
    """

    def __init__(
        self,
        embed_model: ABCEmbeddings,
        store: Store,
        *,
        similarity_top_k: int = 4,
        rewriter: Rewriter | None = None,
        llm: BaseLLM | None = None,
        generator: Generator | None = None,
        rerank: bool | Literal["auto", "judge"] = "auto",
        keywords: bool | Literal["auto"] = "auto",
        same: Sequence[str] = (),
        different: Sequence[str] = (),
        facet_map: bool | Literal["auto"] = "auto",
        mmr: float | None = None,
        min_score: float | None = None,
        min_confidence: float | None = None,
        where: Mapping[str, Any] | None = None,
        filters: MetadataFilters | None = None,
        modality: Modality | None = None,
        candidates: int = 50,
        roots: Iterable[str | os.PathLike[str]] = (),
        trace: bool = False,
        memory: BaseMemory | None = None,
        with_pages: bool = False,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        if not isinstance(embed_model, ABCEmbeddings):
            raise InputError(f"embed_model must be an ABCEmbeddings, not {type(embed_model).__name__}")
        if rewriter is not None and llm is not None:
            raise InputError("give rewriter or llm, not both: llm stands for rewriter=llm_rewriter(llm)")
        if memory is not None and not isinstance(memory, BaseMemory):
            raise InputError(f"memory must be a LlamaIndex memory, not {type(memory).__name__}")
        if isinstance(similarity_top_k, bool) or not isinstance(similarity_top_k, int) or similarity_top_k < 1:
            raise InputError(f"similarity_top_k must be a positive int, not {similarity_top_k!r}")
        self.similarity_top_k = similarity_top_k
        self._embed_model = embed_model
        self._store = store
        self._settings: dict[str, Any] = {
            "rewriter": rewriter,
            "llm": llm,
            "generator": generator,
            "rerank": rerank,
            "keywords": keywords,
            "same": same,
            "different": different,
            "facet_map": facet_map,
            "mmr": mmr,
            "min_score": min_score,
            "min_confidence": min_confidence,
            "where": where,
            "filters": filters,
            "modality": modality,
            "candidates": candidates,
            "roots": tuple(roots),
            "trace": trace,
            "memory": memory,
            "with_pages": with_pages,
        }
        self._memory = memory
        self._generates = generator is not None or isinstance(rewriter, GenerativeRewriter)
        self._retriever = Retriever(
            embed_model.embedder,
            store,
            generator=generator,
            rewriter=rewriter if llm is None else llm_rewriter(llm),
            candidates=candidates,
            image_limits=embed_model.image_limits,
            roots=self._settings["roots"],
            kinds=OF_KIND,
        )
        self._options = {name: self._settings[name] for name in _PASSED}
        self._options["where"] = all_of(where, to_where(filters))
        self._checked = False
        # Several threads, because a search may wait for a language model.
        self._worker = Worker("llama-index-abc-search", threads=4)
        super().__init__(callback_manager=callback_manager)

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle contains the settings; reading it opens the store and the model again.
        settings = {"similarity_top_k": self.similarity_top_k, **self._settings}
        return partial(type(self), self._embed_model, self._store, **settings), (), {"object_map": self.object_map}

    def __copy__(self) -> InstructionRetriever:
        make, arguments, state = self.__reduce__()
        copied: InstructionRetriever = make(*arguments, callback_manager=self.callback_manager)
        copied.__dict__.update(state)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> InstructionRetriever:
        return self.__copy__()  # model and store are shared

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._search(query_bundle, [] if self._memory is None else self._memory.get_all())

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        said = [] if self._memory is None else await self._memory.aget_all()
        return await self._worker.run(self._search, query_bundle, said)

    def _search(self, query_bundle: QueryBundle, said: Sequence[ChatMessage]) -> list[NodeWithScore]:
        self._check_model()
        picture = last_picture(said) if said and _lacks_picture(query_bundle) else None
        query = self._retriever.prepare(
            query_bundle.query_str if query_bundle.query_str.strip() else None,
            image=query_bundle.image_path or picture,
            texts=query_bundle.custom_embedding_strs or (),
            vector=query_bundle.embedding,
            keywords=self._settings["keywords"],
            history=turns_before(said, query_bundle.query_str) if self._generates else (),
        )
        # A captioned picture is found up to twice.
        found = self._retriever.search(query, k=2 * self.similarity_top_k, **self._options)
        hits = _once(found.hits)[: self.similarity_top_k]
        if self._settings["with_pages"]:
            hits = self._on_pages(hits)
        nodes = nodes_of([hit.record for hit in hits], self._store, self._retriever.pictures, with_bytes=True)
        return [
            NodeWithScore(node=_traced(node, hit), score=hit.score)
            for node, hit in zip(nodes, hits, strict=True)
            if node is not None
        ]

    def _on_pages(self, hits: Sequence[Hit]) -> list[Hit]:
        """Hits, and behind the first one of each page the picture of that page."""
        seen = {hit.id for hit in hits}
        shown: list[Hit] = []
        for hit in hits:
            shown.append(hit)
            page = page_of(self._store, hit)
            if page is not None and page.id not in seen:
                seen.add(page.id)
                shown.append(Hit(page, hit.score))
        return shown

    def _check_model(self) -> None:
        if self._checked:
            return
        theirs, ours = self._store.fingerprint, str(self._retriever.embedder.fingerprint)
        if theirs is not None and theirs != ours:
            raise FingerprintMismatchError(
                f"{self._store!r} holds vectors of {theirs}, but embed_model is {ours}; "
                "use that model, or another store"
            )
        self._checked = theirs is not None


def _lacks_picture(query: QueryBundle) -> bool:
    """Whether the question is about a picture that an earlier one came with."""
    return not query.image_path and query.embedding is None and follows_up(query.query_str)


def _once(hits: Sequence[Hit]) -> list[Hit]:
    """One hit per node, at the position of the first and with the better score."""
    found: dict[str, Hit] = {}
    for hit in hits:
        known = found.setdefault(node_id_of(hit.record), hit)
        if hit.score > known.score:
            found[node_id_of(hit.record)] = hit
    return list(found.values())


def _traced(node: BaseNode, hit: Hit) -> BaseNode:
    if hit.trace is not None:
        node.metadata[_TRACE] = asdict(hit.trace)
        node.excluded_embed_metadata_keys = [*node.excluded_embed_metadata_keys, _TRACE]
        node.excluded_llm_metadata_keys = [*node.excluded_llm_metadata_keys, _TRACE]
    return node
