"""The interface of rewriting: a question in; an instruction and a target out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, get_args

from abc_rag.errors import InputError
from abc_rag.models.tasks import WHOLE_PICTURE, Wants

__all__ = ["WHOLE_PICTURE", "AsAsked", "Rewrite", "Rewriter", "Wants"]


@dataclass(frozen=True)
class Rewrite:
    """A question, rewritten.

    Attributes:
        instruction: What to look at in a picture, for an `abc_rag.InstructedImage`; `WHOLE_PICTURE` if the question
            is about the whole picture.
        target: A short statement of what the right record shows or says. It is embedded as text.
        wants: The kind of record that the question asks for.

    Raises:
        InputError: A field is blank or of the wrong type.
    """

    instruction: str
    target: str
    wants: Wants

    @property
    def names_aspect(self) -> bool:
        """Whether the instruction is worth a second look: it asks for less than the whole picture."""
        return self.instruction != WHOLE_PICTURE

    def __post_init__(self) -> None:
        for name in ("instruction", "target"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"Rewrite.{name} must be a str that is not blank, not {value!r}")
        if self.wants not in get_args(Wants):
            raise InputError(f"Rewrite.wants must be one of {', '.join(get_args(Wants))}, not {self.wants!r}")


class Rewriter(ABC):
    """Turns a question into an instruction and a target. This class checks questions; subclasses rewrite them.

    Attributes:
        looks: Whether ``rerank="auto"`` may take a second look under its instructions.
    """

    looks: ClassVar[bool] = True

    def rewrite(self, question: str, *, has_image: bool) -> Rewrite:
        """Rewrite one question.

        Args:
            question: What the user asked.
            has_image: Whether the question is about a picture that comes with it.

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
        """Rewrite a checked question."""


class AsAsked(Rewriter):
    """The question itself as instruction and target. There is a second look only if the caller asks for one."""

    looks = False

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        return Rewrite(question, question, "any")
