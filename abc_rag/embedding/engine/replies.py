"""One answer on its way: how its tokens are chosen, and what its caller has not taken yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from abc_rag.embedding.engine.work import Request
from abc_rag.errors import GenerationError
from abc_rag.models.chat import ChatFacts

__all__ = ["Choice", "Ending", "Reply", "ReplyText", "Rules", "TokenChoice"]

Finish = Literal["stop", "length"]


class Rules(Protocol):
    """What an answer has to be, token by token."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, ``(vocabulary,)``."""

    def accept(self, token: int) -> bool:
        """Take a token; whether the answer is complete."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How tokens are chosen; `abc_rag.answering.Generator.generate` says what each setting does."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None
    rules: Rules | None = None


@dataclass(frozen=True)
class Ending:
    """How an answer ended.

    Attributes:
        finish: ``"stop"``, or ``"length"`` where it was cut off.
        prompt_tokens: Length of the conversation, image tokens included.
        new_tokens: Length of the answer, with the token that ended it.
        scores: Log-probabilities of given answers, where they were asked for.
    """

    finish: Finish
    prompt_tokens: int
    new_tokens: int
    scores: tuple[float, ...] = ()


@dataclass(eq=False)
class Reply:
    """An answer: its pieces, and in the end an `Ending` or an error. Changed under the scheduler's lock.

    Attributes:
        request: The call.
        choice: How tokens are chosen.
        pieces: Text that the caller has not taken.
        ending: How it ended; None while it goes on.
    """

    request: Request
    choice: Choice
    pieces: list[str] = field(default_factory=list)
    ending: Ending | BaseException | None = None

    @property
    def news(self) -> bool:
        """Whether there is something to take."""
        return bool(self.pieces) or self.ending is not None or isinstance(self.request.results.get(0), BaseException)

    def take(self) -> tuple[list[str], Ending | None]:
        """The pieces since last time, and how it ended.

        Raises:
            ABCRagError: It failed.
        """
        refused = self.request.results.get(0)
        for failed in (refused, self.ending):
            if isinstance(failed, BaseException):
                raise failed
        pieces, self.pieces = self.pieces, []
        assert not isinstance(self.ending, BaseException)
        return pieces, self.ending


class TokenChoice:
    """Chooses the tokens of one answer.

    Args:
        choice: How.
        facts: Of the model.
        prompt: Token ids of the conversation, for the checkpoint's repetition penalty.
    """

    def __init__(self, choice: Choice, facts: ChatFacts, prompt: Iterable[int]) -> None:
        self._choice = choice
        self._facts = facts
        self._seen = set(prompt) if facts.repetition_penalty != 1 else set()
        self._random: torch.Generator | None = None
        if choice.temperature > 0:
            self._random = torch.Generator()
            self._random.manual_seed(choice.seed) if choice.seed is not None else self._random.seed()

    @property
    def plain(self) -> bool:
        """Whether the largest logit is always chosen."""
        return self._random is None and self._choice.rules is None and not self._seen

    def of(self, logits: torch.Tensor) -> int:
        """Choose by float32 logits ``(vocabulary,)``.

        Raises:
            GenerationError: Nothing may follow.
        """
        logits = logits.cpu().clone()
        if self._seen:
            at = torch.tensor(sorted(self._seen))
            seen = logits[at]
            factor = self._facts.repetition_penalty
            logits[at] = torch.where(seen < 0, seen * factor, seen / factor)
        if self._choice.rules is not None:
            allowed = torch.from_numpy(self._choice.rules.allowed())
            if not bool(allowed.any()):
                raise GenerationError("no token can follow in this schema; simplify the schema")
            logits = logits.masked_fill(~allowed, -torch.inf)
        if self._random is None:
            return int(logits.argmax())
        probabilities = (logits.double() / self._choice.temperature).softmax(dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=self._random))

    def take(self, token: int) -> bool:
        """Note what was chosen; whether the answer is complete with it."""
        if self._facts.repetition_penalty != 1:
            self._seen.add(token)
        return self._choice.rules is not None and self._choice.rules.accept(token)


class ReplyText:
    """Tokens to text, given piece by piece; what may be the beginning of a stop text is held back.

    Args:
        tokenizer: Of the model.
        stop: Texts that end an answer and are no part of it.
        spaced: A space at the beginning is no part of the answer.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], *, spaced: bool = False) -> None:
        self._tokenizer = tokenizer
        self._spaced = spaced
        self._begun = False
        self._stop = stop
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = ""
        self._held = ""

    def push(self, token: int) -> tuple[str, bool]:
        """Add a token: the text that can be given now, and whether a stop text ends the answer."""
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._held += piece if self._begun else self._bare(piece)
        self._begun = self._begun or bool(piece)
        return self._ready()

    def rest(self) -> str:
        """What is left at the end."""
        whole = self._bare(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        known = self._given + self._held
        if whole.startswith(known):  # half a character, which no further token completes
            self._held += whole[len(known) :]
        piece, stopped = self._ready()
        if not stopped:
            piece, self._held = piece + self._held, ""
        return piece

    def _bare(self, beginning: str) -> str:
        return beginning.removeprefix(" ") if self._spaced else beginning

    def _ready(self) -> tuple[str, bool]:
        found = min((at for text in self._stop if (at := self._held.find(text)) >= 0), default=-1)
        if found >= 0:
            piece, self._held = self._held[:found], ""
            self._given += piece
            return piece, True
        keep = max((_overlap(self._held, text) for text in self._stop), default=0)
        piece, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._given += piece
        return piece, False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
