"""The seam of every generator: a conversation with pictures in, an answer out."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from abc_rag.answering.stream import AsyncTextStream, TextStream
from abc_rag.embedding.options import shows_options
from abc_rag.embedding.threads import in_thread
from abc_rag.errors import ABCRagError, ContextError, GenerationError, InputError
from abc_rag.models.tasks import TaskFacts
from abc_rag.types import Message

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "AsyncGenerationStream",
    "Generation",
    "GenerationKeywords",
    "GenerationRequest",
    "GenerationStream",
    "Generator",
    "Outcome",
]

# Conversations of `generate_all` that are on their way at once.
_AT_ONCE = 16
_MOST_STOPS = 16
_END: Any = object()


class GenerationKeywords(TypedDict, total=False):
    """What `Generator.generate` takes besides a conversation, for functions that hand it on."""

    schema: Mapping[str, Any] | None
    max_new_tokens: int
    stop: Sequence[str]
    temperature: float
    seed: int | None
    drop_oldest: bool


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A conversation and how it is to be answered, all checked; `Generator.generate` says what each part means.

    Raises:
        InputError: A part is unusable.
    """

    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    max_new_tokens: int = 512
    stop: Sequence[str] = ()
    temperature: float = 0.0
    seed: int | None = None
    drop_oldest: bool = False

    def __post_init__(self) -> None:
        """Checks each part."""
        stop, seed = self.stop, self.seed
        if self.schema is not None and not isinstance(self.schema, Mapping):
            raise InputError(f"schema must be a JSON schema as a dict, not {type(self.schema).__name__}")
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be an int of at least 1, not {self.max_new_tokens!r}")
        if isinstance(stop, str) or not all(isinstance(one, str) and one for one in stop) or len(stop) > _MOST_STOPS:
            raise InputError(f"stop must be a list of up to {_MOST_STOPS} texts, none empty, not {stop!r}")
        if self.schema is not None and stop:
            raise InputError("stop could cut the JSON of a schema; leave one of them out")
        if type(self.temperature) not in (int, float) or not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be a number of at least 0, not {self.temperature!r}")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise InputError(f"seed must be an int from 0 to 2**63 - 1 or None, not {seed!r}")

    def without_oldest(self) -> GenerationRequest | None:
        """The same without the first question and its answer; None where nothing but the last question is left."""
        kept = list(self.messages)
        first = next((n for n, turn in enumerate(kept) if turn.role != "system"), len(kept))
        del kept[first : first + 1]
        while len(kept) > first and kept[first].role == "assistant":
            del kept[first]
        return replace(self, messages=tuple(kept)) if len(kept) > first else None


@dataclass(frozen=True)
class Outcome:
    """How an answer ended.

    Attributes:
        finish: ``"stop"``, or ``"length"`` where ``max_new_tokens`` or the context cut it off.
        prompt_tokens: Tokens of the conversation, image tokens included; None where a server does not say.
        new_tokens: Tokens of the answer; None likewise.
        dropped: Number of oldest turns that were left out, as the conversation was too long with them.
    """

    finish: Literal["stop", "length"]
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    dropped: int = 0


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: What the model said.
        outcome: How it ended.
    """

    text: str
    outcome: Outcome

    def json(self) -> Any:  # noqa: ANN401  (whatever the schema says)
        """The answer as a value, where a schema was given."""
        return json.loads(self.text)


class GenerationStream(TextStream[Generation]):
    """An answer as it comes: an iterator of its pieces, whose ``result`` is a `Generation` at the end."""


class AsyncGenerationStream(AsyncTextStream[Generation]):
    """`GenerationStream` for event loops."""


class Generator(ABC):
    """Answers conversations that may hold pictures.

    A subclass implements `model`, `_stream` and `_score`; this class checks, collects and batches. Implementations are
    safe to call from many threads at once.
    """

    @property
    @abstractmethod
    def model(self) -> str:
        """The model's name."""

    @property
    def tasks(self) -> TaskFacts:
        """How the model does at rewriting, judging and answering; asks a local model, which is loaded for it."""
        return TaskFacts()

    @property
    def scores(self) -> bool:
        """Whether it can `score`."""
        return True

    @abstractmethod
    def _stream(self, request: GenerationRequest) -> Iterator[str | Outcome]:
        """The pieces of an answer, and an `Outcome` at the end. Closing the iterator ends the answer."""

    @abstractmethod
    def _score(self, messages: tuple[Message, ...], answers: tuple[str, ...]) -> list[float]:
        """Log-probabilities of whole answers."""

    @overload
    def generate(
        self, messages: Sequence[Message], *, stream: Literal[False] = False, **options: Unpack[GenerationKeywords]
    ) -> Generation: ...

    @overload
    def generate(
        self, messages: Sequence[Message], *, stream: Literal[True], **options: Unpack[GenerationKeywords]
    ) -> GenerationStream: ...

    @shows_options(GenerationRequest)
    def generate(
        self, messages: Sequence[Message], *, stream: bool = False, **options: Unpack[GenerationKeywords]
    ) -> Generation | GenerationStream:
        """Answer a conversation.

        Args:
            messages: Its turns, with any number of pictures; the last one is not the model's own.
            schema: A JSON schema that the answer has to meet, token by token; it is then always valid JSON.
            max_new_tokens: Maximum tokens of the answer.
            stop: Texts that end the answer and are no part of it.
            temperature: 0 always takes the likeliest token; above, tokens are drawn.
            seed: Makes drawing repeatable.
            drop_oldest: Leave out the oldest turns of a conversation that is longer than the model reads, in place of
                an error; ``outcome.dropped`` says how many. System messages and the last turn stay.
            stream: Return the answer as it comes.

        Returns:
            The answer, or with ``stream`` an iterator of its pieces.

        Raises:
            InputError: An argument is unusable, or the conversation is longer than the model reads.
            ImageError: A picture cannot be opened or exceeds a limit.
            GenerationError: The answer was cut off before its JSON was complete, or could not be computed.
        """
        request = GenerationRequest(messages=_turns(messages), **options)
        parts = self._fitted(request) if request.drop_oldest else self._stream(request)
        answer = GenerationStream(parts, partial(_ended, request))
        return answer if stream else answer.whole()

    @overload
    async def agenerate(
        self, messages: Sequence[Message], *, stream: Literal[False] = False, **options: Unpack[GenerationKeywords]
    ) -> Generation: ...

    @overload
    async def agenerate(
        self, messages: Sequence[Message], *, stream: Literal[True], **options: Unpack[GenerationKeywords]
    ) -> AsyncGenerationStream: ...

    @shows_options(GenerationRequest)
    async def agenerate(
        self, messages: Sequence[Message], *, stream: bool = False, **options: Unpack[GenerationKeywords]
    ) -> Generation | AsyncGenerationStream:
        """`generate` for event loops; a cancelled task ends the answer at its next token."""
        request = GenerationRequest(messages=_turns(messages), **options)
        parts = self._afitted(request) if request.drop_oldest else self._astream(request)
        answer = AsyncGenerationStream(parts, partial(_ended, request))
        return answer if stream else await answer.whole()

    async def _astream(self, request: GenerationRequest) -> AsyncIterator[str | Outcome]:
        """`_stream` without blocking the event loop."""
        parts = self._stream(request)
        try:
            while (part := await in_thread(next, parts, _END)) is not _END:
                yield part
        finally:
            if close := getattr(parts, "close", None):
                close()

    def _fitted(self, request: GenerationRequest) -> Iterator[str | Outcome]:
        """`_stream`, again with a turn less as long as the conversation is too long."""
        shorter: GenerationRequest | None = request
        while shorter is not None:
            tried, shorter = shorter, shorter.without_oldest()
            try:
                for part in self._stream(tried):
                    yield _counted(part, request, tried)
                return
            except ContextError:  # comes before the first piece
                if shorter is None:
                    raise

    async def _afitted(self, request: GenerationRequest) -> AsyncIterator[str | Outcome]:
        """`_fitted` without blocking the event loop."""
        shorter: GenerationRequest | None = request
        while shorter is not None:
            tried, shorter = shorter, shorter.without_oldest()
            try:
                async for part in self._astream(tried):
                    yield _counted(part, request, tried)
                return
            except ContextError:
                if shorter is None:
                    raise

    @overload
    def generate_all(
        self,
        conversations: Iterable[Sequence[Message]],
        *,
        return_errors: Literal[False] = False,
        **options: Unpack[GenerationKeywords],
    ) -> list[Generation]: ...

    @overload
    def generate_all(
        self,
        conversations: Iterable[Sequence[Message]],
        *,
        return_errors: Literal[True],
        **options: Unpack[GenerationKeywords],
    ) -> list[Generation | ABCRagError]: ...

    def generate_all(
        self,
        conversations: Iterable[Sequence[Message]],
        *,
        return_errors: bool = False,
        **options: Unpack[GenerationKeywords],
    ) -> list[Generation] | list[Generation | ABCRagError]:
        """Answer several conversations together; each answer is what it would be alone.

        Args:
            conversations: The turns of each.
            return_errors: Put the error of a conversation in the place of its answer.
            **options: As for `generate`, without ``stream``.

        Raises:
            ABCRagError: As for `generate`, for the first that fails, with its position.
        """
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="abc-rag-generate") as pool:
            found: list[Generation | ABCRagError] = list(pool.map(partial(self._one, options), list(conversations)))
        if not return_errors:
            for position, one in enumerate(found):
                if isinstance(one, ABCRagError):
                    raise one.at(position)
        return found

    def _one(self, options: GenerationKeywords, messages: Sequence[Message]) -> Generation | ABCRagError:
        try:
            return self.generate(messages, **options)
        except ABCRagError as error:
            return error

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """Probability that the model would say exactly each of some answers, and then end.

        To choose among the answers, compare them, or divide each by their sum.

        Args:
            messages: As for `generate`.
            answers: Whole answers, such as ``["yes", "no"]``.

        Returns:
            Probabilities in [0, 1], in the order of ``answers``.

        Raises:
            InputError: As for `generate`.
        """
        return [math.exp(one) for one in self._score(*_scored(messages, answers))]

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens that a conversation takes, image tokens included, however long it is.

        Raises:
            InputError: As for `generate`; or this generator does not know its model's tokens.
            ImageError: A picture cannot be opened or exceeds a limit.
        """
        raise InputError(f"{type(self).__name__} does not know how {self.model} counts tokens; ask that server")

    async def ascore(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """`score` for event loops."""
        return await in_thread(self.score, messages, answers)


def _counted(part: str | Outcome, asked: GenerationRequest, answered: GenerationRequest) -> str | Outcome:
    if isinstance(part, str):
        return part
    return replace(part, dropped=len(asked.messages) - len(answered.messages))


def _ended(request: GenerationRequest, text: str, outcome: Outcome) -> Generation:
    if request.schema is not None:
        if outcome.finish != "stop":
            raise GenerationError(
                f"the JSON was cut off after {outcome.new_tokens or request.max_new_tokens} tokens, before it was "
                "complete; raise max_new_tokens, or bound lengths in the schema"
            )
        try:
            json.loads(text)
        except ValueError as error:
            raise GenerationError(f"the answer is no JSON ({error}): {text[:80]!r}; ask again") from error
    return Generation(text, outcome)


def _turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    if isinstance(messages, (str, bytes, Message)) or not isinstance(messages, Iterable):
        raise InputError(f"messages must be a list of abc_rag.types.Message, not {type(messages).__name__}")
    turns = tuple(messages)
    for number, turn in enumerate(turns):
        if not isinstance(turn, Message):
            raise InputError(
                f"message {number} is a {type(turn).__name__}; wrap it as abc_rag.types.Message(role, parts)"
            )
    if not turns or turns[-1].role == "assistant":
        raise InputError("a conversation ends with a message that is not the model's own; add one with role 'user'")
    return turns


def _scored(messages: Sequence[Message], answers: Sequence[str]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    if isinstance(answers, str) or not answers or not all(isinstance(one, str) for one in answers):
        raise InputError(f"answers must be a list of texts, at least one, not {answers!r}")
    return _turns(messages), tuple(answers)
