"""Ranks of two lists, fused as the paper's formula says."""

from __future__ import annotations

from abc_rag import Hit, Record
from abc_rag.search.fusion import fused
from abc_rag.types import Trace


def hits(scores: dict[str, float]) -> list[Hit]:
    return [Hit(Record(id_, "text"), score, trace=Trace(None, score)) for id_, score in scores.items()]


NEAR = hits({"a": 0.9, "b": 0.8, "c": 0.7})
NAMED = hits({"c": 0.3, "d": 0.2})


def test_ranks_are_fused_and_scores_dealt_out_anew() -> None:
    found = fused(NEAR, NAMED, {"d": 0.6}, words_first=False)
    # c: 1/63 + 1/61; a: 1/61; b and d: 1/62, and keywords know d.
    assert [(hit.id, hit.score) for hit in found] == [("c", 0.9), ("a", 0.8), ("d", 0.7), ("b", 0.6)]
    ranks = {hit.id: (hit.trace.rank_by_vectors, hit.trace.rank_by_words) for hit in found if hit.trace}
    assert ranks == {"a": (1, None), "b": (2, None), "c": (3, 1), "d": (None, 2)}
    assert {hit.id: hit.trace.first for hit in found if hit.trace} == {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.2}


def test_keywords_first() -> None:
    found = fused(NEAR, NAMED, {"d": 0.6}, words_first=True)
    assert [(hit.id, hit.score) for hit in found] == [("c", 0.9), ("d", 0.8), ("a", 0.7), ("b", 0.6)]


def test_without_hits_of_keywords_nothing_changes() -> None:
    assert [(hit.id, hit.score) for hit in fused(NEAR, [], {}, words_first=False)] == [
        ("a", 0.9),
        ("b", 0.8),
        ("c", 0.7),
    ]
    # One without a vector, whose record is damaged, is left out.
    assert [hit.id for hit in fused([], NAMED, {"d": 0.6}, words_first=True)] == ["d"]


def test_the_weight_of_keywords_moves_what_only_one_of_both_found() -> None:
    near, named = hits({"a": 0.9, "b": 0.8}), hits({"c": 0.3, "d": 0.2})
    scores = {"c": 0.7, "d": 0.6}
    orders = {
        weight: "".join(hit.id for hit in fused(near, named, scores, words_first=False, weight=weight))
        for weight in (0.0, 0.4, 0.5, 0.502, 0.6, 1.0)
    }
    # At 0.502 keywords' second, 0.502 / 62, is still behind vectors' first, 0.498 / 61.
    assert orders == {0.0: "abcd", 0.4: "abcd", 0.5: "cadb", 0.502: "cadb", 0.6: "cdab", 1.0: "cdab"}
