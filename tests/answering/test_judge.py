"""Judging with a generator."""

from __future__ import annotations

import math

import pytest

from abc_rag.answering import GenerativeJudge
from abc_rag.answering.fake import FakeGenerator
from abc_rag.errors import ContextError, GenerationError, InputError
from abc_rag.models.tasks import Source, judging
from abc_rag.types import Message

SOURCES = [Source(text="a pig eats"), Source(text="a boat"), Source(text="a pig on a boat")]


class Scoring(FakeGenerator):
    def _score(self, messages: tuple[Message, ...], answers: tuple[str, ...]) -> list[float]:
        self.asked.append(messages)
        if messages == tuple(judging("pig", SOURCES[1])):
            raise GenerationError("no")
        assert answers == ("yes", "Yes", "no", "No")
        return [math.log(one) for one in (0.1, 0.2, 0.05, 0.05)]


class Silent(FakeGenerator):
    scores = False


def test_the_probability_is_that_of_yes_in_either_case() -> None:
    found = GenerativeJudge(Scoring()).judge("pig", SOURCES)
    assert found[0] == found[2] == pytest.approx(0.75)
    assert isinstance(found[1], GenerationError)


def test_a_generator_that_cannot_score_is_asked_to_say_it() -> None:
    def reply(messages: tuple[Message, ...]) -> str:
        return '"yes"' if "boat" in str(messages[-1]) else '"no"'

    fake = Silent(reply)
    assert GenerativeJudge(fake).judge("x", SOURCES) == [0.0, 1.0, 1.0]
    assert tuple(judging("x", SOURCES[0])) in fake.asked


def test_of_a_passage_that_is_longer_than_the_model_reads_the_beginning_is_judged() -> None:
    class Short(FakeGenerator):
        def _score(self, messages: tuple[Message, ...], answers: tuple[str, ...]) -> list[float]:
            if len(str(messages)) > 1_500:
                raise ContextError("too long")
            return super()._score(messages, answers)

    wide = Source(text="A pig eats. " + 300 * "And so on. ")
    (found,) = GenerativeJudge(fake := Short()).judge("pig", [wide])
    assert found == pytest.approx(1.0)
    assert "A pig eats. And so on." in str(fake.asked[-1])
    (refused,) = GenerativeJudge(Short()).judge("pig" * 1_000, [wide])
    assert isinstance(refused, ContextError)


def test_what_is_no_generator_is_refused() -> None:
    with pytest.raises(InputError, match="must be an abc_rag"):
        GenerativeJudge("abc")  # type: ignore[arg-type]
