"""Waiting for changes, with the real watcher: waits end with events, not with clocks."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from abc_rag.errors import InputError
from abc_rag.ingest.watch import changes

pytest.importorskip("watchfiles", reason="the extra watch is not installed")


def test_changes_in_folders_and_files_but_not_in_the_store(tmp_path: Path) -> None:
    folder, store, lone = tmp_path / "in", tmp_path / "in" / "store", tmp_path / "lone.txt"
    store.mkdir(parents=True)
    lone.write_text("words")
    stop = threading.Event()
    watched = changes([folder, lone], leave_out=[store], stop=stop)
    assert next(watched) == set()
    (store / "chroma.sqlite3").write_text("x")
    (tmp_path / "other.txt").write_text("beside the file, and not asked for")
    (folder / "a.txt").write_text("words")
    seen = next(watched)
    while str(folder / "a.txt") not in seen:
        seen |= next(watched)
    os.replace(folder / "a.txt", lone)
    while not {str(folder / "a.txt"), str(lone)} <= seen:
        seen |= next(watched)
    assert seen == {str(folder / "a.txt"), str(lone)}
    stop.set()
    assert list(watched) == []


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        next(changes([tmp_path / "nowhere" / "deep"]))
