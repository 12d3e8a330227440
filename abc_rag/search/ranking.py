"""Choosing among hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from abc_rag.types import (
    Hit,
    Vectors,
)

__all__ = ["diverse"]


def diverse(hits: Sequence[Hit], vectors: Mapping[str, Vectors], k: int, weight: float) -> list[Hit]:
    """Maximal marginal relevance (Carbonell and Goldstein, 1998), with similarity on the scale of scores.

    Args:
        hits: Best first.
        vectors: The unit vector of each hit's record, by id; a hit without one is left out.
        k: Most hits.
        weight: Of the score against difference from the hits before, in [0, 1]; 1 is the plain order.

    Returns:
        Hits in the order of choice.
    """
    left = [hit for hit in hits if hit.id in vectors]
    chosen: list[Hit] = []
    nearest = dict.fromkeys(vectors, 0.0)
    while left and len(chosen) < k:
        # In the order of scores, so that the first of equals is the better one.
        best = max(left, key=lambda hit: weight * hit.score - (1.0 - weight) * nearest[hit.id])
        left.remove(best)
        chosen.append(best)
        for hit in left:
            similarity = (1.0 + float(vectors[hit.id] @ vectors[best.id])) / 2.0
            nearest[hit.id] = max(nearest[hit.id], similarity)
    return chosen
