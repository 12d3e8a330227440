"""``abc-rag ask --answer``: what is streamed, printed and written, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from chat_helpers import embedding_only
from chat_server import serving

from abc_rag.answering import load as loading
from abc_rag.answering.fake import FakeGenerator
from abc_rag.cli import main as cli
from abc_rag.embedding import load
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.types import Message

Run = Callable[..., tuple[int, str, str]]
EMBEDDER = FakeEmbedder(dim=64)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("ABC_RAG_MODEL", "ABC_RAG_STORE", "ABC_RAG_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(load, "load_embedder", lambda *_, **__: EMBEDDER)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(list(arguments))
        return int(end.value.code or 0), *capsys.readouterr()

    PIL.Image.new("RGB", (60, 60), "red").save("red.png")
    Path("notes.txt").write_text("Turtles eat leaves.\n\nA boat is <blue>.")
    assert call("index", ".")[0] == 0
    return call


def test_an_answer_of_a_server_is_streamed_and_its_page_has_the_sources(run: Run) -> None:
    with serving(FakeGenerator()) as url:
        served = ["--generator", url, "--served", "fake", "--only", "text"]
        code, out, err = run("ask", "what do turtles eat?", "--answer", *served, "--html", "page.html")
        assert (code, err) == (0, "")
        assert out.index("what do turtles eat?") < out.index("Turtles eat leaves [1].") < out.index("confidence")
        page = Path("page.html").read_text()
        assert '<p class="answer">Turtles eat leaves [<a href="#source-1-1">1</a>].</p>' in page
        assert '<div id="source-1-1">' in page
        # Without scores a server says yes or no; what it says no to is no source.
        code, out, _ = run("ask", "what do turtles eat?", "--answer", *served, "--json")
        found = json.loads(out)
        assert (found["text"], [one["number"] for one in found["citations"]]) == ("Turtles eat leaves [1].", [1])
        code, out, err = run("ask", "a boat", "--judge", *served, "--json")
        assert json.loads(out)["confidence"] == 1.0


def test_the_model_itself_answers_and_what_it_says_cannot_reach_the_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Both(FakeGenerator):
        embedder = EMBEDDER

    def reply(messages: tuple[Message, ...]) -> str | None:
        return "\x1b[2J They fly. So [7]." if "Answer" in str(messages[0]) else None

    asked: list[Any] = []
    both = Both(reply)
    monkeypatch.setattr(loading, "load_generator", lambda model, **_: asked.append(model) or both)
    code, out, _ = run("ask", "turtles eat", "--answer", "--model", "x", "--trace")
    assert (code, asked) == (0, ["x"])
    assert "\x1b[2J" not in out
    assert "\\x1b[2J They fly." in out
    assert "without a source: " in out
    assert "note: citations of sources that were not given were dropped: [7]" in out
    assert "judged 1.000" in out
    code, out, _ = run("ask", "bicycle", "--answer", "--model", "x", "--only", "text")
    assert "The sources don't say." in out
    assert "nothing here matches" in out
    code, out, _ = run("ask", "turtles eat", "--min-confidence", "0.9", "--model", "x", "--only", "text", "--json")
    assert [hit["confidence"] for hit in json.loads(out)["hits"]] == [1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("a", "--min-confidence", "2"), "--min-confidence takes a number"),
        (("a", "--generator", "http://127.0.0.1:9/v1"), "--generator URL and --served MODEL"),
        (("a", "--served", "x"), "--generator URL and --served MODEL"),
        (("a", "--answer", "--api-key-env", "KEY"), "--api-key-env is for a server"),
        (("--image", "red.png", "--answer"), "need a question"),
    ],
)
def test_mistakes_are_seen_before_a_model_is_loaded(
    run: Run, options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(load, "load_embedder", no_model)
    code, out, err = run("ask", *options)
    assert (code, out) == (2, "")
    assert message in err


def test_a_model_that_cannot_generate_says_so(run: Run, tmp_path: Path) -> None:
    model = embedding_only(tmp_path.with_name(f"{tmp_path.name}-model"))
    code, _, err = run("ask", "a", "--answer", "--model", str(model), "--device", "cpu")
    assert code != 0
    assert "holds no generation_config.json" in err


def test_who_cannot_explain_says_who_can(run: Run) -> None:
    code, _, err = run("ask", "a boat", "--only", "image", "--explain", "1")
    assert code == 2
    assert "models of the ABC family can" in err
