"""A generator in this process: the base of an embedder, with the same weights."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from abc_rag.answering.generator import GenerationRequest, Generator, Outcome
from abc_rag.answering.schema import JsonRules, SchemaCompiler
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.engine.replies import Choice, Ending, Reply
from abc_rag.embedding.engine.speech import Speech
from abc_rag.embedding.threads import ForkSafeLock, in_thread
from abc_rag.models.chat import ChatModel, Conversation
from abc_rag.models.tasks import TaskFacts
from abc_rag.types import Message

__all__ = ["LocalGenerator"]


class LocalGenerator(Generator):
    """Generates with the base of an embedder whose adapters lie beside it. The model is loaded on first use.

    Args:
        embedder: From `abc_rag.answering.load_generator`, which makes both.

    Attributes:
        embedder: Embeds with the same weights, at the same time.
    """

    def __init__(self, embedder: LocalEmbedder) -> None:
        self.embedder = embedder
        self._compiling = ForkSafeLock()
        self._compiler: SchemaCompiler | None = None

    def __reduce__(self) -> tuple[type[LocalGenerator], tuple[LocalEmbedder]]:
        return type(self), (self.embedder,)

    @property
    def model(self) -> str:
        """The model's name; loads it."""
        return self.embedder.fingerprint.model

    @property
    def tasks(self) -> TaskFacts:
        """How the model does at rewriting, judging and answering, by its ``generation_config.json``; loads it."""
        return self._chat.chat_facts.tasks

    @property
    def _chat(self) -> ChatModel:
        chat = self.embedder.family.chat
        assert isinstance(chat, ChatModel)  # otherwise it would not speak
        return chat

    @property
    def max_length(self) -> int:
        """Maximum tokens of a conversation and its answer together; loads the model."""
        return self._chat.chat_facts.max_length

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """See `Generator.count_tokens`; loads the model."""
        return self._chat.count(Conversation(tuple(messages)))

    def close(self) -> None:
        """Close the embedder, too; the next call starts it again."""
        self.embedder.close()

    def _rules(self, schema: Mapping[str, Any] | None) -> JsonRules | None:
        if schema is None:
            return None
        with self._compiling:
            if self._compiler is None:
                self._compiler = SchemaCompiler(self._chat.chat_facts)
            return self._compiler(schema)

    def _prepared(self, request: GenerationRequest) -> tuple[Speech, Choice]:
        speech = self.embedder.speech()
        return speech, Choice(
            max_new_tokens=request.max_new_tokens,
            stop=tuple(request.stop),
            temperature=request.temperature,
            seed=request.seed,
            rules=self._rules(request.schema),
        )

    def _stream(self, request: GenerationRequest) -> Iterator[str | Outcome]:
        for part in self._told(*self._prepared(request), Conversation(request.messages)):
            yield _outcome(part) if isinstance(part, Ending) else part

    def _score(self, messages: tuple[Message, ...], answers: tuple[str, ...]) -> list[float]:
        *_, ending = self._told(self.embedder.speech(), Choice(max_new_tokens=1), Conversation(messages, answers))
        assert isinstance(ending, Ending)
        return list(ending.scores)

    def _told(self, speech: Speech, choice: Choice, conversation: Conversation) -> Iterator[str | Ending]:
        changed = threading.Condition(speech.lock)
        reply = speech.begin(conversation, choice, changed.notify_all)
        try:
            ending = None
            while ending is None:
                with changed:
                    while not reply.news:
                        # With a timeout, because on Windows Ctrl-C interrupts nothing else.
                        changed.wait(0.5)
                    pieces, ending = reply.take()
                yield from pieces
            yield ending
        finally:
            speech.end(reply)

    async def _astream(self, request: GenerationRequest) -> AsyncIterator[str | Outcome]:
        speech, choice = await in_thread(partial(self._prepared, request))
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def changed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(event.set)

        reply = speech.begin(Conversation(request.messages), choice, changed)
        try:
            ending = None
            while ending is None:
                event.clear()
                pieces, ending = _taken(speech, reply)
                for piece in pieces:
                    yield piece
                if ending is None:
                    await event.wait()
            yield _outcome(ending)
        finally:
            speech.end(reply)


def _taken(speech: Speech, reply: Reply) -> tuple[list[str], Ending | None]:
    with speech.lock:
        return reply.take()


def _outcome(ending: Ending) -> Outcome:
    return Outcome(ending.finish, ending.prompt_tokens, ending.new_tokens)
