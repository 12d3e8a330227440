"""Folders and facets into a real embedded Chroma: each facet there once, whatever happened before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import abc_rag
from abc_rag import ChromaStore, Image, Input, InstructedImage, Text
from abc_rag.embedding.embedder import BatchSize
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.images.open import content_hash, open_image
from abc_rag.ingest import paths as ingest
from abc_rag.ingest.paths import index_paths
from abc_rag.ingest.pictures import index_images
from abc_rag.store.records import image_id, text_id
from abc_rag.types import Vectors

LEFT, RIGHT, TOP = (f"what is {where}?" for where in ("on the left", "on the right", "at the top"))


class Counting(FakeEmbedder):
    """Notes what it is given; refuses pictures of a certain width under any instruction."""

    def __init__(self, *, refuse_width: int = 0) -> None:
        super().__init__()
        self.given: list[Input] = []
        self.refuse_width = refuse_width

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        for one in inputs:
            if isinstance(one, InstructedImage) and open_image(one.source).size[0] == self.refuse_width:
                raise InputError("input 0: I do not look at this")
        self.given += inputs
        return super()._embed(inputs, batch_size=batch_size, progress=progress)

    def asked(self) -> list[str]:
        return sorted(one.instruction for one in self.given if isinstance(one, InstructedImage))


def picture(path: Path, colour: str, size: tuple[int, int] = (6, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path)
    return path


def id_of(path: Path) -> str:
    return image_id(content_hash(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = (tmp_path / "in").resolve()
    made.mkdir()
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChromaStore]:
    with ChromaStore(path=tmp_path / "store", fingerprint=FakeEmbedder().fingerprint) as opened:
        yield opened


def test_each_facet_has_its_own_vector(folder: Path, store: ChromaStore) -> None:
    paths = [picture(folder / f"{colour}.png", colour) for colour in ("red", "blue")]
    (folder / "words.txt").write_text("words")
    embedder = Counting()
    report = index_paths([folder], embedder, store, facets=[LEFT, RIGHT, LEFT])
    assert (report.added, report.facets, report.failed) == (3, 4, [])
    assert embedder.asked() == [LEFT] * 2 + [RIGHT] * 2
    assert store.facet_names(store.ids()) == {id_of(path): {LEFT, RIGHT} for path in paths}
    for path in paths:
        for facet in (LEFT, RIGHT):
            expected = FakeEmbedder().embed([InstructedImage(path, facet)])[0]
            np.testing.assert_allclose(store.facet_vectors([id_of(path)], facet)[id_of(path)], expected, atol=1e-6)
            best = store.search(expected, 1)[0]
            assert (best.source, best.facet) == (str(path), facet)
        np.testing.assert_allclose(
            store.vectors([id_of(path)])[id_of(path)], FakeEmbedder().embed([Image(path)])[0], atol=1e-6
        )


def test_a_second_run_adds_nothing_and_a_new_facet_only_itself(folder: Path, store: ChromaStore) -> None:
    for colour in ("red", "blue", "green"):
        picture(folder / f"{colour}.png", colour)
    index_paths([folder], Counting(), store)
    for facets, expected in (
        ([LEFT], [LEFT] * 3),
        ([LEFT], []),
        ([RIGHT, LEFT], [RIGHT] * 3),
        ([], []),
        ([TOP], [TOP] * 3),
    ):
        embedder = Counting()
        report = index_paths([folder], embedder, store, facets=facets)
        assert (report.added, report.unchanged, report.removed, report.failed) == (0, 3, 0, [])
        assert (report.facets, embedder.asked(), len(embedder.given)) == (len(expected), expected, len(expected))
    assert store.facet_names(store.ids()) == {id_: {LEFT, RIGHT, TOP} for id_ in store.ids()}


def test_only_the_picture_that_lacks_a_facet_gets_it(folder: Path, store: ChromaStore) -> None:
    picture(folder / "red.png", "red")
    index_paths([folder], Counting(), store, facets=[LEFT])
    blue = picture(folder / "blue.png", "blue")
    embedder = Counting()
    report = index_paths([folder], embedder, store, facets=[LEFT, RIGHT])
    assert (report.added, report.unchanged, report.facets) == (1, 1, 3)
    assert embedder.asked() == [LEFT, RIGHT, RIGHT]
    assert store.facet_names([id_of(blue)]) == {id_of(blue): {LEFT, RIGHT}}


def test_what_a_caller_stored_gets_facets_too(folder: Path, store: ChromaStore) -> None:
    path = picture(folder / "red.png", "red")
    (id_,) = index_images([path], FakeEmbedder(), store, facets=[LEFT])
    report = index_paths([folder], Counting(), store, facets=[LEFT, RIGHT])
    assert (report.unchanged, report.facets) == (1, 1)
    assert store.facet_names([id_]) == {id_: {LEFT, RIGHT}}


def test_equal_pictures_have_the_facet_once(folder: Path, store: ChromaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "_CHUNK", 1)
    for name in ("a", "b", "c"):
        picture(folder / f"{name}.png", "red")
    embedder = Counting()
    assert index_paths([folder], embedder, store, facets=[LEFT]).facets == 1
    assert embedder.asked() == [LEFT]


def test_a_changed_file_has_the_facets_of_what_it_holds_now(folder: Path, store: ChromaStore) -> None:
    path = picture(folder / "a.png", "red")
    old = id_of(path)
    index_paths([folder], Counting(), store, facets=[LEFT])
    picture(path, "blue")
    report = index_paths([folder], Counting(), store, facets=[LEFT])
    assert (report.added, report.removed, report.facets) == (1, 1, 1)
    assert store.facet_names([old, id_of(path)]) == {id_of(path): {LEFT}}
    expected = FakeEmbedder().embed([InstructedImage(path, LEFT)])[0]
    assert store.search(expected, 1)[0].score == pytest.approx(1)


def test_facets_follow_a_moved_file(folder: Path, store: ChromaStore) -> None:
    path = picture(folder / "a.png", "red")
    index_paths([folder], Counting(), store, facets=[LEFT])
    new = path.rename(folder / "b.png")
    embedder = Counting()
    assert index_paths([folder], embedder, store, facets=[LEFT]).facets == 0
    assert embedder.given == []
    query = FakeEmbedder().embed([InstructedImage(new, LEFT)])[0]
    assert [hit.facet for hit in store.search(query, 1, {"abc:source": str(new)})] == [LEFT]
    assert store.search(query, 1, {"abc:source": str(path)}) == []


def test_one_bad_picture_costs_only_itself(folder: Path, store: ChromaStore) -> None:
    fine = [picture(folder / f"{colour}.png", colour) for colour in ("red", "blue")]
    refused = picture(folder / "m.png", "green", (9, 9))
    (folder / "broken.png").write_bytes(fine[0].read_bytes()[:-20])
    report = index_paths([folder], Counting(refuse_width=9), store, facets=[LEFT, RIGHT])
    assert (report.added, report.facets) == (3, 4)
    assert [(Path(file).name, reason) for file, reason in report.failed if file != str(folder / "broken.png")] == [
        ("m.png", "I do not look at this")
    ]
    assert len(report.failed) == 2
    assert store.facet_names(store.ids()) == {id_of(path): {LEFT, RIGHT} for path in fine}
    # It is stored by itself, and gets its facets as soon as that works.
    again = index_paths([folder], Counting(), store, facets=[LEFT, RIGHT])
    assert (again.added, again.unchanged, again.facets) == (0, 3, 2)
    assert store.facet_names([id_of(refused)]) == {id_of(refused): {LEFT, RIGHT}}


@pytest.mark.parametrize(
    ("facets", "message"), [([" "], "a facet is"), ([LEFT, 3], "a facet is"), (LEFT, "list"), (["\ud800"], "Unicode")]
)
def test_bad_facets_are_refused_before_anything(
    folder: Path, store: ChromaStore, facets: Sequence[str], message: str
) -> None:
    picture(folder / "red.png", "red")
    embedder = Counting()
    with pytest.raises(InputError, match=message):
        index_paths([folder], embedder, store, facets=facets)
    assert (embedder.given, store.count()) == ([], 0)


# -- killed ----------------------------------------------------------------------------------------

# Small groups, so that there is much to be interrupted; dies at the n-th call, before or after it is answered.
DIES = """
import os, signal, sys
from abc_rag import ChromaStore
from abc_rag.embedding import embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.ingest import paths, run
folder, place, at, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
paths._CHUNK = run._MOST_ITEMS = embedder._CHUNK = 2
class Dying(FakeEmbedder):
    calls = 0
    def _embed(self, inputs, **options):
        Dying.calls += 1
        if Dying.calls == at:
            os._exit(9) if how == "exit" else os.kill(os.getpid(), signal.SIGKILL)
        return super()._embed(inputs, **options)
class Store(ChromaStore):
    # Dies right after the write that follows the call.
    def add(self, records, vectors):
        added = super().add(records, vectors)
        if how == "written" and Dying.calls == at - 1 and records:
            os._exit(9)
        return added
store = Store(place, fingerprint=FakeEmbedder().fingerprint)
paths.index_paths([folder], Dying(), store, facets=["left", "right"])
print("done", flush=True)
"""


def run_until_it_dies(folder: Path, place: Path, at: int, how: str) -> str:
    root = str(Path(next(iter(abc_rag.__path__))).parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DIES, str(folder), str(place), str(at), how],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode in (0, 9, -signal.SIGKILL), done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("at", "how"), [(1, "kill"), (2, "exit"), (2, "written"), (3, "kill"), (3, "written"), (4, "exit"), (6, "written")]
)
def test_a_killed_run_is_finished_by_the_next(tmp_path: Path, folder: Path, at: int, how: str) -> None:
    paths = [picture(folder / f"{i}.png", colour) for i, colour in enumerate(["red", "green", "blue", "pink", "gold"])]
    (folder / "words.txt").write_text("one\n\ntwo\n\nthree")
    place = tmp_path / "store"
    assert run_until_it_dies(folder, place, at, how) == ""
    with ChromaStore(place, fingerprint=FakeEmbedder().fingerprint) as store:
        before = set(store.ids())
        had = sum(len(names) for names in store.facet_names(before).values())
        embedder = Counting()
        report = index_paths([folder], embedder, store, facets=["left", "right"])
        assert report.failed == []
        assert (report.added, report.unchanged, report.facets) == (8 - len(before), len(before), 10 - had)
        assert len(embedder.given) == 18 - len(before) - had
        expected = [id_of(path) for path in paths] + [text_id(text) for text in ("one", "two", "three")]
        assert sorted(store.ids()) == sorted(expected)
        assert store.facet_names(expected) == {id_of(path): {"left", "right"} for path in paths}
        for path in paths:
            for facet in ("left", "right"):
                vector = FakeEmbedder().embed([InstructedImage(path, facet)])[0]
                best = store.search(vector, 1)[0]
                assert (best.source, best.facet) == (str(path), facet)
        assert index_paths([folder], Counting(), store, facets=["left", "right"]).facets == 0


def test_an_undisturbed_run_is_what_the_killed_ones_are_measured_by(tmp_path: Path, folder: Path) -> None:
    picture(folder / "0.png", "red")
    assert run_until_it_dies(folder, tmp_path / "store", 99, "kill") == "done\n"


def test_a_model_that_takes_no_instruction_is_told_apart_before_anything_is_stored(tmp_path: Path) -> None:
    class Plain(FakeEmbedder):
        accepts = (Text, Image)

    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    with ChromaStore(tmp_path / "store") as store:
        for index in (
            lambda **facets: index_paths([tmp_path / "red.png"], Plain(), store, **facets),
            lambda **facets: index_images([str(tmp_path / "red.png")], Plain(), store, **facets),
        ):
            with pytest.raises(InputError, match=r"fake does not look at pictures under an instruction.*--facet"):
                index(facets=["what colour?"])
            assert store.count() == 0
        index(facets=[])
        assert store.count() == 1
