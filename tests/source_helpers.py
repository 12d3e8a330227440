"""Rows and files of training data, for the tests of their sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from abc_rag.training.data.sources import (
    CaptionSource,
    PairsSource,
)


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not opened here")


def captioned(name: str = "a.jpg", caption: str = "a dog", **more: Any) -> dict[str, Any]:
    return {"image": name, "caption": caption, **more}


def paired(name: str = "a.jpg", *pairs: tuple[str, str], **more: Any) -> dict[str, Any]:
    pairs = pairs or (("what?", "a dog"),)
    return {"image": name, "pairs": [{"instruction": i, "phrase": p} for i, p in pairs], **more}


def texts(candidates: Any) -> list[str]:
    return [candidate.text for candidate in candidates]


def problems(source: CaptionSource | PairsSource) -> dict[str, int]:
    return dict(source.bad.by_problem)
