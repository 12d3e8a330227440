"""Rewriting by rules."""

from __future__ import annotations

from abc_rag.search.rewriting.english import questions as _rules
from abc_rag.search.rewriting.rewriter import Rewrite, Rewriter

__all__ = ["RuleRewriter"]


class RuleRewriter(Rewriter):
    """By rules for English; a question in another language is left as it is.

    Chat is dropped ("could you please", "thanks a lot"), the user's own words and quoted text are kept. Without a
    picture, the instruction asks for an aspect only where the question names exactly one; otherwise it is
    `WHOLE_PICTURE`.

    Example:
        >>> RuleRewriter().rewrite("Could you show me a photo with a blue background?", has_image=False)
        Rewrite(instruction='what colour is the background?', target='a blue background', wants='image')
    """

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        return Rewrite(*_rules.rewrite(question, has_image=has_image))
