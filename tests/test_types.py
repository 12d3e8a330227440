"""Inputs of several parts, and texts with an instruction."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from abc_rag import Image, Input, InstructedImage, InstructedText, Interleaved, Text
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.types import Fingerprint, MaskedImage, Vectors


def test_parts_are_kept_as_they_were_given() -> None:
    parts: list[Any] = [Image("a.png"), Text(" and "), Image("b.png")]
    made = Interleaved(parts)
    parts.clear()
    assert made.parts == (Image("a.png"), Text(" and "), Image("b.png"))
    assert made == Interleaved(iter([Image("a.png"), Text(" and "), Image("b.png")]))  # type: ignore[arg-type]
    assert hash(made) == hash(Interleaved(made.parts))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.parts = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "an Interleaved has no parts"),
        (["a text"], r"part 0 of an Interleaved is a str; wrap it as abc_rag.Text\(text\) or abc_rag.Image\(source\)"),
        ([Text("a"), InstructedImage("a.png", "what?")], "part 1 of an Interleaved is a InstructedImage"),
        ("a text", "takes a list of Text and Image values, not a single str"),
        (Text("a"), "not a single Text"),
        (7, "not a single int"),
    ],
)
def test_other_parts_are_refused(parts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Interleaved(parts)


@pytest.mark.parametrize(("text", "instruction"), [(7, "x"), ("x", None), (b"x", "x")])
def test_an_instructed_text_is_two_texts(text: Any, instruction: Any) -> None:
    with pytest.raises(InputError, match=r"InstructedText.(text|instruction) must be a str, not"):
        InstructedText(text, instruction)


def test_what_an_input_consists_of() -> None:
    item = Interleaved([Text(" one "), Image("a.png"), Text("two"), Image("b.png"), Image("a.png")])
    assert item.pictures == ("a.png", "b.png", "a.png")
    assert item.words == "one two"
    assert InstructedText("a.png", "b.png").pictures == ()
    assert InstructedText("said", "for what").words == "said"


def test_different_inputs_have_different_content() -> None:
    """Also where one's text looks like another's structure."""
    texts = ["a", "b", '["a"]', '["Text", "a"]', 'a", "b', "", "\ud800", "\0a"]
    inputs: list[Input] = [Text(text) for text in texts]
    inputs += [InstructedText(a, b) for a, b in itertools.product(texts, texts)]
    inputs += [Interleaved([Text(a), Text(b)]) for a, b in itertools.product(texts, texts)]
    inputs += [Interleaved([Text(text)]) for text in texts]
    pictures: list[Input] = [Image("a"), Interleaved([Image("a")]), Interleaved([Text("a"), Image("a")])]
    pictures += [Interleaved([Image("a"), Text("a")]), *(InstructedImage("a", text) for text in texts)]
    made = [item.content([]) for item in inputs] + [item.content(["a"]) for item in pictures]
    masked = [(None, ()), ("", ()), ("a", ()), (None, (0,)), (None, (1,)), (None, (0, 1)), ("a", (0, 1))]
    made += [MaskedImage("a", told, without).content(["a"]) for told, without in masked]
    made += [Image("a").content(["b"]), Interleaved([Image("a"), Image("b")]).content(["a", "b"])]
    made += [Interleaved([Image("a"), Image("b")]).content(["b", "a"])]
    assert len(set(made)) == len(made)
    assert Image("x").content(["same"]) == Image("y").content(["same"])


@pytest.mark.parametrize("without", ["01", 3, [-1], [0.5], [True], None])
def test_what_is_left_out_is_numbers(without: Any) -> None:
    with pytest.raises(InputError, match=r"MaskedImage\.without must be numbers of image tokens"):
        MaskedImage("a", None, without)


def test_what_is_left_out_is_kept_sorted_and_once() -> None:
    assert MaskedImage("a", None, [3, 1, np.int64(3)]).without == (1, 3)
    assert MaskedImage("a", None, [3, 1]) == MaskedImage("a", None, (1, 3))


class Basic(Embedder):
    """Knows nothing of the later types."""

    dim = 2
    fingerprint = Fingerprint("basic", "1", 1, 1)

    def _embed(self, inputs: Any, *, batch_size: BatchSize, progress: bool) -> Vectors:
        assert all(isinstance(item, (Text, Image, InstructedImage)) for item in inputs)
        return np.tile(np.array([1.0, 0.0], dtype=np.float32), (len(inputs), 1))


@pytest.mark.parametrize("item", [Interleaved([Text("a")]), InstructedText("a", "b")])
def test_an_embedder_that_says_nothing_takes_the_three_basic_types(item: Input) -> None:
    embedder = Basic()
    assert embedder.embed([Text("a"), Image(b"a"), InstructedImage(b"a", "b")]).shape == (3, 2)
    named = type(item).__name__
    with pytest.raises(InputError, match=f"input 1 is an {named}, which basic does not take; it takes Text, Image, In"):
        embedder.embed([Text("a"), item])
    given = list(embedder.embed_iter([item, Text("a")], return_errors=True))
    assert isinstance(given[0], InputError)
    assert len(given) == 2
    for single in (item, iter([item])):
        with pytest.raises(InputError):
            embedder.embed(single)  # type: ignore[arg-type]


def test_the_fake_takes_all_and_tells_them_apart() -> None:
    embedder = FakeEmbedder(dim=64)
    inputs: list[Input] = [
        Text("red"),
        InstructedText("red", "find"),
        Interleaved([Image(b"1"), Text("red"), Image(b"2")]),
        Interleaved([Image(b"2"), Text("red"), Image(b"1")]),
        Interleaved([Text("red")]),
    ]
    assert all(isinstance(item, embedder.accepts) for item in inputs)
    vectors = embedder.embed(inputs)
    near = embedder.similarity(vectors, vectors) - 2 * np.eye(len(inputs))
    assert near[:4, :4].max() < 0.999
    assert np.allclose(vectors[4], vectors[0], atol=1e-6)


def test_similarity_refuses_what_are_no_vectors() -> None:
    embedder = FakeEmbedder(dim=3)
    assert np.array_equal(embedder.similarity([[1, 0, 0]], [[0, 0, 0], [2, 0, 0]]), [[0, 1]])
    for first, second in (
        (["a"], [1, 0, 0]),
        ([[1, 2], [3]], [1, 0, 0]),
        (None, object()),
        ([1, 0], [1, 0, 0]),
        (1.0, 1.0),
        (np.ones((1, 1, 3)), np.ones(3)),
    ):
        with pytest.raises(InputError, match="similarity compares vectors"):
            embedder.similarity(first, second)
