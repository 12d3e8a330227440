"""What the README shows is run as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from abc_rag.demo import demo_folder

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language; every other fence closes one."""
    fenced = README.read_text(encoding="utf-8").split("```")[1::2]
    return [body for block in fenced for head, _, body in [block.partition("\n")] if head == language]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with demo_folder() as folder:
        shutil.copytree(folder, tmp_path / "photos", ignore=shutil.ignore_patterns("*.json"))
    (tmp_path / "manual.md").write_text("The pig rolls in mud.\n\nA car has thirty thousand parts.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_langchain_example(photos: Path) -> None:
    (example,) = (b for b in blocks("python") if "langchain_abc" in b)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "pig" in names["passage"]
    assert names["alike"]


def test_the_plain_example(photos: Path) -> None:
    (example,) = (b for b in blocks("python") if "load_embedder" in b)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["report"].added == len(list((photos / "photos").iterdir()))
    assert "rose-fox.jpg" in {Path(hit.record.source).name for hit in names["answer"].hits}


def test_the_commands(photos: Path) -> None:
    (shell,) = (b for b in blocks("") if "abc-rag index" in b)
    commands = [line.split("#")[0].strip() for line in shell.splitlines() if line.startswith("abc-rag ")]
    assert len(commands) == 5
    for command in commands:
        words = [w.strip('"') for w in re.findall(r'"[^"]*"|\S+', command)][1:]
        done = subprocess.run(
            [sys.executable, "-m", "abc_rag.cli", *words], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
    assert (photos / "answer.html").stat().st_size > 10_000
    assert (photos / "vectors.npy").exists()


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for text in (README, README.parent / "CONTRIBUTING.md"):
        for target in re.findall(r"make ([a-z-]+)", text.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
