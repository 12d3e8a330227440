"""What the base class does for every embedder: one kind of input in, checked unit rows out."""

from __future__ import annotations

import asyncio
import pickle
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
from abc_rag.errors import ABCRagError, ImageFormatError, InputError, PartialIndexError, StoreError
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


# --- Which input an error is about ------------------------------------------------------------------------


class Picky(FakeEmbedder):
    """Refuses a text, and writes no position into the message, as an embedder from elsewhere."""

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        for position, item in enumerate(inputs):
            if item == Text("bad"):
                raise InputError("is no good").at(position)
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


def test_an_error_names_the_position_in_the_callers_own_list_once() -> None:
    inputs: list[Any] = [Text("a"), 7, *[Text(f"text {n}") for n in range(100)], Text("bad"), Text("b")]
    found = list(Picky().embed_iter(inputs, return_errors=True))
    errors = {position: one for position, one in enumerate(found) if isinstance(one, InputError)}
    assert set(errors) == {1, 102}
    assert str(errors[102]) == "input 102: is no good"
    assert errors[102].position == 102
    with pytest.raises(InputError, match=r"^input 2: is no good$") as caught:
        Picky().embed([Text("a"), Text("b"), Text("bad")])
    assert caught.value.position == 2


def test_a_wrong_vector_of_a_stream_is_named_by_its_position() -> None:
    class Long(FakeEmbedder):
        def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
            return super()._embed(inputs, batch_size=batch_size, progress=progress) * np.float32(
                [[2.0 if item == Text("bad") else 1.0] for item in inputs]
            )

    with pytest.raises(ABCRagError, match="a vector of length 2 for input 70; expected unit vectors"):
        list(Long().embed_iter([*[Text(str(n)) for n in range(70)], Text("bad")]))


def test_an_error_takes_another_position_and_keeps_the_rest() -> None:
    cause = OSError("no disk")
    for error in (InputError("is no good"), ImageFormatError("a.png", "is no picture"), StoreError("is full")):
        error.__cause__ = cause
        first = error.at(3)
        assert type(first) is type(error)
        assert first.__cause__ is cause
        assert (first.position, first.at(5).position, first.at(None).position) == (3, 5, None)
        assert str(first.at(5).at(None)) == str(error)
        again = pickle.loads(pickle.dumps(first))
        assert (str(again), again.position) == (str(first), 3)
    assert str(InputError("is no good").at(3).at(5)) == "input 5: is no good"
    assert str(ImageFormatError("a.png", "is no picture").at(3)) == "a.png: is no picture"
    assert str(PartialIndexError([None], [(4, InputError("bad").at(0))])).endswith("the others are: input 4: bad")
