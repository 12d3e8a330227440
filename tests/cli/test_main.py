"""The command line: what it prints where, how it exits, and that a mistake never ends in a traceback."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest
from pdf_helpers import manual

import abc_rag
from abc_rag import ChromaStore, Input, Text
from abc_rag.answering import load as answering_load
from abc_rag.answering.fake import FakeGenerator
from abc_rag.cli import main as cli
from abc_rag.cli.demo import DEMO_ANSWERS, DEMO_QUESTIONS
from abc_rag.embedding import load
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import CheckpointError
from abc_rag.models.tasks import REFUSAL
from abc_rag.types import Message, Vectors


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON value and nothing else."""
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("ABC_RAG_MODEL", "ABC_RAG_STORE", "ABC_RAG_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(int(end.value.code or 0), out, err)

    return call


def use(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands work with this embedder, where it does not matter how a model is loaded."""
    monkeypatch.setattr(load, "load_embedder", lambda *_, **__: embedder)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEmbedder:
    embedder = FakeEmbedder(dim=64)
    use(embedder, monkeypatch)
    return embedder


@pytest.fixture
def photos() -> Path:
    folder = Path("photos")
    folder.mkdir()
    PIL.Image.new("RGB", (60, 60), "red").save(folder / "red.png")
    PIL.Image.new("RGB", (60, 60), "blue").save(folder / "blue.png")
    (folder / "notes.txt").write_text("a red bicycle\n\na blue boat")
    return folder


@pytest.fixture
def filled(fake: FakeEmbedder, photos: Path, run: Run) -> Path:
    assert run("index", photos).code == 0
    return Path("abc-rag-store")


# --- index ------------------------------------------------------------------------------------------------


def test_index_says_what_it_did(fake: FakeEmbedder, photos: Path, run: Run) -> None:
    first = run("index", photos, "--store", "s", "--workers", "1")
    assert first == (0, "4 added, 0 unchanged, 0 removed, 0 failed, 0 left out; 4 in s\n", "")
    again = run("index", photos, "--store", "s", "--json")
    assert (again.code, again.err) == (0, "")
    assert again.json == {
        "added": 0,
        "unchanged": 4,
        "removed": 0,
        "failed": [],
        "facets": 0,
        "left_out": {},
        "total": 4,
    }
    with ChromaStore("s") as store:
        assert store.fingerprint == str(fake.fingerprint)


def test_index_exits_with_3_where_files_failed(fake: FakeEmbedder, photos: Path, run: Run) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    other = photos / "x.rst"
    other.write_text("text")
    done = run("index", photos, other)
    assert done.code == 3
    assert done.out == "4 added, 0 unchanged, 0 removed, 2 failed, 1 left out; 4 in abc-rag-store\nleft out: 1 text\n"
    lines = sorted(done.err.splitlines())
    assert [line.split(":")[1].strip() for line in lines] == [str((photos / n).resolve()) for n in ("bad.png", "x.rst")]
    assert all(line.startswith("failed: ") for line in lines)
    machine = run("index", photos, other, "--json")
    assert (machine.code, machine.err) == (3, "")
    assert sorted(failed["file"] for failed in machine.json["failed"]) == [
        str((photos / n).resolve()) for n in ("bad.png", "x.rst")
    ]
    assert all(failed["reason"] for failed in machine.json["failed"])


def test_a_name_that_is_no_unicode_can_be_reported(fake: FakeEmbedder, photos: Path, run: Run) -> None:
    os.rename(photos / "red.png", os.path.join(os.fsencode(photos), b"caf\xe9 \xc3\xa9.png"))
    plain = run("index", photos)
    assert (plain.code, plain.out[:8]) == (3, "3 added,")
    assert "caf\\udce9 \u00e9.png: its name is not valid Unicode" in plain.err
    machine = run("index", photos, "--json")
    assert machine.code == 3
    assert machine.json["failed"][0]["file"].endswith("caf\udce9 \u00e9.png")


@pytest.mark.parametrize("path", ["nowhere", "~nobody-of-this-name", "n" * 300, "photos/nowhere.png"])
def test_index_of_a_missing_path(path: str, fake: FakeEmbedder, photos: Path, run: Run) -> None:
    done = run("index", photos, path)
    assert done == (2, "", f"error: {path}: no such file or folder\n")
    assert not Path("abc-rag-store").exists()


def test_a_tilde_that_no_shell_expanded(
    fake: FakeEmbedder, photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path("home").resolve()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ABC_RAG_STORE", "~/store")
    photos.rename(home / "photos")
    assert run("index", "~/photos").code == 0
    assert (home / "store" / "chroma.sqlite3").is_file()
    assert run("ask", "a boat", "--image", "~/photos/red.png", "--html=~/page.html").code == 0
    assert (home / "page.html").is_file()
    assert run("embed", "--image", "~/photos/red.png", "--out=~/v.npy").code == 0
    assert (home / "v.npy").is_file()
    assert run("info", "--json").json["store"]["count"] == 4
    assert [p.name for p in Path().iterdir()] == ["home"]


def test_index_follows_changes(fake: FakeEmbedder, photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def changes(paths: list[Path], *, leave_out: list[Path]) -> Iterator[set[str]]:
        assert ([Path(path).name for path in paths], [Path(path).name for path in leave_out]) == (["photos"], ["s"])
        yield set()
        (photos / "red.png").rename(photos / "crimson.png")  # keeps its vector
        yield {"red.png", "crimson.png"}
        (photos / "blue.png").unlink()
        (photos / "bad.png").write_bytes(b"no picture")
        yield {"blue.png"}
        (photos / "notes.txt").unlink()
        (photos / "crimson.png").unlink()
        (photos / "bad.png").unlink()
        yield {"notes.txt"}

    monkeypatch.setattr("abc_rag.ingest.watch.changes", changes)
    done = run("index", photos, "--store", "s", "--watch")
    assert done.code == 0
    assert done.out.splitlines() == [
        "4 added, 0 unchanged, 0 removed, 0 failed, 0 left out; 4 in s",
        "0 added, 3 unchanged, 1 removed, 1 failed, 0 left out; 3 in s",
    ]
    failed, kept = done.err.splitlines()
    assert failed.startswith(f"failed: {(photos / 'bad.png').resolve()}: ")
    assert kept.startswith("not pruned: ")
    with ChromaStore("s") as store:
        assert {Path(record.source).name for record in store.records()} == {"crimson.png", "notes.txt"}


def test_index_where_no_store_can_be(fake: FakeEmbedder, photos: Path, run: Run) -> None:
    Path("file").write_text("in the way")
    done = run("index", photos, "--store", "file")
    assert (done.code, done.out) == (1, "")
    assert "file: " in done.err


# --- ask --------------------------------------------------------------------------------------------------


def test_ask_prints_what_it_found(filled: Path, run: Run) -> None:
    done = run("ask", "blue boat", "-k", "2", "--only", "text")
    assert (done.code, done.err) == (0, "")
    assert "blue boat" in done.out.splitlines()[1]
    rows = [line for line in done.out.splitlines() if re.match(r"\s*\d ", line)]
    assert [row.split("\u2502")[3].strip() for row in rows] == ["a blue boat", "a red bicycle"]
    assert "instruction" not in done.out


def test_ask_about_a_picture(filled: Path, run: Run) -> None:
    done = run("ask", "a bicycle", "--image", "photos/red.png")
    assert done.code == 0
    assert "about red.png" in done.out
    assert "instruction: a bicycle" in done.out


def test_ask_for_programs(filled: Path, run: Run) -> None:
    done = run("ask", "blue boat", "--image", "photos/blue.png", "--itself", "-k", "3", "--json", "--html", "page.html")
    assert (done.code, done.err) == (0, "")
    answer = done.json
    assert (answer["question"], answer["instruction"]) == ("blue boat", "blue boat")
    assert answer["html"] == str(Path("page.html").resolve())
    assert len(answer["hits"]) == 3
    assert {hit["text"] or Path(hit["source"]).name for hit in answer["hits"][:2]} == {"a blue boat", "blue.png"}
    for hit in answer["hits"]:
        assert set(hit) == {"score", "id", "modality", "source", "text", "metadata"}
        assert 0 <= hit["score"] <= 1
    assert "blue boat" in Path("page.html").read_text()
    plain = run("ask", "blue boat", "--only", "image", "--json").json
    assert plain["instruction"] == "blue boat"
    assert "html" not in plain
    assert {hit["modality"] for hit in plain["hits"]} == {"image"}


def test_what_is_printed_is_printed_as_it_is(fake: FakeEmbedder, run: Run) -> None:
    odd = "[bold]not bold[/bold] [/] :key: gr\u00fc\u00dfe \\"
    Path("odd.txt").write_text(odd, encoding="utf-8")
    assert run("index", "odd.txt", "--store", "[red]:key:").out.endswith("1 in [red]:key:\n")
    done = run("ask", odd, "--store", "[red]:key:")
    assert done.code == 0
    assert done.out.count(odd) == 2
    assert run("ask", odd, "--store", "[red]:key:", "--json").json["question"] == odd
    assert run("ask", odd, "--store", "[red]:key:", "--html", "[b]:key:.html").out.endswith("/[b]:key:.html\n")


def test_a_hit_of_a_document_is_told_by_its_page(fake: FakeEmbedder, run: Run) -> None:
    Path("manual.pdf").write_bytes(manual())
    assert run("index", "manual.pdf").code == 0
    done = run("ask", "rinse the filter", "--only", "text", "-k", "1", "--html", "page.html")
    assert (done.code, done.err) == (0, "")
    assert "manual.pdf, p. ii" in done.out
    page = Path("page.html").read_text(encoding="utf-8")
    assert (
        f'<a rel="noreferrer noopener" href="{Path("manual.pdf").absolute().as_uri()}#page=2"><img class="page"' in page
    )


def test_ask_for_what_is_like_a_picture(filled: Path, run: Run) -> None:
    done = run("ask", "--image", "photos/red.png", "--itself", "--only", "image", "--html", "page.html", "--json")
    assert (done.code, done.json["question"], done.json["instruction"], done.json["target"]) == (0, None, None, None)
    assert Path(done.json["hits"][0]["source"]).name == "red.png"
    assert "pictures and passages like photos/red.png" in Path("page.html").read_text(encoding="utf-8")


def test_ask_rewrites_unless_told_not_to(filled: Path, run: Run) -> None:
    question = "could you please show me a passage about a red bicycle?"
    done = run("ask", question, "--json", "-k", "1")
    assert (done.json["question"], done.json["target"]) == (question, "a red bicycle")
    assert [hit["text"] for hit in done.json["hits"]] == ["a red bicycle"]
    assert "searched for: a red bicycle" in run("ask", question).out
    assert run("ask", question, "--as-asked", "--json").json["target"] == question
    assert "searched for" not in run("ask", question, "--as-asked").out


def test_ask_with_a_second_look_diversity_threshold_and_trace(filled: Path, run: Run) -> None:
    question = "a picture with a blue background"
    plain = run("ask", question, "--no-rerank", "--trace", "--json").json
    assert [hit["trace"]["second"] for hit in plain["hits"]] == [None, None]
    looked = run("ask", question, "--trace", "--json").json
    assert looked["instruction"] == "what colour is the background?"
    assert all(0 <= hit["trace"]["second"] <= 1 for hit in looked["hits"])
    assert "second 0." in run("ask", question, "--trace").out
    best = looked["hits"][0]["score"]
    kept = run("ask", question, "--min-score", str(best - 1e-4), "--json").json["hits"]
    assert [hit["id"] for hit in kept] == [looked["hits"][0]["id"]]
    assert "trace" not in kept[0]
    assert len(run("ask", "a boat", "--mmr", "0.3", "--json").json["hits"]) == 4


def test_ask_by_words(filled: Path, run: Run) -> None:
    phrase = '"red bicycle"'
    assert [hit["text"] for hit in run("ask", phrase, "--json").json["hits"]] == ["a red bicycle"]
    assert len(run("ask", phrase, "--no-keywords", "--json").json["hits"]) == 4
    assert "by words 1" in run("ask", phrase, "--keywords", "--trace").out
    assert run("ask", "red bicycle", "--no-keywords", "--trace", "--json").json["hits"][0]["trace"]["first"] <= 1
    assert "by words" not in run("ask", phrase, "--no-keywords", "--trace").out


def test_index_with_facets(fake: FakeEmbedder, photos: Path, run: Run) -> None:
    facets = ["--facet", "the background", "-f", "the object"]
    first = run("index", photos, *facets)
    assert first.out == "4 added, 0 unchanged, 0 removed, 0 failed, 0 left out; 4 facets added; 4 in abc-rag-store\n"
    assert run("index", photos, *facets, "--json").json["facets"] == 0
    found = run("ask", "anything", "--only", "image", "--trace", "--json").json["hits"]
    assert len(found) == 2
    assert run("index", photos, "--facet", " ").err.startswith("error: a facet is an instruction")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([" "], "the question is empty"),
        (["caf\udce9"], "not valid Unicode"),
        (["x", "--image", "nowhere.png"], "nowhere.png: no such picture"),
        (["x", "--image", "n" * 300], "no such picture"),
        (["x", "--html", "photos"], "photos: cannot be written (Is a directory); choose another path"),
        (["x", "--html", "photos/red.png/page.html"], "page.html: cannot be written (File exists)"),
        (["x", "--store", "nowhere"], "nowhere: no store here; make one with: abc-rag index FOLDER --store nowhere"),
        (["x", "--store", "photos"], "photos: no store here"),
        (["x", "--store", "n" * 300], "no store here"),
        (["x", "--collection", "other"], "collection 'other' in abc-rag-store is empty; fill it with: abc-rag index"),
        (["x", "--collection", "!"], "collection '!': a name has 3 to 505 characters"),
        (["x", "--url", "photos"], "url 'photos': expected http"),
        ([], "nothing to search for: give a question, --image FILE, or both"),
        (["x", "--mmr", "2"], "--mmr takes a number between 0 and 1, not 2.0"),
        (["x", "--min-score", "-0.5"], "--min-score takes a number between 0 and 1, not -0.5"),
    ],
)
def test_what_cannot_be_asked(arguments: list[str], message: str, filled: Path, run: Run) -> None:
    before = sorted(os.listdir("photos"))
    done = run("ask", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    # Looking for a store makes none.
    assert sorted(os.listdir("photos")) == before
    assert not Path("nowhere").exists()


def test_an_empty_store_says_so(fake: FakeEmbedder, run: Run) -> None:
    Path("empty").mkdir()
    assert run("index", "empty").out == "0 added, 0 unchanged, 0 removed, 0 failed, 0 left out; 0 in abc-rag-store\n"
    done = run("ask", "x")
    assert (done.code, done.out) == (2, "")
    assert "collection 'abc' in abc-rag-store is empty" in done.err


def test_mistakes_are_seen_before_a_model_is_loaded(filled: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Embedder:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(load, "load_embedder", refuse)
    for mistake in (["", "--json"], ["x", "--image", "no.png"], ["x", "--store", "no"], ["x", "--collection", "other"]):
        assert run("ask", *mistake).code == 2


def test_a_store_of_another_model_is_refused(filled: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    other = FakeEmbedder(model="other")
    use(other, monkeypatch)
    for command in (["ask", "x"], ["index", "photos"]):
        done = run(*command)
        assert (done.code, done.out) == (1, "")
        for embedder in (FakeEmbedder(dim=64), other):
            assert f"{embedder.fingerprint.model}@{embedder.fingerprint.revision}" in done.err


def test_a_server_that_is_not_there(fake: FakeEmbedder, photos: Path, run: Run) -> None:
    for command in (["ask", "x"], ["index", "photos"]):
        done = run(*command, "--url", "http://127.0.0.1:9")
        assert (done.code, done.out) == (1, "")
        assert "start a Chroma server" in done.err


# --- embed ------------------------------------------------------------------------------------------------


def test_embed_prints_a_line_for_each(fake: FakeEmbedder, photos: Path, run: Run) -> None:
    done = run("embed", "a dog", "gr\u00fc\u00dfe", "--image", "photos/red.png", "-i", "photos/blue.png")
    assert (done.code, done.err) == (0, "")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["input"] for line in lines] == ["a dog", "gr\u00fc\u00dfe", "photos/red.png", "photos/blue.png"]
    expected = np.concatenate(
        [
            fake.embed_texts(["a dog", "gr\u00fc\u00dfe"]),
            fake.embed_images(["photos/red.png", "photos/blue.png"]),
        ]
    )
    np.testing.assert_allclose([line["vector"] for line in lines], expected, atol=1e-6)


def test_embed_writes_an_array(fake: FakeEmbedder, photos: Path, run: Run) -> None:
    done = run("embed", "a dog", "--image", "photos/red.png", "--instruction", "a bicycle", "--out", "v.npy")
    assert done == (0, "2 vectors of 64 in v.npy\n", "")
    vectors = np.load("v.npy", allow_pickle=False)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(
        vectors,
        np.concatenate(
            [fake.embed_texts(["a dog"]), fake.embed_images(["photos/red.png"], instruction="a bicycle")],
        ),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to embed: give texts, or --image FILE"),
        (["x", "--instruction", "y"], "--instruction needs at least one --image"),
        (["--image", "nowhere.png"], "nowhere.png: cannot be read"),
        (["x", "caf\udce9"], "is not valid Unicode"),
        (["--image", "photos/red.png", "--instruction", "caf\udce9"], "is not valid Unicode"),
        (["x", "--out", "photos"], "photos: cannot be written (Is a directory)"),
        (["x", "--out", "nowhere/v.npy"], "nowhere/v.npy: cannot be written (No such file or directory)"),
    ],
)
def test_what_cannot_be_embedded(
    arguments: list[str], message: str, fake: FakeEmbedder, photos: Path, run: Run
) -> None:
    done = run("embed", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


# --- info -------------------------------------------------------------------------------------------------


def test_info_loads_no_published_model_and_makes_no_store(run: Run) -> None:
    done = run("info", "--json")
    assert done.code == 0
    facts = done.json
    assert (facts["abc-rag"], facts["model"]) == (abc_rag.__version__, "abc")
    assert {"python", "torch", "transformers", "chromadb", "gpu"} < set(facts)
    assert not {"fingerprint", "dim", "store"} & set(facts)
    assert os.listdir() == []


def test_info_describes_model_and_store(filled: Path, fake: FakeEmbedder, run: Run) -> None:
    mark = str(fake.fingerprint)
    facts = run("info", "--model", "any", "--json").json
    assert (facts["model"], facts["fingerprint"], facts["dim"]) == ("any", mark, 64)
    expected = {"where": "abc-rag-store", "collection": "abc", "count": 4, "fingerprint": mark}
    assert facts["store"] == expected
    assert run("info", "--json", "-c", "other").json["store"] == expected | {
        "collection": "other",
        "count": 0,
        "fingerprint": None,
    }


def test_info_cuts_nothing_off(filled: Path, run: Run) -> None:
    long = Path("long-" * 20 + "name")
    filled.rename(long)
    done = run("info", "--store", long)
    assert done.code == 0
    shown = "".join(line.partition("\u2502")[2].strip() for line in done.out.splitlines())
    assert str(long) in shown
    assert "\u2026" not in done.out


# --- The bundled model ------------------------------------------------------------------------------------


def test_the_environment_names_the_model(
    mini: Embedder, photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABC_RAG_MODEL", "abc-mini")
    done = run("embed", "a dog", "--image", photos / "red.png", "--out", "v.npy", "--device", "cpu")
    assert done.code == 0
    expected = np.concatenate([mini.embed_texts(["a dog"]), mini.embed_images([photos / "red.png"])])
    np.testing.assert_allclose(np.load("v.npy"), expected, atol=1e-5)
    monkeypatch.setenv("ABC_RAG_MODEL", "no-such-model")
    done = run("embed", "a dog")
    assert (done.code, done.out) == (2, "")
    assert "model 'no-such-model' is neither 'abc', 'abc-mini', 'auto' nor a folder" in done.err


@pytest.mark.parametrize("command", [["index", "photos"], ["embed", "x"], ["info"], ["demo"], ["evaluate", "mini"]])
def test_an_unknown_model(command: list[str], photos: Path, run: Run) -> None:
    done = run(*command, "--model", "no-such-model")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: model 'no-such-model' is neither")


def test_a_model_name_too_long_for_a_path(photos: Path, run: Run) -> None:
    done = run("embed", "x", "--model", "n" * 300)
    assert (done.code, done.out) == (2, "")
    assert "is neither" in done.err


def test_a_picture_that_is_none(mini: Embedder, photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    use(mini, monkeypatch)
    assert run("index", photos / "notes.txt").code == 0
    for picture, message in (("photos/notes.txt", "is not of a format that is read"), ("photos", "is a directory")):
        for command in (["ask", "x"], ["embed"]):
            done = run(*command, "--image", picture)
            assert (done.code, done.out) == (2, "")
            assert f"error: {picture}: {message}" in done.err


@pytest.mark.parametrize("command", [["index", "."], ["ask", "x"], ["embed", "x"]], ids=lambda command: str(command[0]))
def test_the_kind_of_weights_reaches_the_model(
    command: list[str], filled: Path, fake: FakeEmbedder, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def record(*_: object, weights: str, **__: object) -> Embedder:
        asked.append(weights)
        return fake

    monkeypatch.setattr(load, "load_embedder", record)
    assert run(*command, "--weights", "int8").code == 0
    assert run(*command).code == 0
    assert asked == ["int8", "full"]


def test_unknown_weights(run: Run) -> None:
    done = run("embed", "x", "--model", "abc-mini", "--weights", "int2")
    assert (done.code, done.out) == (2, "")
    assert "weights must be one of full, int8, int4, not 'int2'" in done.err


def test_an_unknown_device(run: Run) -> None:
    done = run("embed", "x", "--model", "abc-mini", "--device", "nonsense")
    assert (done.code, done.out) == (2, "")
    assert "device 'nonsense' cannot be used here" in done.err


def test_the_demo_shows_its_questions_and_writes_a_page(
    mini: Embedder, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(mini, monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = run("demo", "-k", "2")
    assert (done.code, done.err) == (0, "")
    for asked in DEMO_QUESTIONS:
        assert asked.question in done.out
    assert f"pictures and passages with {mini.fingerprint.model}\n" in done.out
    written = re.search(r"the same with the pictures: (.+)\n$", done.out)
    assert written is not None
    page = Path(written[1])
    assert page.parent.parent == tmp_path.resolve()
    text = page.read_text(encoding="utf-8")
    speaks = "does not answer in words" not in done.out
    _, *sections = text.split("<section>")
    assert len(sections) == len(DEMO_QUESTIONS) + (len(DEMO_ANSWERS) if speaks else 0)
    searches = "".join(sections[: len(DEMO_QUESTIONS)])
    assert searches.count("<img ") == sum(2 if q.modality == "image" else 1 for q in DEMO_QUESTIONS)
    assert "no preview" not in text
    assert "image tokens" not in done.out + text
    # The store has gone; the page has stayed.
    assert [p.name for p in page.parent.parent.glob("abc-rag-*")] == [page.parent.name]


def test_the_demo_ends_with_answers_and_their_sources_where_the_model_speaks(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Both(FakeGenerator):
        embedder = FakeEmbedder(dim=64)

    def reply(messages: tuple[Message, ...]) -> str | None:
        return "A pig [1]. No [9]." if "Answer the question from" in str(messages[0]) else None

    monkeypatch.setattr(answering_load, "load_generator", lambda *_, **__: Both(reply))
    done = run("demo", "-k", "2", "--html", "page.html", "--json")
    assert (done.code, done.err) == (0, "")
    assert [q["question"] for q in done.json["questions"]] == [q.question for q in DEMO_QUESTIONS]
    assert [q["question"] for q in done.json["answers"]] == [q.question for q in DEMO_ANSWERS]
    assert not any("text" in q for q in done.json["questions"])
    told = [q for q in done.json["answers"] if q["hits"]]
    assert told
    assert all(q["text"] == "A pig [1]. No." and q["citations"][0]["id"] == q["hits"][0]["id"] for q in told)
    assert all(q["text"] == REFUSAL for q in done.json["answers"] if not q["hits"])
    assert re.search(r'<p class="answer">A pig \[<a href="#source-\d+-1">1</a>\]\.', Path("page.html").read_text())
    done = run("demo", "-k", "2", "--html", "page.html")
    assert done.out.count("A pig [1]. No.\n") == len(told)
    assert "without a source: No." in done.out
    assert "does not answer in words" not in done.out


def test_the_demo_of_a_model_that_does_not_speak(fake: FakeEmbedder, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> FakeGenerator:
        raise CheckpointError("holds no generation_config.json")

    monkeypatch.setattr(answering_load, "load_generator", refused)
    done = run("demo", "-k", "1", "--html", "page.html")
    assert (done.code, done.err) == (0, "")
    assert done.out.count(f"{fake.fingerprint.model} finds, but does not answer in words") == 1
    assert run("demo", "-k", "1", "--html", "page.html", "--json").json["answers"] == []


def test_the_demo_for_programs(fake: FakeEmbedder, run: Run) -> None:
    done = run("demo", "-k", "1", "--html", "page.html", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["html"] == str(Path("page.html").resolve())
    assert done.json["indexed"] > 50
    assert [q["question"] for q in done.json["questions"]] == [q.question for q in DEMO_QUESTIONS]
    assert all(len(q["hits"]) == 1 for q in done.json["questions"])
    failed = run("demo", "--html", "page.html/page.html")
    assert failed.code == 2
    assert "page.html: cannot be written" in failed.err


def test_evaluate(mini: Embedder, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    use(mini, monkeypatch)
    done = run("evaluate", "mini", "--scenes", "20", "--json")
    assert (done.code, done.err) == (0, "")
    report = done.json
    assert (report["settings"]["counts"]["scenes"], report["model"]) == (20, str(mini.fingerprint))
    assert report["metrics"]["accuracy"] > 0.7
    assert report["metrics"]["without_instruction"] < report["metrics"]["accuracy"]


def test_evaluate_prints_a_table(fake: FakeEmbedder, run: Run) -> None:
    done = run("evaluate", "mini", "--scenes", "2")
    assert done.code == 0
    assert "2 held-out scenes" in " ".join(done.out.split())
    assert "picture + instruction -> phrase" in done.out
    assert "aspect: left" in done.out
    for wrong in ("1", "1001"):
        refused = run("evaluate", "mini", "--scenes", wrong)
        assert (refused.code, refused.out) == (2, "")
        assert "between 2 and 1000" in refused.err


# --- The command line itself ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["index"], "Missing argument"),
        (["train", "mini"], "Missing argument"),
        (["ask", "x", "--nonsense"], "No such option: --nonsense"),
        (["ask", "x", "--only", "film"], "Invalid value for '--only'"),
        (["ask", "x", "-k", "many"], "Invalid value for '-k'"),
        (["ask", "x", "-k", "0"], "Invalid value for '-k'"),
        (["demo", "-k", "0"], "Invalid value for '-k'"),
        (["ask", "x", "y"], "unexpected extra argument"),
        (["evaluate", "mini", "--scenes", "few"], "Invalid value for '--scenes'"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], message: str, run: Run) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.startswith("Usage: ")
    assert os.listdir() == []


def test_help(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    for command in ("index", "ask", "embed", "info", "demo", "evaluate", "train"):
        assert re.search(rf"^  {command} ", done.out, re.MULTILINE)
        assert run(command, "--help").code == 0
    assert run().code == 2
    assert run("evaluate").code == 2


class Interrupted(FakeEmbedder):
    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        if Text("stop") in inputs:
            raise KeyboardInterrupt
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


def test_an_interrupt_is_no_failure_of_the_store(photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Interrupted(), monkeypatch)
    assert run("index", photos).code == 0
    Path("stop.txt").write_text("stop")
    kept = "0 added are kept; the same command goes on from there\n"
    assert run("index", photos, "stop.txt") == (130, "", f"{kept}interrupted\n")
    assert run("embed", "stop") == (130, "", "interrupted\n")
    assert run("ask", "boat", "--json").json["hits"]


def test_what_no_message_foresaw_is_one_line(run: Run, fake: FakeEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    done = run("demo")
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"error: .*No such file or directory: '/nowhere/at/all/abc-rag-demo-\w+'\n", done.err)


# --- As a program -----------------------------------------------------------------------------------------


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "abc_rag.cli", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(Path(abc_rag.__file__).parents[1]), **environment},
        check=False,
    )


def test_the_version() -> None:
    done = program("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{abc_rag.__version__}\n", "")


def test_a_mistake_at_a_terminal_that_is_not_utf8() -> None:
    done = program("ask", "x", "--store", "gr\u00fc\u00dfe", PYTHONIOENCODING="cp1251")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: gr\\xfc\\xdfe: no store here")


def test_json_stays_json_at_a_terminal_that_is_not_utf8() -> None:
    script = "import sys; from abc_rag.cli import output; output.print_json({'file': 'gr\\u00fc\\udce9 \\u732b'})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=Path(abc_rag.__file__).parents[1],
        check=True,
    )
    assert json.loads(done.stdout.decode("ascii")) == {"file": "gr\u00fc\udce9 \u732b"}


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "abc_rag.cli", "--help"],
            stdout=writing,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=Path(abc_rag.__file__).parents[1],
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_progress_is_shown_at_a_terminal_and_only_there() -> None:
    script = (
        "from abc_rag.embedding.progress import progress_bar\n"
        "with progress_bar('indexing', total=4, enabled=True) as bar:\n"
        "    for _ in range(4): bar.advance()\n"
        "with progress_bar('hidden', total=4, enabled=False) as bar: bar.advance(4)\n"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    root = Path(abc_rag.__file__).parents[1]
    silent = subprocess.run(command, capture_output=True, cwd=root, check=True)
    assert (silent.stdout, silent.stderr) == (b"", b"")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, cwd=root, env=environment, check=True)
        shown = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stdout == b""
    assert "indexing" in shown
    assert "4/4" in shown
    assert re.search(r"\d\.\d/s", shown)
    assert "hidden" not in shown
