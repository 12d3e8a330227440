"""Mining negatives: known answers, what is left out, resuming, the approximate index, and the command."""

from __future__ import annotations

import json
import logging
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from abc_rag.cli.main import app
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.errors import DatasetError, ImageFormatError, InputError, MissingExtraError
from abc_rag.scenes.captions import captions
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import held_out_scenes
from abc_rag.training.data.open import open_captions
from abc_rag.training.data.rows import BadRows
from abc_rag.training.data.sources import Candidate, CaptionRow, CaptionSource
from abc_rag.training.negatives import files as _mining_files
from abc_rag.training.negatives import mine as negatives
from abc_rag.training.negatives import neighbours as _neighbours
from abc_rag.training.negatives.mine import mine_negatives
from abc_rag.types import Fingerprint, Image, Input, InstructedImage, Text, Vectors


class Corpus(CaptionSource):
    """Captions in memory; pictures are names that are never opened."""

    def __init__(self, rows: Sequence[tuple[str, str, str]], max_bad: int = 100) -> None:
        self.name, self.bad, self._rows = "corpus", BadRows("corpus", limit=max_bad), rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> CaptionRow:
        id, image, caption = self._rows[index]
        return CaptionRow(id, image, Candidate(caption))

    def describe(self) -> dict[str, Any]:
        return {"kind": "in memory", "rows": len(self)}


class Known(Embedder):
    """Gives the vectors it is told; refuses texts and pictures that it does not know."""

    def __init__(self, vectors: dict[str, Any], model: str = "known") -> None:
        self._vectors = {name: np.asarray(vector, dtype=np.float32) for name, vector in vectors.items()}
        self._model = model
        self.seen: list[str] = []
        self.calls_left = math.inf

    @property
    def dim(self) -> int:
        return len(next(iter(self._vectors.values())))

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._model, "1", 1, 1)

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        if self.calls_left == 0:
            raise KeyboardInterrupt
        self.calls_left -= 1
        return np.stack([self._one(item) for item in inputs])

    def _one(self, item: Input) -> Vectors:
        assert not isinstance(item, InstructedImage)
        name = item.text if isinstance(item, Text) else str(item.source)
        if name not in self._vectors:
            if isinstance(item, Image):
                raise ImageFormatError(name, "is broken")
            raise InputError(f"{name!r} cannot be embedded")
        self.seen.append(name)
        return self._vectors[name]


def at(degrees: float) -> tuple[float, float]:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def corpus_of(*texts: str, max_bad: int = 100) -> Corpus:
    return Corpus([(f"r{i}", f"{i}.jpg", text) for i, text in enumerate(texts)], max_bad)


def read(path: Path) -> dict[str, list[str]]:
    return {row["id"]: row["negatives"] for row in map(json.loads, path.read_text().splitlines())}


def random_corpus(rows: int, dim: int = 16, *, texts: int | None = None, seed: int = 0) -> tuple[Corpus, Known]:
    """Random directions; every seventh picture has several rows, and texts repeat."""
    rng = np.random.default_rng(seed)
    names = [f"text {i}" for i in range(texts or rows)]
    vectors = rng.standard_normal((len(names), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    said = [names[i] if texts is None else names[rng.integers(len(names))] for i in range(rows)]
    corpus = Corpus([(f"r{i}", f"{i // 3 if i % 7 == 0 else i + rows}.jpg", text) for i, text in enumerate(said)])
    return corpus, Known(dict(zip(names, vectors, strict=True)))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of all kinds, so small that a few hundred rows are many."""
    monkeypatch.setattr(_mining_files, "_EMBEDDED", 50)
    monkeypatch.setattr(_mining_files, "_ASKED", 32)
    monkeypatch.setattr(_neighbours, "_BLOCK", 64)
    monkeypatch.setattr(_neighbours, "_ADD", 40)


# --- Known answers ----------------------------------------------------------------------------------------


def test_the_nearest_below_the_bar_come_first(tmp_path: Path) -> None:
    # cos 18 degrees is 0.951, cos 18.5 degrees 0.948.
    angles = {"east": 0, "nearly east": 18, "near east": 18.5, "north-east": 45, "north": 90, "west": 180}
    embedder = Known({text: at(angle) for text, angle in angles.items()})
    out = tmp_path / "negatives.jsonl"
    report = mine_negatives(corpus_of(*angles), out, embedder, count=3)
    mined = read(out)
    assert mined["r0"] == ["r2", "r3", "r4"]
    assert mined["r1"] == ["r3", "r4", "r5"]
    assert mined["r4"] == ["r3", "r2", "r1"]
    assert (report.rows, report.captions, report.negatives, report.short) == (6, 6, 18, 0)
    assert report.at_or_above_bar == 4  # 0 and 18, 18 and 18.5, both ways
    assert report.index == "exact"
    assert report.recall is None
    assert json.loads((tmp_path / "negatives.jsonl.json").read_text())["report"] == report.as_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["negatives.jsonl", "negatives.jsonl.json"]


@pytest.mark.parametrize("index", ["exact", "approximate"])
@pytest.mark.parametrize(("epsilon", "kept"), [(0.5, []), (0.501, ["r1"])])
def test_the_bar_itself_is_left_out(epsilon: float, kept: list[str], index: Any, tmp_path: Path) -> None:
    embedder = Known({"one": (1, 0), "half": (0.5, math.sqrt(0.75))})
    mine_negatives(corpus_of("one", "half"), tmp_path / "out", embedder, epsilon=epsilon, index=index)
    assert read(tmp_path / "out")["r0"] == kept


@pytest.mark.parametrize("index", ["exact", "approximate"])
@pytest.mark.parametrize(("epsilon", "kept"), [(0.5, ["r2"]), (0.501, ["r1", "r2"])])
def test_the_bar_of_a_picture_is_that_of_its_own_caption(
    epsilon: float, kept: list[str], index: Any, tmp_path: Path
) -> None:
    embedder = Known(
        {
            "0.jpg": (1, 0), "1.jpg": (0, 1), "2.jpg": (0, 1),
            "half": (0.5, math.sqrt(0.75)), "quarter": (0.25, math.sqrt(15 / 16)), "none": (0, 1),
        }
    )  # fmt: skip
    corpus = corpus_of("half", "quarter", "none")
    report = mine_negatives(corpus, tmp_path / "out", embedder, epsilon=epsilon, query="image", index=index)
    assert read(tmp_path / "out")["r0"] == kept
    assert report.query == "image"


def test_equal_captions_are_one_candidate_and_never_negatives(tmp_path: Path) -> None:
    embedder = Known({"a dog": at(0), "a cat": at(70), "a fox": at(30)})
    corpus = corpus_of("a dog", "a cat", "a dog", "a fox", "a cat")
    report = mine_negatives(corpus, tmp_path / "out", embedder)
    assert read(tmp_path / "out") == {
        "r0": ["r3", "r1"],
        "r1": ["r3", "r0"],
        "r2": ["r3", "r1"],
        "r3": ["r0", "r1"],
        "r4": ["r3", "r0"],
    }
    assert report.captions == 3
    assert embedder.seen.count("a dog") == 1


def test_captions_of_one_picture_are_never_negatives(tmp_path: Path) -> None:
    embedder = Known({"a dog": at(0), "an animal": at(40), "a fox": at(30), "a bear": at(50)})
    rows = [("a", "1.jpg", "a dog"), ("b", "1.jpg", "an animal"), ("c", "2.jpg", "a fox"), ("d", "3.jpg", "an animal"),
            ("e", "3.jpg", "a bear")]  # fmt: skip
    mine_negatives(Corpus(rows), tmp_path / "out", embedder, epsilon=1.0)
    mined = read(tmp_path / "out")
    assert mined["a"] == ["c", "e"]  # "an animal" is true of its picture, whoever says it
    assert mined["e"] == ["c", "a"]
    assert mined["c"] == ["b", "e", "a"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("index", ["exact", "approximate"])
@pytest.mark.parametrize("query", ["text", "image"])
def test_a_large_corpus_agrees_with_a_plain_computation(query: Any, index: Any, tmp_path: Path) -> None:
    corpus, embedder = random_corpus(300, texts=220)
    rng = np.random.default_rng(1)
    own = np.stack([embedder._vectors[corpus.row(i).caption.text] for i in range(300)])
    if query == "image":
        mixed = own + 0.1 * rng.standard_normal(own.shape).astype(np.float32)
        mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
        embedder._vectors |= {str(corpus.row(i).image): mixed[i] for i in range(300)}
    out = tmp_path / "out"
    # So little memory that the index is in parts.
    report = mine_negatives(
        corpus, out, embedder, epsilon=0.8, count=5, query=query, index=index, memory_gb=1e-9
    )  # fmt: skip
    stored = own.astype(np.float16).astype(np.float32)
    asking = stored
    if query == "image":
        pictures = np.stack([embedder._vectors[str(corpus.row(i).image)] for i in range(300)])
        asking = pictures.astype(np.float16).astype(np.float32)
    bars = 0.8 * ((asking * stored).sum(axis=1) if query == "image" else np.ones(300))
    mined = read(out)
    assert list(mined) == [f"r{i}" for i in range(300)]
    texts = [corpus.row(i).caption.text for i in range(300)]
    images = [corpus.row(i).image for i in range(300)]
    for i, scores in enumerate(asking @ stored.T):
        said = {text for text, image in zip(texts, images, strict=True) if image == images[i]}
        expected: list[str] = []
        for j in np.argsort(-scores, kind="stable"):
            if len(expected) < 5 and texts[j] not in said and scores[j] < bars[i]:
                expected.append(f"r{texts.index(texts[j])}")
                said.add(texts[j])
        assert mined[f"r{i}"] == expected
    assert report.recall == (1.0 if index == "approximate" else None)
    assert report.negatives == 1500


def test_the_index_is_asked_for_more_where_the_bar_takes_all(tmp_path: Path) -> None:
    angles = {f"near {i}": i / 100 for i in range(150)} | {f"far {i}": 30 + i for i in range(20)}
    embedder = Known({text: at(angle) for text, angle in angles.items()})
    report = mine_negatives(corpus_of(*angles), tmp_path / "out", embedder, count=4, index="approximate")
    mined = read(tmp_path / "out")
    assert mined["r0"] == ["r150", "r151", "r152", "r153"]
    assert report.short == 0
    assert report.recall == 1.0


@pytest.mark.parametrize("index", ["exact", "approximate"])
def test_rows_with_too_few_negatives_are_counted(index: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    embedder = Known({"one": at(0), "same": at(1), "other": at(90)})
    report = mine_negatives(corpus_of("one", "same", "other"), tmp_path / "out", embedder, count=2, index=index)
    assert read(tmp_path / "out") == {"r0": ["r2"], "r1": ["r2"], "r2": ["r1", "r0"]}
    assert report.short == 2
    assert "2 of 3 rows have fewer than 2 negatives" in caplog.text


# --- What cannot be used ----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["exact", "approximate"])
def test_what_cannot_be_embedded_neither_asks_nor_answers(index: Any, tmp_path: Path) -> None:
    embedder = Known({"0.jpg": at(0), "2.jpg": at(90), "one": at(0), "two": at(40), "three": at(90)})
    corpus = corpus_of("one", "refused", "three", "two", "refused")
    report = mine_negatives(corpus, tmp_path / "out", embedder, query="image", index=index)
    # The second caption cannot be embedded; the second, fourth and fifth picture are broken.
    assert read(tmp_path / "out") == {"r0": ["r3", "r2"], "r1": [], "r2": ["r3", "r0"], "r3": [], "r4": []}
    assert report.bad["by_problem"] == {"cannot be embedded": 2, "picture is broken": 3}
    assert report.captions == 3
    assert report.at_or_above_bar == 0
    wheres = [row["where"] for row in report.bad["rows"]]
    assert wheres == ["captions: r1", "captions: r4", "pictures: r1", "pictures: r3", "pictures: r4"]


def test_too_much_that_cannot_be_embedded_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="captions: r1: cannot be embedded"):
        mine_negatives(corpus_of("one", "refused", "also", max_bad=1), tmp_path / "out", Known({"one": at(0)}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "epsilon must be above 0 and at most 1, not 0"),
        ({"epsilon": 1.01}, "epsilon must be"),
        ({"epsilon": True}, "epsilon must be"),
        ({"epsilon": math.nan}, "epsilon must be"),
        ({"count": 0}, "count must be a positive whole number"),
        ({"count": 2.0}, "count must be"),
        ({"query": "picture"}, "query must be 'text' or 'image'"),
        ({"index": "hnsw"}, "index must be 'auto', 'exact' or 'approximate'"),
        ({"memory_gb": 0}, "memory_gb must be a positive number of GiB"),
        ({"memory_gb": math.nan}, "memory_gb must be"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    embedder = Known({"one": at(0)})
    with pytest.raises(InputError, match=message):
        mine_negatives(corpus_of("one"), tmp_path / "out", embedder, **settings)
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "train.jsonl"
    out.write_text("precious")
    (tmp_path / "train.jsonl.json").write_text('{"precious": "too"}')
    with pytest.raises(InputError, match="was not made by mine-negatives; choose another name"):
        mine_negatives(corpus_of("one"), out, Known({"one": at(0)}))
    with pytest.raises(InputError, match="was not made by mine-negatives"):
        mine_negatives(corpus_of("one"), tmp_path, Known({"one": at(0)}))
    with pytest.raises(InputError, match="cannot be written"):
        mine_negatives(corpus_of("one"), out / "below", Known({"one": at(0)}))
    assert out.read_text() == "precious"


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-rag\[train\]'"):
        mine_negatives(corpus_of("one"), tmp_path / "out", Known({"one": at(0)}), index="approximate")


# --- Resuming ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_embedding_goes_on_after_the_last_whole_block(tmp_path: Path) -> None:
    corpus, embedder = random_corpus(300)
    mine_negatives(corpus, tmp_path / "whole", embedder, count=5)
    assert len(embedder.seen) == 300
    embedder.seen, embedder.calls_left = [], 3
    with pytest.raises(KeyboardInterrupt):
        mine_negatives(corpus, tmp_path / "out", embedder, count=5)
    assert not (tmp_path / "out").exists()
    # A block that was cut short.
    with (tmp_path / "out.work/texts.f16").open("ab") as handle:
        handle.write(b"cut")
    embedder.seen, embedder.calls_left = [], math.inf
    mine_negatives(corpus, tmp_path / "out", embedder, count=5)
    assert embedder.seen == [f"text {i}" for i in range(150, 300)]
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "out.work").exists()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("index", ["exact", "approximate"])
def test_searching_goes_on_after_the_last_whole_block(
    index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, embedder = random_corpus(300)
    whole = mine_negatives(corpus, tmp_path / "whole", embedder, count=5, index=index)
    written = []
    write = _mining_files.write_json

    def interrupted(path: Path, value: Any) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt  # after the lines, before the note that they are there
        written.append(path)
        write(path, value)

    monkeypatch.setattr(_mining_files, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine_negatives(corpus, tmp_path / "out", embedder, count=5, index=index)
    monkeypatch.undo()
    monkeypatch.setattr(_mining_files, "_ASKED", 32)
    monkeypatch.setattr(_neighbours, "_BLOCK", 64)
    assert len((tmp_path / "out.part").read_text().splitlines()) == 5 * 32
    state = json.loads((tmp_path / "out.work/search.json").read_text())
    assert state["rows"] == 4 * 32
    embedder.seen = []
    report = mine_negatives(corpus, tmp_path / "out", embedder, count=5)
    assert embedder.seen == []
    assert report == whole  # "auto" keeps to the index that the run began with
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.usefixtures("small_blocks")
def test_a_full_disk_costs_only_what_did_not_fit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    corpus, embedder = random_corpus(300)
    mine_negatives(corpus, tmp_path / "whole", embedder, count=5)
    embedder.seen = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(InputError, match=r"texts.f16: cannot be written .*free some space and run again"):
            mine_negatives(corpus, tmp_path / "out", embedder, count=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(embedder.seen) == 200  # of which 150 fitted
    embedder.seen = []
    mine_negatives(corpus, tmp_path / "out", embedder, count=5)
    assert len(embedder.seen) == 150
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_cannot_be_embedded_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mining_files, "_EMBEDDED", 2)
    embedder = Known({"one": at(0), "two": at(60)})
    rows = ("one", "refused", "two", "one")
    embedder.calls_left = 3  # of the first block one that fails and two halves
    with pytest.raises(KeyboardInterrupt):
        mine_negatives(corpus_of(*rows), tmp_path / "out", embedder)
    embedder.calls_left = math.inf
    report = mine_negatives(corpus_of(*rows), tmp_path / "out", embedder)
    assert report.bad["count"] == 1
    assert report.bad["rows"][0]["where"] == "captions: r1"
    assert read(tmp_path / "out") == {"r0": ["r2"], "r1": [], "r2": ["r0"], "r3": ["r2"]}


def test_what_has_been_mined_is_not_mined_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = {"one": at(0), "two": at(60), "three": at(90)}
    embedder, out = Known(vectors), tmp_path / "out"
    first = mine_negatives(corpus_of("one", "two"), out, embedder)
    before = out.read_bytes()
    assert mine_negatives(corpus_of("one", "two"), out, embedder) == first
    assert embedder.seen == ["one", "two"]
    out.write_text("edited")
    with caplog.at_level(logging.WARNING):
        mine_negatives(corpus_of("one", "two"), out, embedder)
    assert "has changed since it was mined; mining anew" in caplog.text
    assert out.read_bytes() == before
    for corpus, other, settings in (
        (corpus_of("one", "two"), embedder, {"epsilon": 0.4}),
        (corpus_of("one", "two"), Known(vectors, "another"), {}),
        (corpus_of("one", "three"), embedder, {}),
        (corpus_of("one", "three"), embedder, {"index": "approximate"}),
    ):
        caplog.clear()
        mine_negatives(corpus, out, other, **settings)
        assert "mining anew" in caplog.text


def test_two_processes_do_not_mine_into_one_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _mining_files.MiningFiles(out).claimed(), pytest.raises(InputError, match="another process is mining into it"):
        mine_negatives(corpus_of("one"), out, Known({"one": at(0)}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_blocks")
def test_an_unfinished_run_of_another_kind_is_not_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus, embedder = random_corpus(300)
    embedder.calls_left = 3
    with pytest.raises(KeyboardInterrupt):
        mine_negatives(corpus, tmp_path / "out", embedder, count=5)
    other, same_texts = random_corpus(300, seed=1)
    same_texts._model = "another"
    report = mine_negatives(other, tmp_path / "out", same_texts, count=5)
    assert "made by another model or from other data; starting anew" in caplog.text
    assert len(same_texts.seen) == 300
    assert report.model.startswith("another@1")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("index", ["exact", "approximate"])
def test_vectors_may_be_kept_for_other_settings(index: Any, tmp_path: Path) -> None:
    corpus, embedder = random_corpus(300)
    out = tmp_path / "out"
    mine_negatives(corpus, out, embedder, count=5, index=index, keep_vectors=True)
    assert (tmp_path / "out.work/texts.f16").stat().st_size == 300 * 16 * 2
    embedder.seen = []
    mine_negatives(corpus, out, embedder, count=3, epsilon=0.5, index=index)
    assert embedder.seen == []
    assert not (tmp_path / "out.work").exists()
    assert {len(found) for found in read(out).values()} == {3}


# --- Memory -----------------------------------------------------------------------------------------------


def test_memory_decides_how_it_is_searched(tmp_path: Path) -> None:
    embedder = Known({"one": at(0), "two": at(60)})
    for memory, index in ((1e-6, "approximate"), (8, "exact")):
        report = mine_negatives(corpus_of("one", "two"), tmp_path / index, embedder, memory_gb=memory)
        assert report.index == index
    assert negatives._choose("auto", 16 * 10**9, 32 * 10**9) == "exact"
    assert negatives._choose("auto", 16 * 10**9, 16 * 10**9) == "approximate"
    assert negatives._choose("exact", 16 * 10**9, 1) == "exact"
    assert negatives._free_memory() > 2**20


# --- The command ------------------------------------------------------------------------------------------


def test_the_command_mines_what_training_reads(tmp_path: Path) -> None:
    rng = random.Random(3)
    scenes = held_out_scenes(40, seed=3)
    rows = []
    for number, scene in enumerate(scenes):
        render(scene, 56).save(tmp_path / f"{number}.png")
        rows.append({"id": f"s{number}", "image": f"{number}.png", "caption": captions(scene, rng)})
    rows.append({"id": "s0", "image": "0.png", "caption": "the same id again"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "mined.txt"
    arguments = ["train", "mine-negatives", str(tmp_path), str(out), "--model", "abc-mini", "--count", "4"]
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["rows"] == 40
    assert report["data"]["bad"]["by_problem"] == {"duplicate id": 1}
    source = open_captions(tmp_path, negatives=out)
    mined = [source.row(i) for i in range(40)]
    assert {len(row.negatives) for row in mined} == {4}
    # Of eight colours one says what is near: by chance it would be that in an eighth of the rows.
    nearest = [row.negatives[0].text for row in mined]
    assert sum(f" {scene.background} " in text for scene, text in zip(scenes, nearest, strict=True)) > 20
    shown = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert shown.exit_code == 0
    assert "different captions" in shown.stdout
    assert "--negatives-file" in shown.stdout
    refused = CliRunner().invoke(app, [*arguments, "--epsilon", "2"])
    assert isinstance(refused.exception, InputError) or "epsilon must be" in refused.output
