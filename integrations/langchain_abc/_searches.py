"""The searches of `ABCVectorStore`, each with its async twin."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy.typing as npt
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from abc_rag import Embedder, Hit, Image, ImageLimits, ImageSource, InstructedImage
from abc_rag.embedding.threads import Run, Worker, async_twin, awaiting, blocking, core_of, inline
from abc_rag.errors import InputError
from abc_rag.search import demanding, diverse, hybrid
from abc_rag.store import Keywords, Store
from abc_rag.store.filters import by_shown_names
from abc_rag.types import Modality
from langchain_abc._documents import to_document, to_documents

Filter = Mapping[str, Any] | None
Scored = list[tuple[Document, float]]
Keywording = bool | Literal["auto"]


class Searches(VectorStore):
    """The searches. A subclass provides the store."""

    _embedding: Embeddings
    image_limits: ImageLimits
    roots: tuple[str | os.PathLike[str], ...]
    _worker: Worker

    @property
    @abstractmethod
    def store(self) -> Store:
        """The store that is searched."""

    @abstractmethod
    def _shortened(self, vectors: npt.ArrayLike) -> npt.ArrayLike:
        """Vectors of the embeddings as the store holds them: projected, if it was reduced."""

    @property
    def embedder(self) -> Embedder | None:
        """The `abc_rag.Embedder` of the embeddings; None if they have none, and so cannot embed pictures."""
        embedder = getattr(self._embedding, "embedder", None)
        return embedder if isinstance(embedder, Embedder) else None

    def _need_embedder(self) -> Embedder:
        embedder = self.embedder
        if embedder is None:
            raise InputError(f"{type(self._embedding).__name__} embeds no pictures; use ABCEmbeddings")
        return embedder

    # -- by a question ---------------------------------------------------------------------------

    @blocking
    async def similarity_search(
        self,
        _run: Run,
        /,
        query: str,
        k: int = 4,
        filter: Filter = None,
        *,
        modality: Modality | None = None,
        keywords: Keywording = False,
        **kwargs: object,
    ) -> list[Document]:
        """Find what is nearest to a question or a description.

        Args:
            query: The question.
            k: Maximum number of documents; at least 1.
            filter: A metadata filter, such as ``{"page": {"$gte": 3}}``.
            modality: Only pictures (``"image"``), or only passages (``"text"``).
            keywords: Search for the words of the question too: True counts documents with any of them, ``"auto"`` those
                with all of them; see ``abc_rag.search.retriever``. A phrase in quotes must then be there, and what
                follows a minus sign must not.
            **kwargs: Refused, because unknown options must not be ignored.

        Returns:
            Documents, best first.

        Raises:
            abc_rag.errors.InputError: The question is empty, or ``k`` or the filter cannot be used.
            abc_rag.errors.FingerprintMismatchError: The store holds another model's vectors.
        """
        scored = core_of(Searches.similarity_search_with_score)
        return _documents(await scored(self, _run, query, k, filter, modality=modality, keywords=keywords, **kwargs))

    asimilarity_search = awaiting(similarity_search)

    @blocking
    async def similarity_search_with_score(
        self,
        _run: Run,
        /,
        query: str,
        k: int = 4,
        filter: Filter = None,
        *,
        modality: Modality | None = None,
        keywords: Keywording = False,
        **kwargs: object,
    ) -> Scored:
        """See `similarity_search`; each document with its score.

        The score is ``(1 + cosine) / 2``, in [0, 1], and **higher is nearer**: it is a relevance score already, and
        `similarity_search_with_relevance_scores` gives the same.
        """
        refuse_keywords(kwargs)
        _check(query, k)
        words = await _run(self._words, query, keywords, filter)
        vector = await self._question(_run, _embedded(query, words), k)
        scored: Scored = await _run(self._near, vector, k, filter, modality, words)
        return scored

    asimilarity_search_with_score = awaiting(similarity_search_with_score)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: score

    # -- by a vector -----------------------------------------------------------------------------

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Filter = None,
        *,
        modality: Modality | None = None,
        **kwargs: object,
    ) -> list[Document]:
        """Find what is nearest to a vector, such as that of a picture under an instruction; see `similarity_search`."""
        return _documents(
            self.similarity_search_by_vector_with_score(embedding, k, filter, modality=modality, **kwargs)
        )

    asimilarity_search_by_vector = async_twin(similarity_search_by_vector)  # type: ignore[arg-type]

    def similarity_search_by_vector_with_score(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Filter = None,
        *,
        modality: Modality | None = None,
        **kwargs: object,
    ) -> Scored:
        """See `similarity_search_by_vector`; each document with its score, as in `similarity_search_with_score`."""
        refuse_keywords(kwargs)
        return self._near(embedding, k, filter, modality)

    asimilarity_search_by_vector_with_score = async_twin(similarity_search_by_vector_with_score)  # type: ignore[arg-type]

    # -- by a picture ----------------------------------------------------------------------------

    def similarity_search_by_image(
        self,
        image: ImageSource,
        k: int = 4,
        filter: Filter = None,
        instruction: str | None = None,
        *,
        modality: Modality | None = None,
    ) -> list[Document]:
        """Find what is nearest to a picture, optionally as seen under an instruction.

        Args:
            image: A path (a ``str`` is always a path), ``abc_rag.URL``, ``abc_rag.DataURI``, bytes or a PIL image.
            k: Maximum number of documents; at least 1.
            filter: A metadata filter.
            instruction: What to look at.
            modality: Only pictures (``"image"``), or only passages (``"text"``).

        Returns:
            Documents, best first.

        Raises:
            abc_rag.errors.ImageError: The picture cannot be used.
            abc_rag.errors.InputError: The embeddings embed no pictures, or an argument cannot be used.
        """
        return _documents(self.similarity_search_by_image_with_score(image, k, filter, instruction, modality=modality))

    asimilarity_search_by_image = async_twin(similarity_search_by_image)

    def similarity_search_by_image_with_score(
        self,
        image: ImageSource,
        k: int = 4,
        filter: Filter = None,
        instruction: str | None = None,
        *,
        modality: Modality | None = None,
    ) -> Scored:
        """See `similarity_search_by_image`; each document with its score, as in `similarity_search_with_score`."""
        return self._near(self._picture(image, instruction, k), k, filter, modality)

    asimilarity_search_by_image_with_score = async_twin(similarity_search_by_image_with_score)

    # -- maximal marginal relevance --------------------------------------------------------------

    @blocking
    async def max_marginal_relevance_search(
        self,
        _run: Run,
        /,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter = None,
        *,
        modality: Modality | None = None,
        **kwargs: object,
    ) -> list[Document]:
        """Find documents near to a question that differ from each other (maximal marginal relevance).

        Args:
            query: The question.
            k: Maximum number of documents; at least 1.
            fetch_k: Number of candidates; at least ``k``.
            lambda_mult: Weight of nearness to the question against difference from earlier documents, in [0, 1].
            filter: A metadata filter.
            modality: Only pictures (``"image"``), or only passages (``"text"``).
            **kwargs: Refused, because unknown options must not be ignored.

        Returns:
            Documents in the order in which they were chosen.
        """
        refuse_keywords(kwargs)
        vector = await self._question(_run, query, k)
        found: list[Document] = await _run(self._varied, vector, k, fetch_k, lambda_mult, filter, modality)
        return found

    amax_marginal_relevance_search = awaiting(max_marginal_relevance_search)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter = None,
        *,
        modality: Modality | None = None,
        **kwargs: object,
    ) -> list[Document]:
        """See `max_marginal_relevance_search`; by a vector."""
        refuse_keywords(kwargs)
        return self._varied(embedding, k, fetch_k, lambda_mult, filter, modality)

    amax_marginal_relevance_search_by_vector = async_twin(max_marginal_relevance_search_by_vector)  # type: ignore[arg-type]

    def max_marginal_relevance_search_by_image(
        self,
        image: ImageSource,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter = None,
        instruction: str | None = None,
        *,
        modality: Modality | None = None,
    ) -> list[Document]:
        """See `max_marginal_relevance_search`; by a picture, as in `similarity_search_by_image`."""
        return self._varied(self._picture(image, instruction, k), k, fetch_k, lambda_mult, filter, modality)

    amax_marginal_relevance_search_by_image = async_twin(max_marginal_relevance_search_by_image)

    # -- helpers -------------------------------------------------------------------------

    async def _question(self, run: Run, query: str, k: int) -> list[float]:
        _check(query, k)
        if run is inline or type(self._embedding).aembed_query is Embeddings.aembed_query:
            # LangChain's default would run in the event loop's shared pool.
            vector: list[float] = await run(self._embedding.embed_query, query)
            return vector
        return await self._embedding.aembed_query(query)

    def _picture(self, image: ImageSource, instruction: str | None, k: int) -> npt.ArrayLike:
        _check_k(k)
        asked = Image(image, role="query") if instruction is None else InstructedImage(image, instruction, role="query")
        vector: npt.ArrayLike = self._need_embedder().embed([asked])[0]
        return vector

    def _words(self, query: str, keywords: Keywording, where: Filter) -> Keywords | None:
        if keywords is False or (keywords == "auto" and not self.store.has_words):
            return None
        words = Keywords.of(query)
        return demanding(self.store, words, by_shown_names(where)) if keywords == "auto" else words

    def _near(
        self, vector: npt.ArrayLike, k: int, where: Filter, modality: Modality | None, words: Keywords | None = None
    ) -> Scored:
        vector = self._shortened(vector)
        if words is None:
            hits = self.store.search(vector, k, by_shown_names(where), modality=modality)
        else:
            hits = hybrid(self.store, vector, words, k, by_shown_names(where), modality=modality)[:k]
        return [(found, hit.score) for hit in hits if (found := to_document(hit.record)) is not None]

    def _varied(
        self,
        vector: npt.ArrayLike,
        k: int,
        fetch_k: int,
        lambda_mult: float,
        where: Filter,
        modality: Modality | None,
    ) -> list[Document]:
        _check_k(k)
        if not 0 <= lambda_mult <= 1:
            raise InputError(f"lambda_mult must be in [0, 1], not {lambda_mult!r}")
        hits = self.store.search(self._shortened(vector), max(k, fetch_k), by_shown_names(where), modality=modality)
        return to_documents(hit.record for hit in diverse(hits, self._vectors(hits), k, lambda_mult))

    def _vectors(self, hits: list[Hit]) -> dict[str, Any]:
        """The vector by which each hit was found: a picture's own, or a facet's."""
        vectors: dict[str, Any] = dict(self.store.vectors([hit.id for hit in hits]))
        for facet in {hit.facet for hit in hits if hit.facet is not None}:
            vectors.update(self.store.facet_vectors([hit.id for hit in hits if hit.facet == facet], facet))
        return vectors


def _documents(scored: Scored) -> list[Document]:
    return [document for document, _ in scored]


def refuse_keywords(kwargs: Mapping[str, object]) -> None:
    if kwargs:
        raise TypeError(f"unexpected keyword {', '.join(map(repr, kwargs))}")


def _check_k(k: object) -> None:
    # Checked before embedding, which is expensive.
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k must be a positive int, not {k!r}")


def _embedded(query: str, words: Keywords | None) -> str:
    return words.text if words is not None and words.strict else query


def _check(query: object, k: object) -> None:
    _check_k(k)
    if not isinstance(query, str):
        raise InputError(f"the question must be a str, not {type(query).__name__}; for a picture search by image")
    if not query.strip():
        raise InputError("the question is empty; ask something, or search by image or by vector")
