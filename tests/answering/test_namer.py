"""Groups of pictures, named by a generator."""

from __future__ import annotations

from pathlib import Path

import pytest
from survey_helpers import INSTRUCTION, pictures

from abc_rag.answering.fake import FakeGenerator
from abc_rag.answering.namer import GenerativeNamer
from abc_rag.answering.retriever import Retriever
from abc_rag.errors import InputError
from abc_rag.types import Image, Message, Text


def said(messages: tuple[Message, ...]) -> str:
    """The number of the picture that was shown, in words that take more than one line."""
    (asked,) = messages
    image, text = asked.parts
    assert isinstance(image, Image)
    assert text == Text(INSTRUCTION)
    assert isinstance(image.source, bytes)
    return f"a picture\nof {len(image.source)} bytes."


def test_a_generator_says_what_the_most_typical_picture_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pictures(tmp_path, [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]) as looker:
        generator = FakeGenerator(said)
        retriever = Retriever(looker.embedder, looker.store, generator=generator)
        found = retriever.groups(INSTRUCTION)
        sizes = [len((tmp_path / f"{name}.png").read_bytes()) for name in ("0", "1")]
        assert [(group.phrase, group.fit) for group in found] == [(f"a picture of {n} bytes", None) for n in sizes]
        assert len(generator.asked) == 2
        # It is not asked where phrases are given, or none are wanted.
        assert [group.phrase for group in retriever.groups(INSTRUCTION, phrases=["0", "1"])] == ["0", "1"]
        assert [group.phrase for group in retriever.groups(INSTRUCTION, phrases=[])] == ["", ""]
        assert len(generator.asked) == 2
        # A picture that cannot be shown costs its group the phrase.
        retriever.store.add_facets(["0", "2", "4"], INSTRUCTION, looker.unit([[1, 0]] * 3))
        (tmp_path / "0.png").unlink()
        assert {group.phrase for group in retriever.groups(INSTRUCTION)} == {"", found[1].phrase}
        assert "no phrase for the group of 0" in caplog.text


def test_what_is_no_generator_is_refused() -> None:
    with pytest.raises(InputError, match=r"must be an abc_rag\.answering\.Generator, not str"):
        GenerativeNamer("abc")  # type: ignore[arg-type]
