"""Rewriting questions with a generator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from abc_rag.answering.generator import Generator
from abc_rag.errors import InputError
from abc_rag.models.tasks import rewriting, rewriting_schema
from abc_rag.search.rewriting.llm import Asked, AskingRewriter
from abc_rag.search.rewriting.rewriter import Rewrite, Rewriter
from abc_rag.types import Message

__all__ = ["GenerativeRewriter"]

# Three lines of 200 characters, where hardly a character takes a token of its own.
_MOST_TOKENS = 640
_LONGEST = 600  # characters of a question; a longer text is a document, as for the rules


class GenerativeRewriter(AskingRewriter):
    """Rewrites with a generator, whose answer a JSON schema holds to its form.

    The question is data, as are the turns before it: a question that gives orders is rewritten, not obeyed. A question
    after others (``"and on the right?"``) becomes one that is complete by itself. Where the generator fails or is late,
    the rules rewrite, and a warning is logged.

    Args:
        generator: Rewrites.
        examples: Show it how to. If not given: unless the model was trained on these conversations.
        fallback: Rewrites where the generator does not; `abc_rag.search.rewriting.RuleRewriter()` by default.
        timeout_s: Seconds to wait for an answer. A late answer is still cached for the next time.
        cache_size: Maximum number of questions in the cache; 0 disables it. Failures are not cached.

    Raises:
        InputError: An argument is invalid.
        CheckpointError: On first use, if the model cannot generate.
        MissingExtraError: On first use, if the package that holds answers to a schema is not installed.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        examples: bool | None = None,
        fallback: Rewriter | None = None,
        timeout_s: float = 60.0,
        cache_size: int = 1024,
    ) -> None:
        if not isinstance(generator, Generator):
            raise InputError(f"generator must be an abc_rag.answering.Generator, not {type(generator).__name__}")
        super().__init__(fallback=fallback, timeout_s=timeout_s, cache_size=cache_size)
        self._generator = generator
        self._examples = examples

    def __reduce__(self) -> tuple[Any, ...]:
        # As its settings: neither what is remembered nor what is asked just now travels.
        return partial(type(self), self._generator, examples=self._examples, **self._settings), ()

    def _rewrite_after(self, history: tuple[Message, ...], question: str, has_image: bool) -> Rewrite:
        if len(question) > _LONGEST:
            return self._fallback.rewrite(question, has_image=has_image, history=history)
        _ = self._generator.tasks  # loads a model, which may take longer than an answer
        return super()._rewrite_after(history, question, has_image)

    def _answer(self, asked: Asked) -> Mapping[str, object]:
        examples = not self._generator.tasks.trained if self._examples is None else self._examples
        messages = rewriting(asked.question, has_image=asked.has_image, history=asked.history, examples=examples)
        schema = rewriting_schema(following=any(message.role != "system" for message in asked.history))
        found = self._generator.generate(messages, schema=schema, max_new_tokens=_MOST_TOKENS).json()
        return {name: _line(value) if isinstance(value, str) else value for name, value in found.items()}


def _line(text: str) -> str:
    """A text on one line; what cannot be printed becomes a space."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())
