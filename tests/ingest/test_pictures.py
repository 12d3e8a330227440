"""Pictures of every kind of source into a real embedded Chroma."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import pickle
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from abc_rag import URL, ChromaStore, DataURI, Image, ImageSource, Input, InstructedImage, Record
from abc_rag.embedding import ahead as _ahead
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ImageError, ImageFetchError, ImageFormatError, InputError, PartialIndexError
from abc_rag.images import read as _image_bytes
from abc_rag.images.fetch import fetch
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import content_hash, open_image
from abc_rag.ingest import pictures as _ingest_images
from abc_rag.ingest.pictures import index_images
from abc_rag.store.records import image_id
from abc_rag.types import Fingerprint, Vectors

LEFT, RIGHT = "what is on the left?", "what is on the right?"


class Counting(Embedder):
    """Another embedder, and what it was given; refuses pictures of a certain width."""

    def __init__(self, inner: Embedder | None = None, *, refuse_width: int = 0, under: type = Image) -> None:
        self.inner = inner or FakeEmbedder()
        self.batches: list[list[Input]] = []
        self.refuse_width, self.under = refuse_width, under

    @property
    def dim(self) -> int:
        return self.inner.dim

    @property
    def fingerprint(self) -> Fingerprint:
        return self.inner.fingerprint

    @property
    def embedded(self) -> int:
        return sum(map(len, self.batches))

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        for one in inputs:
            if isinstance(one, self.under) and open_image(one.source).size[0] == self.refuse_width:  # type: ignore[attr-defined]
                raise InputError("I do not look at this")
        self.batches.append(list(inputs))
        return self.inner.embed(inputs, batch_size=batch_size)


def encoded(colour: str, kind: str = "PNG", size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChromaStore]:
    with ChromaStore(path=tmp_path / "store", fingerprint=FakeEmbedder().fingerprint) as opened:
        yield opened


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on loopback with ``/red.png``; this host counts as public meanwhile."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = encoded("red")
            self.send_response(200 if self.path == "/red.png" else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(
        _image_bytes, "fetch", functools.partial(fetch, _address_allowed=lambda address: address == "127.0.0.1")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def sources_of(tmp_path: Path, data: bytes) -> dict[str, ImageSource]:
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    return {
        "str": str(path),
        "path": path,
        "bytes": data,
        "data URI": DataURI("data:image/png;base64," + base64.b64encode(data).decode()),
        "PIL": PIL.Image.open(io.BytesIO(data)).convert("RGB"),
    }


KINDS = ["str", "path", "bytes", "data URI", "PIL"]


# -- sources ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source(store: ChromaStore, tmp_path: Path, kind: str) -> None:
    source = sources_of(tmp_path, encoded("red"))[kind]
    (id_,) = index_images([source], FakeEmbedder(), store)
    digest = content_hash(source)
    assert store.get([id_]) == [
        Record(
            image_id(digest),
            "image",
            source=str(tmp_path / "photo.png") if kind in ("str", "path") else "",
            sha256=digest,
            mime_type="" if kind == "PIL" else "image/png",
        )
    ]
    np.testing.assert_allclose(store.vectors([id_])[id_], FakeEmbedder().embed([Image(source)])[0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_can_be_kept(store: ChromaStore, tmp_path: Path, kind: str) -> None:
    source = sources_of(tmp_path, encoded("red"))[kind]
    expected = FakeEmbedder().embed([Image(source)])[0]
    (id_,) = index_images([source], FakeEmbedder(), store, keep=True)
    (tmp_path / "photo.png").unlink()
    (record,) = store.get([id_])
    assert record.source_type == "path"
    assert tmp_path / "store" in Path(record.source).parents
    data = Path(record.source).read_bytes()
    assert (record.sha256, record.mime_type, id_) == (sha256(data), "image/png", image_id(sha256(data)))
    assert record.picture is not None
    np.testing.assert_allclose(FakeEmbedder().embed([Image(record.picture)])[0], expected, atol=1e-6)
    np.testing.assert_allclose(store.vectors([id_])[id_], expected, atol=1e-6)
    # Kept again, nothing is new.
    embedder = Counting()
    if kind not in ("str", "path"):
        assert index_images([source], embedder, store, keep=True) == [id_]
        assert (embedder.embedded, store.count()) == (0, 1)
        assert len(list((tmp_path / "store" / "pictures").rglob("*.png"))) == 1


def test_relative_paths_are_stored_whole(store: ChromaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "~").mkdir()
    for name in ("a.jpg", "~/b.jpg"):
        (tmp_path / name).write_bytes(encoded(name[0].replace("a", "red").replace("~", "blue"), "JPEG"))
    monkeypatch.chdir(tmp_path)
    ids = index_images(["a.jpg", Path("~/b.jpg")], FakeEmbedder(), store)
    records = store.get(ids)
    assert [record.source for record in records] == [str(tmp_path / "a.jpg"), str(tmp_path / "~" / "b.jpg")]
    assert {record.mime_type for record in records} == {"image/jpeg"}
    assert all(content_hash(record.source) == record.sha256 for record in records)


def test_urls_are_off_unless_allowed(store: ChromaStore, web: str) -> None:
    embedder = Counting()
    with pytest.raises(PartialIndexError, match=r"1 of 1 .*input 0: http.*allow_urls=True") as caught:
        index_images([URL(f"{web}/red.png")], embedder, store)
    assert isinstance(caught.value.failed[0][1], ImageFetchError)
    assert (caught.value.ids, store.count(), embedder.embedded) == ([None], 0, 0)


def test_a_url_is_stored_as_one(store: ChromaStore, web: str) -> None:
    limits = ImageLimits(allow_urls=True)
    source = URL(f"{web}/red.png")
    (id_,) = index_images([source], FakeEmbedder(), store, limits=limits)
    (record,) = store.get([id_])
    assert (record.source, record.source_type, record.picture) == (source.url, "url", source)
    assert (record.sha256, record.mime_type) == (sha256(encoded("red")), "image/png")
    assert content_hash(record.picture, limits=limits) == record.sha256
    with pytest.raises(PartialIndexError, match="404"):
        index_images([URL(f"{web}/blue.png")], FakeEmbedder(), store, limits=limits)


def test_a_url_can_be_kept(store: ChromaStore, web: str) -> None:
    (id_,) = index_images(
        [URL(f"{web}/red.png")], FakeEmbedder(), store, keep=True, limits=ImageLimits(allow_urls=True)
    )
    (record,) = store.get([id_])
    assert record.source_type == "path"
    assert Path(record.source).read_bytes() == encoded("red")


def test_a_kept_camera_photo_is_looked_at_the_same_way(store: ChromaStore) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 4), "red").save(buffer, "JPEG", exif=exif)
    picture = PIL.Image.open(io.BytesIO(buffer.getvalue()))
    ids = index_images([buffer.getvalue(), picture], FakeEmbedder(), store, keep=True)
    records = store.get(ids)
    assert Path(records[0].source).read_bytes() == buffer.getvalue()
    assert [open_image(record.source).size for record in records] == [(4, 8), (4, 8)]


# -- what goes with them ---------------------------------------------------------------------------


def test_ids_captions_and_metadata(store: ChromaStore) -> None:
    images = [encoded("red"), encoded("blue")]
    ids = index_images(
        images, FakeEmbedder(), store, ids=["r", "b"], captions=["red", ""], metadatas=[{"page": 1}, {"page": 2}]
    )
    assert ids == ["r", "b"]
    records = store.get(ids)
    assert [(record.text, record.metadata) for record in records] == [("red", {"page": 1}), ("", {"page": 2})]
    assert [record.sha256 for record in records] == [sha256(data) for data in images]


@pytest.mark.parametrize("name", ["ids", "captions", "metadatas"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_lists_of_another_length_are_refused(store: ChromaStore, name: str, count: int) -> None:
    embedder = Counting()
    values: list[Any] = [{"page": 1} if name == "metadatas" else "x"] * count
    with pytest.raises(InputError, match=f"2 images but {count} {name}"):
        index_images([encoded("red"), encoded("blue")], embedder, store, **{name: values})
    assert (embedder.embedded, store.count()) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": "ab"}, "ids must be a list"),
        ({"captions": "ab"}, "captions must be a list"),
        ({"facets": "what?"}, "facets must be a list"),
        ({"facets": ["what?", " "]}, "a facet is an instruction"),
        ({"facets": ["\ud800"]}, "Unicode"),
        ({"images": "photo.png"}, "images must be a list"),
        ({"images": encoded("red")}, "images must be a list"),
        ({"images": PIL.Image.new("RGB", (2, 2))}, "images must be a list"),
        ({"images": 5}, "images must be a list"),
    ],
)
def test_what_is_no_list(store: ChromaStore, arguments: dict[str, Any], message: str) -> None:
    embedder = Counting()
    images = arguments.pop("images", [encoded("red"), encoded("blue")])
    with pytest.raises(InputError, match=message):
        index_images(images, embedder, store, **arguments)
    assert (embedder.embedded, store.count()) == (0, 0)


def test_facets(store: ChromaStore) -> None:
    images = [encoded("red"), encoded("blue")]
    embedder = Counting()
    assert index_images([], embedder, store, facets=[LEFT]) == []
    ids = index_images(images, embedder, store, facets=[LEFT, RIGHT, LEFT])
    assert embedder.embedded == 2 + 4
    for id_, image in zip(ids, images, strict=True):
        for facet in (LEFT, RIGHT):
            expected = FakeEmbedder().embed([InstructedImage(image, facet)])[0]
            np.testing.assert_allclose(store.facet_vectors([id_], facet)[id_], expected, atol=1e-6)
    assert index_images(images, embedder, store, facets=["more", LEFT]) == ids
    assert embedder.embedded == 2 + 4 + 2
    assert store.facet_names(ids) == {id_: {LEFT, RIGHT, "more"} for id_ in ids}


# -- again -----------------------------------------------------------------------------------------


def test_pictures_are_one_only_where_caption_and_metadata_are_equal_too(store: ChromaStore) -> None:
    red, blue = encoded("red"), encoded("blue")
    embedder = Counting()
    captions, metadatas = ["a", "", "b", "a", ""], [{"sku": 1}, {}, {"sku": 1}, {"sku": 1}, {"sku": 2}]
    ids = index_images(
        [red, blue, red, red, red], embedder, store, captions=captions, metadatas=metadatas, facets=[LEFT]
    )
    assert ids[1] == image_id(sha256(blue))
    assert ids[0] == ids[3] == image_id(sha256(red), "a", {"sku": 1})
    assert len(set(ids)) == store.count() == 4
    # Each picture is embedded once, however many records show it.
    assert embedder.embedded == 4
    assert [(r.text, r.metadata) for r in store.get(ids)] == list(zip(captions, metadatas, strict=True))
    # A later call takes none of them away.
    (later,) = index_images([red], embedder, store, metadatas=[{"sku": 3}])
    assert store.has([*ids, later]) == {*ids, later}


def test_equal_pictures_under_ids_of_their_own(store: ChromaStore) -> None:
    embedder = Counting()
    assert index_images([encoded("red")] * 2, embedder, store, ids=["x", "y"]) == ["x", "y"]
    assert (store.count(), embedder.embedded) == (2, 1)


def test_adding_again_does_not_embed_again(store: ChromaStore) -> None:
    images = [encoded("red"), PIL.Image.new("RGB", (4, 3), "blue")]
    ids = index_images(images, Counting(), store, metadatas=[{"page": 1}, {"page": 2}])
    vectors = store.vectors(ids)
    embedder = Counting()
    assert index_images(images, embedder, store, metadatas=[{"page": 1}, {"page": 2}]) == ids
    assert index_images(images, embedder, store, ids=ids, captions=["r", "b"]) == ids
    assert embedder.embedded == 0
    assert [(record.text, record.metadata) for record in store.get(ids)] == [("r", {}), ("b", {})]
    for id_, row in store.vectors(ids).items():
        np.testing.assert_allclose(row, vectors[id_], atol=1e-6)


@pytest.mark.parametrize("order", ["new last", "new first"])
def test_another_picture_under_an_id_of_the_callers_is_embedded(store: ChromaStore, order: str) -> None:
    red, blue = encoded("red"), encoded("blue")
    index_images([red], FakeEmbedder(), store, ids=["x"], facets=[LEFT])
    pair = [red, blue] if order == "new last" else [blue, red]
    index_images(pair, FakeEmbedder(), store, ids=["x", "x"], facets=[RIGHT])
    (record,) = store.get(["x"])
    assert record.sha256 == sha256(pair[1])
    np.testing.assert_allclose(store.vectors(["x"])["x"], FakeEmbedder().embed([Image(pair[1])])[0], atol=1e-6)
    assert store.facet_names(["x"]) == {"x": {RIGHT} if pair[1] is blue else {LEFT, RIGHT}}
    expected = FakeEmbedder().embed([InstructedImage(pair[1], RIGHT)])[0]
    np.testing.assert_allclose(store.facet_vectors(["x"], RIGHT)["x"], expected, atol=1e-6)


def test_few_are_held_at_once(store: ChromaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [encoded("red", size=(2, i)) for i in range(1, 10)]
    sizes = [len(data) for data in images]
    monkeypatch.setattr(_ingest_images, "_MOST_ITEMS", 3)
    monkeypatch.setattr(_ingest_images, "_MOST_BYTES", sum(sizes[3:5]))
    monkeypatch.setattr(_ahead, "_MOST_BYTES", 1)
    embedder = Counting()
    index_images(images, embedder, store)
    assert [len(batch) for batch in embedder.batches] == [2, 2, 2, 2, 1]
    assert store.count() == len(images)


def test_what_is_on_its_way_counts_as_stored(store: ChromaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ingest_images, "_MOST_ITEMS", 1)
    red, blue = encoded("red"), encoded("blue")
    index_images([red], FakeEmbedder(), store, ids=["x"], facets=[LEFT])
    embedder = Counting()
    # The first drops what the third would find.
    index_images([blue, blue, red], embedder, store, ids=["x", "y", "x"], facets=[LEFT])
    assert embedder.embedded == 6
    assert store.facet_names(["x", "y"]) == {"x": {LEFT}, "y": {LEFT}}
    for id_, image in (("x", red), ("y", blue)):
        expected = FakeEmbedder().embed([InstructedImage(image, LEFT)])[0]
        np.testing.assert_allclose(store.facet_vectors([id_], LEFT)[id_], expected, atol=1e-6)


# -- bad pictures ----------------------------------------------------------------------------------


def test_bad_pictures_cost_only_themselves(store: ChromaStore, tmp_path: Path) -> None:
    fine = [encoded("red"), encoded("blue")]
    bad: list[Any] = [b"<html>", tmp_path / "nowhere.png", 5, DataURI("data:text/plain;base64,AAAA")]
    images = [bad[0], fine[0], bad[1], bad[2], fine[1], bad[3]]
    with pytest.raises(PartialIndexError, match=r"^4 of 6 could not be stored.*input 0: .*and 1 more$") as caught:
        index_images(images, FakeEmbedder(), store, facets=[LEFT])
    red, blue = (image_id(sha256(data)) for data in fine)
    assert caught.value.ids == [None, red, None, None, blue, None]
    assert [position for position, _ in caught.value.failed] == [0, 2, 3, 5]
    assert [type(error) for _, error in caught.value.failed][:2] == [ImageFormatError, ImageFetchError]
    assert set(store.ids()) == {red, blue}
    assert store.facet_names([red, blue]) == {red: {LEFT}, blue: {LEFT}}
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.ids, str(copy)) == (caught.value.ids, str(caught.value))
    assert [(at, str(error)) for at, error in copy.failed] == [(at, str(error)) for at, error in caught.value.failed]
    assert isinstance(copy.failed[0][1], ImageError)


@pytest.mark.parametrize("under", [Image, InstructedImage])
def test_what_the_model_or_the_store_refuses_costs_only_itself(store: ChromaStore, under: type) -> None:
    images = [encoded("red"), encoded("green", size=(9, 9)), encoded("blue"), encoded("gray"), encoded("pink")]
    with pytest.raises(PartialIndexError) as caught:
        index_images(
            images,
            Counting(refuse_width=9, under=under),
            store,
            ids=["a", "b", "c", "d", "e"],
            metadatas=[{}, {}, {"abc:of": "x"}, {}, None],  # type: ignore[list-item]
            facets=[LEFT],
        )
    assert caught.value.ids == ["a", None, None, "d", None]
    assert ["look" in str(error) or "metadata" in str(error) for _, error in caught.value.failed] == [True] * 3
    assert [position for position, _ in caught.value.failed] == [1, 2, 4]
    # Of what failed nothing is there.
    assert set(store.ids()) == {"a", "d"}
    assert store.facet_names(list("abcde")) == {"a": {LEFT}, "d": {LEFT}}


def test_a_server_without_a_folder_keeps_none(server_url: str) -> None:
    with (
        ChromaStore(url=server_url, collection="index-images-kept") as store,
        pytest.raises(PartialIndexError, match="holds no pictures"),
    ):
        index_images([encoded("red")], FakeEmbedder(), store, keep=True)


def test_abc_mini_finds_what_it_indexed(mini: Embedder, tmp_path: Path) -> None:
    with ChromaStore(path=tmp_path / "store", fingerprint=mini.fingerprint) as store:
        images = [encoded(colour, size=(60, 60)) for colour in ("red", "blue")]
        embedder = Counting(mini)
        ids = index_images(images, embedder, store, facets=["the background"])
        assert embedder.embedded == 4
        for id_, image in zip(ids, images, strict=True):
            hits = store.search(mini.embed([InstructedImage(image, "the background")])[0], 2)
            assert (hits[0].id, hits[0].facet) == (id_, "the background")
            assert hits[0].score > 0.999 > hits[1].score
