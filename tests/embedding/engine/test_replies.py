"""Tokens become text piece by piece, and stop texts end it."""

from __future__ import annotations

import pytest
from helpers import FIXTURE
from tokenizers import Tokenizer

from abc_rag.embedding.engine.replies import ReplyText


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FIXTURE / "base" / "tokenizer.json"))


def given(tokenizer: Tokenizer, text: str, *stop: str, cut: int = 0) -> tuple[list[str], bool]:
    """The pieces, and whether a stop text ended them; without the last ``cut`` tokens."""
    ids = tokenizer.encode(text).ids
    reply, pieces = ReplyText(tokenizer, stop), []
    for token in ids[: len(ids) - cut]:
        piece, stopped = reply.push(token)
        pieces.append(piece)
        if stopped:
            return pieces, True
    return [*pieces, reply.rest()], False


@pytest.mark.parametrize(
    "text", ["a dog and a cat", "naïve café, 日本語 and 🐷🚗", " leading and trailing ", "", "a\n\nb"]
)
def test_the_pieces_are_the_text(text: str, tokenizer: Tokenizer) -> None:
    pieces, _ = given(tokenizer, text)
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)  # a character comes whole


def test_a_space_that_the_tokenizer_put_there_is_no_part_of_the_answer(tokenizer: Tokenizer) -> None:
    for text, expected in ((" a pig", "a pig"), ("  a pig", " a pig"), ("pig ", "pig "), (" \U0001f437", "\U0001f437")):
        reply = ReplyText(tokenizer, (), spaced=True)
        pieces = [reply.push(token)[0] for token in tokenizer.encode(text).ids]
        assert "".join(pieces) + reply.rest() == expected


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer: Tokenizer) -> None:
    pieces, _ = given(tokenizer, "pig 🐷", cut=1)
    assert "".join(pieces).startswith("pig ")
    assert "�" in pieces[-1]
    assert not any("�" in piece for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["dog"], "one "),
        (["and"], "one dog "),
        (["g a"], "one do"),
        (["cats", "two"], "one dog and "),
        (["one"], ""),
        (["cats"], None),
        (["two cat!"], None),
    ],
)
def test_a_stop_text_is_found_across_tokens(stop: list[str], expected: str | None, tokenizer: Tokenizer) -> None:
    text = "one dog and two cat"
    pieces, stopped = given(tokenizer, text, *stop)
    assert "".join(pieces) == (text if expected is None else expected)
    assert stopped == (expected is not None)


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    reply = ReplyText(tokenizer, ())
    said = [reply.push(token)[0] for token in (*tokenizer.encode("a dog").ids, 1002)]
    assert "".join(said) + reply.rest() == "a dog"
