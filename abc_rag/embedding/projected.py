"""An embedder whose vectors are made shorter, for a store that was reduced from vectors of its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.errors import ABCRagError, FingerprintMismatchError
from abc_rag.types import Fingerprint, ImageSource, Input, Vectors

__all__ = ["ProjectedEmbedder", "Projecting", "projected_by"]


class Projecting(Protocol):
    """What makes vectors of a model shorter, such as `abc_rag.store.Projection`, which says what its parts are."""

    @property
    def of(self) -> str:
        """The fingerprint of the vectors that it takes."""

    @property
    def dims(self) -> int:
        """Length of the vectors that it gives."""

    @property
    def mark(self) -> str:
        """What it adds to the revision of a fingerprint."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the vectors that it gives."""

    def __call__(self, rows: Vectors) -> Vectors:
        """Unit vectors ``(n, dims)`` of vectors ``(n, dim)``."""


class ProjectedEmbedder(Embedder):
    """A model whose vectors are projected; its fingerprint says so.

    Args:
        embedder: The model.
        projection: That of a reduced store.

    Raises:
        FingerprintMismatchError: The projection is for vectors of another model.
    """

    def __init__(self, embedder: Embedder, projection: Projecting) -> None:
        if str(embedder.fingerprint) != projection.of:
            raise FingerprintMismatchError(
                f"the projection is for vectors of {projection.of}, not of {embedder.fingerprint}; use that model"
            )
        self.embedder = embedder
        self.projection = projection

    @property
    def dim(self) -> int:
        """Length of a projected vector."""
        return self.projection.dims

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


def projected_by(embedder: Embedder, projection: Projecting | None) -> Embedder:
    """The embedder with a projection; itself where there is none, or where it has this one already.

    Raises:
        FingerprintMismatchError: The projection is for vectors of another model.
    """
    if projection is None:
        return embedder
    if isinstance(embedder, ProjectedEmbedder) and embedder.projection.fingerprint == projection.fingerprint:
        return embedder
    return ProjectedEmbedder(embedder, projection)
