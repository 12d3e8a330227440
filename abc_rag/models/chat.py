"""The seam of a base that generates: conversations in, logits out.

An engine (`abc_rag.embedding.engine`) opens pictures, schedules and chooses tokens; a chat model knows its template,
its network and its cache of keys and values.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer

from abc_rag.errors import InputError
from abc_rag.models.family import FamilyFacts, Prepared, VisionModel
from abc_rag.models.loader import LoadOptions
from abc_rag.models.tasks import TaskFacts
from abc_rag.types import ImageSource, Message, Text

__all__ = ["ChatFacts", "ChatModel", "Conversation", "Decoding", "refuse_options"]


@dataclass(frozen=True)
class Conversation:
    """The turns that a model is to answer.

    Attributes:
        messages: At least one; the last is not the model's own.
        answers: Given answers to it, where their probabilities are asked for.
        pictures: Those of all messages, in order.
    """

    messages: tuple[Message, ...]
    answers: tuple[str, ...] = ()
    pictures: tuple[ImageSource, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Collects the pictures."""
        object.__setattr__(self, "pictures", tuple(one for message in self.messages for one in message.pictures))

    @property
    def words(self) -> str:
        """Its texts, with a space between two of them."""
        return " ".join(part.text for message in self.messages for part in message.parts if isinstance(part, Text))

    def content(self, pictures: Sequence[str]) -> str:
        """A string of its own: equal conversations may be answered otherwise."""
        return json.dumps(["Conversation", id(self)])


@dataclass(frozen=True, kw_only=True)
class ChatFacts:
    """What is fixed once a chat model has been loaded.

    Attributes:
        tokenizer: Turns tokens into text.
        vocabulary: Number of logits.
        max_length: Maximum tokens of a conversation and its answer together.
        stop_ids: Tokens that end an answer, from the checkpoint's generation config.
        repetition_penalty: The checkpoint's own; 1 for none.
        spaced: The tokenizer puts a space before any text, so answers begin with one that is no part of them.
        tasks: How it does at rewriting, judging and answering.
    """

    tokenizer: Tokenizer
    vocabulary: int
    max_length: int
    stop_ids: frozenset[int]
    repetition_penalty: float = 1.0
    spaced: bool = False
    tasks: TaskFacts = field(default_factory=TaskFacts)


class Decoding(ABC):
    """Conversations that are being answered together, each in a row of one batch. Used by one thread at a time."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def add(self, prepared: Prepared) -> torch.Tensor:
        """Read a conversation and append it as the last row; float32 logits ``(vocabulary,)`` of what follows."""

    @abstractmethod
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to each row; float32 logits ``(rows, vocabulary)`` of the next ones.

        A row does not depend on the others.
        """

    @abstractmethod
    def drop(self, rows: Sequence[int]) -> None:
        """Remove rows; those behind them move up."""


class ChatModel(VisionModel):
    """A base as it was published, without adapters. Its vision features are not those of the embedder.

    Args:
        facts: As for an embedder: device, picture recipe, limits.
        chat: What else is fixed.
    """

    def __init__(self, facts: FamilyFacts, chat: ChatFacts) -> None:
        super().__init__(facts)
        self.chat_facts = chat

    @abstractmethod
    def decoding(self) -> Decoding:
        """A batch without rows."""

    @abstractmethod
    def count(self, item: Conversation) -> int:
        """Tokens of a conversation, however long; opens its pictures. Safe to call from any thread."""

    @abstractmethod
    def score(self, prepared: Prepared, answers: Sequence[str]) -> list[float]:
        """Log-probability of each answer, with the token that ends it, from one forward pass."""


def refuse_options(options: LoadOptions) -> None:
    """Refuse options with which no family generates.

    Raises:
        InputError: The weights are quantised, or the attention has no masks of its own.
    """
    if options.weights != "full":
        raise InputError(
            f"weights={options.weights!r} merges the adapters into the base, which then cannot generate; use "
            "weights='full' with dtype='bfloat16'"
        )
    if options.attention.startswith("flash"):
        raise InputError(
            f"attention={options.attention!r} has no masks for generation; use attention='sdpa', which has the same "
            "kernels where no mask is needed"
        )
