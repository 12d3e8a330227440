"""The benchmark of evidence: where its answers lie, how weight is counted, and its bar on a few scenes."""

from __future__ import annotations

import numpy as np
import pytest

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.evidence import evaluate_evidence, evidence_cases, share_in_half
from abc_rag.scenes.world import Side, phrase


def test_cases_know_where_their_answer_lies() -> None:
    cases = evidence_cases(20)
    assert evidence_cases(20) == cases
    for case in cases:
        sides = {phrase(placed.kind): placed.side for placed in case.scene.objects}
        if case.way == "absent":
            assert case.answer not in sides
        named = [side for a, side in sides.items() if case.answer == a or case.answer.startswith(f"{a} ")]
        assert named[:1] == ([] if case.side is None else [case.side]), case
    assert {case.way for case in cases} >= {"searched: side", "searched: size", "asked: side", "asked: background"}


@pytest.mark.parametrize(("side", "share"), [("left", 0.5625), ("right", 0.4375), ("top", 0.25), ("bottom", 0.75)])
def test_a_column_across_the_middle_counts_by_half(side: Side, share: float) -> None:
    drawn = np.array([[0.5, 0.25, 0.25], [1.0, 1.25, 0.75]], dtype=np.float32)
    assert share_in_half(drawn, side) == pytest.approx(share)
    assert share_in_half(np.zeros((2, 3), dtype=np.float32), side) == 0.5


def test_most_of_the_weight_lies_in_the_right_half(mini: Embedder) -> None:
    results = evaluate_evidence(mini, scenes=4)
    assert results.metrics["mass_in_half"] >= 0.85
    assert results.metrics["evidence_where_there_is"] > results.metrics["evidence_where_there_is_none"]
    assert 4 <= results.metrics["passes"] <= 32
    with pytest.raises(InputError, match="an even number between 2 and 1000"):
        evaluate_evidence(mini, scenes=3)
