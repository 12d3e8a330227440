"""An embedder for a store with shorter vectors (`abc_rag.store.projection`): what is asked is projected as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.errors import ABCRagError, FingerprintMismatchError, InputError
from abc_rag.store.base import Store
from abc_rag.store.projection import Projection, kept_projection
from abc_rag.store.records import unit_rows
from abc_rag.types import Fingerprint, Hit, ImageSource, Input, Modality, Vectors

__all__ = ["ProjectedEmbedder", "projected", "rescored"]


class ProjectedEmbedder(Embedder):
    """A model whose vectors are projected; its fingerprint says so.

    Args:
        embedder: The model.
        projection: That of a reduced store.

    Raises:
        FingerprintMismatchError: The projection is for vectors of another model.
    """

    def __init__(self, embedder: Embedder, projection: Projection) -> None:
        if str(embedder.fingerprint) != projection.of:
            raise FingerprintMismatchError(
                f"the projection is for vectors of {projection.of}, not of {embedder.fingerprint}; use that model"
            )
        self.embedder = embedder
        self.projection = projection

    @property
    def dim(self) -> int:
        """Length of a projected vector."""
        return int(self.projection.axes.shape[1])

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the model, with the projection in its revision."""
        own = self.embedder.fingerprint
        return replace(own, revision=own.revision + self.projection.mark)

    @property
    def accepts(self) -> tuple[type, ...]:
        """What the model takes."""
        return self.embedder.accepts

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that the model knows."""
        return self.embedder.roles

    def grid(self, source: ImageSource) -> tuple[int, int]:
        """See `Embedder.grid`."""
        return self.embedder.grid(source)

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        return self.projection(self.embedder.embed(inputs, batch_size=batch_size, progress=progress))

    async def _aembed(self, inputs: Sequence[Input], *, batch_size: BatchSize) -> Vectors:
        return self.projection(await self.embedder.aembed(inputs, batch_size=batch_size))

    def _embed_each(self, inputs: Iterator[Input], *, batch_size: BatchSize) -> Iterator[Vectors | ABCRagError]:
        for result in self.embedder.embed_iter(inputs, batch_size=batch_size, return_errors=True):
            yield result if isinstance(result, ABCRagError) else self.projection(result[None])[0]


def projected(embedder: Embedder, store: Store) -> Embedder:
    """The embedder for a store: with the store's projection if it was reduced, else ``embedder`` itself.

    Args:
        embedder: The model.
        store: Opened without a fingerprint.

    Raises:
        FingerprintMismatchError: The store was reduced from vectors of another model.
        StoreError: The file with the projection is missing or damaged.
    """
    projection = kept_projection(store)
    return embedder if projection is None else ProjectedEmbedder(embedder, projection)


def rescored(
    reduced: Store,
    original: Store,
    vector: npt.ArrayLike,
    k: int = 4,
    where: Mapping[str, Any] | None = None,
    *,
    modality: Modality | None = None,
    candidates: int = 50,
) -> list[Hit]:
    """Search a reduced store, and order what it finds by the vectors of the store that it was made from.

    Args:
        reduced: Finds the candidates.
        original: Holds the same records with their whole vectors. Those that it has not any more are left out.
        vector: The query, by the model itself: shape ``(dim,)``.
        k: Maximum number of hits.
        where: As for `Store.search`.
        modality: As for `Store.search`.
        candidates: How many are compared again.

    Returns:
        Hits with exact scores, as `Store.search` gives them.

    Raises:
        InputError: An argument is unusable, or ``reduced`` was not reduced from vectors of ``original``.
        StoreError: One of the stores cannot be read.
    """
    projection = kept_projection(reduced)
    if projection is None or projection.of != original.fingerprint:
        raise InputError(f"{reduced!r} was not reduced from vectors of {original!r}; pass the two stores in this order")
    row = unit_rows(np.asarray(vector)[None])[0]
    if len(row) != len(projection.axes):
        raise InputError(
            f"the query has {len(row)} dimensions, not {len(projection.axes)}; embed it by the model itself"
        )
    found = reduced.search(projection(row[None])[0], max(k, candidates), where, modality=modality)
    plain = original.vectors(hit.id for hit in found)
    hits = {hit.id: Hit(hit.record, _score(plain[hit.id], row)) for hit in found if hit.id in plain}
    for facet in dict.fromkeys(hit.facet for hit in found if hit.facet is not None):
        for id_, own in original.facet_vectors([hit.id for hit in found if hit.facet == facet], facet).items():
            if id_ in hits and (score := _score(own, row)) > hits[id_].score:
                hits[id_] = replace(hits[id_], score=score, facet=facet)
    return sorted(hits.values(), key=lambda hit: (-hit.score, hit.id))[:k]


def _score(own: Vectors, row: Vectors) -> float:
    return (1.0 + float(np.clip(own @ row, -1.0, 1.0))) / 2.0
