"""Answers, citations, refusals and judgements are counted as the bars say."""

from __future__ import annotations

import pytest

from abc_rag.answering.fake import FakeGenerator
from abc_rag.errors import InputError
from abc_rag.evaluation.speaking import evaluate_speaking
from abc_rag.models.tasks import REFUSAL, TaskFacts


def test_who_always_refuses_is_right_about_what_is_absent() -> None:
    report = evaluate_speaking(FakeGenerator(lambda _: REFUSAL.upper()), scenes=20)
    assert report.metrics == {"answered": 0.0, "cited": 0.0, "refused": 1.0, "judged": report.metrics["judged"]}
    assert 0.2 < report.metrics["judged"] < 0.8
    assert report.as_dict()["settings"]["arguments"] == {"scenes": 20}


def test_case_and_full_stops_do_not_matter_but_words_do() -> None:
    report = evaluate_speaking(FakeGenerator(lambda _: "A blue background."), scenes=60)
    assert 0 < report.metrics["answered"] < 0.2
    assert report.metrics["cited"] == report.metrics["refused"] == 0.0


@pytest.mark.parametrize(("least", "asks"), [(0.0, True), (1.0, False)])
def test_who_answers_from_one_source_judges_first(least: float, asks: bool) -> None:
    """Where no source is likely enough nobody is asked, which refuses; else one source is read."""
    fake = FakeGenerator(lambda _: REFUSAL, tasks=TaskFacts(min_confidence=least, sources=1))
    report = evaluate_speaking(fake, scenes=6)
    assert (report.metrics["cited"], report.metrics["refused"]) == (0.0, 1.0)
    read = [asked[-1] for asked in fake.asked if "Answer the question from the sources" in str(asked[0])]
    assert bool(read) == asks
    assert all(len(asked.pictures) == 1 for asked in read)


def test_two_scenes_are_the_least() -> None:
    with pytest.raises(InputError, match="at least 2"):
        evaluate_speaking(FakeGenerator(), scenes=1)
