"""From a user's question to an instruction for pictures, and to what the right record would show or say."""

from __future__ import annotations

from abc_rag.search.rewriting.llm import ANSWER_SCHEMA, LLMRewriter
from abc_rag.search.rewriting.rewriter import WHOLE_PICTURE, AsAsked, Rewrite, Rewriter, Wants
from abc_rag.search.rewriting.rules import RuleRewriter, follows_up

__all__ = [
    "ANSWER_SCHEMA",
    "WHOLE_PICTURE",
    "AsAsked",
    "LLMRewriter",
    "Rewrite",
    "Rewriter",
    "RuleRewriter",
    "Wants",
    "follows_up",
]
