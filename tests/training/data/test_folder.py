"""Your own data in JSON lines: what is read, and what a bad row costs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from source_helpers import captioned, paired, pictures, problems, texts, write

from abc_rag.errors import DatasetError
from abc_rag.training.data.open import open_captions, open_pairs
from abc_rag.training.data.sources import (
    Candidate,
    CaptionRow,
    Pair,
    PairsRow,
)


def test_a_folder_of_captions(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "below/b.jpg")
    rows = [
        captioned(id="x", negatives=["a cat ", "a wolf"], source="not looked at"),
        "",
        captioned("below/b.jpg", "  ein Hund — 犬 ", id=7),
        captioned(str(tmp_path / "a.jpg"), "an absolute path"),
    ]
    write(tmp_path / "rows.jsonl", rows)
    for data in (tmp_path, str(tmp_path), tmp_path / "rows.jsonl"):
        source = open_captions(data)
        assert len(source) == 3
        assert source.bad.count == 0
        assert source.row(0) == CaptionRow(
            "x", str(tmp_path / "a.jpg"), Candidate("a dog"), (Candidate("a cat"), Candidate("a wolf"))
        )
        assert source.row(1) == CaptionRow("7", str(tmp_path / "below/b.jpg"), Candidate("ein Hund — 犬"))
        assert source.row(2).id == "line 4"
        assert source.row(2).image == str(tmp_path / "a.jpg")
        assert source.bare(0).caption == source.row(0).caption
    about = source.describe()
    assert about["rows"] == 3
    assert len(about["sha256"]) == 64
    json.dumps(about)


def test_a_folder_of_pairs(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write(tmp_path / "rows.jsonl", [paired("a.jpg", ("left?", "a dog"), ("right?", " a cat "))])
    source = open_pairs(tmp_path)
    assert source.row(0) == PairsRow(
        "line 1",
        str(tmp_path / "a.jpg"),
        (Pair("left?", Candidate("a dog")), Pair("right?", Candidate("a cat"))),
    )
    assert source.describe()["kind"] == "JSONL with pairs"


def test_pictures_elsewhere(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", "train/1.jpg")
    pictures(tmp_path / "pictures2", "1.jpg")
    file = write(tmp_path / "rows.jsonl", [captioned("train/1.jpg"), captioned("../pictures2/1.jpg")])
    source = open_captions(file, images=tmp_path / "pictures")
    assert source.row(0).image == str(tmp_path / "pictures/train/1.jpg")
    assert problems(source) == {"outside the folder": 1}
    inside = write(
        tmp_path / "pictures/rows.jsonl", [captioned("../pictures2/1.jpg"), captioned("train/../train/1.jpg")]
    )
    assert problems(open_captions(inside)) == {"outside the folder": 1}
    assert len(open_captions(inside, images=tmp_path / "pictures")) == 1
    covered = write(tmp_path / "pictures/covered.jsonl", [captioned("pictures/../pictures2/1.jpg")])
    assert len(open_captions(covered, images=tmp_path)) == 1
    with pytest.raises(DatasetError, match="no such folder; images must be"):
        open_captions(file, images=tmp_path / "nowhere")


CAPTION_PROBLEMS = [
    (captioned("gone.jpg"), "missing image"),
    (captioned("\0.jpg"), "missing image"),
    (captioned("."), "missing image"),
    ({"caption": "a dog"}, "missing image"),
    (captioned(""), "empty image"),
    (captioned(3), "wrong type"),
    (captioned(caption=""), "empty caption"),
    (captioned(caption=" \n"), "empty caption"),
    (captioned(caption=["a dog"]), "wrong type"),
    (captioned(caption="half a pair: \ud83d"), "not text"),
    ({"image": "a.jpg"}, "missing caption"),
    (captioned(id="good"), "duplicate id"),
    (captioned(id=True), "wrong type"),
    (captioned(id=""), "empty id"),
    (captioned(negatives="a cat"), "wrong type"),
    (captioned(pairs=[]), "mixed columns"),
    (paired(), "mixed columns"),
    (captioned("../a.jpg"), "outside the folder"),
    ("{broken", "not JSON"),
    ("[1]", "not a JSON object"),
    (b"\xff".decode("latin-1"), "not JSON"),
]
PAIR_PROBLEMS = [
    (paired("gone.jpg"), "missing image"),
    (captioned(), "mixed columns"),
    (captioned(pairs=[{"instruction": "what?", "phrase": "a dog"}]), "mixed columns"),
    ({"image": "a.jpg"}, "missing pairs"),
    ({"image": "a.jpg", "pairs": []}, "empty pairs"),
    ({"image": "a.jpg", "pairs": {"what?": "a dog"}}, "wrong type"),
    (paired(id="good"), "duplicate id"),
    (paired("/no/such/place.jpg"), "missing image"),
]


@pytest.mark.parametrize(("row", "problem"), CAPTION_PROBLEMS)
def test_a_bad_caption_row_is_named_and_costs_only_itself(row: Any, problem: str, tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write(tmp_path / "rows.jsonl", [captioned(id="good"), row, captioned(caption="a cat", id="last")])
    source = open_captions(tmp_path)
    assert [source.row(i).id for i in range(len(source))] == ["good", "last"]
    assert problems(source) == {problem: 1}
    assert source.bad.rows[0].where == "rows.jsonl:2"
    assert source.describe()["bad"]["by_problem"] == {problem: 1}
    with pytest.raises(DatasetError, match=f"rows.jsonl:2: {problem}"):
        open_captions(tmp_path, max_bad=0)


@pytest.mark.parametrize(("row", "problem"), PAIR_PROBLEMS)
def test_a_bad_pairs_row_is_named_and_costs_only_itself(row: Any, problem: str, tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write(tmp_path / "rows.jsonl", [paired(id="good"), row, paired(id="last")])
    source = open_pairs(tmp_path)
    assert [source.row(i).id for i in range(len(source))] == ["good", "last"]
    assert problems(source) == {problem: 1}
    with pytest.raises(DatasetError, match=f"rows.jsonl:2: {problem}"):
        open_pairs(tmp_path, max_bad=0)


def test_a_bad_negative_costs_only_itself(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    negatives = ["a cat", " a dog ", "", 5, "a wolf", "a cat"]
    write(tmp_path / "rows.jsonl", [captioned(negatives=negatives)])
    source = open_captions(tmp_path)
    assert texts(source.row(0).negatives) == ["a cat", "a wolf"]
    assert problems(source) == {"negative is the positive": 1, "empty negative": 1, "wrong type": 1}
    with pytest.raises(DatasetError, match="negative is the positive"):
        open_captions(tmp_path, max_bad=0)


def test_a_bad_pair_costs_only_itself(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    row = paired("a.jpg", ("", "a dog"), ("what?", " "), ("where?", "on the left"))
    row["pairs"] += ["what?", {"instruction": "who?"}, {"instruction": 5, "phrase": "a cat"}]
    write(tmp_path / "rows.jsonl", [row, paired("a.jpg", ("", ""))])
    source = open_pairs(tmp_path)
    assert len(source) == 1
    assert [pair.instruction for pair in source.row(0).pairs] == ["where?"]
    assert problems(source) == {
        "empty instruction": 2, "empty phrase": 1, "wrong type": 2, "missing phrase": 1, "no usable pair": 1,
    }  # fmt: skip
    assert str(source.bad.rows[0]) == "rows.jsonl:1: empty instruction (pair 1)"


def test_a_wrong_column_in_all_rows_says_so(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write(tmp_path / "rows.jsonl", [paired(), paired()])
    with pytest.raises(DatasetError, match=r"no row can be used \(2 unusable rows \(2 mixed columns\)"):
        open_captions(tmp_path)


@pytest.mark.parametrize("opener", [open_captions, open_pairs])
def test_what_is_no_data_set(opener: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        opener(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="data must be a path or the name of a published data set, not int"):
        opener(5)
    with pytest.raises(DatasetError, match="neither JSONL nor parquet"):
        opener(tmp_path)
    write(tmp_path / "rows.jsonl", [])
    with pytest.raises(DatasetError, match="no row can be used"):
        opener(tmp_path)
    write(tmp_path / "other.jsonl", [])
    with pytest.raises(DatasetError, match=r"other.jsonl, rows.jsonl; give the path of one file"):
        opener(tmp_path)
    write(tmp_path / "rows.csv", [])
    with pytest.raises(DatasetError, match=r"not a \.jsonl file"):
        opener(tmp_path / "rows.csv")


def test_train_comes_before_others(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write(tmp_path / "train.jsonl", [captioned(caption="train")])
    write(tmp_path / "validation.jsonl", [captioned(caption="validation")])
    assert open_captions(tmp_path).row(0).caption.text == "train"


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    file = write(tmp_path / "rows.jsonl", [captioned()])
    source = open_captions(tmp_path)
    write(file, [captioned(caption="something else altogether")])
    with pytest.raises(DatasetError, match="has changed since it was opened"):
        source.row(0)
    file.unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        source.row(0)


def test_rows_may_be_read_by_many_threads(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write(tmp_path / "rows.jsonl", [captioned(caption="word " * (i % 50 + 1) + str(i)) for i in range(500)])
    source = open_captions(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(source.row, range(500)))
    assert [row.caption.text.split()[-1] for row in rows] == [str(i) for i in range(500)]
