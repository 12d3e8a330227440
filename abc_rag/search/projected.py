"""The model for a store with shorter vectors (`abc_rag.store.projection`): what is asked is projected as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.projected import ProjectedEmbedder, projected_by
from abc_rag.errors import FingerprintMismatchError, InputError
from abc_rag.store.base import Store
from abc_rag.store.projection import kept_projection, reduced_from
from abc_rag.store.records import unit_rows
from abc_rag.types import Fingerprint, Hit, Modality, Vectors

__all__ = ["opened_for", "projected", "rescored"]

S = TypeVar("S", bound=Store)


def projected(embedder: Embedder, store: Store) -> Embedder:
    """The embedder for a store: with the store's projection if it was reduced, else ``embedder`` itself.

    Args:
        embedder: The model; or already what this gives.
        store: Opened without a fingerprint, or with that of what this gives. Of a reduced one, the model is compared,
            which loads it.

    Raises:
        FingerprintMismatchError: The store was reduced from vectors of another model.
        StoreError: The file with the projection is missing or damaged.
    """
    held = store.fingerprint
    if isinstance(embedder, ProjectedEmbedder) and embedder.projection.fingerprint == held:
        return embedder
    of = reduced_from(held)
    if of is not None and of != str(embedder.fingerprint):
        raise FingerprintMismatchError(
            f"{store!r} holds vectors of {held}, which cannot be compared with those of {embedder.fingerprint}; "
            "use that model, or another collection or path"
        )
    return projected_by(embedder, kept_projection(store))


def opened_for(embedder: Embedder, open_: Callable[[Fingerprint | None], S]) -> tuple[Embedder, S]:
    """A store that is opened for a model; and the model, with the store's projection if its vectors were reduced.

    Args:
        embedder: The model.
        open_: Opens the store for a fingerprint; None opens whatever is there.

    Raises:
        FingerprintMismatchError: It holds another model's vectors, or such as were reduced from another model's.
        StoreError: It cannot be opened, or the file with its projection is missing or damaged.
    """
    try:
        return embedder, open_(embedder.fingerprint)
    except FingerprintMismatchError:
        with open_(None) as there:
            if reduced_from(there.fingerprint) != str(embedder.fingerprint):
                raise
            short = projected(embedder, there)
        return short, open_(short.fingerprint)


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
