"""Any LangChain chat model as a rewriter of questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

from abc_rag.errors import InputError
from abc_rag.search.rewriting.llm import ANSWER_SCHEMA, LLMRewriter

__all__ = ["chat_model_rewriter"]


def chat_model_rewriter(model: BaseChatModel, **kwargs: Any) -> LLMRewriter:  # noqa: ANN401
    """Let a chat model make instructions of questions.

    It is asked for structured output where it has that, and for text otherwise. Where it fails, is late or answers
    something else, rules answer in its place and a warning is logged.

    Args:
        model: The chat model.
        **kwargs: As for `abc_rag.search.rewriting.LLMRewriter`: ``fallback``, ``timeout_s``, ``cache_size``.

    Raises:
        abc_rag.errors.InputError: ``model`` is no chat model, or an argument is of no use.
    """
    if not isinstance(model, BaseChatModel):
        raise InputError(f"model must be a LangChain chat model, not {type(model).__name__}")
    return LLMRewriter(_structured(model) or _plain(model), **kwargs)


def _structured(model: BaseChatModel) -> Callable[[str], str | Mapping[str, object]] | None:
    try:
        asked: Runnable[Any, Any] = model.with_structured_output(ANSWER_SCHEMA)
    except NotImplementedError:
        # What LangChain's base class says where a model calls no tools.
        return None

    def complete(prompt: str) -> str | Mapping[str, object]:
        # None, where the model called no tool after all, is no answer: the rewriter says so.
        answer: Mapping[str, object] = asked.invoke(prompt)
        return answer

    return complete


def _plain(model: BaseChatModel) -> Callable[[str], str | Mapping[str, object]]:
    return lambda prompt: str(model.invoke(prompt).text)
