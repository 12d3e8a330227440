"""Citations as language models write them."""

from __future__ import annotations

import pytest

from abc_rag.search import checked_citations, cited_numbers
from abc_rag.search.citations import CheckedCitations, sentences

CASES = {
    "[1]": [1],
    "[1][3]": [1, 3],
    "[1, 3; 4]": [1, 3, 4],
    "[3,1,3]": [3, 1],
    "[1-3]": [1, 2, 3],
    "[2\u20134]": [2, 3, 4],
    "[ 2 \u2014 3 ]": [2, 3],
    "[4-2]": [2, 3, 4],
    "[1, 3-5]": [1, 3, 4, 5],
    "[1 and 2]": [1, 2],
    "[1 & 2]": [1, 2],
    "\u30101\u3011": [1],
    "\uff3b2\uff3d": [2],
    "\uff3b\uff12\uff3d": [2],
    "\u30101\u3001\uff13\u3011": [1, 3],
    "\u30101\u2020source\u3011": [1],
    "\u30101\u2020L3-L9\u3011": [1],
    "[^2]": [2],
    "[^1][^4]": [1, 4],
    "[Source 3]": [3],
    "[Sources 1 and 2]": [1, 2],
    "[source 1, source 2]": [1, 2],
    "[Doc. 3]": [3],
    "[Document 3]": [3],
    "[picture 2]": [2],
    "[#5]": [5],
    "[No. 5]": [5],
    "[[1]]": [1],
    "**[1]**": [1],
    "[1] [99]": [1],
    "[4-9999999999]": [4, 5],
    "[0]": [],
    "[6]": [],
    "[2024]": [],
    "[-1]": [],
    "[1.5]": [],
    "[1](https://example.org)": [1],
    "[12:30]": [],
    "[see 1]": [],
    "[1 of 2]": [],
    "(1)": [],
    "[]": [],
    "[,]": [],
    "nothing": [],
}


@pytest.mark.parametrize("cited", CASES)
def test_citations(cited: str) -> None:
    assert cited_numbers(f"So it is {cited}.", 5) == CASES[cited]


def test_the_order_is_that_of_the_first_mention() -> None:
    assert cited_numbers("First [3], then [1, 2], then [3] again.", 5) == [3, 1, 2]
    assert cited_numbers("[1]", 0) == []


def test_a_long_answer_is_read_quickly() -> None:
    for part in ("[", "[1,", "[1-", "\u3010", "[1 and "):
        assert cited_numbers(part * 20_000, 5) == []


CHECKED = {
    "A pig [1]. A boat [2].": ("A pig [1]. A boat [2].", []),
    "A pig [1, 9]. A boat [7].": ("A pig [1]. A boat.", ["1, 9", "7"]),
    "As told [2-9], [see below], [4][1]": ("As told [2-3], [see below],[1]", ["2-9", "4"]),
    "In [2019] there was\n\n[Source 5] one": ("In there was one", ["2019", "Source 5"]),
    "[0] \u3010\uff14\u3011 [3": (" [3", ["0", "\uff14"]),
}


@pytest.mark.parametrize("answer", CHECKED)
def test_citations_of_other_sources_are_dropped(answer: str) -> None:
    assert checked_citations(answer, 3) == CHECKED[answer]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("answer", CHECKED)
def test_an_answer_in_pieces_is_checked_alike(answer: str, size: int) -> None:
    checked = CheckedCitations(3)
    pieces = [checked.feed(answer[at : at + size]) for at in range(0, len(answer), size)]
    assert ("".join([*pieces, checked.rest()]), checked.dropped) == CHECKED[answer]


def test_a_bracket_that_never_closes_does_not_hold_an_answer_back() -> None:
    checked = CheckedCitations(3)
    assert checked.feed("a [" + "b" * 150) == "a"
    assert checked.feed("b" * 150) == " [" + "b" * 300


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A pig eats. [1] It is 3.5 m long [2]. Why?", ["A pig eats. [1]", "It is 3.5 m long [2].", "Why?"]),
        ("Dr. No met J. Doe, e.g. here [1].", ["Dr. No met J. Doe, e.g. here [1]."]),
        ("- one [1]\n- two\n\n[3]", ["- one [1]", "- two", "[3]"]),
        ("\u732a\u3067\u3059\u3002[1]\u306f\u3044\u3002", ["\u732a\u3067\u3059\u3002[1]", "\u306f\u3044\u3002"]),
        ('"Yes." He left...', ['"Yes."', "He left..."]),
        ("", []),
    ],
)
def test_sentences_keep_the_citations_behind_them(text: str, found: list[str]) -> None:
    assert sentences(text) == found
