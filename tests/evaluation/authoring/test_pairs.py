"""What of a chat model's answer is usable, and what counts as the same wording."""

from __future__ import annotations

import pytest
from authoring_helpers import (
    answer,
    good,
)

from abc_rag.evaluation.authoring.pairs import Pair, normalised, parse_answer, prompt_for


def test_a_usable_answer() -> None:
    parsed = parse_answer(answer(("what is  left?", " a dog\n"), ("the sky", "clouds")), 2)
    assert parsed.pairs == [Pair("what is left?", "a dog"), Pair("the sky", "clouds")]
    assert not parsed.problems
    fenced = parse_answer(f"```json\n{answer(('a', 'b'), ('c', 'd'))}\n```", 2)
    assert len(fenced.pairs) == 2
    assert len(parse_answer(good("x", 7), 5).pairs) == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not one JSON object"),
        ("Here you are: {}", "not one JSON object"),
        ('{"pairs": []} {"pairs": []}', "not one JSON object"),
        ("[" * 100_000, "longer than"),
        ("[" * 40_000, "not one JSON object"),
        ("[]", 'a list named "pairs"'),
        ("null", 'a list named "pairs"'),
        ('{"pairs": {}}', 'a list named "pairs"'),
        ('{"pairs": []}', "0 usable pairs instead of 2"),
        ('{"pairs": [1, {}]}', "pair 1: not an object"),
        ('{"pairs": [{"instruction": "a", "phrase": 3}]}', "pair 1: instruction or phrase that is not a string"),
        (answer(("what?", " ")), "pair 1: empty phrase"),
        (answer(("", "dog")), "pair 1: empty instruction"),
        (answer(("what?", "d" * 301)), "pair 1: phrase of more than 300 characters"),
        ('{"pairs": [{"instruction": "a", "phrase": "\\ud800"}]}', "pair 1: phrase with control characters"),
        ('{"pairs": [{"instruction": "a", "phrase": "b\\u0000"}]}', "pair 1: phrase with control characters"),
        (answer(("what is left?", "a dog"), ("What is LEFT", "a cat")), "pair 2: repeated instruction"),
        (answer(("left?", "a dog"), ("right?", "The dog.")), "pair 2: repeated phrase"),
        (answer(("where is the red bus?", "a red bus")), "pair 1: instruction that contains the phrase"),
    ],
)
def test_unusable_answers_say_why(text: str, problem: str) -> None:
    assert problem in "; ".join(parse_answer(text, 2).problems)


def test_what_counts_as_the_same_wording() -> None:
    assert normalised("The Dog!") == normalised("a dog") == "dog"
    assert normalised("A") == "a"
    assert normalised("?!") == "?!"
    assert normalised("\uff24og") == "dog"
    assert normalised("狗") != normalised("猫")


def test_the_prompt_asks_for_as_many_pairs() -> None:
    assert "Write 5 pairs" in prompt_for(5)
    assert "other 4 instructions" in prompt_for(5)
    assert "other instruction;" in prompt_for(2).replace(":", ";")


def test_an_id_is_of_a_picture_and_a_wording() -> None:
    ids = {
        Pair("a", "b").id_for("1"),
        Pair("a", "b").id_for("2"),
        Pair("a b", "").id_for("1"),
        Pair("b", "a").id_for("1"),
    }
    assert len(ids) == 4
