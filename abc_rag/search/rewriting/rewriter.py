"""The interface of rewriting: a question in; an instruction and a target out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, get_args

from abc_rag.errors import InputError
from abc_rag.models.tasks import WHOLE_PICTURE, Wants
from abc_rag.types import Message

__all__ = ["WHOLE_PICTURE", "AsAsked", "Rewrite", "Rewriter", "Wants"]


@dataclass(frozen=True)
class Rewrite:
    """A question, rewritten.

    Attributes:
        instruction: What to look at in a picture, for an `abc_rag.InstructedImage`; `WHOLE_PICTURE` if the question
            is about the whole picture.
        target: A short statement of what the right record shows or says. It is embedded as text.
        wants: The kind of record that the question asks for.
        question: The question, complete by itself, where there were turns before it; None if it was not completed.

    Raises:
        InputError: A field is blank or of the wrong type.
    """

    instruction: str
    target: str
    wants: Wants
    question: str | None = field(default=None, kw_only=True, repr=False)

    @property
    def names_aspect(self) -> bool:
        """Whether the instruction is worth a second look: it asks for less than the whole picture."""
        return self.instruction != WHOLE_PICTURE

    def __post_init__(self) -> None:
        for name in ("instruction", "target", *(() if self.question is None else ("question",))):
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

    def rewrite(self, question: str, *, has_image: bool, history: Sequence[Message] = ()) -> Rewrite:
        """Rewrite one question.

        Args:
            question: What the user asked.
            has_image: Whether the question is about a picture that comes with it.
            history: The turns before it, oldest first. Only a rewriter with a model behind it reads them.

        Raises:
            InputError: The question is not a string, is blank, or is not valid Unicode; or ``history`` is no list of
                messages.
        """
        if not isinstance(question, str):
            raise InputError(f"the question must be a str, not {type(question).__name__}")
        if not question.strip():
            raise InputError("the question is empty; ask something")
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the question is not valid Unicode ({error.reason}); clean it first") from error
        turns = () if isinstance(history, (str, bytes, Message)) else tuple(history)
        if not all(isinstance(turn, Message) for turn in turns) or (history and not turns):
            raise InputError("history must be a list of abc_rag.types.Message, oldest first")
        return self._rewrite_after(turns, question, has_image) if turns else self._rewrite(question, has_image)

    @abstractmethod
    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        """Rewrite a checked question."""

    def _rewrite_after(self, history: tuple[Message, ...], question: str, has_image: bool) -> Rewrite:
        """Rewrite a checked question that has turns before it; as if it had none, unless a subclass reads them."""
        return self._rewrite(question, has_image)


class AsAsked(Rewriter):
    """The question itself as instruction and target. There is a second look only if the caller asks for one."""

    looks = False

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        return Rewrite(question, question, "any")
