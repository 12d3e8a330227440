"""Rewriting by rules."""

from __future__ import annotations

from abc_rag.search.rewriting.english.questions import rewrite
from abc_rag.search.rewriting.english.wording import PICTURE, pattern
from abc_rag.search.rewriting.rewriter import Rewrite, Rewriter

__all__ = ["RuleRewriter", "follows_up"]

_FOLLOWS_UP = pattern(
    r"\W*(?:and|also|or|but|then)\b|.*\b(?:(?:what|how) about|what else|the (?:same|other|rest|picture|photo|image)",
    r"|this|that|these|those|it|its|they|them|their|he|she|his|her|there|here)\b",
    # A place alone: without a picture, there is nothing that it could be a place in.
    rf"|\W*(?:(?:what|who|which (?!{PICTURE}\b)\w+)(?:['\u2019]s| is| are)? )?(?:on|at|in|to) the ",
    r"(?:left|right|top|bottom|middle|cent(?:re|er)|background|foreground)\W*$",
    r"|\W*what colou?r is the background\W*$",
)


class RuleRewriter(Rewriter):
    """By rules for English; a question in another language is left as it is.

    Chat is dropped ("could you please", "thanks a lot"); the user's own words and quoted text are kept. Without a
    picture, the instruction asks for an aspect only where the question names exactly one; otherwise it is
    `WHOLE_PICTURE`.

    Example:
        >>> RuleRewriter().rewrite("Could you show me a photo with a blue background?", has_image=False)
        Rewrite(instruction='what colour is the background?', target='a blue background', wants='image')
    """

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        return Rewrite(*rewrite(question, has_image=has_image))


def follows_up(question: str) -> bool:
    """Whether a question only makes sense after an earlier one, such as ``"and on the right?"``.

    So does one about a place alone, such as ``"what is on the left?"``, which needs a picture. Known by English words;
    a question in another language never does.
    """
    return len(question) <= 200 and _FOLLOWS_UP.match(question) is not None
