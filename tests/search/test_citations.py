"""Citations as language models write them."""

from __future__ import annotations

import pytest

from abc_rag.search import cited_numbers

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
