"""What the parts of the package that handle inputs need to know of their types."""

from __future__ import annotations

import json
from collections.abc import Sequence

from abc_rag.types import Image, ImageSource, Input, InstructedImage, InstructedText, Interleaved, Text

__all__ = ["BASIC_TYPES", "INPUT_TYPES", "content_of", "sources_of", "words_of"]

BASIC_TYPES: tuple[type, ...] = (Text, Image, InstructedImage)
"""What every embedder takes."""

INPUT_TYPES: tuple[type, ...] = (*BASIC_TYPES, InstructedText, Interleaved)
"""All there are; see `abc_rag.Embedder.accepts`."""


def sources_of(item: Input) -> tuple[ImageSource, ...]:
    """The pictures of an input, in order."""
    if isinstance(item, (Image, InstructedImage)):
        return (item.source,)
    if isinstance(item, Interleaved):
        return tuple(part.source for part in item.parts if isinstance(part, Image))
    return ()


def words_of(item: Input) -> str:
    """What an input says in words, for messages."""
    if isinstance(item, (Text, InstructedText)):
        return item.text
    if isinstance(item, InstructedImage):
        return item.instruction
    if isinstance(item, Interleaved):
        return " ".join(part.text.strip() for part in item.parts if isinstance(part, Text))
    return ""


def content_of(item: Input, pictures: Sequence[str]) -> str:
    """A string that is equal for inputs of equal content, given names of the input's pictures."""
    names = iter(pictures)
    if isinstance(item, Interleaved):
        said = [part.text if isinstance(part, Text) else [next(names)] for part in item.parts]
    elif isinstance(item, InstructedText):
        said = [item.text, item.instruction]
    elif isinstance(item, Text):
        said = [item.text]
    else:
        said = [[next(names)], *([item.instruction] if isinstance(item, InstructedImage) else [])]
    return json.dumps([type(item).__name__, *said])
