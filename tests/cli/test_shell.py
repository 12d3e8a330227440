"""Many questions with one model: from a pipe, and at a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from abc_rag.answering import load as loading
from abc_rag.answering.fake import FakeGenerator
from abc_rag.cli import main as cli
from abc_rag.embedding import load
from abc_rag.embedding.fake import FakeEmbedder

CTRL_C, CTRL_D = b"\x03", b"\x04"


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with a store of two pictures and two passages, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    for name in ("ABC_RAG_MODEL", "ABC_RAG_STORE", "ABC_RAG_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    fake = FakeEmbedder(dim=64)
    monkeypatch.setattr(load, "load_embedder", lambda *_, **__: fake)
    PIL.Image.new("RGB", (60, 60), "red").save("red.png")
    PIL.Image.new("RGB", (60, 60), "blue").save("blue.png")
    Path("notes.txt").write_text("a red bicycle\n\na blue boat")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["index", "."])
    capsys.readouterr()
    return tmp_path


def said(
    lines: bytes, *options: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit status and output of a shell that reads these lines."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    with pytest.raises(SystemExit) as end:
        cli.main(["shell", *options])
    return (int(end.value.code or 0), *capsys.readouterr())


def test_each_line_is_a_question(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(b"a red bicycle\n\na blue boat", "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["hits"][0]["text"] == "a red bicycle"
    assert second["hits"][0]["text"] == "a blue boat"


def test_a_table_is_printed_for_people(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(b"a red bicycle\n:quit\na blue boat\n", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    assert "a red bicycle" in out
    assert out.count("score") == 1  # nothing is read after :quit


def test_a_bad_line_costs_only_itself(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = b":image nowhere.png\n:where {]\n:fly away\n\xff\xfe\na blue boat\n"
    code, out, err = said(lines, "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 3
    for message in ("nowhere.png: no such picture", "--where takes JSON", "there is no :fly", "not valid Unicode"):
        assert message in err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["hits"][0]["text"] == "a blue boat"


def test_pictures_and_filters_stay_until_they_are_changed(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (
        b':image red.png\n:where {"abc:modality": "image"}\nwhat colour?\nand again?\n:image\n:where\nwhat colour?\n'
    )
    code, out, err = said(lines, "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    *about, free = (json.loads(line) for line in out.splitlines())
    # The picture that is asked about is not among its own answers.
    assert [[Path(hit["source"]).name for hit in one["hits"]] for one in about] == [["blue.png"], ["blue.png"]]
    assert len(free["hits"]) == 4


def test_mistakes_on_the_command_line_are_seen_first(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in ((("--mmr", "2"), "--mmr takes a number"), (("--store", "none"), "no store here")):
        code, out, err = said(b"a\n", *options, monkeypatch=monkeypatch, capsys=capsys)
        assert (code, out) == (2, "")
        assert message in err


def test_at_a_terminal_an_interrupt_drops_the_question_and_an_end_leaves(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a red bicycle\n\na blue boat")
    command = [sys.executable, "-m", "abc_rag.cli"]
    options = ["--model", "abc-mini", "--device", "cpu"]
    subprocess.run([*command, "index", ".", *options], cwd=tmp_path, check=True, capture_output=True)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command, "shell", *options],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # the terminal that Ctrl-C comes from
        env={**os.environ, "TERM": "dumb", "COLUMNS": "80"},
    )
    os.close(theirs)
    seen = b""

    def until(text: bytes, *, again: bytes = b"") -> None:
        nonlocal seen
        while text not in seen:
            # Python's input() overlooks a signal that comes just before it waits, until the next one.
            while again and not select.select([ours], [], [], 5)[0]:
                os.write(ours, again)
            seen += os.read(ours, 4096)
        seen = seen[seen.index(text) + len(text) :]

    try:
        until(b"abc-rag> ")
        os.write(ours, b"half a quest")
        until(b"half a quest")
        os.write(ours, CTRL_C)
        until(b"interrupted", again=CTRL_C)
        until(b"abc-rag> ")
        os.write(ours, b"a red bicycle\n")
        until(b"score")
        until(b"a red bicycle")
        until(b"abc-rag> ")
        os.write(ours, CTRL_D)
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_question_may_follow_up_the_answers_before_it(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Both(FakeGenerator):
        embedder = FakeEmbedder(dim=64)

    both = Both()
    monkeypatch.setattr(loading, "load_generator", lambda *_, **__: both)
    lines = b"what is red?\nand blue boat?\n:new\na bicycle\n"
    code, out, err = said(lines, "--answer", "--only", "text", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    assert "a red bicycle [1].\n" in out
    assert "a blue boat [1].\n" in out
    asked = [turns[-1].parts[0].text for turns in both.asked if "question: " in turns[-1].parts[0].text]
    assert 'user: "what is red?"\nassistant: "a red bicycle."\nquestion: "and blue boat?"' in asked
    assert 'question: "a bicycle"' in asked
