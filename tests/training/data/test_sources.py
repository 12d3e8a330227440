"""Which negatives are drawn, and which texts count as true."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from source_helpers import captioned, pictures, texts, write

from abc_rag.training.data.open import open_captions
from abc_rag.training.data.sources import (
    Candidate,
    CaptionRow,
    CaptionSource,
    Pair,
    PairsRow,
    PairsSource,
    one_of_each_group,
)


def test_negatives_are_drawn_one_from_each_group() -> None:
    drawn = [one_of_each_group(35, 7, random.Random(seed)) for seed in range(300)]
    for places in drawn:
        assert [place // 5 for place in places] == list(range(7))
    for group in range(7):
        assert {places[group] for places in drawn} == set(range(5 * group, 5 * group + 5))
    assert one_of_each_group(3, 7, random.Random(0)) == [0, 1, 2]
    assert one_of_each_group(7, 7, random.Random(0)) == list(range(7))
    assert one_of_each_group(0, 7, random.Random(0)) == []
    assert one_of_each_group(5, 0, random.Random(0)) == []
    uneven = [one_of_each_group(8, 3, random.Random(seed)) for seed in range(100)]
    assert {places[0] for places in uneven} == {0, 1}
    assert {places[2] for places in uneven} == {5, 6, 7}


def test_a_source_draws_its_negatives(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write(tmp_path / "rows.jsonl", [captioned(negatives=[f"negative {i}" for i in range(35)])])
    source = open_captions(tmp_path)
    drawn = texts(source.negatives_of(0, 7, random.Random(4)))
    assert drawn == [f"negative {place}" for place in one_of_each_group(35, 7, random.Random(4))]
    assert len(source.negatives_of(0, 100, random.Random(4))) == 35


class Rows(CaptionSource):
    """Rows in memory."""

    def __init__(self) -> None:
        self.name = "rows"

    def __len__(self) -> int:
        return 0

    def row(self, index: int) -> CaptionRow:
        raise IndexError

    def describe(self) -> dict[str, Any]:
        return {}


def test_a_caption_is_never_a_wrong_answer_where_it_is_true() -> None:
    rows = [
        CaptionRow("0", "a.jpg", Candidate("a dog")),
        CaptionRow("1", "b.jpg", Candidate("a hound", "dog")),
        CaptionRow("2", "a.jpg", Candidate("a brown animal")),
        CaptionRow("3", b"bytes", Candidate("a cat")),
        CaptionRow("4", b"bytes", Candidate("a tom-cat")),
    ]
    candidates = [row.caption for row in rows] + [Candidate("a poodle", "dog"), Candidate("dog"), Candidate("a cat")]
    true = Rows().excluded(rows, candidates)
    assert true.dtype == np.bool_
    assert true.astype(int).tolist() == [
        [1, 0, 1, 0, 0, 0, 0, 0],  # its own, and the other caption of its picture
        [0, 1, 0, 0, 0, 1, 1, 0],  # one meaning, and a text that is equal to that meaning
        [1, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 1],  # pictures in memory are taken for different ones
        [0, 0, 0, 0, 1, 0, 0, 0],
    ]
    assert Rows().excluded([], candidates).shape == (0, 8)
    assert Rows().excluded(rows, []).shape == (5, 0)


class Pairs(PairsSource):
    """Rows in memory."""

    def __init__(self) -> None:
        self.name = "pairs"

    def __len__(self) -> int:
        return 0

    def row(self, index: int) -> PairsRow:
        raise IndexError

    def describe(self) -> dict[str, Any]:
        return {}


def test_a_phrase_is_never_a_wrong_answer_where_it_is_true() -> None:
    left, left_too, right = (
        Pair("left?", Candidate("a dog")), Pair("left?", Candidate("a pet")), Pair("right?", Candidate("a cat")),
    )  # fmt: skip
    row = PairsRow("0", "a.jpg", (left, left_too, right))
    other = PairsRow("1", "b.jpg", (Pair("left?", Candidate("a cat")),))
    asked = [(row, left), (row, left_too), (row, right), (other, other.pairs[0])]
    true = Pairs().excluded(asked, [Candidate("a dog"), Candidate("a pet"), Candidate("a cat")])
    assert true.astype(int).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]]
