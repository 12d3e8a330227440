"""Which files are read again. What is not read cannot be noticed, which is how these tests see it."""

from __future__ import annotations

import logging
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from ingest_helpers import Counting, counts, passage, picture, sources

from abc_rag import ChromaStore, Record
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.ingest.notes import FileNotes
from abc_rag.ingest.paths import index_paths

OLD = 1_700_000_000_000_000_000


def aged(path: Path, nanoseconds: int = OLD) -> Path:
    os.utime(path, ns=(nanoseconds, nanoseconds))
    return path


def texts(store: ChromaStore) -> set[str]:
    return {record.text for record in store.records()}


def test_a_file_of_the_same_size_and_time_is_not_read_but_to_verify(folder: Path, store: ChromaStore) -> None:
    file = aged(passage(folder / "a.txt", "one"))
    embedder = Counting()
    index_paths([folder], embedder, store)
    aged(passage(file, "two"))  # nothing on the outside tells
    assert counts(index_paths([folder], embedder, store)) == (0, 1, 0, 0)
    assert texts(store) == {"one"}
    assert counts(index_paths([folder], embedder, store, verify=True)) == (1, 0, 1, 0)
    assert texts(store) == {"two"}
    assert counts(index_paths([folder], embedder, store)) == (0, 1, 0, 0)


@pytest.mark.parametrize("size", ["the same", "another"])
def test_a_file_of_another_size_or_time_is_read(size: str, folder: Path, store: ChromaStore) -> None:
    file = aged(passage(folder / "a.txt", "one"))
    index_paths([folder], Counting(), store)
    aged(passage(file, "two" if size == "the same" else "three"), OLD + (size == "the same"))
    assert counts(index_paths([folder], Counting(), store)) == (1, 0, 1, 0)


def test_another_time_of_the_same_content_is_noted(folder: Path, store: ChromaStore) -> None:
    file = aged(picture(folder / "a.bmp", "red"))
    other = picture(folder.parent / "b.bmp", "blue").read_bytes()
    index_paths([folder], Counting(), store)
    aged(file, OLD + 1)
    embedder = Counting()
    assert counts(index_paths([folder], embedder, store)) == (0, 1, 0, 0)
    assert embedder.embedded == 0
    assert len(other) == file.stat().st_size
    file.write_bytes(other)
    aged(file, OLD + 1)
    assert counts(index_paths([folder], embedder, store)) == (0, 1, 0, 0)  # by the new note


def test_what_was_written_a_moment_ago_is_told_from_what_is_written_now(tmp_path: Path) -> None:
    """Two changes within a tick of the clock have one time."""
    file = passage(tmp_path / "a.txt", "one")
    now = time.time_ns()
    whole = now - now % 1_000_000_000
    with FileNotes(tmp_path / "notes") as notes:
        aged(file, whole)  # on a file system that knows whole seconds, or pairs of them
        notes.put(str(file), "text", notes.before(str(file)), ["x"])
        aged(file, now + 3_600_000_000_000 + 1)  # in the future
        notes.put(str(file), "text", notes.before(str(file)), ["x"])
        notes.flush()
        assert notes.ids(str(file), "text") is None
        os.utime(file)
        before = notes.before(str(file))
        assert before is None or time.time_ns() - before.st_mtime_ns >= 50_000_000
        aged(file)
        before = notes.before(str(file))
        passage(file, "while it was read")
        notes.put(str(file), "text", before, ["x"])
        notes.flush()
        assert notes.ids(str(file), "text") is None
        aged(file)
        notes.put(str(file), "text", notes.before(str(file)), ["x", "y"])
        notes.flush()
        assert notes.ids(str(file), "text") == ["x", "y"]
        assert notes.ids(str(file), "image") is None


def test_what_the_store_has_lost_is_read_and_embedded_again(folder: Path, store: ChromaStore) -> None:
    aged(passage(folder / "a.txt", "one\n\ntwo"))
    index_paths([folder], Counting(), store)
    store.delete(list(store.ids())[:1])
    assert counts(index_paths([folder], Counting(), store)) == (1, 1, 0, 0)


def test_facets_that_are_lacking_are_added(folder: Path, store: ChromaStore) -> None:
    aged(picture(folder / "a.png", "red"))
    index_paths([folder], Counting(), store)
    assert index_paths([folder], Counting(), store, facets=["left?"]).facets == 1
    assert index_paths([folder], Counting(), store, facets=["left?"]).facets == 0


def test_a_moved_file_is_known_by_its_content(folder: Path, store: ChromaStore) -> None:
    file = aged(picture(folder / "a.png", "red"))
    aged(passage(folder / "b.txt", "one"))
    embedder = Counting()
    index_paths([folder], embedder, store)
    file.rename(folder / "c.png")
    report = index_paths([folder], embedder, store, prune=True)
    assert (counts(report), embedder.embedded) == ((0, 2, 0, 0), 2)
    assert set(sources(store).values()) == {str(folder / "b.txt"), str(folder / "c.png")}


def test_what_an_interrupted_run_left_behind_is_tidied_up_without_reading(folder: Path, store: ChromaStore) -> None:
    file = aged(passage(folder / "a.txt", "one"))
    index_paths([folder], Counting(), store)
    with ChromaStore(folder.parent / "other", fingerprint=FakeEmbedder().fingerprint) as other:
        aged(passage(file, "two"), OLD + 1)
        index_paths([folder], Counting(), other)
        store.add(list(other.records()), list(other.vectors(other.ids()).values()))
    # As if the run had ended between the new content and the removal of the old.
    index_paths([folder], Counting(), store)
    assert texts(store) == {"two"}


def test_notes_that_cannot_be_used_cost_nothing_but_time(
    folder: Path, store: ChromaStore, caplog: pytest.LogCaptureFixture
) -> None:
    aged(passage(folder / "a.txt", "one"))
    store.notes_file.write_bytes(b"no database " * 100)
    with caplog.at_level(logging.WARNING):
        index_paths([folder], Counting(), store)
    assert str(store.notes_file) in caplog.text
    assert counts(index_paths([folder], Counting(), store)) == (0, 1, 0, 0)
    store.notes_file.unlink()
    os.mkfifo(store.notes_file)
    assert counts(index_paths([folder], Counting(), store)) == (0, 1, 0, 0)


def test_a_server_has_its_notes_with_the_users_state(server_url: str, folder: Path, store: ChromaStore) -> None:
    with ChromaStore(url=server_url, collection="notes-of-files") as served:
        assert served.notes_file.parent != store.notes_file.parent
        aged(passage(folder / "a.txt", "one"))
        index_paths([folder], Counting(), served)
        assert served.notes_file.is_file()
        aged(passage(folder / "a.txt", "two"))
        assert counts(index_paths([folder], Counting(), served)) == (0, 1, 0, 0)


def test_memory_does_not_grow_with_the_store(folder: Path, tmp_path: Path) -> None:
    """A run over one file reads the records of a store a page at a time."""
    aged(passage(folder / "a.txt", "one"))
    most = []
    for count in (2000, 6000):
        with ChromaStore(tmp_path / str(count), fingerprint=FakeEmbedder().fingerprint) as store:
            records = [Record(f"r{i}", "text", f"passage {i}", f"/far/{i}.txt", {"n": i}) for i in range(count)]
            store.add(records, np.random.default_rng(0).standard_normal((count, FakeEmbedder().dim)))
            index_paths([folder], Counting(), store)
            tracemalloc.start()
            index_paths([folder], Counting(), store)
            most.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert most[1] < most[0] + 400_000
