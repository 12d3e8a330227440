"""What the base class does for every embedder: one kind of input in, checked unit rows out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from abc_rag import URL, DataURI, Image, Input, InstructedImage, Text, load_embedder
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ABCRagError, InputError
from abc_rag.types import Vectors

PICTURE = PIL.Image.new("RGB", (4, 4), "red")


class Recording(FakeEmbedder):
    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        self.given = (list(inputs), batch_size, progress)
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


class Broken(FakeEmbedder):
    def __init__(self, returned: Any) -> None:
        super().__init__(dim=4)
        self.returned = returned

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        return self.returned  # type: ignore[no-any-return]


def test_an_embedder_must_be_complete() -> None:
    class Half(Embedder):
        @property
        def dim(self) -> int:
            return 3

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_inputs_arrive_in_order_with_their_settings() -> None:
    embedder = Recording()
    inputs = [Text("a"), Image(PICTURE), InstructedImage(PICTURE, ""), Text("b")]
    embedder.embed(iter(inputs), batch_size=3, progress=True)
    assert embedder.given == (inputs, 3, True)
    embedder.embed(inputs)
    assert embedder.given == (inputs, "auto", False)


def test_texts_and_pictures_become_typed_inputs() -> None:
    embedder = Recording()
    embedder.embed_texts((t for t in ("photo.jpg", "https://example.org")), batch_size=2)
    assert embedder.given == ([Text("photo.jpg"), Text("https://example.org")], 2, False)
    embedder.embed_images([PICTURE], progress=True)
    assert embedder.given == ([Image(PICTURE)], "auto", True)
    embedder.embed_images([PICTURE], instruction="")
    assert embedder.given[0] == [InstructedImage(PICTURE, "")]
    embedder.embed_images([PICTURE, PICTURE], instruction="the left")
    assert embedder.given[0] == [InstructedImage(PICTURE, "the left")] * 2


def test_nothing_gives_no_rows_and_asks_no_model() -> None:
    embedder = Recording(dim=7)
    for empty in (embedder.embed([]), embedder.embed_texts([]), embedder.embed_images(iter(()))):
        assert (empty.shape, empty.dtype) == ((0, 7), np.float32)
    assert not hasattr(embedder, "given")


@pytest.mark.parametrize(
    "single", ["a.png", b"bytes", Path("a.png"), URL("https://example.org"), DataURI("data:,"), PICTURE, 5, None]
)
def test_a_single_picture_is_no_list(single: Any) -> None:
    with pytest.raises(InputError, match=r"images must be a list; got a single \w+: pass \[image\]"):
        FakeEmbedder().embed_images(single)


@pytest.mark.parametrize("single", [Text("a"), Image(PICTURE), InstructedImage(PICTURE, "x"), "a", None])
def test_a_single_input_is_no_list(single: Any) -> None:
    with pytest.raises(InputError, match="inputs must be a list"):
        FakeEmbedder().embed(single)


@pytest.mark.parametrize("text", [3, None, b"bytes", Text("wrapped")])
def test_a_text_must_be_a_str(text: Any) -> None:
    with pytest.raises(InputError, match="must be a str"):
        FakeEmbedder().embed_texts(["fine", text])


UNIT = np.eye(4, dtype=np.float32)[:2]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (UNIT[:1], r"shape \(1, 4\)"),
        (UNIT[:, :3], r"shape \(2, 3\)"),
        (UNIT[0], r"shape \(4,\)"),
        (UNIT.astype(np.float64), "float64"),
        (UNIT * np.float32(2), "length 2 for input 0"),
        (UNIT * np.array([[1], [0]], dtype=np.float32), "length 0 for input 1"),
        (UNIT * np.array([[1], [np.nan]], dtype=np.float32), "length nan for input 1"),
    ],
)
def test_vectors_that_would_spoil_a_store_are_refused(returned: Any, message: str) -> None:
    with pytest.raises(ABCRagError, match=message) as caught:
        Broken(returned).embed([Text("a"), Text("b")])
    assert "Broken returned" in str(caught.value)
    # It is the embedder's fault: no caller may take it for a bad input and go on without it.
    assert not isinstance(caught.value, InputError)


def test_sound_vectors_pass() -> None:
    assert Broken(UNIT).embed([Text("a"), Text("b")]) is UNIT


async def test_awaiting_does_without_the_shared_pool_of_the_loop() -> None:
    class Stopping(FakeEmbedder):
        def _embed(self, *_: Any, **__: Any) -> Vectors:
            raise StopIteration

    class Refusing(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("the loop's shared pool was used")

    asyncio.get_running_loop().set_default_executor(Refusing())
    assert (await FakeEmbedder().aembed([Text("a")])).shape == (1, 32)
    assert (await FakeEmbedder().aembed([])).shape == (0, 32)
    mini = load_embedder("abc-mini", device="cpu")  # loaded while it is awaited
    assert (await mini.aembed([Text("a")])).shape == (1, mini.dim)
    # No future can hold this one: without help the loop would wait for ever.
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(Stopping().aembed([Text("a")]), timeout=60)
