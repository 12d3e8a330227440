"""A LlamaIndex language model that rewrites questions."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.base import BaseLLM

from abc_rag.errors import InputError
from abc_rag.search.rewriting.llm import LLMRewriter

__all__ = ["llm_rewriter"]


def llm_rewriter(llm: BaseLLM, **kwargs: Any) -> LLMRewriter:  # noqa: ANN401
    """Let a language model rewrite questions. If it fails, is late or answers nonsense, rules rewrite.

    Args:
        llm: Any LlamaIndex LLM; it completes one prompt per question.
        kwargs: As for `abc_rag.search.rewriting.LLMRewriter`: ``fallback``, ``timeout_s``, ``cache_size``.

    Raises:
        InputError: ``llm`` is not a LlamaIndex LLM.
    """
    if not isinstance(llm, BaseLLM):
        raise InputError(f"llm must be a LlamaIndex LLM, not {type(llm).__name__}")
    return LLMRewriter(_Completes(llm), **kwargs)


class _Completes:
    """A function of a prompt that can be pickled, if the language model can."""

    def __init__(self, llm: BaseLLM) -> None:
        self._llm = llm

    def __call__(self, prompt: str) -> str:
        return self._llm.complete(prompt).text
