"""abc-rag evaluate ctrlbench-build."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from authoring_helpers import ChatServer, decide, state, well

from abc_rag.cli import main as cli
from abc_rag.evaluation.authoring.review import ReviewServer


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def call_it(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(["evaluate", "ctrlbench-build", *map(str, arguments)])
        out, err = capsys.readouterr()
        return Ended(int(end.value.code or 0), out, err)

    return call_it


def test_the_command(run: Callable[..., Ended], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ChatServer(well) as server:
        done = run(photos, out, "--chat-model", "m", "--base-url", server.url, "--pairs", 3)
        assert done.code == 0, done.err
        assert "ctrlbench.jsonl" in done.out
        assert "33.3" in done.out
        assert "unreviewed: nobody has looked at these pairs" in done.out
        (photos / "bad.png").write_bytes(b"x")
        done = run(photos, out, "--chat-model", "m", "--base-url", server.url, "--pairs", 3, "--json", "--page")
        assert done.code == 3
        assert json.loads(done.out)["run"]["kept"] == 4
        assert len(server.requests) == 4
    assert (out / "review.html").exists()
    assert json.loads(run(photos, out, "--json").out)["pairs"] == 12


def test_the_command_reviews(
    run: Callable[..., Ended], photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reviewer(server: ReviewServer) -> None:
        for pair in state(server)["pictures"][0]["pairs"]:
            decide(server, pair, "accept")
        raise KeyboardInterrupt  # as good an end as the button

    monkeypatch.setattr(ReviewServer, "wait", reviewer)
    done = run(photos, out, "--review-only", "--json")
    assert done.code == 0
    assert json.loads(done.out)["review"] == {"accepted": 3, "rejected": 0, "undecided": 9, "edited": 0}
    assert "review: http://127.0.0.1:" in done.err
    assert "9 pairs are undecided" in run(photos, out).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--chat-model NAME"),
        (["--base-url", "http://127.0.0.1:9"], "--base-url needs --chat-model"),
        (["--chat-model", "m", "--review-only"], "leave --chat-model out"),
        (["--chat-model", "m"], "$OPENAI_API_KEY is not set"),
        (["--review-only"], "build first"),
        (
            ["--chat-model", "m", "--base-url", "http://192.0.2.1/v1"],
            "4 pictures will be sent to http://192.0.2.1/v1 (m)",
        ),
    ],
)
def test_the_command_refuses(run: Callable[..., Ended], photos: Path, arguments: list[str], message: str) -> None:
    done = run(photos, photos.parent / "out", *arguments)
    assert done.code == 2
    assert message in done.err


def test_the_command_asks_before_it_sends_anything_elsewhere(
    run: Callable[..., Ended], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    done = run(photos, photos.parent / "out", "--chat-model", "m", "--base-url", "http://192.0.2.1/v1")
    assert done.code == 1
    assert "4 pictures will be sent to http://192.0.2.1/v1 (m), which may cost money. Go on? [y/N]" in done.err
    assert not (photos.parent / "out" / "answers.jsonl").exists()


def test_the_help_says_where_pictures_go(run: Callable[..., Ended]) -> None:
    text = " ".join(run("--help").out.split())
    assert "https://api.openai.com/v1, to which the pictures then go" in text
