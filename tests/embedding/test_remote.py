"""An embedder on a server: the vectors of the engine there, and its errors. The server runs on loopback."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from helpers import FIXTURE
from langchain_abc import ABCEmbeddings
from server_helpers import Running, png, serving

from abc_rag import URL, ChromaStore, Embedder, Image, ImageLimits, InstructedImage, Text, load_embedder
from abc_rag.adapters.chroma import ABCEmbeddingFunction
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.embedding.load import local_revision, open_embedder
from abc_rag.embedding.remote import RemoteEmbedder
from abc_rag.errors import FingerprintMismatchError, ImageFetchError, ImageFormatError, ImageLimitError, InputError
from abc_rag.images.open import as_png, open_pixels
from abc_rag.server import Keys
from abc_rag.types import MaskedImage

SHAPES = FIXTURE / "images" / "shapes_56x56.png"


@pytest.fixture
def remote(running: Running) -> Iterator[RemoteEmbedder]:
    embedder = load_embedder(running.url)
    assert isinstance(embedder, RemoteEmbedder)
    yield embedder
    embedder.close()


def test_facts_are_those_of_the_servers_model(remote: RemoteEmbedder, local: Embedder) -> None:
    facts = ("dim", "fingerprint", "roles")
    assert [getattr(remote, fact) for fact in facts] == [getattr(local, fact) for fact in facts]
    # What parts of a picture say is asked where the model is.
    assert remote.accepts == tuple(kind for kind in local.accepts if kind is not MaskedImage)


@pytest.mark.parametrize(
    "item",
    [
        Text("a pig"),
        Text("a pig", role="query"),
        Image(SHAPES),
        Image(str(SHAPES), role="query"),
        InstructedImage(SHAPES.read_bytes(), "what is on the left?"),
        Image(PIL.Image.new("RGB", (50, 70), (200, 20, 100))),
    ],
    ids=lambda item: f"{type(item).__name__} {item.role}",
)
def test_vectors_are_bit_equal(remote: RemoteEmbedder, local: Embedder, item: Any) -> None:
    # One at a time, as the last bits depend on what is computed together.
    np.testing.assert_array_equal(remote.embed([item]), local.embed([item]))
    np.testing.assert_array_equal(asyncio.run(remote.aembed([item])), local.embed([item]))


def test_many_inputs_keep_their_order(remote: RemoteEmbedder, local: Embedder) -> None:
    inputs = [Text(f"text {n}") if n % 3 else Image(png("blue", (28 + n, 84))) for n in range(70)]
    expected = local.embed(inputs)
    np.testing.assert_allclose(remote.embed(inputs, batch_size=7), expected, atol=1e-6)
    np.testing.assert_allclose(np.stack(list(remote.embed_iter(iter(inputs)))), expected, atol=1e-6)


def test_a_stream_is_read_only_a_little_ahead(remote: RemoteEmbedder) -> None:
    pulled = []

    def inputs() -> Iterator[Text]:
        for n in range(100_000):
            pulled.append(n)
            yield Text(f"text {n}")

    vectors = remote.embed_iter(inputs())
    next(vectors)
    vectors.close()  # type: ignore[attr-defined]
    assert len(pulled) <= 6 * 32


def test_one_bad_input_costs_itself_and_is_named_as_here(remote: RemoteEmbedder, tmp_path: Path) -> None:
    bad, gone = tmp_path / "bad.png", tmp_path / "gone.png"
    bad.write_bytes(b"rubbish")
    inputs = [Text("a"), Image(bad), Image(gone), Image(SHAPES), Text("b", role="nonsense")]
    found = list(remote.embed_iter(inputs, return_errors=True))
    kinds = [np.ndarray, ImageFormatError, ImageFetchError, np.ndarray, InputError]
    assert [type(one) for one in found] == kinds
    assert str(found[1]).startswith(str(bad))
    with pytest.raises(ImageFormatError) as said:
        remote.embed([Text("a"), Image(SHAPES), Image(bad)])
    assert (said.value.position, said.value.source) == (2, str(bad))


def test_a_picture_is_sent_once(remote: RemoteEmbedder, running: Running) -> None:
    data = png("teal", (91, 84))
    before = _puts(running)
    for instruction in ("left?", "right?", "behind?"):
        remote.embed([InstructedImage(data, instruction), Image(data)])
    assert _puts(running) == before + 1


def _puts(running: Running) -> float:
    """How many pictures the server was sent."""
    told = running.client.get("/metrics").text
    lines = [line for line in told.splitlines() if "_requests_total{" in line and 'method="PUT"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_limits_of_both_sides_hold(remote: RemoteEmbedder, running: Running) -> None:
    small = load_embedder(running.url, image_limits=ImageLimits(max_bytes=100))
    with pytest.raises(ImageLimitError, match="max_bytes"):
        small.embed([Image(SHAPES)])
    with pytest.raises(ImageFetchError, match="fetching pictures from URLs is off"):
        remote.embed([Image(URL("http://127.0.0.1:1/a.png"))])


def test_another_model_is_refused(running: Running) -> None:
    with serving(FakeEmbedder(dim=192, model="other")) as other:
        embedder = load_embedder(other.url)
        assert embedder.fingerprint.model == "other"
        # The same client meets the other server, as after a restart with another model.
        embedder._server.url = running.url  # type: ignore[attr-defined]
        embedder.close()  # type: ignore[attr-defined]
        with pytest.raises(FingerprintMismatchError, match=r"has abc-mini@.* now, and had other@"):
            embedder.embed([Text("a")])
        embedder.close()  # type: ignore[attr-defined]


def test_a_server_of_something_else_is_named(running: Running) -> None:
    with pytest.raises(InputError, match="refuses it"):
        load_embedder(f"{running.url}/nowhere").embed([Text("a")])


def test_keys(local: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(tmp_path / "keys.json")
    _, key = keys.add("me")
    with serving(local, keys=keys) as server:
        embedder = load_embedder(server.url)
        with pytest.raises(InputError, match="ABC_RAG_API_KEY"):
            embedder.embed([Text("a")])
        monkeypatch.setenv("ABC_RAG_API_KEY", key)
        assert embedder.embed([Text("a"), Image(SHAPES)]).shape == (2, 192)
        embedder.close()  # type: ignore[attr-defined]


def test_it_stands_wherever_a_model_stands(running: Running, local: Embedder, tmp_path: Path) -> None:
    expected = local.embed([Text("a", role="query")])[0]
    embeddings = ABCEmbeddings(model=running.url)
    np.testing.assert_array_equal(np.float32(embeddings.embed_query("a")), expected)
    again = pickle.loads(pickle.dumps(embeddings.embedder))
    np.testing.assert_array_equal(again.embed([Text("a", role="query")])[0], expected)
    function = ABCEmbeddingFunction(running.url)
    np.testing.assert_array_equal(function(["a"])[0], local.embed([Text("a")])[0])
    rebuilt = ABCEmbeddingFunction.build_from_config(function.get_config())
    np.testing.assert_array_equal(rebuilt(["a"])[0], function(["a"])[0])
    with ChromaStore(tmp_path / "store", fingerprint=again.fingerprint) as store:
        assert store.fingerprint == str(local.fingerprint)


def test_options_are_the_servers(running: Running) -> None:
    with pytest.raises(InputError, match="device, max_tokens cannot be set for a model on a server"):
        load_embedder(running.url, device="cpu", max_tokens=9, image_limits=ImageLimits())
    with pytest.raises(InputError, match="is on a server"):
        open_embedder(running.url)
    assert local_revision(running.url) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "HSV"])
def test_a_pil_image_travels_without_loss(mode: str) -> None:
    ramp = PIL.Image.linear_gradient("L").resize((40, 30))
    image = ramp.convert("RGBA").convert(mode) if mode in ("LA", "RGBA") else ramp.convert(mode.removesuffix(";16"))
    if mode == "I;16":
        image = PIL.Image.fromarray(np.asarray(ramp, dtype=np.uint16) * 200)
    exif = image.getexif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(np.asarray(open_pixels(as_png(image))), np.asarray(open_pixels(image)))
