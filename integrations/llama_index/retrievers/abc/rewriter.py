"""A LlamaIndex language model as abc-rag's rewriter of questions."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.base import BaseLLM

from abc_rag.errors import InputError
from abc_rag.search.rewriting.llm import LLMRewriter

__all__ = ["llm_rewriter"]


def llm_rewriter(llm: BaseLLM, **kwargs: Any) -> LLMRewriter:  # noqa: ANN401
    """Let a language model rewrite questions; where it fails, answers nonsense or takes too long, rules do.

    Args:
        llm: Any LlamaIndex LLM; it completes one prompt a question.
        kwargs: As for `abc_rag.search.rewriting.llm.LLMRewriter`: ``fallback``, ``timeout_s``, ``cache_size``.

    Raises:
        InputError: ``llm`` is not a LlamaIndex LLM.
    """
    if not isinstance(llm, BaseLLM):
        raise InputError(f"llm must be a LlamaIndex LLM, not {type(llm).__name__}")
    return LLMRewriter(lambda prompt: llm.complete(prompt).text, **kwargs)
