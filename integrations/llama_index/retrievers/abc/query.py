"""The vector of a LlamaIndex query that brings more than a question and a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llama_index.core.schema import QueryBundle

from abc_rag import Embedder, Fingerprint, Input, Text
from abc_rag.embedding.embedder import BatchSize
from abc_rag.errors import InputError
from abc_rag.types import Vectors

__all__ = ["QueryEmbedder", "own_vector_of"]


class QueryEmbedder(Embedder):
    """An embedder for one query, whose first vector is that of the query.

    LlamaIndex's query transforms hand over further strings to embed (HyDE: made-up answers) or the vector itself. In
    place of the query's own vector stands the given one, or the mean of all; what else is embedded in the course of
    the search is left alone.

    Args:
        inner: Embeds.
        vector: The query's vector, if it is known.
        further: Texts to embed beside the query.
        alone: Whether only ``further`` counts.
    """

    def __init__(
        self, inner: Embedder, *, vector: Sequence[float] | None, further: Sequence[str] = (), alone: bool = False
    ) -> None:
        self._inner = inner
        self._vector = vector
        self._further: list[Input] = [Text(text) for text in further]
        self._alone = alone
        self._asked = False

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._inner.dim

    @property
    def accepts(self) -> tuple[type, ...]:
        """What the embedder within takes."""
        return self._inner.accepts

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the embedder within."""
        return self._inner.fingerprint

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        if self._asked:
            return self._inner.embed(inputs, batch_size=batch_size, progress=progress)
        self._asked = True
        if self._vector is None:
            query = self._further if self._alone else [*inputs, *self._further]
            row = self._inner.embed(query, batch_size=batch_size, progress=progress).mean(axis=0)
        else:
            row = np.asarray(self._vector, dtype=np.float32)
        unit: Vectors = (row / np.linalg.norm(row)).astype(np.float32)[None]
        return unit


def own_vector_of(bundle: QueryBundle, embedder: Embedder) -> QueryEmbedder | None:
    """What makes the vector of a query that says so itself; None for a plain question, picture or both.

    Raises:
        InputError: The vector that it brings cannot be one of this model.
    """
    if bundle.embedding is not None:
        return QueryEmbedder(embedder, vector=_checked(bundle.embedding, embedder.dim))
    strings = bundle.custom_embedding_strs or []
    further = [text for text in strings if text != bundle.query_str and text.strip()]
    if not further:
        return None
    alone = bundle.query_str not in strings and not bundle.image_path
    return QueryEmbedder(embedder, vector=None, further=further, alone=alone)


def _checked(vector: Sequence[float], dim: int) -> Sequence[float]:
    row = np.asarray(vector, dtype=np.float64)
    if row.shape != (dim,):
        raise InputError(
            f"QueryBundle.embedding has {len(vector)} numbers, this model's vectors have {dim}; retrievers of "
            "LlamaIndex leave their own vector in a bundle, so pass each retriever a bundle of its own"
        )
    if not np.isfinite(row).all() or not row.any():
        raise InputError("QueryBundle.embedding is zero or holds NaN or infinity; embed the query again")
    return vector
