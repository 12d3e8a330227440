"""What several test files share."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abc_rag import Image, InstructedImage, Text
from abc_rag.store import Store

FIXTURE = Path(__file__).parent / "fixtures" / "abc"
TOLERANCE = 1e-5

MakeStore = Callable[..., Store]


def as_input(case: dict[str, Any]) -> Text | Image | InstructedImage:
    """The typed input of one record of cases.json."""
    if case["kind"] == "text":
        return Text(case["text"])
    source = str(FIXTURE / case["image"])
    return Image(source) if case["kind"] == "image" else InstructedImage(source, case["text"])


def run_script(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that imports what this process can import."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n" + textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=900.0,
        check=False,
    )
