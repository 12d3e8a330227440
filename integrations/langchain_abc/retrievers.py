"""A LangChain retriever that asks by questions, pictures, and pictures under an instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from abc_rag.answering import GenerativeRewriter, Generator, Retriever
from abc_rag.embedding.threads import Run, Worker, awaiting, blocking, inline
from abc_rag.errors import InputError
from abc_rag.search import Answer
from abc_rag.search.rewriting import Rewriter
from abc_rag.store.filters import by_shown_names
from abc_rag.types import Modality
from langchain_abc._documents import hit_document
from langchain_abc._questions import SETTINGS, Asked, asked_of, told_of
from langchain_abc._searches import Searches
from langchain_abc.rewriters import chat_model_rewriter

__all__ = ["InstructionRetriever"]

Message = BaseMessage | tuple[str, Any] | dict[str, Any]
Input = str | Mapping[str, Any] | Sequence[Message] | BaseMessage | PromptValue
# Threads that call chat models. Several, because they mostly wait.
_WAITING = 8


class InstructionRetriever(BaseRetriever):
    """Finds texts and pictures by a question, a picture, or both. A picture is embedded under the question.

    Setup:
        ``pip install 'abc-rag[langchain]'``.

    Key init args:
        vectorstore: An `ABCVectorStore` with `ABCEmbeddings`.
        k: Maximum number of documents.
        rewriter: Turns a question into an instruction; by default, rules. See ``abc_rag.search.rewriting``.
        llm: A chat model that does so instead; see `chat_model_rewriter`.
        rerank: Whether to take a second look at pictures that were found, which is our name for reranking under the
            instruction; see ``abc_rag.search.retriever``.
        keywords: Whether to search for the words of the question too: ``"auto"``, True or False; see
            ``abc_rag.search.retriever``.
        same: With a picture and no question: instructions under which documents are to be like it, such as
            ``["what is on the left?"]``; see ``abc_rag.search.alike``.
        different: Instructions under which they are to be unlike it.
        facet_map: Whether a second look also gets the candidates of a facet map: ``"auto"``, True or False; see
            ``abc_rag.search.facet_maps``.
        mmr: Weight of the score against difference from earlier documents, in [0, 1]; None turns MMR off.
        min_score: Minimum score of a document, in [0, 1].
        filter: A metadata filter, such as ``{"page": {"$gte": 3}}``; what documents show can be filtered by.
        modality: Only pictures (``"image"``), or only passages (``"text"``).
        trace: Explain each score in the metadata.
        candidates: Number of candidates for the second look and for MMR.

    Instantiate:
        .. code-block:: python

            from langchain_abc import ABCEmbeddings, ABCVectorStore

            store = ABCVectorStore(ABCEmbeddings(model="abc-mini"), path="store")
            retriever = store.as_instruction_retriever(k=3)

    Usage:
        .. code-block:: python

            from langchain_core.messages import HumanMessage

            retriever.invoke("pictures with a blue background")
            retriever.invoke({"question": "what is on the left?", "image": "scene.jpg"})
            retriever.invoke([HumanMessage("a rose")])
            await retriever.ainvoke({"image": "scene.jpg"}, k=1)

        The image is a path (a ``str`` is always a path), ``abc_rag.URL``, ``abc_rag.DataURI``, bytes or a PIL image.
        ``k``, ``filter``, ``modality``, ``same``, ``different``, ``rerank``, ``keywords``, ``facet_map``, ``mmr``,
        ``min_score``, ``min_confidence`` and ``trace`` can be given with a call.
        With a ``generator`` (`abc_rag.answering.load_generator`), it rewrites questions, with the turns of a chat
        before them, and judges what is found: ``rerank="judge"``, ``min_confidence``.
        Callbacks and traces get the question, and a picture's name in place of the picture.

        Documents are as `ABCVectorStore` gives them, with ``modality`` and ``score`` in their metadata, and with
        ``trace=True`` also ``instruction``, ``first``, ``second``, ``facet``, ``note``, ``rank_by_vectors`` and
        ``rank_by_words``: see ``abc_rag.types.Trace``. Where it was judged, a document has its ``confidence``.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    vectorstore: Searches
    k: int = Field(4, ge=1)
    rewriter: Rewriter | None = None
    llm: BaseChatModel | None = None
    generator: Generator | None = None
    rerank: bool | Literal["auto", "judge"] = "auto"
    keywords: bool | Literal["auto"] = "auto"
    same: Sequence[str] = ()
    different: Sequence[str] = ()
    facet_map: bool | Literal["auto"] = "auto"
    mmr: float | None = Field(None, ge=0, le=1)
    min_score: float | None = Field(None, ge=0, le=1)
    min_confidence: float | None = Field(None, ge=0, le=1)
    filter: dict[str, Any] | None = None
    modality: Modality | None = None
    trace: bool = False
    candidates: int = Field(50, ge=1)

    _chosen: Rewriter | None = PrivateAttr(None)
    _worker: Worker = PrivateAttr(default_factory=lambda: Worker("langchain-abc-rewrite", _WAITING))

    @model_validator(mode="after")
    def _check(self) -> InstructionRetriever:
        self.vectorstore._need_embedder()
        if self.rewriter is not None and self.llm is not None:
            raise InputError("give rewriter or llm, not both; chat_model_rewriter(llm) is a rewriter")
        return self

    def __getstate__(self) -> dict[Any, Any]:
        # The rewriter of a chat model holds locks; the copy makes its own.
        state = super().__getstate__()
        return state | {"__pydantic_private__": {**(state["__pydantic_private__"] or {}), "_chosen": None}}

    @property
    def InputType(self) -> Any:  # noqa: ANN401
        """A question, a dict of a question and a picture, or messages."""
        return str | dict[str, Any] | list[BaseMessage]

    def invoke(
        self,
        input: Input,
        config: RunnableConfig | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> list[Document]:
        """Find documents.

        Args:
            input: A question; or ``{"question": ..., "image": ...}``, where either may be missing, and other keys of a
                chain are ignored; or the messages of a chat, where the last human one is the question. A follow-up
                without a picture ("and on the right?") is about the last picture that a human sent in the messages,
                or in a dict's ``chat_history``. Messages may be ``(role, content)`` pairs or dicts too.
            config: As for every runnable.
            **kwargs: Settings for this call.

        Returns:
            Documents, best first.

        Raises:
            abc_rag.errors.InputError: The question is empty, or something cannot be used.
            abc_rag.errors.ImageError: The picture cannot be used.
        """
        asked = asked_of(input)
        return super().invoke(told_of(asked), config, asked=asked, **kwargs)

    async def ainvoke(
        self,
        input: Input,
        config: RunnableConfig | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> list[Document]:
        """See `invoke`; does not block the event loop."""
        asked = asked_of(input)
        return await super().ainvoke(told_of(asked), config, asked=asked, **kwargs)

    @blocking
    async def _get_relevant_documents(
        self,
        _run: Run,
        /,
        query: Input,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        asked: Asked | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> list[Document]:
        asked = asked_of(query) if asked is None else asked
        settings = self._settings(kwargs)
        by_store = inline if _run is inline else self.vectorstore._worker.run
        retriever = await by_store(self._retriever)
        # In another thread, so that the store answers other questions while a chat model rewrites this one.
        prepared = await _run(
            retriever.prepare,
            asked.question,
            image=asked.image,
            keywords=settings["keywords"],
            history=asked.history,
        )
        return _documents(await by_store(retriever.search, prepared, **settings))

    _aget_relevant_documents = awaiting(_get_relevant_documents)  # type: ignore[arg-type]

    def _settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        unknown = [key for key in given if key not in SETTINGS]
        if unknown:
            raise TypeError(f"unexpected keyword {', '.join(map(repr, unknown))}; a call takes {', '.join(SETTINGS)}")
        settings = {key: given.get(key, getattr(self, key)) for key in SETTINGS}
        settings["where"] = by_shown_names(settings.pop("filter"))
        return settings

    def _retriever(self) -> Retriever:
        if self._chosen is None and self.llm is not None:
            self._chosen = chat_model_rewriter(self.llm)
        if self._chosen is None and self.rewriter is None and self.generator is not None:
            self._chosen = GenerativeRewriter(self.generator)  # which remembers what it was asked
        return Retriever(
            self.vectorstore._need_embedder(),
            self.vectorstore.store,
            generator=self.generator,
            rewriter=self._chosen or self.rewriter,
            candidates=self.candidates,
            image_limits=self.vectorstore.image_limits,
            roots=self.vectorstore.roots,
        )

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:  # noqa: ANN401
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = type(self.vectorstore).__name__
        params["ls_embedding_provider"] = type(self.vectorstore.embeddings).__name__
        return params


def _documents(answer: Answer) -> list[Document]:
    return [document for hit in answer if (document := hit_document(hit)) is not None]
