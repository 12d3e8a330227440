"""Vectors and keywords in one list: reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.store.base import Store
from abc_rag.store.keywords import Keywords
from abc_rag.store.records import unit_rows
from abc_rag.types import Hit, Modality, Trace

__all__ = ["KEYWORD_WEIGHT", "demanding", "fused", "hybrid", "two_lists"]

# The paper's constant. How far down a list a hit may be and still count.
_K = 60
# The least of the best on half of the questions of `abc-rag evaluate documents`, by a text model.
KEYWORD_WEIGHT = 0.5
"""Of the ranks by keywords against those by vectors, if not given."""


def fused(
    near: Sequence[Hit],
    named: Sequence[Hit],
    scores: Mapping[str, float],
    *,
    words_first: bool,
    weight: float = KEYWORD_WEIGHT,
) -> list[Hit]:
    """Fuse the hits of vectors with those of keywords.

    A hit at rank ``r`` of a list counts ``1 / (60 + r)``, times the weight of that list; those of both lists add
    up. Then the scores of the first search are dealt out anew in the order that results, the highest to the first, so
    that they mean what they meant: a threshold and a second look work as without keywords.

    Args:
        near: Hits of vectors, best first.
        named: Hits of keywords, best first.
        scores: What the vectors of ``named`` that are not in ``near`` score, by id.
        words_first: All of ``named`` come before the others.
        weight: Of ``named``, in [0, 1]; ``near`` has the rest. 0.5 is plain reciprocal rank fusion.

    Returns:
        Each hit once, best first; at equal counts, the better by keywords first, then in the order of ids.
    """
    near_rank = {hit.id: rank for rank, hit in enumerate(near, 1)}
    named_rank = {hit.id: rank for rank, hit in enumerate(named, 1)}
    hits = {hit.id: hit for hit in near} | {
        hit.id: replace(hit, score=scores[hit.id]) for hit in named if hit.id not in near_rank and hit.id in scores
    }

    def place(id_: str) -> tuple[float, float, float, str]:
        lists = ((near_rank, 1.0 - weight), (named_rank, weight))
        count = sum(share / (_K + ranks[id_]) for ranks, share in lists if id_ in ranks)
        by_words = float(named_rank.get(id_, len(hits) + len(named)))
        return (by_words if words_first else 0.0, -count, by_words, id_)

    order = sorted(hits, key=place)
    dealt = sorted((hit.score for hit in hits.values()), reverse=True)
    return [
        replace(
            hits[id_],
            score=score,
            trace=replace(trace, rank_by_vectors=near_rank.get(id_), rank_by_words=named_rank.get(id_))
            if (trace := hits[id_].trace)
            else None,
        )
        for id_, score in zip(order, dealt, strict=True)
    ]


def demanding(store: Store, words: Keywords, where: Mapping[str, Any] | None = None) -> Keywords:
    """Keywords for a search that was not told to search for any: only hits with all of them count.

    A phrase that no record has is no longer held to: the quotation marks were meant as such.
    """
    if words.phrases and not store.search_words(words, 1, where):
        words = replace(words, phrases=())
    return words.demanding()


def hybrid(
    store: Store,
    vector: npt.ArrayLike,
    words: Keywords,
    k: int,
    where: Mapping[str, Any] | None = None,
    *,
    modality: Modality | None = None,
    candidates: int = 50,
    weight: float = KEYWORD_WEIGHT,
    trace: bool = False,
) -> list[Hit]:
    """What a vector and keywords find, fused.

    Args:
        store: What is searched; it has a keyword index.
        vector: Shape ``(dim,)``; need not have unit length.
        words: The keywords. Their phrases and what they exclude hold for hits of the vector as well.
        k: Minimum number of hits, where there are as many; the caller cuts.
        where: As for `abc_rag.store.Store.search`.
        modality: Only pictures, or only passages.
        candidates: How many hits of either search are fused; at least ``k``.
        weight: Of keywords against vectors, in [0, 1].
        trace: Give each hit its `abc_rag.types.Trace`.

    Raises:
        StoreError: The store has no keyword index.
    """
    wanted = max(k, candidates)
    near, named, scores = two_lists(
        store, vector, words, k, where, modality=modality, candidates=candidates, trace=trace
    )
    return fused(near, named, scores, words_first=words.identifier, weight=weight)[:wanted] if named else near


def two_lists(
    store: Store,
    vector: npt.ArrayLike,
    words: Keywords,
    k: int,
    where: Mapping[str, Any] | None = None,
    *,
    modality: Modality | None = None,
    candidates: int = 50,
    trace: bool = False,
) -> tuple[list[Hit], list[Hit], dict[str, float]]:
    """What `hybrid` fuses: the hits of a vector, those of keywords, and what the vectors of the latter score, by id.

    The arguments are those of `hybrid`.

    Raises:
        StoreError: The store has no keyword index.
    """
    (unit,) = unit_rows(np.asarray(vector)[None])
    search = partial(store.search, unit, where=where, modality=modality)
    wanted = max(k, candidates)
    named = store.search_words(words, wanted, where, modality=modality)
    near = search(wanted if named or words.strict else k)
    if words.strict:
        near = _allowed(store, near, wanted, words, search)
    if trace:
        near = [replace(hit, trace=Trace(None, hit.score, facet=hit.facet)) for hit in near]
    if not named:
        return near, [], {}
    known = {hit.id for hit in near}
    rows = store.vectors(hit.id for hit in named if hit.id not in known)
    scores = {id_: (1.0 + float(np.clip(row @ unit, -1.0, 1.0))) / 2.0 for id_, row in rows.items()}
    if trace:
        named = [replace(hit, trace=Trace(None, scores.get(hit.id, 0.0))) for hit in named]
    return near, named, scores


def _allowed(store: Store, hits: list[Hit], k: int, words: Keywords, search: Callable[[int], list[Hit]]) -> list[Hit]:
    """Those hits that have all phrases and nothing excluded; further ones in the place of what is excluded."""
    words = replace(words, needed=())
    while True:
        allowed = store.allowed_by(words, (hit.id for hit in hits))
        kept = [hit for hit in hits if hit.id in allowed]
        # What has a phrase is found by keywords; there is no need to go through everything else for it.
        if len(kept) >= k or len(hits) < k or words.phrases:
            return kept
        k *= 4
        hits = search(k)
