"""Training data: what is read from each format, what is left out of it, and what is drawn from it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from abc_rag.errors import DatasetError
from abc_rag.training.data.folder import HUB_NAMES
from abc_rag.training.data.open import open_captions, open_pairs
from abc_rag.training.data.sources import (
    Candidate,
    CaptionRow,
    CaptionSource,
    Pair,
    PairsRow,
    PairsSource,
    one_of_each_group,
)


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not opened here")


def captioned(name: str = "a.jpg", caption: str = "a dog", **more: Any) -> dict[str, Any]:
    return {"image": name, "caption": caption, **more}


def paired(name: str = "a.jpg", *pairs: tuple[str, str], **more: Any) -> dict[str, Any]:
    pairs = pairs or (("what?", "a dog"),)
    return {"image": name, "pairs": [{"instruction": i, "phrase": p} for i, p in pairs], **more}


def texts(candidates: Any) -> list[str]:
    return [candidate.text for candidate in candidates]


def problems(source: CaptionSource | PairsSource) -> dict[str, int]:
    return dict(source.bad.by_problem)


# --- A folder with JSON lines -----------------------------------------------------------------------------


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


# --- What is drawn, and what is true ----------------------------------------------------------------------


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


# --- Mined negatives --------------------------------------------------------------------------------------


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


# --- The published formats --------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the datasets library that is this test's alone."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


CAPTIONS = [
    {"id": 10, "url": "http://a", "image": "train/0.jpg", "caption": "a dog", "negatives": [1, 2, 3, 4]},
    {"id": 11, "url": "http://b", "image": "train/1.jpg", "caption": " a cat", "negatives": [0, 3]},
    {"id": 12, "url": "http://c", "image": "train/2.jpg", "caption": "a wolf", "negatives": []},
    {"id": 13, "url": "http://d", "image": "train/3.jpg", "caption": "a fox", "negatives": [0, 1, 2]},
    {"id": 14, "url": "http://e", "image": "train/gone.jpg", "caption": "a bear", "negatives": [0]},
]


def save(rows: list[dict[str, Any]], folder: Path, kind: str) -> Path:
    import datasets

    dataset = datasets.Dataset.from_list(rows)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        half = len(rows) // 2
        (folder / "data").mkdir()
        dataset.select(range(half)).to_parquet(folder / "data/train-00000-of-00002.parquet")
        dataset.select(range(half, len(rows))).to_parquet(folder / "data/train-00001-of-00002.parquet")
    elif kind == "saved":
        dataset.save_to_disk(folder)
    else:
        datasets.DatasetDict({"test": dataset.select([0]), "train": dataset}).save_to_disk(folder)
    return folder


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", ["parquet", "saved", "splits"])
def test_published_captions(kind: str, tmp_path: Path) -> None:
    pictures(tmp_path / "images", *(f"train/{i}.jpg" for i in range(4)))
    source = open_captions(save(CAPTIONS, tmp_path / "data", kind), images=tmp_path / "images")
    assert len(source) == 4
    assert problems(source) == {"missing image": 1}
    # Numbers of rows are those of the whole; a caption whose picture is missing is still a caption.
    assert source.row(0) == CaptionRow(
        "10",
        str(tmp_path / "images/train/0.jpg"),
        Candidate("a dog"),
        (Candidate("a cat"), Candidate("a wolf"), Candidate("a fox"), Candidate("a bear")),
    )
    assert texts(source.row(1).negatives) == ["a dog", "a fox"]
    assert source.row(2).negatives == ()
    assert source.bare(3) == CaptionRow("13", str(tmp_path / "images/train/3.jpg"), Candidate("a fox"))
    assert texts(source.negatives_of(0, 2, random.Random(1))) == [
        ["a cat", "a wolf", "a fox", "a bear"][place] for place in one_of_each_group(4, 2, random.Random(1))
    ]
    about = source.describe()
    assert about["rows"] == 4
    assert about["path"] == str(tmp_path / "data")
    assert len(about["sha256"]) == 64
    json.dumps(about)


@pytest.mark.usefixtures("cache")
def test_published_captions_with_bad_rows(tmp_path: Path) -> None:
    pictures(tmp_path / "images", *(f"train/{i}.jpg" for i in range(4)))
    bad = [
        CAPTIONS[0] | {"negatives": [1, 0, 99, -1, 5]},
        CAPTIONS[1] | {"negatives": None},
        CAPTIONS[2] | {"id": 10},
        CAPTIONS[3] | {"caption": " "},
        CAPTIONS[3] | {"caption": None},
        CAPTIONS[3] | {"caption": "a dog "},
        CAPTIONS[3] | {"id": 99, "image": "../outside.jpg"},
    ]
    source = open_captions(save(bad, tmp_path / "data", "saved"), images=tmp_path / "images")
    assert [source.row(i).id for i in range(len(source))] == ["10", "11", "13"]
    assert texts(source.row(0).negatives) == ["a cat"]
    assert problems(source) == {
        "duplicate id": 1, "empty caption": 1, "missing caption": 1, "outside the folder": 1, "unknown negative": 1,
        "negative is the positive": 2,
    }  # fmt: skip
    assert str(source.bad.rows[-2]).endswith("data[0]: negative is the positive (0, 5)")
    with pytest.raises(DatasetError, match="the limit is 0"):
        open_captions(tmp_path / "data", images=tmp_path / "images", max_bad=0)


@pytest.mark.usefixtures("cache")
def test_mined_negatives_for_published_captions(tmp_path: Path) -> None:
    pictures(tmp_path / "images", *(f"train/{i}.jpg" for i in range(4)))
    mined = write(tmp_path / "mined", [{"id": "10", "negatives": ["13"]}])
    data = save(CAPTIONS, tmp_path / "data", "saved")
    source = open_captions(data, images=tmp_path / "images", negatives=mined)
    assert texts(source.row(0).negatives) == ["a fox"]
    assert source.row(1).negatives == ()


def item(id: int, image: Any, instruction: str, phrase: str) -> dict[str, Any]:
    return {"id": id, "image": image, "instruction": instruction, "phrase": phrase}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", ["parquet", "saved"])
@pytest.mark.parametrize("stem", [str, int])
def test_published_pairs(kind: str, stem: Any, tmp_path: Path) -> None:
    pictures(tmp_path / "images", "1.jpg", "2.jpg")
    rows = [
        {"0": item(1, stem(1), "left?", "a dog"), "1": item(2, stem(1), "right?", " a cat")},
        {"0": item(3, stem(2), "top?", "a bird"), "1": None},
        {"0": item(4, stem(1), "left?", "a dog"), "1": item(5, stem(2), "right?", "a cat")},
        {"0": item(6, stem(3), "left?", "a dog"), "1": item(7, stem(3), "right?", "a cat")},
        {"0": item(8, stem(2), "", "a dog"), "1": item(9, stem(2), "right?", "a cat")},
        {"0": item(3, stem(2), "top?", "a bird"), "1": None},
        {"0": None, "1": None},
    ]
    source = open_pairs(save(rows, tmp_path / "data", kind), images=tmp_path / "images")
    assert len(source) == 3
    assert source.row(0) == PairsRow(
        "row 0",
        str(tmp_path / "images/1.jpg"),
        (Pair("left?", Candidate("a dog")), Pair("right?", Candidate("a cat"))),
    )
    assert source.row(1).pairs == (Pair("top?", Candidate("a bird")),)
    assert source.row(2).pairs == (Pair("right?", Candidate("a cat")),)
    assert problems(source) == {
        "mixed pictures": 1, "missing image": 1, "empty instruction": 1, "duplicate id": 1, "no usable pair": 1,
        "empty row": 1,
    }  # fmt: skip
    json.dumps(source.describe())


@pytest.mark.usefixtures("cache")
def test_published_data_need_their_pictures(tmp_path: Path) -> None:
    captions = save(CAPTIONS, tmp_path / "captions", "saved")
    pairs = save([{"0": item(1, "1", "left?", "a dog")}], tmp_path / "pairs", "saved")
    with pytest.raises(DatasetError, match=r"--images.*abc-pretrain\.tar\.gz\.part_\*"):
        open_captions(captions)
    with pytest.raises(DatasetError, match=r"--images.*abc-vg-instruct\.tar\.gz"):
        open_pairs(pairs)
    with pytest.raises(DatasetError, match="has the columns 0; image and caption are needed"):
        open_captions(pairs, images=tmp_path)
    with pytest.raises(DatasetError, match="each must be an item"):
        open_pairs(captions, images=tmp_path)


@pytest.mark.usefixtures("cache")
def test_a_folder_that_the_library_cannot_read(tmp_path: Path) -> None:
    write(tmp_path / "data/train.parquet", ["not parquet"])
    with pytest.raises(DatasetError, match="cannot be read as parquet data"):
        open_captions(tmp_path / "data", images=tmp_path)
    (tmp_path / "data/state.json").write_text("{}")
    with pytest.raises(DatasetError, match="cannot be read as saved data"):
        open_captions(tmp_path / "data", images=tmp_path)
    write(tmp_path / "both/rows.jsonl", [captioned()])
    write(tmp_path / "both/rows.parquet", ["not parquet"])
    with pytest.raises(DatasetError, match=r"rows.jsonl and parquet files"):
        open_captions(tmp_path / "both")


# --- The hub ----------------------------------------------------------------------------------------------


def test_a_name_of_the_other_kind_is_refused() -> None:
    with pytest.raises(DatasetError, match="abc-vg-instruct holds pairs, but captions are needed; use abc-pretraining"):
        open_captions("abc-vg-instruct")
    with pytest.raises(DatasetError, match="abc-pretraining holds captions, but pairs are needed; use abc-vg-instruct"):
        open_pairs("abc-pretraining")


@pytest.mark.usefixtures("cache")
def test_a_hub_data_set_is_not_fetched_unasked(tmp_path: Path) -> None:
    # Sockets are blocked in tests: this would raise if it tried.
    with pytest.raises(DatasetError, match=r"not in the cache .*\(--download\)"):
        open_captions("abc-pretraining", images=tmp_path)


COMMIT = "0123456789" * 4


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as one data set needs: what it is, what files it has, and the files."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        name = HUB_NAMES["abc-vg-instruct"]
        file = path.removeprefix(f"datasets/{name}/resolve/").partition("/")[2]
        folder = path.removeprefix(f"api/datasets/{name}/tree/{COMMIT}").strip("/")
        if not self.files:
            self.answer(404)
        elif path == f"api/datasets/{name}/revision/{COMMIT}":
            self.answer(200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in self.files]})
        elif path.startswith(f"api/datasets/{name}/tree/"):
            listed = [entry(file) for file in self.files if os.path.dirname(file) == folder]
            listed += [] if folder else [{"type": "directory", "path": "data", "size": 0, "oid": COMMIT}]
            self.answer(200 if listed else 404, listed)
        elif path.startswith("datasets/") and file in self.files:
            self.answer(200, self.files[file])
        else:
            self.answer(404)

    do_HEAD = do_GET

    def answer(self, status: int, content: Any = b"") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", hashlib.sha1(body).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404 and self.files:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def entry(file: str) -> dict[str, Any]:
    content = Hub.files[file]
    return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def ask_hub(tmp_path: Path, *, download: bool, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> str:
    """What a process says that opens ABC-VG-Instruct from a hub with these files: its address is read at import."""
    program = f"""
from abc_rag.errors import DatasetError
from abc_rag.training.data.open import open_pairs
try:
    source = open_pairs("abc-vg-instruct", images={str(tmp_path / "images")!r}, allow_download={download})
    print(source.row(0).pairs[0].instruction, source.describe()["revision"])
except DatasetError as error:
    print(error)
"""
    monkeypatch.setattr(Hub, "files", files)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hub_data_set_is_fetched_when_asked_and_then_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "images", "1.jpg")
    rows = [{"0": item(1, "1", "left?", "a dog"), "1": item(2, "1", "right?", "a cat")}]
    save(rows * 2, tmp_path / "data", "parquet")
    content = (tmp_path / "data/data/train-00000-of-00002.parquet").read_bytes()
    files = {"data/train-00000-of-00001.parquet": content, "README.md": b"---\nlicense: mit\n---\n"}
    said = ask_hub(tmp_path, download=True, monkeypatch=monkeypatch, files=files)
    assert said.split() == ["left?", COMMIT]
    said = ask_hub(tmp_path, download=False, monkeypatch=monkeypatch, files={})
    assert said.split() == ["left?", COMMIT]


def test_a_hub_that_refuses_is_said_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ask_hub(tmp_path, download=True, monkeypatch=monkeypatch, files={})
    assert "TIGER-Lab/ABC-VG-Instruct cannot be fetched" in said
    assert "give its folder of parquet files" in said
