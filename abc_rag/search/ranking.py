"""Choosing among the hits of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from abc_rag.types import Hit, Vectors

__all__ = ["diverse"]


def diverse(hits: Sequence[Hit], vectors: Mapping[str, Vectors], k: int, weight: float) -> list[Hit]:
    """Choose hits by maximal marginal relevance (Carbonell and Goldstein, 1998), with similarities scaled like scores.

    Args:
        hits: Best first.
        vectors: The unit vector of each hit's record, by id; a hit without one is left out.
        k: Maximum number of hits.
        weight: Weight of the score against difference from earlier hits, in [0, 1]; 1 is the plain order.

    Returns:
        Hits in the order in which they were chosen.
    """
    left = [hit for hit in hits if hit.record.id in vectors]
    chosen: list[Hit] = []
    nearest = dict.fromkeys(vectors, 0.0)
    while left and len(chosen) < k:
        # Hits are in the order of their scores, so that the first of equals is the better one.
        best = max(left, key=lambda hit: weight * hit.score - (1.0 - weight) * nearest[hit.record.id])
        left.remove(best)
        chosen.append(best)
        for hit in left:
            similarity = (1.0 + float(vectors[hit.record.id] @ vectors[best.id])) / 2.0
            nearest[hit.record.id] = max(nearest[hit.record.id], similarity)
    return chosen
