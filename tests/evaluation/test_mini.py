"""abc-mini meets its bars on 1,000 scenes of pairs that it never saw."""

from __future__ import annotations

import pytest

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.evaluation.mini import evaluate_mini
from abc_rag.evaluation.results import Results


@pytest.fixture(scope="module")
def report(mini: Embedder) -> Results:
    return evaluate_mini(mini)


def test_the_whole_vocabulary_is_the_candidates(report: Results) -> None:
    counts = report.settings["counts"]
    assert counts["scenes"] == 1000
    assert counts["candidates"] >= 68
    assert counts["questions"] > 4000


def test_picture_and_instruction_find_the_phrase(report: Results) -> None:
    assert report.metrics["accuracy"] >= 0.95
    assert all(share >= 0.9 for share in report.details["by_aspect"].values()), report.details["by_aspect"]


def test_opposite_sides_are_both_answered_rightly(report: Results) -> None:
    assert report.metrics["both_sides"] >= 0.90


def test_without_the_instruction_it_is_chance_between_the_objects(report: Results) -> None:
    assert report.metrics["order_with_instruction"] >= 0.97
    assert 0.4 <= report.metrics["order_without_instruction"] <= 0.6
    assert report.metrics["without_instruction"] < 0.5


def test_captions_find_their_pictures(report: Results) -> None:
    assert report.metrics["caption_to_picture"] >= 0.80


def test_wordings_that_training_never_used_are_understood(report: Results) -> None:
    assert report.metrics["accuracy_unseen_wording"] >= 0.85


def test_a_model_that_knows_nothing_is_at_chance() -> None:
    report = evaluate_mini(FakeEmbedder(), scenes=100)
    assert report.metrics["accuracy"] < 0.1
    assert report.metrics["both_sides"] < 0.1
    assert report.metrics["caption_to_picture"] < 0.1
    assert 0.3 < report.metrics["order_with_instruction"] < 0.7


@pytest.mark.parametrize("scenes", [0, 1, 1001])
def test_the_number_of_scenes_is_checked(scenes: int) -> None:
    with pytest.raises(InputError, match="between 2 and 1000"):
        evaluate_mini(FakeEmbedder(), scenes=scenes)
