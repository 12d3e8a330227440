"""What all evaluations stand on: ranks, vectors that are kept, results, and the page."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from embedders import Given
from rich.console import Console

from abc_rag import Image, InstructedImage, Text
from abc_rag.cli.evaluate import ResultFlags
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import DatasetError, InputError
from abc_rag.evaluation import metrics
from abc_rag.evaluation import vectors as _vectors
from abc_rag.evaluation.metrics import join, rank_candidates, ranks, recall_at
from abc_rag.evaluation.page import render_page
from abc_rag.evaluation.plots import draw
from abc_rag.evaluation.report import write_report
from abc_rag.evaluation.results import Mistake, Plot, Results, ResultTable, settings
from abc_rag.evaluation.vectors import VectorCache, compute_of
from abc_rag.training.data.rows import BadRows

# --- Ranks ------------------------------------------------------------------------------------------------


def test_ranks_of_known_scores() -> None:
    scores = np.array([[0.9, 0.8, 0.7], [0.1, 0.2, 0.3], [0.5, 0.9, 0.8]])
    assert ranks(scores, [[0], [0], [0]]).tolist() == [1, 3, 3]
    assert ranks(scores, [{2}, {1, 2}, (0, 1)]).tolist() == [3, 1, 1]


def test_another_right_candidate_pushes_nothing_back() -> None:
    assert ranks(np.array([[0.9, 0.8, 0.85, 0.1]]), [[0, 2]]).tolist() == [1]
    assert ranks(np.array([[0.9, 0.8, 0.85, 0.1]]), [[1, 2]]).tolist() == [2]


def test_ties_count_against_the_query() -> None:
    assert ranks(np.full((1, 4), 0.5), [[0]]).tolist() == [4]
    assert ranks(np.array([[0.5, 0.5 + 1e-8, 0.5 - 1e-8, 0.4]]), [[0]]).tolist() == [3]


def test_a_model_that_says_one_thing_to_everything_finds_nothing() -> None:
    same = np.tile(FakeEmbedder(32).embed([Text("x")]), (500, 1))
    found = rank_candidates(same, same, [[i] for i in range(500)])
    assert set(found.ranks.tolist()) == {500}


def test_ranking_in_blocks_is_ranking_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    queries, candidates = (generator.standard_normal((n, 8)).astype(np.float32) for n in (17, 23))
    positives = [[i, (i + 5) % 23] for i in range(17)]
    whole = rank_candidates(queries, candidates, positives)
    assert whole.ranks.tolist() == ranks(queries @ candidates.T, positives).tolist()
    monkeypatch.setattr(metrics, "_BLOCK_BYTES", 1)
    blocks = rank_candidates(queries, candidates, positives)
    assert blocks.ranks.tolist() == whole.ranks.tolist()
    assert blocks.found.tolist() == whole.found.tolist()
    np.testing.assert_allclose(blocks.margins, whole.margins, atol=1e-6)


def test_what_is_found_and_what_was_expected() -> None:
    unit = np.eye(3, dtype=np.float32)
    query = np.array([[0.6, 0.8, 0.0]], dtype=np.float32)
    found = rank_candidates(query, unit, [[0]])
    assert (found.ranks[0], found.expected[0], found.found[0]) == (2, 0, 1)
    assert found.margins[0] == pytest.approx(0.2)
    alone = rank_candidates(query, unit, [[0, 1, 2]])
    assert (alone.ranks[0], alone.expected[0], alone.found[0]) == (1, 1, -1)
    renamed = join([found.at(np.array([7, 8, 9])), alone.at(np.array([7, 8, 9]))])
    assert (renamed.expected.tolist(), renamed.found.tolist()) == ([7, 8], [8, -1])


@pytest.mark.parametrize(("positives", "message"), [([[]], "query 0"), ([[3]], "query 0"), ([[0], [1]], "do not fit")])
def test_ranks_need_a_right_candidate(positives: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ranks(np.zeros((1, 3)), positives)
    with pytest.raises(InputError):
        rank_candidates(np.zeros((1, 2), np.float32), np.zeros((3, 2), np.float32), positives)


def test_recall() -> None:
    assert [recall_at(np.array([1, 2, 6, 1]), k) for k in (1, 5, 10)] == [0.5, 0.75, 1.0]
    assert math.isnan(recall_at(np.array([], dtype=np.int64), 1))


# --- Vectors that are kept --------------------------------------------------------------------------------


def pictures(folder: Path, *names: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name in names:
        PIL.Image.new("RGB", (4, 4), "red").save(folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in names]


def given(*names: str, **more: Any) -> Given:
    keys: list[Any] = [*names, *((name, said) for name in names for said in (None, "look", "see"))]
    return Given({key: [1.0 + number, 2.0, -number] for number, key in enumerate(keys)}, **more)


def test_equal_inputs_are_embedded_once_and_come_back_in_order(tmp_path: Path) -> None:
    embedder = given("a", "b")
    (a, b) = pictures(tmp_path, "a", "b")
    inputs = [Text("a"), Image(b), InstructedImage(b, "look"), Text("a"), Image(b), Image(a), InstructedImage(b, "see")]
    vectors, ok = VectorCache(embedder).embed("things", inputs)
    assert ok.all()
    assert sorted(map(str, embedder.embedded)) == sorted(map(str, {Given._key(one) for one in inputs}))
    np.testing.assert_allclose(vectors, given("a", "b").embed(inputs), atol=1e-6)


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    vectors, ok = VectorCache(given("a"), tmp_path).embed("things", [])
    assert (vectors.shape, ok.shape) == ((0, 3), (0,))


def test_a_broken_picture_costs_only_itself(tmp_path: Path) -> None:
    names = [f"p{number}" for number in range(700)]
    embedder = given(*names, broken=["p3", "p600"])
    files = pictures(tmp_path, *names)
    cache = VectorCache(embedder)
    inputs = [one for file in files for one in (Image(file), InstructedImage(file, "look"))]
    vectors, ok = cache.embed("pictures", inputs)
    assert np.flatnonzero(~ok).tolist() == [6, 7, 1200, 1201]
    assert not vectors[~ok].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[ok], axis=1), 1.0, atol=1e-5)
    # A picture counts once, however much is asked of it, and is not tried again under the next instruction.
    assert cache.bad.count == 2
    assert cache.bad.by_problem == {"picture is broken": 2}
    assert cache.bad.rows[0].where.endswith("p3.png")
    assert embedder.calls < 60
    _, again = cache.embed("more", [InstructedImage(files[3], "see"), InstructedImage(files[4], "see")])
    assert again.tolist() == [False, True]
    assert cache.bad.count == 2


def test_too_many_broken_pictures_are_an_error_that_names_them(tmp_path: Path) -> None:
    files = pictures(tmp_path, "a", "b", "c")
    cache = VectorCache(given("a", "b", "c", broken=["a", "b"]), limits_bad=BadRows("photos", limit=1))
    with pytest.raises(DatasetError, match=r"photos: 2 unusable rows .*a\.png: picture is broken"):
        cache.embed("pictures", [Image(file) for file in files])


def test_a_text_that_cannot_be_embedded_is_counted(tiny: Embedder) -> None:
    cache = VectorCache(tiny)
    _, ok = cache.embed("captions", [Text("a dog"), Text("half a \ud83d character")])
    assert ok.tolist() == [True, False]
    assert cache.bad.by_problem == {"cannot be embedded": 1}
    assert cache.bad.rows[0].where.startswith("captions: ")


def test_a_second_run_embeds_nothing(tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(600)]
    inputs = [*(Text(name) for name in names), *(Image(file) for file in pictures(tmp_path / "p", "t0", "t1"))]
    first, second = given(*names), given(*names)
    vectors, _ = VectorCache(first, tmp_path / "out").embed("things", inputs)
    again, ok = VectorCache(second, tmp_path / "out").embed("things", inputs)
    assert (len(first.embedded), second.embedded) == (602, [])
    assert ok.all()
    assert np.array_equal(vectors, again)
    assert len(list((tmp_path / "out" / "vectors").glob("things-*/*.npy"))) == 2
    assert not list((tmp_path / "out").rglob("*.part"))


def test_what_changed_is_embedded_again_and_no_more(tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(520)]
    files = pictures(tmp_path / "p", *names[:2])
    inputs = [*(Text(name) for name in names), *(Image(file) for file in files)]
    VectorCache(given(*names), tmp_path / "out").embed("things", inputs)
    os.utime(files[1], ns=(1, 1))
    after = given(*names)
    VectorCache(after, tmp_path / "out").embed("things", inputs)
    assert ("t1", None) in after.embedded
    assert len(after.embedded) == 10  # its shard; the 512 of the other one are known
    other = given(*names, model="another")
    VectorCache(other, tmp_path / "out").embed("things", inputs)
    assert len(other.embedded) == len(inputs)


def test_a_run_that_was_stopped_is_taken_up(tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(100)]
    inputs = [Text(name) for name in names]
    stopped = given(*names)
    stopped.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        VectorCache(stopped, tmp_path).embed("things", inputs)
    rest = given(*names)
    vectors, ok = VectorCache(rest, tmp_path).embed("things", inputs)
    assert ok.all()
    assert stopped.embedded
    assert len(stopped.embedded) + len(rest.embedded) == 100
    np.testing.assert_allclose(vectors, given(*names).embed(inputs), atol=1e-6)


def test_a_broken_picture_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    files = pictures(tmp_path / "p", "a", "b")
    inputs = [Image(file) for file in files]
    for _ in range(2):  # named by every run, not only by the first
        cache = VectorCache(given("a", "b", broken=["a"]), tmp_path)
        _, ok = cache.embed("pictures", inputs)
        assert (ok.tolist(), cache.bad.count) == ([False, True], 1)
    mended = given("a", "b")
    _, ok = VectorCache(mended, tmp_path).embed("pictures", inputs)
    assert (ok.tolist(), mended.embedded) == ([True, True], [("a", None)])


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"nonsense"])
def test_a_damaged_file_is_made_anew(damage: bytes, tmp_path: Path) -> None:
    inputs = [Text("a"), Text("b")]
    vectors, _ = VectorCache(given("a", "b"), tmp_path).embed("things", inputs)
    (shard,) = tmp_path.rglob("*.npy")
    shard.write_bytes(damage)
    again, _ = VectorCache(given("a", "b"), tmp_path).embed("things", inputs)
    assert np.array_equal(vectors, again)
    np.save(shard, np.full((2, 3), np.nan, np.float32))
    assert np.array_equal(VectorCache(given("a", "b"), tmp_path).embed("things", inputs)[0], vectors)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vectors").write_text("a file")
    with pytest.raises(InputError, match=r"vectors.* cannot be created .*choose another folder"):
        VectorCache(given("a"), tmp_path).embed("things", [Text("a")])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_vectors.np, "save", full)
    with pytest.raises(InputError, match=r"No space left on device.*free some space"):
        VectorCache(given("a"), tmp_path / "other").embed("things", [Text("a")])
    assert not list((tmp_path / "other").rglob("*.part"))


def test_all_sources_of_pictures_are_told_apart(tmp_path: Path) -> None:
    embedder = FakeEmbedder(16)
    (file,) = pictures(tmp_path, "a")
    blue, red = PIL.Image.new("RGB", (4, 4), "blue"), PIL.Image.new("RGB", (4, 4), "red")
    inputs = [Image(file), Image(Path(file).read_bytes()), Image(blue), Image(red), Image(blue.copy()), Text("a")]
    vectors, ok = VectorCache(embedder, tmp_path).embed("things", inputs)
    assert ok.all()
    np.testing.assert_allclose(vectors, embedder.embed(inputs), atol=1e-6)


def test_device_and_number_format(tiny: Embedder) -> None:
    assert compute_of(tiny) == ("cpu", "float32")
    assert compute_of(FakeEmbedder()) == ("unknown", "unknown")


# --- Results ----------------------------------------------------------------------------------------------

EVIL = "<script>alert('x')</script> & \"more\""


def results(tmp_path: Path) -> Results:
    (picture,) = pictures(tmp_path, "query")
    bad = BadRows("d")
    bad.add("d.jsonl:3", "missing image", EVIL)
    data = tmp_path / "d.jsonl"
    data.write_text("{}\n")
    return Results(
        benchmark="some bench",
        model="m@1 (9..9 image tokens)",
        metrics={"r1": 0.25, "nothing": float("nan")},
        settings=settings(FakeEmbedder(), data=data, limit=None, numbers=np.arange(2), out=tmp_path, say=EVIL),
        tables=[
            ResultTable("A [table]", ["what", "%"], [[EVIL, 25.0], ["none", None], ["nan", float("nan")], ["n", 3]])
        ],
        plots=[
            Plot("Bars", "bars", ["a", EVIL], {"one": [10.0, 90.0], "two": [5.0, float("nan")]}),
            Plot("Many", "bars", [f"label {i}" for i in range(9)], {"one": [float(i) for i in range(9)]}),
            Plot("Lines", "lines", ["32", "64"], {"ms": [1.5, float("nan")]}, unit="ms"),
        ],
        mistakes=[
            Mistake(EVIL, "a cat", "a dog", image=picture, score=0.75, expected_score=0.5, rank=2),
            Mistake("", EVIL, "a.png", expected_image=picture, found_image=str(tmp_path / "gone.png")),
        ],
        bad=bad.as_dict(),
        notes=[EVIL],
        details={"queries": [{"rank": np.int64(3)}]},
    )


def test_json_is_plain_and_complete(tmp_path: Path) -> None:
    found = json.loads(json.dumps(results(tmp_path).as_dict(), allow_nan=False))
    assert set(found) == {
        "benchmark", "model", "metrics", "settings", "tables", "plots", "mistakes", "bad", "notes", "details",
    }  # fmt: skip
    assert found["metrics"] == {"r1": 0.25, "nothing": None}
    told = found["settings"]
    assert set(told) == {"arguments", "model", "device", "dtype", "versions"}
    assert set(told["versions"]) == {"abc-rag", "python", "torch", "transformers", "numpy"}
    assert told["model"] == {"model": "fake", "revision": "fake-32", "min_tokens": 1, "max_tokens": 1}
    assert told["arguments"]["data"] == {
        "path": str(tmp_path / "d.jsonl"),
        "sha256": "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356",
    }
    assert told["arguments"]["out"] == {"path": str(tmp_path)}
    assert told["arguments"]["numbers"] == [0, 1]
    assert found["details"]["queries"] == [{"rank": 3}]
    assert found["bad"]["count"] == 1
    assert found["mistakes"][0]["image"] == str(tmp_path / "query.png")
    assert found["mistakes"][0]["rank"] == 2


def test_files_are_written_whole(tmp_path: Path) -> None:
    one = results(tmp_path)
    data, page = write_report(one, tmp_path / "new" / "folder")
    assert json.loads(data.read_text()) == json.loads(json.dumps(one.as_dict()))
    assert page.read_text() == render_page(one)
    assert sorted(file.name for file in data.parent.iterdir()) == ["report.html", "results.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(one, tmp_path / "file" / "below")


def test_the_page_shows_everything_and_runs_nothing(tmp_path: Path) -> None:
    page = render_page(results(tmp_path))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;more&quot;") >= 5
    assert page.count("<svg") == 3
    assert "var(--ink)" in page
    assert "#010203" not in page
    assert page.count("data:image/jpeg;base64,") == 2  # the third picture is gone, and the page says so
    assert "no preview" in page
    for said in ("0.750", "rank 2", "left out: 1 (1 missing image)", "d.jsonl:3", "sha256", "A [table]"):
        assert said in page
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert render_page(results(tmp_path)) == page  # the same results are the same page


def test_without_matplotlib_the_page_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = render_page(results(tmp_path))
    assert "<svg" not in page
    assert "pip install &#x27;abc-rag[evaluate]&#x27;" in page
    assert "25.0" in page


@pytest.mark.parametrize("kind", ["bars", "lines"])
@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (["$\\broken{$", "日本語", "x" * 200], [1.0, 2.0, 3.0]),
        (["a"], [float("nan")]),
        (["a", "b"], [0.0, 0.0]),
        ([], []),
        ([str(i) for i in range(40)], [i / 2 for i in range(40)]),
    ],
)
def test_plots_bear_any_label_and_any_value(kind: Any, labels: list[str], values: list[float]) -> None:
    for unit in ("%", "ms"):
        svg = draw(Plot("t", kind, labels, {"one": values, "<two>": values}, unit=unit))
        assert svg.startswith("<svg")
        assert svg.rstrip().endswith("</svg>")


def test_the_terminal_shows_the_same(tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))
    results(tmp_path).show(console)
    console.file.close()
    shown = console.export_text()
    for said in ("A [table]", "25.0", "<script>", "left out: 1 (1 missing image)"):
        assert said in shown
    assert "nan" not in shown.replace("│ nan ", "")


def test_commands_end_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = results(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/abc-rag", "evaluate", "it", "my data.jsonl"])
    ResultFlags(out=tmp_path / "out", as_json=True).finish(one)
    printed = json.loads(capsys.readouterr().out)
    assert printed["settings"]["command"] == "abc-rag evaluate it 'my data.jsonl'"
    assert printed == json.loads((tmp_path / "out" / "results.json").read_text())
    monkeypatch.setattr(sys, "argv", ["pytest"])
    ResultFlags(out=None, as_json=False).finish(one)
    shown = capsys.readouterr().out
    assert "A [table]" in shown
    assert "results:" not in shown
    ResultFlags(out=tmp_path / "more", as_json=False).finish(one)
    assert str(tmp_path / "more" / "report.html") in capsys.readouterr().out.replace("\n", "")
    assert "command" not in json.loads((tmp_path / "more" / "results.json").read_text())["settings"]
