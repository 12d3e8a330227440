"""The seam of rewriting: a question in, an instruction out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

from abc_rag.errors import InputError

Wants = Literal["image", "text", "any"]
WHOLE_PICTURE = "Describe the picture."
"""The instruction of a question that names no aspect in particular."""

__all__ = ["WHOLE_PICTURE", "AsAsked", "Rewrite", "Rewriter", "Wants"]


@dataclass(frozen=True)
class Rewrite:
    """A question, rewritten.

    Attributes:
        instruction: What to look at in a picture, as `abc_rag.InstructedImage` takes it; `WHOLE_PICTURE` where the
            question names no aspect in particular.
        target: A short statement of what the right item would show or say, to be embedded as text.
        wants: The kind of item that is asked for.

    Raises:
        InputError: A field is blank or of the wrong type.
    """

    instruction: str
    target: str
    wants: Wants

    @property
    def names_aspect(self) -> bool:
        """Whether the instruction is worth a second look: it asks for an aspect, and is not the question as it was."""
        return self.instruction not in (WHOLE_PICTURE, self.target)

    def __post_init__(self) -> None:
        for name in ("instruction", "target"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"Rewrite.{name} must be a str that is not blank, not {value!r}")
        if self.wants not in get_args(Wants):
            raise InputError(f"Rewrite.wants must be one of {', '.join(get_args(Wants))}, not {self.wants!r}")


class Rewriter(ABC):
    """Makes an instruction and a target of a question. Subclasses implement `_rewrite`; questions are checked here."""

    def rewrite(self, question: str, *, has_image: bool) -> Rewrite:
        """Rewrite one question.

        Args:
            question: What the user asked.
            has_image: Whether the question comes with a picture, and so is about that picture.

        Raises:
            InputError: The question is not a string, is blank, or is not valid Unicode.
        """
        if not isinstance(question, str):
            raise InputError(f"the question must be a str, not {type(question).__name__}")
        if not question.strip():
            raise InputError("the question is empty; ask something")
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the question is not valid Unicode ({error.reason}); clean it first") from error
        return self._rewrite(question, has_image)

    @abstractmethod
    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        """Rewrite a question that was found usable."""


class AsAsked(Rewriter):
    """The question itself, as instruction and as target: no rewriting, and no second look unless it is asked for."""

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        return Rewrite(question, question, "any")
