"""Groups and duplicates from the shell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from survey_helpers import INSTRUCTION, ByPixel, pictures

from abc_rag.cli import main as cli
from abc_rag.embedding import load

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on a store of five pictures: three are alike under the instruction, and two."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ABC_RAG_STORE", str(tmp_path / "store"))
    with pictures(tmp_path, [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)], passage="7"):
        pass
    monkeypatch.setattr(load, "load_embedder", lambda *_, **__: ByPixel())

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(list(arguments))
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def test_groups(run: Run) -> None:
    status, out, _ = run("groups", INSTRUCTION, "--phrase", "0", "--phrase", "1")
    assert status == 0
    lines = [line.split() for line in out.splitlines() if ".png" in line]
    cells = [[word for word in line if word.isalnum() or "." in word] for line in lines]
    assert cells == [["0", "3", "1.000", "1.000", "0.png"], ["1", "2", "1.000", "1.000", "1.png"]]
    told = json.loads(run("groups", INSTRUCTION, "--passes", "4", "-k", "1", "--json")[1])
    assert (told["passes"], told["left_out"], [group["phrase"] for group in told["groups"]]) == (
        4,
        1,
        ["7"],
    )  # the only text
    _, out, _ = run("groups", INSTRUCTION, "--passes", "4", "--no-facet-map", "--where", '{"modality": "image"}')
    assert "note: 1 pictures were not looked at" in out


def test_duplicates(run: Run) -> None:
    status, out, _ = run("duplicates", "--same", INSTRUCTION, "--threshold", "0.9")
    assert status == 0
    assert out.count(".png") == 8
    assert f"the same from 0.900 on: {INSTRUCTION}" in out
    assert out.endswith("4 pairs, 2 groups of 5 pictures\n")
    told = json.loads(run("duplicates", "--same", INSTRUCTION, "--threshold", "0.9", "--most", "1", "--json")[1])
    assert (told["count"], told["pairs"]) == (4, [{"first": "0", "second": "2", "score": 1.0}])
    assert told["groups"] == [["0", "2", "4"], ["1", "3"]]
    # So few pairs have no gap between them.
    _, out, _ = run("duplicates", "--same", INSTRUCTION, "--different", "the other side", "--threshold", "0.9")
    assert out.endswith("0 pairs, 0 groups of 0 pictures\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["groups", " "], "the instruction is empty"),
        (["groups", INSTRUCTION, "--phrase", " "], "phrases must be a list"),
        (["groups", INSTRUCTION, "-k", "9"], "5 pictures do not make 9 groups"),
        (["duplicates", "--same", " "], "same must be a list of instructions"),
        (["duplicates", "--same", "a", "--different", "a"], "is in same and in different"),
        (["duplicates", "--same", "a", "--threshold", "3"], "--threshold must be a number"),
        (["duplicates", "--same", "a", "--store", "nowhere"], "no store here"),
    ],
)
def test_what_cannot_be_surveyed_is_an_error_in_one_line(run: Run, arguments: list[str], message: str) -> None:
    status, out, told = run(*arguments)
    assert (status, out) == (2, "")
    assert told.startswith("error: ")
    assert message in told
    assert told.count("\n") == 1
