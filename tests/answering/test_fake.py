"""The fake generator does each task, the same way every time."""

from __future__ import annotations

import json

import jsonschema
import pytest

from abc_rag import Text
from abc_rag.answering.fake import FakeGenerator
from abc_rag.models.tasks import JUDGEMENTS, REFUSAL, Source, answering, judging, rewriting, rewriting_schema
from abc_rag.types import Message

PIG, TURTLE = Source(text="A pig eats apples. It is pink."), Source(text="The turtle\neats leaves.", name="a.pdf")


def test_it_rewrites_to_the_question_itself() -> None:
    messages = rewriting("and now?", history=[Message("user", [Text("first?")])])
    found = FakeGenerator().generate(messages, schema=rewriting_schema(following=True)).json()
    assert found == {"question": "and now?", "instruction": "and now?", "target": "and now?", "wants": "any"}


@pytest.mark.parametrize(
    ("question", "answer"),
    [("what does the turtle eat?", "The turtle eats leaves [2]."), ("the pig", "A pig eats apples [1]."),
     ("bicycles", REFUSAL)],
)  # fmt: skip
def test_it_answers_with_the_source_that_shares_words(question: str, answer: str) -> None:
    said = FakeGenerator().generate(answering(question, [PIG, TURTLE])).text
    assert " ".join(said.split()) == answer


def test_it_judges_by_words() -> None:
    yes, yes_too, no, _ = FakeGenerator().score(judging("turtle leaves", TURTLE), JUDGEMENTS)
    assert yes == yes_too == pytest.approx(0.25)
    assert no < 1e-6
    assert FakeGenerator().score(judging("turtle", PIG), JUDGEMENTS)[0] < 1e-6


def test_it_meets_any_simple_schema_and_keeps_what_it_was_asked() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"type": "integer", "minimum": 2}, "minItems": 2},
            "b": {"type": "string", "minLength": 3},
            "c": {"type": "boolean"},
        },
        "required": ["a", "b", "c"],
    }
    fake = FakeGenerator()
    found = fake.generate([Message("user", [Text("x")])], schema=schema).json()
    jsonschema.validate(found, schema)
    assert found == {"a": [2, 2], "b": "xxx", "c": False}
    assert len(fake.asked) == 1
    told = FakeGenerator(lambda messages: json.dumps(len(messages)))
    assert told.generate([Message("user", [Text("x")])]).text == "1"
    cut = FakeGenerator(lambda _: "one two three").generate([Message("user", [Text("x")])], max_new_tokens=2)
    assert (cut.text, cut.outcome.finish) == ("one two", "length")
