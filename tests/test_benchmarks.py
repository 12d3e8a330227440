"""The benchmarks run and say what they should; how fast anything is, no test asks."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pdf_helpers import encrypted, manual

from abc_rag import Text, load_embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.evaluation.twins import twin_scenes
from abc_rag.server import BackgroundServer, ServerSettings, chroma
from abc_rag.types import Hit, Record
from benchmarks import documents, vectors
from benchmarks._harness import alternate, machine, ratio, spread, timed
from benchmarks._timeline import length, merged, shares
from benchmarks.documents import Word, is_right, questions
from benchmarks.imports import Cost, costs
from benchmarks.route import Route, Tracer
from benchmarks.serve import Server, faults, soak, throughput
from benchmarks.state import state
from benchmarks.tables import render
from benchmarks.wordings import WORDINGS, reworded

ROOT = Path(__file__).parents[1]


def run(name: str, folder: Path, *options: str, shape: str = "tiny") -> dict[str, Any]:
    out = folder / f"{name}.json"
    # One thread: two that share a busy core wait for one another most of the time.
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--shape", "tiny", "--threads", "1"]
    done = subprocess.run(
        [*command, "--json", str(out), *options],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    assert result["benchmark"] == name
    assert result["options"]["shape"] == shape
    assert result["command"].startswith(f"python -m benchmarks.{name} --quick")
    assert {"processor", "cores", "threads", "torch", "transformers", "python"} <= set(result["machine"])
    assert result["date"]
    assert render(result).startswith(f"**{name}, {shape}**")
    return result


def assert_spread(value: dict[str, float]) -> None:
    assert 0 < value["min"] <= value["q1"] <= value["q3"] <= value["max"]
    assert value["median"] > 0


# --- Arithmetic -------------------------------------------------------------------------------------------


def test_every_side_gets_the_same_new_inputs_and_its_turn_to_be_first() -> None:
    seen: list[tuple[str, int]] = []
    makes = [timed(lambda number, name=name: seen.append((name, number)), lambda number: number) for name in "abc"]
    seconds = alternate(dict(zip("abc", makes, strict=True)), rounds=3)
    assert seen == [(name, n) for n, order in enumerate(("abc", "bca", "cab", "abc")) for name in order]
    assert {name: len(took) for name, took in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_medians_and_ratios() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 10.0]) == {"median": 3, "q1": 2, "q3": 4, "min": 1, "max": 10}
    found = ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
    assert found == {"median": 2, "q1": 1.5, "q3": 2.5, "min": 1, "max": 3}


def test_costs_of_imports_by_package() -> None:
    lines = [
        "import time: self [us] | cumulative | imported package",
        "import time:      1000 |       1000 |     numpy.core",
        "import time:      2000 |       3000 |   numpy",
        "import time:      4000 |       4000 |   torch.nn",
        "import time:       500 |       7500 | torch",
        "import time:       250 |        250 | numpy.fft",
        "a warning in between",
    ]
    assert costs(lines) == [Cost("torch", 2, 4.5, 7.5), Cost("numpy", 3, 3.25, 3.25)]


def test_what_a_device_waits_for() -> None:
    computed, prepared = [(2.0, 3.0), (3.0, 4.0), (6.0, 7.0)], [(0.0, 2.5), (1.0, 2.0), (5.5, 6.5)]
    assert merged(computed) == [(2.0, 4.0), (6.0, 7.0)]
    assert length(prepared) == 3.5
    assert shares(computed, prepared, 10.0) == {
        "busy": 0.3,
        "waiting_for_preparation": 0.25,
        "waiting_otherwise": 0.45,
    }


def test_a_file_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="None is none of compare, preprocess"):
        render({})


def test_switches_are_counted_thread_by_thread() -> None:
    tracer = Tracer()
    try:
        with tracer.counting():
            text = Text("a")  # __post_init__ and two checks: one file
        assert tracer.route("one") == Route("one", files=1, calls=3, switches=0)
        with tracer.counting():
            text.content([])
            thread = threading.Thread(target=FakeEmbedder, kwargs={"dim": 4})
            thread.start()
            thread.join()
            FakeEmbedder(dim=4)
            text.content([])
        # types, types (content and its helper) -> fake -> types, types; and fake in a thread of its own.
        assert tracer.route("two") == Route("two", files=2, calls=6, switches=2)
        assert tracer.pairs() == {("types.py", "embedding/fake.py"): 1, ("embedding/fake.py", "types.py"): 1}
    finally:
        tracer.close()


# --- Each command -----------------------------------------------------------------------------------------


def test_compare(tmp_path: Path) -> None:
    found = run("compare", tmp_path)
    assert found["agree"] is True
    assert set(found["differences"]) == {"one", "padded", "sentence-transformers", "recompute"}
    assert max(found["differences"].values()) <= found["tolerance"] == 1e-4
    sides = {"engine", "one", "padded", "sentence-transformers"}
    for row in found["rows"]:
        expected = sides | ({"recompute"} if "instruction" in row["row"] else set())
        assert set(row["seconds"]) == expected
        assert set(row["ratios"]) == expected - {"engine"}
        for value in (*row["seconds"].values(), *row["ratios"].values()):
            assert_spread(value)
    several = ["texts", "images", "1 instruction", "4 instructions", "16 instructions", "all kinds"]
    assert [row["row"] for row in found["rows"]] == ["one text", "one picture", "another instruction", *several]


def test_compare_of_another_family(tmp_path: Path) -> None:
    # Without sentence-transformers, which needs torchvision to load such a model.
    options = ["--sides", "recompute", "--rows", "another instruction", "--texts", "1"]
    found = run("compare", tmp_path, "--shape", "embeddinggemma-tiny", *options, shape="embeddinggemma-tiny")
    assert max(found["differences"].values()) <= found["tolerance"]
    assert [row["row"] for row in found["rows"]] == ["another instruction"]


def test_preprocess(tmp_path: Path) -> None:
    found = run("preprocess", tmp_path)
    assert found["identical"] is True
    assert all(case["identical"] for case in found["cases"])
    assert {case["source"] for case in found["cases"]} == {"ready", "memory", "jpeg"}
    for case in found["cases"]:
        assert set(case["seconds_each"]) == {"engine", "stock", "normalise"}
        assert_spread(case["ratio"])
    for case in found["scaling"]:
        assert {"1", "2"} <= set(case["workers"])


def test_memory(tmp_path: Path) -> None:
    found = run("memory", tmp_path)
    assert [kind["kind"] for kind in found["kinds"]] == ["texts", "pictures"]
    for kind in found["kinds"]:
        peaks = [one["peak_bytes"] for one in kind["runs"]]
        assert [one["count"] for one in kind["runs"]] == ([20, 40] if kind["kind"] == "texts" else [4])
        assert all(one["before_bytes"] <= one["peak_bytes"] for one in kind["runs"])
        assert kind["growth"] == pytest.approx(peaks[-1] / peaks[0] - 1)


def test_gpu_on_a_cpu(tmp_path: Path) -> None:
    found = run("gpu", tmp_path, "--timeline", str(tmp_path))
    assert found["limit"] > 0
    assert [row["row"] for row in found["rows"]] == [
        "pictures of 4 tokens",
        "pictures of 16 tokens",
        "passages of 12 tokens",
    ]
    for row in found["rows"]:
        assert row["utilisation"] == pytest.approx(row["per_second"]["median"] * row["flops_each"] / found["limit"])
        timeline = row["timeline"]
        assert sum(timeline["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert timeline["batches"] == len(timeline["computed"]) > 0
        assert all(0 <= start <= end <= timeline["seconds"] + 1e-3 for start, end in timeline["computed"])
        if timeline["drawing"] is not None:
            assert Path(timeline["drawing"]).read_bytes().startswith(b"\x89PNG")


def test_the_way_of_the_data_is_short(tmp_path: Path) -> None:
    out = tmp_path / "route.json"
    command = [sys.executable, "-m", "benchmarks.route", "--rounds", "3", "--pairs", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    switches = {one["what"]: one["switches"] for one in result["routes"]}
    assert 0 < switches["text"] <= 60, result["pairs"]["text"]
    assert 0 < switches["search"] <= 600, result["pairs"]["search"]
    assert render(result).startswith("**route** (")


def test_latency(tmp_path: Path) -> None:
    found = run("latency", tmp_path)
    assert [(row["query"], row["beside_index_run"]) for row in found["rows"]] == [
        ("text", False),
        ("text", True),
        ("picture with a question", False),
        ("picture with a question", True),
    ]
    for row in found["rows"]:
        assert row["count"] == 6
        assert 0 < row["p50_ms"] <= row["p99_ms"]


def test_answering(tmp_path: Path) -> None:
    found = run("answering", tmp_path)
    assert [row["beside"] for row in found["questions"]] == [False, True]
    for row in found["questions"]:
        assert row["count"] == 6
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    for rates in (*found["tokens_per_second"].values(), found["indexed_per_second"]):
        assert_spread(rates)
    for side in found["memory"].values():
        assert side["before_bytes"] < side["after_bytes"]


def test_a_server_is_sound_and_its_batches_are_counted(tmp_path: Path) -> None:
    settings = ServerSettings(folder=tmp_path / "abc-server", port=0)
    options = argparse.Namespace(quick=True, seed=0, soak=0.04, rounds=1, clients=2, seconds=0.2)
    embedder = load_embedder("abc-mini", device="cpu", image_limits=settings.image_limits)
    with BackgroundServer(embedder, settings, stores=chroma(tmp_path)) as running:
        server = Server(running.settings.port, os.getpid())
        row, rates = soak(server, options), throughput(server, options)
    assert faults(row) == []
    assert row["vectors"] >= row["bit-equal"] > 0
    assert row["status 200"] > 0
    wrong = {"status 500": 2, "items lost": 1, "bit-equal when asked alone after": 95}
    assert faults({**row, **wrong}) == [
        *("status 500: 2 times", "items lost: 1", "bit-equal when asked alone after: 95 of 96")
    ]
    for who in ("1 client", "2 clients"):
        assert_spread(rates[f"{who}, texts/s"])
        assert 1 <= rates[f"{who}, texts in a batch"]["median"] <= 2
    heading = {"benchmark": "serve", "date": "2026-01-02", "command": "...", "options": {}, "machine": {}}
    assert "| items lost | 0 |" in render({**heading, "rows": [row, rates]})


def test_every_wording_names_what_is_true() -> None:
    assert 60 <= sum(map(len, WORDINGS.values())) <= 100
    asked = reworded(1000)
    assert [one.scene for one in asked] == [one.scene for one in twin_scenes()]
    for one in asked:
        assert one.told.get("kind", one.told.get("colour")) in one.question  # type: ignore[operator]
        assert "{" not in one.question
    assert len({one.question for one in asked}) > 500


def test_wordings(tmp_path: Path) -> None:
    out = tmp_path / "wordings.json"
    command = [sys.executable, "-m", "benchmarks.wordings", "--scenes", "4", "--json", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    result = json.loads(out.read_text())
    assert "| rules and second look |" in render(result)
    paths = {path["name"]: path for path in result["paths"]}
    assert list(paths) == ["as asked", "question as instruction", "rules", "rules and second look"]
    looks = [path["second_looks"] for path in paths.values()]
    assert looks == [0, 4, 0, 4]


def test_smaller_vectors_are_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--records", "1000", "--dim", "16", "--queries", "5", "--kinds", "int8"]
    monkeypatch.setattr(sys, "argv", ["vectors", *options])
    try:
        assert vectors.main() == 0
    finally:
        logging.disable(logging.NOTSET)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[d, k] for d in ("float32", "float16") for k in ("none", "int8")]
    assert [row[2] for row in rows] == ["64", "64", "32", "32"]
    assert float(rows[0][4]) == 1.0  # comparing with all is exact
    assert all(float(row[4]) >= 0.9 for row in rows)


# --- Documents --------------------------------------------------------------------------------------------


def line(text: str, *, left: float = 50.0, bottom: float = 100.0) -> list[Word]:
    """Words of 20 points on a line, 5 points apart."""
    return [Word(word, left + 25 * n, bottom - 10, left + 25 * n + 20, bottom) for n, word in enumerate(text.split())]


def test_questions_are_six_plain_words_of_one_line() -> None:
    assert questions(line("press the red button to start now")) == [
        "press the red button to start",
        "the red button to start now",
    ]
    assert questions(line("press the red button 2 start now")) == []
    assert questions([*line("press the red"), *line("button to start", left=125, bottom=112)]) == []  # two lines
    assert questions([*line("press the red"), *line("button to start", left=200)]) == []  # two columns
    touching = Word("0", 195, 93, 199, 102)  # a subscript at the end of "start"
    assert questions([*line("press the red button to start"), touching]) == []


def test_a_hit_is_right_where_its_box_has_the_words() -> None:
    words = [*line("how to begin"), *line("Press the red button to start.", bottom=120)]
    question = "Press the red button to start"

    def hit(*box: float) -> Hit:
        sides: list[float] = list(box)
        return Hit(Record("part", "text", metadata={"document": "a.pdf", "page": 1, "box": sides}), 0.5)

    assert is_right(hit(48, 108, 197, 122), question, words)
    assert not is_right(hit(48, 108, 180, 122), question, words)  # too narrow
    assert not is_right(hit(48, 90, 197, 102), question, words)  # another line
    assert not is_right(hit(), question, words)
    assert not is_right(hit(0, 0, 400, 600), "Press the blue button to start", words)


def test_pages_of_documents_are_counted(tmp_path: Path) -> None:
    (tmp_path / "manual.pdf").write_bytes(manual())
    (tmp_path / "locked.pdf").write_bytes(encrypted("letmein"))
    found = documents.read([tmp_path / "manual.pdf", tmp_path / "locked.pdf"], pages=10)
    assert (found["documents"], found["pages"], found["lost"]) == (2, 2, 0)
    assert "is encrypted" in next(iter(found["rows"][1]["reasons"]))
    assert (found["rows"][0]["parts"], found["rows"][0]["reasons"]) == (5, {})
    one = documents.read([tmp_path / "manual.pdf"], pages=1)
    assert (one["pages"], one["lost"]) == (1, 0)
    assert any("max_pages" in reason for reason in one["rows"][0]["reasons"])
    measured = documents.memory(tmp_path / "manual.pdf", 10, every=1)
    assert [row["page"] for row in measured["rows"]] == [1, 2]
    assert all(row["reading"] > 1 for row in measured["rows"])


def test_the_state_of_a_machine() -> None:
    found = state(2)
    assert found.keys() == {"wake_us", "gflops_1", "gflops_all", "gflops_apart", "gb_s_1", "gb_s_apart"}
    assert found.pop("wake_us") >= 0
    assert all(value > 0 for value in found.values())
    assert machine()["state"].keys() == {"wake_us", *found}
    assert "state" not in machine(measured=False)
