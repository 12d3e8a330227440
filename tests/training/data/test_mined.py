"""Mined negatives in place of stored ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from source_helpers import captioned, pictures, problems, texts, write

from abc_rag.errors import DatasetError
from abc_rag.training.data.open import open_captions
from abc_rag.training.data.sources import (
    Candidate,
)


def test_mined_negatives_take_the_place_of_stored_ones(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    rows = [captioned(caption=f"caption {i}", id=f"r{i}", negatives=["stored"]) for i in range(5)]
    write(tmp_path / "rows.jsonl", rows)
    mined = write(
        tmp_path / "mined.jsonl.txt",
        [{"id": "r0", "negatives": ["r3", "r1", "r4"]}, {"id": "r2", "negatives": []}],
    )
    source = open_captions(tmp_path, negatives=mined)
    assert len(source) == 5
    assert texts(source.row(0).negatives) == ["caption 3", "caption 1", "caption 4"]
    assert texts(source.negatives_of(0, 3, random.Random(0))) == ["caption 3", "caption 1", "caption 4"]
    assert set(texts(source.negatives_of(0, 1, random.Random(0)))) <= {"caption 3", "caption 1", "caption 4"}
    assert [len(source.row(i).negatives) for i in range(5)] == [3, 0, 0, 0, 0]
    assert source.describe()["negatives"]["rows"] == 2
    assert source.excluded([source.row(0)], [Candidate("caption 0")]).all()


def test_bad_lines_of_mined_negatives(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    rows = [captioned(caption=text, id=id) for text, id in (("one", "1"), ("two", "2"), ("one", "3"))]
    write(tmp_path / "rows.jsonl", rows)
    lines = [
        {"id": "1", "negatives": ["2", "gone", "1", "3"]},
        {"id": "1", "negatives": []},
        {"id": "nobody", "negatives": []},
        {"id": 3, "negatives": []},
        {"id": "3", "negatives": [2]},
        "{",
    ]
    mined = write(tmp_path / "mined", lines)
    source = open_captions(tmp_path, negatives=mined)
    assert texts(source.row(0).negatives) == ["two"]  # row 3 says what row 1 says
    assert problems(source) == {
        "unknown id": 2, "negative is the positive": 1, "duplicate id": 1, "wrong type": 2, "not JSON": 1,
    }  # fmt: skip
    with pytest.raises(DatasetError, match="the limit is 2"):
        open_captions(tmp_path, negatives=mined, max_bad=2)
    with pytest.raises(DatasetError, match="no line belongs to a row"):
        open_captions(tmp_path, negatives=write(tmp_path / "other", []))
    with pytest.raises(DatasetError, match="cannot be read"):
        open_captions(tmp_path, negatives=tmp_path / "nowhere")
