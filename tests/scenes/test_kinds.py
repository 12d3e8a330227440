"""Archives of drawings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from abc_rag.errors import InputError
from abc_rag.scenes.kinds import BUNDLED, UNSEEN_STYLE, load_kinds
from abc_rag.scenes.world import KINDS


def archive(folder: Path) -> Path:
    """300 kinds beside the world's own, each in two styles, one of which is never trained on."""
    about = {f"thing {n}": {"category": "household object"} for n in range(300)}
    about["dog"] = {"category": "animal"}
    drawings = {
        f"{style}|{kind}": np.full((12, 8, 4), 255, dtype=np.uint8)
        for kind in about
        for style in ("flat", UNSEEN_STYLE)
    }
    file = folder / "kinds.npz"
    np.savez(file, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **drawings)
    return file


def test_without_an_archive_the_kinds_are_the_worlds_own() -> None:
    kinds = load_kinds()
    assert tuple(kinds.categories) == KINDS
    assert kinds.seen == KINDS
    assert kinds.styles("dog") == [BUNDLED]


def test_a_tenth_of_the_kinds_and_one_style_are_never_trained_on(tmp_path: Path) -> None:
    kinds = load_kinds(str(archive(tmp_path)), 363)
    assert len(kinds) == 363
    assert 15 < len(kinds.unseen) < 50
    assert not set(kinds.unseen) & (set(kinds.seen) | set(KINDS))
    assert kinds.styles("dog") == [BUNDLED, "flat"]
    assert kinds.has("dog", UNSEEN_STYLE)
    assert kinds.categories["dog"] == "animal"
    assert kinds.sprite("thing 3", "flat", 24).size == (16, 24)
    assert tuple(load_kinds(str(tmp_path / "kinds.npz"), 100).categories)[:63] == KINDS


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kinds.npz").write_bytes(b"no archive")
    for file in ("kinds.npz", "missing.npz"):
        with pytest.raises(InputError, match=r"draw_kinds\.py"):
            load_kinds(str(tmp_path / file))
