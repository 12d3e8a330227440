"""Cutting text: along its structure, nothing lost, boxes around what a passage holds."""

from __future__ import annotations

import random

import pytest

from abc_rag.errors import InputError
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.parts import Passage
from abc_rag.ingest.documents.splitting import passages, split_text


def test_whole_paragraphs_then_sentences_then_words() -> None:
    assert split_text("one\n\ntwo\n\nthree", max_chars=10) == ["one\n\ntwo", "three"]
    assert split_text("First one. Second one. Third one.", max_chars=24) == ["First one. Second one.", "Third one."]
    assert split_text("aaaa bbbb cccc", max_chars=9) == ["aaaa bbbb", "cccc"]
    assert split_text("x" * 25, max_chars=10) == ["x" * 10, "x" * 10, "x" * 5]
    assert split_text("") == []


def test_no_word_is_lost_and_none_is_too_long() -> None:
    generator = random.Random(0)
    for _ in range(50):
        words = ["".join(generator.choices("abc.", k=generator.randint(1, 12))) for _ in range(200)]
        text = "".join(word + generator.choice([" ", " ", ". ", "\n", "\n\n"]) for word in words)
        pieces = split_text(text, max_chars=60)
        assert " ".join(pieces).split() == text.split()
        assert max(map(len, pieces)) <= 60


def paragraph(text: str, top: float, page: int = 1, heading: tuple[str, ...] = ()) -> Passage:
    return Passage(page=page, label=str(page), box=(0, top, 100, top + 10), heading=heading, text=text)


def test_passages_hold_what_stands_together() -> None:
    parts = [paragraph("one", 0), paragraph("two", 20), paragraph("three", 40, heading=("H",)), paragraph("four", 0, 2)]
    cut = list(passages(parts, DocumentOptions()))
    assert [(one.text, one.page, one.heading, one.box) for one in cut] == [
        ("one\n\ntwo", 1, (), (0, 0, 100, 30)),
        ("three", 1, ("H",), (0, 40, 100, 50)),
        ("four", 2, (), (0, 0, 100, 10)),
    ]


def test_a_long_paragraph_keeps_its_box_and_others_keep_theirs() -> None:
    parts = [paragraph("a " * 30, 0), paragraph("b " * 5, 20)]
    cut = list(passages(parts, DocumentOptions(max_chars=40)))
    assert [set(one.text.split()) for one in cut] == [{"a"}, {"a"}, {"b"}]
    assert cut[-1].box == (0, 20, 100, 30)


def test_any_splitter_fits_in() -> None:
    parts = [paragraph("one two", 0), paragraph("three four", 20)]
    cut = list(passages(parts, DocumentOptions(splitter=lambda text: text.split())))
    assert [(one.text, one.box) for one in cut] == [
        ("one", (0, 0, 100, 10)),
        ("two", (0, 0, 100, 10)),
        ("three", (0, 20, 100, 30)),
        ("four", (0, 20, 100, 30)),
    ]
    with pytest.raises(InputError, match="must return a list of str"):
        list(passages(parts, DocumentOptions(splitter=lambda text: text)))  # type: ignore[arg-type,return-value]
