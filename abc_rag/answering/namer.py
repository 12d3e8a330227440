"""Naming groups of pictures with a generator."""

from __future__ import annotations

from abc_rag.answering.generator import Generator
from abc_rag.errors import InputError
from abc_rag.types import Image, Message, Text

__all__ = ["GenerativeNamer"]

_MOST_TOKENS = 24


class GenerativeNamer:
    """Says what a picture is under an instruction: the generator is shown the picture and told the instruction.

    Args:
        generator: Says it.

    Raises:
        InputError: It is no generator.
    """

    def __init__(self, generator: Generator) -> None:
        if not isinstance(generator, Generator):
            raise InputError(f"generator must be an abc_rag.answering.Generator, not {type(generator).__name__}")
        self._generator = generator

    def __call__(self, picture: bytes, instruction: str) -> str:
        """A few words on one line.

        Args:
            picture: Its encoded bytes.
            instruction: What to look at.

        Raises:
            ABCRagError: The generator failed, or cannot open the picture.
        """
        asked = [Message("user", [Image(picture), Text(instruction)])]
        said = self._generator.generate(asked, max_new_tokens=_MOST_TOKENS).text
        return " ".join("".join(one if one.isprintable() else " " for one in said).split()).rstrip(".")
