"""Folders into a real embedded Chroma: nothing twice, nothing lost, and one bad file costs only itself."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from ingest_helpers import Counting, Index, counts, id_of, passage, picture, sources

import abc_rag.embedding.ahead
import abc_rag.embedding.embedder
from abc_rag import ChromaStore, EngineSettings, Image, Input, InstructedImage, Record, load_embedder
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.embedding.settings import WorkerKind
from abc_rag.errors import InputError, PartialIndexError
from abc_rag.images import read
from abc_rag.images.limits import ImageLimits
from abc_rag.ingest import paths as ingest
from abc_rag.ingest import run
from abc_rag.ingest.passages import passages_of
from abc_rag.ingest.paths import index_paths
from abc_rag.ingest.pictures import index_images
from abc_rag.store.records import text_id
from abc_rag.types import Vectors

# --- Again ------------------------------------------------------------------------------------------------


def test_a_second_run_embeds_nothing(folder: Path, store: ChromaStore, index: Index) -> None:
    picture(folder / "a.png", "red")
    passage(folder / "b.txt", "one\n\ntwo")
    assert index()[1] == 3
    before = {record.id: record for record in store.records()}
    report, embedded = index()
    assert (counts(report), embedded) == ((0, 3, 0, 0), 0)
    assert {record.id: record for record in store.records()} == before


def test_only_what_is_new_is_embedded(folder: Path, index: Index) -> None:
    passage(folder / "a.txt", "one")
    index()
    passage(folder / "b.txt", "two")
    passage(folder / "a.txt", "one\n\nthree")
    report, embedded = index()
    assert (counts(report), embedded) == ((2, 1, 0, 0), 2)


@pytest.mark.parametrize("apart", [False, True])
def test_a_moved_file_gets_its_new_source_and_keeps_its_vector(
    apart: bool, folder: Path, store: ChromaStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    if apart:
        monkeypatch.setattr(ingest, "_CHUNK", 1)
    old = picture(folder / "old.png", "red")
    words = passage(folder / "old.txt", "words")
    index()
    vectors = store.vectors([id_of(old), text_id("words")])
    (folder / "new").mkdir()
    new = old.rename(folder / "new" / "photo.png")
    new_words = words.rename(folder / "new" / "words.txt")
    report, embedded = index()
    assert (counts(report), embedded) == ((0, 2, 0, 0), 0)
    assert sources(store) == {id_of(new): str(new), text_id("words"): str(new_words)}
    after = store.vectors(vectors)
    for name, vector in vectors.items():
        np.testing.assert_allclose(after[name], vector, atol=1e-6)


def test_many_moved_files(folder: Path, store: ChromaStore, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "_PAGE", 2)
    for i in range(5):
        passage(folder / "old" / f"{i}.txt", f"passage {i}")
    index()
    (folder / "old").rename(folder / "new")
    report, embedded = index()
    assert (counts(report), embedded) == ((0, 5, 0, 0), 0)
    assert sources(store) == {text_id(f"passage {i}"): str(folder / "new" / f"{i}.txt") for i in range(5)}


def test_a_moved_record_keeps_its_caption_and_metadata(folder: Path, store: ChromaStore, index: Index) -> None:
    old = picture(folder / "old.png", "red")
    record = Record(id_of(old), "image", text="a red wall", source=str(old), metadata={"year": 1999})
    store.add([record], FakeEmbedder().embed_images([old]))
    new = old.rename(folder / "new.png")
    assert index()[1] == 0
    assert list(store.records()) == [
        Record(record.id, "image", text="a red wall", source=str(new), metadata={"year": 1999})
    ]


def test_a_replaced_file_takes_the_place_of_what_it_held(folder: Path, store: ChromaStore, index: Index) -> None:
    path = picture(folder / "a.png", "red")
    words = passage(folder / "b.txt", "stays\n\ngoes")
    index()
    picture(path, "blue")
    passage(words, "stays\n\ncomes")
    report, embedded = index()
    assert (counts(report), embedded) == ((2, 1, 2, 0), 2)
    assert sources(store) == {
        id_of(path): str(path),
        text_id("stays"): str(words),
        text_id("comes"): str(words),
    }
    assert counts(index()[0]) == (0, 3, 0, 0)


def test_an_emptied_text_leaves_nothing(folder: Path, store: ChromaStore, index: Index) -> None:
    words = passage(folder / "b.txt", "one\n\ntwo")
    index()
    passage(words, "")
    assert counts(index()[0]) == (0, 0, 2, 0)
    assert store.count() == 0


@pytest.mark.parametrize("apart", [False, True])
def test_two_files_that_swap_contents(
    apart: bool, folder: Path, store: ChromaStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    if apart:
        monkeypatch.setattr(ingest, "_CHUNK", 1)
    a, b = picture(folder / "a.png", "red"), picture(folder / "b.png", "blue")
    index()
    held = a.read_bytes(), b.read_bytes()
    b.write_bytes(held[0])
    a.write_bytes(held[1])
    report, embedded = index()
    assert (counts(report), embedded) == ((0, 2, 0, 0), 0)
    assert sources(store) == {id_of(a): str(a), id_of(b): str(b)}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("copy", ["a.png", "z.png"])
def test_what_one_file_lost_and_another_still_holds_stays(
    copy: str, apart: bool, folder: Path, store: ChromaStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    if apart:
        monkeypatch.setattr(ingest, "_CHUNK", 1)
    first = picture(folder / "m.png", "red")
    index()
    kept = Path(shutil.copy(first, folder / copy))
    index()
    picture(first, "blue")
    report, embedded = index()
    assert (counts(report), embedded) == ((1, 1, 0, 0), 1)
    assert sources(store) == {id_of(kept): str(kept), id_of(first): str(first)}


def test_records_of_the_callers_own_are_left_alone(folder: Path, store: ChromaStore, index: Index) -> None:
    path = picture(folder / "a.png", "red")
    words = passage(folder / "b.txt", "words")
    own = [
        Record("my-own-id", "image", source=str(path)),
        Record("mine-too", "text", text="a summary", source=str(words)),
        Record(text_id("a caption"), "text", text="a caption", source=str(path)),
    ]
    store.add(own, FakeEmbedder().embed_texts(["x", "y", "z"]))
    assert counts(index()[0]) == (2, 0, 0, 0)
    assert store.get([record.id for record in own]) == own


@pytest.mark.parametrize("source", ["https://example.org/a.png", "catalogue, page 7", ""])
def test_a_source_that_is_no_path_is_the_callers_word(
    source: str, folder: Path, store: ChromaStore, index: Index
) -> None:
    path = picture(folder / "a.png", "red")
    store.add([Record(id_of(path), "image", source=source)], FakeEmbedder().embed_images([path]))
    report, embedded = index()
    assert (counts(report), embedded) == ((0, 1, 0, 0), 0)
    assert sources(store) == {id_of(path): source}


# --- Interrupted ------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_stopped(folder: Path, store: ChromaStore) -> None:
    for i in range(150):
        passage(folder / f"{i:03}.txt", f"passage {i}")
    first = Counting(interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        index_paths([folder], first, store)
    assert 0 < first.embedded < 150
    assert store.count() == first.embedded
    second = Counting()
    report = index_paths([folder], second, store)
    assert counts(report) == (150 - first.embedded, first.embedded, 0, 0)
    assert second.embedded == 150 - first.embedded
    assert sources(store) == {text_id(f"passage {i}"): str(folder / f"{i:03}.txt") for i in range(150)}


def test_an_interrupt_loses_neither_the_old_nor_the_new(
    folder: Path, store: ChromaStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_CHUNK", 1)
    monkeypatch.setattr(abc_rag.embedding.embedder, "_CHUNK", 1)
    files = [passage(folder / f"{i}.txt", f"old {i}") for i in range(3)]
    index()
    for i, file in enumerate(files):
        passage(file, f"new {i}")
    with pytest.raises(KeyboardInterrupt):
        index_paths([folder], Counting(interrupt_at=3), store)
    held = {record.text for record in store.records()}
    assert {"new 0", "new 1", "old 2"} <= held
    report, embedded = index()
    assert (report.added, report.removed, embedded) == (1, 3, 1)
    assert {record.text for record in store.records()} == {f"new {i}" for i in range(3)}


def test_a_long_text_is_stored_bit_by_bit(folder: Path, store: ChromaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_MOST_ITEMS", 10)
    monkeypatch.setattr(abc_rag.embedding.embedder, "_CHUNK", 10)
    passage(folder / "long.txt", "\n\n".join(f"passage {i}" for i in range(35)))
    first = Counting(interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        index_paths([folder], first, store)
    assert store.count() == first.embedded == 20
    second = Counting()
    assert counts(index_paths([folder], second, store)) == (15, 20, 0, 0)
    assert [len(batch) for batch in second.batches] == [10, 5]


def test_few_bytes_are_held_at_once(folder: Path, store: ChromaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = ["red", "green", "blue", "white", "black"]
    sizes = [len(picture(folder / f"{i}.png", colour).read_bytes()) for i, colour in enumerate(colours)]
    # Three files are read together, and embedded before others are read.
    monkeypatch.setattr(ingest, "_MOST_BYTES", sum(sizes[:3]))
    monkeypatch.setattr(abc_rag.embedding.ahead, "_MOST_BYTES", sum(sizes[:3]))
    embedder = Counting()
    assert counts(index_paths([folder], embedder, store)) == (5, 0, 0, 0)
    assert [len(batch) for batch in embedder.batches] == [3, 2]
    assert store.count() == 5


# --- Bad files --------------------------------------------------------------------------------------------


def test_bad_files_cost_only_themselves(folder: Path, store: ChromaStore, index: Index) -> None:
    fine = [picture(folder / "fine.png", "red"), picture(folder / "z.jpg", "blue")]
    passage(folder / "fine.txt", "words")
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).save(buffer, "PNG")
    bad = {
        "truncated.png": buffer.getvalue()[:-400],
        "not-a-picture.jpg": b"<html>no such page</html>",
        "empty.png": b"",
        "latin1.txt": "gr\u00fc\u00dfe".encode("latin-1"),
        "binary.md": bytes(range(256)),
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (folder / "dangling.png").symlink_to(folder / "nothing")
    (folder / "dangling.txt").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.txt")
    os.mkfifo(folder / "pipe.png")
    report, embedded = index()
    assert (report.added, embedded) == (3, 3)
    assert store.count() == 3
    assert store.has([id_of(p) for p in fine] + [text_id("words")]) == set(store.ids())
    reasons = {Path(file).name: reason for file, reason in report.failed}
    assert len(report.failed) == len(reasons)
    for name, said in {
        "truncated.png": "corrupt or truncated",
        "not-a-picture.jpg": "web page",
        "empty.png": "0 bytes",
        "latin1.txt": "not UTF-8",
        "binary.md": "not UTF-8",
        "dangling.png": "No such file",
        "dangling.txt": "No such file",
        "pipe.txt": "not a regular file",
        "pipe.png": "not a regular file",
    }.items():
        assert said in reasons.pop(name), name
    assert not reasons
    assert all(os.path.isabs(file) and str(folder) not in reason for file, reason in report.failed)
    assert index()[1] == 0


def test_two_copies_of_a_bad_picture_are_both_named(folder: Path, index: Index) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    report, _ = index()
    assert [Path(file).name for file, _ in report.failed] == ["a.png", "b.png"]


def test_what_a_file_held_stays_while_it_is_unusable(folder: Path, store: ChromaStore, index: Index) -> None:
    path = picture(folder / "a.png", "red")
    words = passage(folder / "b.txt", "words")
    good = path.read_bytes()
    index()
    path.write_bytes(good[:30])
    words.write_bytes(b"\xff\xfe\x00")
    assert counts(index()[0]) == (0, 0, 0, 2)
    assert store.count() == 2
    path.write_bytes(good)
    passage(words, "words")
    assert counts(index()[0]) == (0, 2, 0, 0)


def test_a_file_of_another_kind_is_refused_where_it_is_named(folder: Path, index: Index) -> None:
    picture(folder / "a.png", "red")
    other = passage(folder / "notes.rst", "text")
    report, _ = index(folder, other)
    assert report.added == 1
    assert [file for file, _ in report.failed] == [str(other)]
    assert ".txt" in report.failed[0][1]
    assert ".png" in report.failed[0][1]


def test_limits_are_kept(folder: Path, index: Index) -> None:
    picture(folder / "small.png", "red")
    wide = picture(folder / "wide.png", "blue", (40, 30))
    report, _ = index(limits=ImageLimits(max_pixels=1000))
    assert report.added == 1
    assert [file for file, _ in report.failed] == [str(wide)]
    assert "max_pixels" in report.failed[0][1]


def test_too_large_a_text(folder: Path, index: Index) -> None:
    passage(folder / "small.txt", "words")
    large = folder / "large.txt"
    with large.open("wb") as file:
        file.truncate(20 * 2**20 + 1)
    report, _ = index()
    assert report.added == 1
    assert [(file, "20 MiB" in reason) for file, reason in report.failed] == [(str(large), True)]
    with large.open("wb") as file:
        file.write(b"a" * 10 + b"\n" * (20 * 2**20 - 10))
    assert passages_of(large) == ["a" * 10]


def test_a_name_that_is_not_unicode_costs_only_itself(folder: Path, store: ChromaStore, index: Index) -> None:
    picture(folder / "a.png", "red")
    odd = os.path.join(os.fsencode(folder), b"caf\xe9.png")
    shutil.copy(folder / "a.png", odd)
    shutil.copy(folder / "a.png", odd.replace(b".png", b".txt"))
    report, _ = index()
    assert store.count() == report.added == 1
    assert [os.fsencode(file)[-8:] for file, _ in report.failed] == [b"caf\xe9.png", b"caf\xe9.txt"]
    assert all("Unicode" in reason for _, reason in report.failed)


def test_a_folder_that_cannot_be_listed_is_reported(folder: Path, index: Index) -> None:
    picture(folder / "a.png", "red")
    # Deeper than the system takes in one path.
    name, here = "d" * 250, os.open(folder, os.O_RDONLY)
    try:
        for _ in range(20):
            os.mkdir(name, dir_fd=here)
            deeper = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = deeper
    finally:
        os.close(here)
    report, _ = index()
    assert report.added == 1
    assert len(report.failed) == 1
    assert "cannot be listed" in report.failed[0][1]
    assert report.failed[0][0].endswith(name)


def test_an_item_that_the_model_refuses_costs_only_itself(folder: Path, store: ChromaStore) -> None:
    passage(folder / "a.txt", "fine 1\n\nforbidden 1\n\nfine 2")
    passage(folder / "b.txt", "fine 3")
    passage(folder / "c.txt", "forbidden 1")
    red = picture(folder / "d.png", "red")
    report = index_paths([folder], Counting(refuse="forbidden"), store)
    assert report.added == 4
    assert set(store.ids()) == {text_id(f"fine {i}") for i in (1, 2, 3)} | {id_of(red)}
    assert [Path(file).name for file, _ in report.failed] == ["a.txt", "c.txt"]
    assert {reason for _, reason in report.failed} == {"I do not embed 'forbidden'"}
    # What it refuses is tried again, and only that.
    again = Counting()
    assert counts(index_paths([folder], again, store)) == (1, 4, 0, 0)
    assert again.embedded == 1


def test_a_picture_is_read_once_and_reaches_the_embedder_as_it_is(
    folder: Path, store: ChromaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(folder / "a.jpg", "red")
    reads: list[str] = []
    read_file = read._read_file

    def noted(name: str, *others: Any) -> bytes:
        reads.append(name)
        return read_file(name, *others)

    monkeypatch.setattr(read, "_read_file", noted)
    embedder = Counting()
    index_paths([path], embedder, store, facets=["what is on the left?"])
    assert reads == [str(path)]
    ((whole, left),) = embedder.batches
    assert (whole, left) == (Image(path.read_bytes()), InstructedImage(path.read_bytes(), "what is on the left?"))


# --- The model --------------------------------------------------------------------------------------------


def test_abc_mini_finds_what_it_indexed(mini: Embedder, tmp_path: Path) -> None:
    red, blue = picture(tmp_path / "a.png", "red", (60, 60)), picture(tmp_path / "b.png", "blue", (60, 60))
    with ChromaStore(path=tmp_path / "store", fingerprint=mini.fingerprint) as store:
        assert counts(index_paths([red, blue], mini, store)) == (2, 0, 0, 0)
        for path in (red, blue):
            best = store.search(mini.embed([Image(path)])[0], k=2)
            assert best[0].record.source == str(path)
            assert best[0].score > 0.999 > best[1].score


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_what_a_worker_cannot_open_is_named_by_its_file(kind: WorkerKind, tmp_path: Path) -> None:
    fine = [picture(tmp_path / f"{colour}.png", colour, (60, 60)) for colour in ("red", "blue")]
    bad = tmp_path / "green.png"
    bad.write_bytes(picture(tmp_path / "green.png", "green", (60, 60)).read_bytes()[:-20])
    model = load_embedder("abc-mini", device="cpu", engine=EngineSettings(workers=2, worker_kind=kind))
    with ChromaStore(path=tmp_path / "one", fingerprint=model.fingerprint) as store:
        report = index_paths([tmp_path], model, store, facets=["what is on the left?"])
        assert (report.added, report.facets) == (2, 2)
        ((file, reason),) = report.failed
        assert file == str(bad)
        assert reason.startswith("cannot be decoded as PNG")
    with ChromaStore(path=tmp_path / "two", fingerprint=model.fingerprint) as store:
        with pytest.raises(PartialIndexError, match=r"input 1: .*green\.png: cannot be decoded as PNG") as caught:
            index_images([fine[0], bad, fine[1]], model, store)
        assert caught.value.ids == [id_of(fine[0]), None, id_of(fine[1])]
    model.close()  # type: ignore[attr-defined]


def test_what_came_from_files_that_are_gone_is_removed_where_that_is_asked_for(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder, colours in ((inside, ("red", "green", "blue")), (outside, ("white",))):
        (folder / "sub").mkdir(parents=True)
        for colour in colours:
            PIL.Image.new("RGB", (9, 9), colour).save(folder / "sub" / f"{colour}.png")
    (inside / "notes.txt").write_text("one\n\ntwo")
    embedder = FakeEmbedder()
    with ChromaStore(tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        index_paths([inside, outside], embedder, store)
        own = Record("mine", "image", source=str(inside / "sub" / "never-there.png"))
        store.add([own], embedder.embed_texts(["mine"]))
        (inside / "sub" / "red.png").unlink()
        (inside / "sub" / "green.png").rename(inside / "moved.png")
        (outside / "sub" / "white.png").unlink()
        (inside / "notes.txt").unlink()
        assert index_paths([inside], embedder, store).removed == 0
        with pytest.raises(InputError, match=r"inside: 2 of 4 indexed files are gone.*prune_most=0\.4"):
            index_paths([inside], embedder, store, prune=True, prune_most=0.4)
        report = index_paths([inside], embedder, store, prune=True)
        assert report.removed == 3  # the red picture and both passages
        left = {(record.id, Path(record.source).name) for record in store.records()}
        assert {name for _, name in left} == {"moved.png", "blue.png", "white.png", "never-there.png"}
        assert ("mine", "never-there.png") in left  # a caller's own record
        assert index_paths([inside], embedder, store, prune=True).removed == 0


@pytest.mark.parametrize("how", ["empty", "unmounted"])
def test_an_empty_folder_is_not_pruned(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    for colour in ("red", "green", "blue"):
        picture(folder / "sub" / f"{colour}.png", colour)
    embedder = FakeEmbedder()
    with ChromaStore(tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        index_paths([folder], embedder, store)
        shutil.rmtree(folder / "sub")
        if how == "unmounted":
            passage(folder / "README", "mount the disk here")
        for most in (0.5, 1.0):
            with pytest.raises(InputError, match="has become empty, and 3 files"):
                index_paths([folder], embedder, store, prune=True, prune_most=most)
        assert store.count() == 3


@pytest.mark.parametrize(("seconds", "stored"), [(0.0, [0, 1, 2, 3, 4]), (1e9, [0, 0, 0, 0, 0])])
def test_what_is_finished_is_stored_by_time(
    seconds: float, stored: list[int], folder: Path, store: ChromaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        passage(folder / f"{number}.txt", f"passage {number}")
    monkeypatch.setattr(abc_rag.embedding.embedder, "_CHUNK", 1)
    monkeypatch.setattr(run, "_COMMIT_S", seconds)
    seen: list[int] = []

    class Looking(FakeEmbedder):
        def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
            seen.append(store.count())
            return super()._embed(inputs, batch_size=batch_size, progress=progress)

    index_paths([folder], Looking(), store)
    assert seen == stored
    assert store.count() == 5
