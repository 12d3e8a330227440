"""Fixtures for the tests of building a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
from authoring_helpers import (
    KEY,
    build,
    by_picture,
    painted,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(4):
        painted(tmp_path / "photos" / f"{seed}.png", seed)
    return tmp_path / "photos"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TEST_CHAT_KEY", KEY)
    return "TEST_CHAT_KEY"


@pytest.fixture
def out(photos: Path) -> Path:
    build(photos, by_picture())
    return photos.parent / "out"
