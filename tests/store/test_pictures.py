"""Copies of pictures beside the vectors, and what a record says of its picture; against a real Chroma."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers import MakeStore

from abc_rag import URL
from abc_rag.errors import InputError, StoreError
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.types import Record


def encoded(colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 3), colour).save(buffer, kind)
    return buffer.getvalue()


RED, BLUE = encoded("red"), encoded("blue")
AXES = np.eye(4)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChromaStore]:
    with ChromaStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tmp_path / "store" / "pictures"


def kept(store: ChromaStore, id_: str, data: bytes = RED) -> Record:
    return Record(id_, "image", source=store.keep_picture(data, "image/png"))


# -- copies ----------------------------------------------------------------------------------------


def test_a_copy_is_named_by_its_content(store: ChromaStore, pictures: Path) -> None:
    path = Path(store.keep_picture(RED, "image/png"))
    assert path.is_absolute()
    assert pictures in path.parents
    assert path.name == f"{hashlib.sha256(RED).hexdigest()}.png"
    assert path.read_bytes() == RED
    # Whoever may read the folder may read the picture: drafts would be for their owner alone.
    (path.parent / "another").touch()
    assert path.stat().st_mode == (path.parent / "another").stat().st_mode


@pytest.mark.parametrize("kind", ["bmp", "gif", "jpeg", "png", "tiff", "webp"])
def test_every_kind_that_is_read_is_kept(store: ChromaStore, kind: str) -> None:
    data = encoded("red", kind.upper())
    path = Path(store.keep_picture(data, f"image/{kind}"))
    assert path.read_bytes() == data
    assert path.suffix == {"jpeg": ".jpg"}.get(kind, f".{kind}")


@pytest.mark.parametrize("mime_type", ["", "image/svg+xml", "text/plain", "png"])
def test_another_kind_is_refused(store: ChromaStore, pictures: Path, mime_type: str) -> None:
    with pytest.raises(InputError, match=r"cannot be kept; these can: .*image/png"):
        store.keep_picture(RED, mime_type)
    assert files(pictures) == []


def test_keeping_twice_keeps_once(store: ChromaStore, pictures: Path) -> None:
    first = store.keep_picture(RED, "image/png")
    before = os.stat(first).st_mtime_ns
    assert store.keep_picture(RED, "image/png") == first
    assert os.stat(first).st_mtime_ns == before
    assert store.keep_picture(BLUE, "image/png") != first
    assert len(files(pictures)) == 2


def test_half_a_copy_is_made_whole(store: ChromaStore, pictures: Path) -> None:
    path = Path(store.keep_picture(RED, "image/png"))
    path.write_bytes(RED[:10])
    assert store.keep_picture(RED, "image/png") == str(path)
    assert path.read_bytes() == RED
    assert files(pictures) == [path]


def test_a_copy_that_fails_leaves_nothing(store: ChromaStore, pictures: Path) -> None:
    path = Path(store.keep_picture(RED, "image/png"))
    path.unlink()
    # Something else has its name, and a folder is not replaced by a file.
    path.mkdir()
    with pytest.raises(StoreError, match=r"cannot be kept \(.*make it writable"):
        store.keep_picture(RED, "image/png")
    assert files(pictures) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with (
        ChromaStore(tmp_path / "store", pictures=tmp_path / "taken") as store,
        pytest.raises(StoreError, match=r"taken.*cannot be kept"),
    ):
        store.keep_picture(RED, "image/png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        with ChromaStore(tmp_path / "store", pictures=folder) as store, pytest.raises(StoreError, match="writable"):
            store.keep_picture(RED, "image/png")
    finally:
        folder.chmod(0o700)


# -- records of copies -----------------------------------------------------------------------------


def test_records_have_the_copys_whole_path(store: ChromaStore) -> None:
    record = kept(store, "a")
    store.add([record, kept(store, "b", BLUE)], AXES[:2])
    store.add_facets(["a"], "the colour", AXES[2:3])
    assert store.get(["a"]) == [record]
    assert record in list(store.records())
    for axis in (0, 2):
        hit = store.search(AXES[axis], 1)[0]
        assert hit.record == record
        assert hit.record.picture == Path(record.source)
        assert hit.record.picture.read_bytes() == RED


def test_a_store_can_be_moved(tmp_path: Path) -> None:
    outside = Record("o", "image", source=str(tmp_path / "elsewhere.png"))
    with ChromaStore(tmp_path / "old") as store:
        before = kept(store, "a")
        store.add([before, outside], AXES[:2])
        store.add_facets(["a"], "the colour", AXES[2:3])
    shutil.move(tmp_path / "old", tmp_path / "deep" / "new")
    with ChromaStore(tmp_path / "deep" / "new") as store:
        (after,) = store.get(["a"])
        new = tmp_path / "deep" / "new" / Path(before.source).relative_to(tmp_path / "old")
        assert after == Record("a", "image", source=str(new))
        assert new.read_bytes() == RED
        assert store.search(AXES[2], 1)[0].record == after
        assert store.get(["o"]) == [outside]
        # Written back as it was read, it is still the store's own.
        store.add([after], AXES[:1])
        assert store.facet_names(["a"]) == {"a": {"the colour"}}
        store.delete(["a"])
        assert not new.exists()


def test_a_store_is_opened_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ChromaStore("store") as store:
        (tmp_path / "work").mkdir()
        store.add([kept(store, "a")], AXES[:1])
    monkeypatch.chdir(tmp_path / "work")
    with ChromaStore("../store") as store:
        assert store.get(["a"])[0].picture.read_bytes() == RED


def test_the_copy_goes_with_its_last_record(store: ChromaStore, pictures: Path) -> None:
    store.add([kept(store, "a"), kept(store, "b"), kept(store, "c", BLUE)], AXES[:3])
    assert len(files(pictures)) == 2
    assert store.delete(["a"]) == 1
    assert len(files(pictures)) == 2
    assert store.delete(["b", "missing"]) == 1
    assert [path.read_bytes() for path in files(pictures)] == [BLUE]
    store.delete(["c"])
    assert files(pictures) == []


def test_both_at_once(store: ChromaStore, pictures: Path) -> None:
    store.add([kept(store, "a"), kept(store, "b")], AXES[:2])
    assert store.delete(["a", "b"]) == 2
    assert files(pictures) == []


def test_a_copy_that_is_gone_already_does_not_matter(store: ChromaStore) -> None:
    record = kept(store, "a")
    store.add([record], AXES[:1])
    Path(record.source).unlink()
    assert store.delete(["a"]) == 1


def test_what_another_collection_keeps_stays(tmp_path: Path) -> None:
    with (
        ChromaStore(tmp_path, collection="one") as one,
        ChromaStore(tmp_path, collection="two") as two,
    ):
        one.add([kept(one, "a")], AXES[:1])
        two.add([kept(two, "a")], AXES[:1])
        one.delete(["a"])
        assert two.get(["a"])[0].picture.read_bytes() == RED


def test_the_callers_own_pictures_are_never_deleted(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    own = [photos / "a.png", photos / "abc" / "b.png", photos / "abc" / "ab" / "c.png", tmp_path / "d.png"]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(RED)
    with ChromaStore(tmp_path / "store", pictures=photos) as store:
        records = [Record(path.name, "image", source=str(path)) for path in own]
        store.add(records, np.tile(AXES[0], (4, 1)))
        assert store.get([record.id for record in records]) == records
        assert store.delete(store.ids()) == 4
    assert all(path.read_bytes() == RED for path in own)


# -- a server --------------------------------------------------------------------------------------


def test_a_server_keeps_pictures_where_it_is_told(server_url: str, tmp_path: Path) -> None:
    with ChromaStore(url=server_url, collection="kept-pictures", pictures=tmp_path / "here") as store:
        record = kept(store, "a")
        store.add([record], AXES[:1])
        assert store.get(["a"]) == [record]
        assert record.picture.read_bytes() == RED
    # The folder may be elsewhere for another client.
    shutil.move(tmp_path / "here", tmp_path / "there")
    with ChromaStore(url=server_url, collection="kept-pictures", pictures=tmp_path / "there") as store:
        (record,) = store.get(["a"])
        assert record.picture.read_bytes() == RED
        store.delete(["a"])
        assert files(tmp_path / "there") == []


def test_a_server_without_a_folder_keeps_none(server_url: str) -> None:
    with (
        ChromaStore(url=server_url, collection="kept-nowhere") as store,
        pytest.raises(InputError, match=r"holds no pictures; open the store with pictures=FOLDER"),
    ):
        store.keep_picture(RED, "image/png")


# -- what a record says of its picture -------------------------------------------------------------


def test_where_a_picture_can_be_opened_again() -> None:
    assert Record("a", "image", source="/photos/a.png").picture == Path("/photos/a.png")
    assert Record("a", "image", source="https://x.org/a.png", source_type="url").picture == URL("https://x.org/a.png")
    # A path that looks like a URL is a path.
    assert Record("a", "image", source="https://x.org/a.png").picture == Path("https://x.org/a.png")
    assert Record("a", "image").picture is None
    assert Record("a", "text", source="/notes.md").picture is None


def test_what_is_known_of_a_picture_comes_back(make: MakeStore) -> None:
    store = make()
    sha256 = hashlib.sha256(RED).hexdigest()
    records = [
        Record("a", "image", source="https://x.org/a.png", source_type="url", sha256=sha256, mime_type="image/png"),
        Record("b", "image", source="/b.jpg", metadata={"page": 2}, sha256=sha256[::-1], mime_type="image/jpeg"),
        Record("c", "text", "words", source="https://x.org/", source_type="url"),
    ]
    store.add(records, AXES[:3])
    assert store.get(["a", "b", "c"]) == records
    assert [hit.record for hit in store.search(AXES[1], 1)] == [records[1]]
    found = {
        key: [hit.id for hit in store.search(AXES[0], 9, {f"abc:{key}": value})]
        for key, value in {"mime_type": "image/jpeg", "sha256": sha256, "source_type": "url"}.items()
    }
    assert found == {"mime_type": ["b"], "sha256": ["a"], "source_type": ["a", "c"]}
    # Stored again without them, they are forgotten.
    store.add([Record("a", "image", source="/a.png")], AXES[:1])
    assert store.get(["a"]) == [Record("a", "image", source="/a.png")]


@pytest.mark.parametrize("key", ["abc:sha256", "abc:mime_type", "abc:source_type", "abc:of", "abc:anything"])
def test_own_keys_are_reserved(store: ChromaStore, key: str) -> None:
    with pytest.raises(InputError, match="reserved"):
        store.add([Record("a", "image", metadata={key: "x"})], AXES[:1])
    assert store.count() == 0


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record("a", "image", source_type="ftp"), "source_type must be 'path' or 'url'"),
        (Record("a", "image", sha256=None), "sha256 must be a str"),
        (Record("a", "image", mime_type=b"x"), "mime_type must be a str"),
        (Record("a", "image", mime_type="\ud800"), "Unicode"),
        (Record("a", "image", source=None), "source must be a str"),
        (Record("a", "image", source=5), "source must be a str"),
        (Record("a", "image", metadata=None), "metadata must be a dict"),
        (Record("a", "image", metadata=["x"]), "metadata must be a dict"),
    ],
)
def test_records_that_cannot_be_stored(store: ChromaStore, record: Record, message: str) -> None:
    with pytest.raises(InputError, match=message):
        store.add([record], AXES[:1])
    assert store.count() == 0
