"""The published data sets: their formats, the cache and the hub."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from source_helpers import captioned, pictures, problems, texts, write

from abc_rag.errors import DatasetError
from abc_rag.training.data.folder import HUB_NAMES
from abc_rag.training.data.open import open_captions, open_pairs
from abc_rag.training.data.sources import (
    Candidate,
    CaptionRow,
    Pair,
    PairsRow,
    one_of_each_group,
)


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
