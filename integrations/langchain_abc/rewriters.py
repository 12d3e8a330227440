"""A LangChain chat model that rewrites questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

from abc_rag.errors import InputError
from abc_rag.search.rewriting.llm import ANSWER_SCHEMA, LLMRewriter

__all__ = ["chat_model_rewriter"]


def chat_model_rewriter(model: BaseChatModel, **kwargs: Any) -> LLMRewriter:  # noqa: ANN401
    """Let a chat model rewrite questions.

    It is asked for structured output if it supports that, and for text otherwise. If it fails, is late or answers
    nonsense, rules rewrite, and a warning is logged.

    Args:
        model: The chat model.
        **kwargs: As for `abc_rag.search.rewriting.LLMRewriter`: ``fallback``, ``timeout_s``, ``cache_size``.

    Raises:
        abc_rag.errors.InputError: ``model`` is no chat model, or an argument is invalid.
    """
    if not isinstance(model, BaseChatModel):
        raise InputError(f"model must be a LangChain chat model, not {type(model).__name__}")
    return LLMRewriter(_Completes(model), **kwargs)


class _Completes:
    """A function of a prompt that can be pickled, if the chat model can."""

    def __init__(self, model: BaseChatModel) -> None:
        self._model = model
        try:
            self._structured: Runnable[Any, Any] | None = model.with_structured_output(ANSWER_SCHEMA)
        except NotImplementedError:
            # LangChain's base class raises this for a model that calls no tools.
            self._structured = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._model,)

    def __call__(self, prompt: str) -> str | Mapping[str, object]:
        if self._structured is None:
            return str(self._model.invoke(prompt).text)
        # None, if the model called no tool after all, counts as no answer.
        answer: Mapping[str, object] = self._structured.invoke(prompt)
        return answer
