"""Judging what was found: whether it shows or says what is asked for."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from abc_rag.errors import ABCRagError
from abc_rag.models.tasks import Source
from abc_rag.search.pictures import Pictures
from abc_rag.search.sources import sources_of
from abc_rag.types import Hit, ImageSource

__all__ = ["Judge", "confident", "judged_hits"]

logger = logging.getLogger(__name__)


class Judge(ABC):
    """Says how likely it is that a source shows or says what is asked for. `abc_rag.answering` has one with a model."""

    @abstractmethod
    def judge(
        self, question: str, sources: Sequence[Source], *, image: ImageSource | None = None
    ) -> list[float | ABCRagError]:
        """Judge some sources.

        Args:
            question: What is asked for, complete by itself.
            sources: Pictures and passages.
            image: A picture that came with the question.

        Returns:
            A probability in [0, 1] for each source, in order; the error of one that cannot be judged in its place.
        """


def judged_hits(
    judge: Judge, question: str, hits: Sequence[Hit], pictures: Pictures, *, image: ImageSource | None = None
) -> list[Hit]:
    """Hits with their confidence, the likeliest first; at equal confidence, in the order of their scores.

    Those that cannot be judged come last, and a warning is logged for each.
    """
    opened = sources_of(hits, pictures)
    usable = [source for source in opened if isinstance(source, Source)]
    told = iter(judge.judge(question, usable, image=image) if usable else [])
    found = []
    for hit, source in zip(hits, opened, strict=True):
        said = next(told) if isinstance(source, Source) else source
        confidence = None if isinstance(said, ABCRagError) else said
        note = str(said) if isinstance(said, ABCRagError) else ""
        if note:
            logger.warning("not judged: %s", note)
        trace = hit.trace
        if trace is not None:
            notes = "; ".join(dict.fromkeys(one for one in (trace.note, note) if one))
            trace = replace(trace, judged=confidence, note=notes)
        found.append(replace(hit, confidence=confidence, trace=trace))
    return sorted(found, key=lambda hit: (-1.0 if hit.confidence is None else hit.confidence, hit.score), reverse=True)


def confident(
    hits: Sequence[Hit], least: float, confidence: float | None, judged: int
) -> tuple[list[Hit], tuple[str, ...]]:
    """Hits of some confidence and, where there are none, the reason."""
    kept = [hit for hit in hits if hit.confidence is not None and hit.confidence >= least]
    if kept:
        return kept, ()
    if confidence is None:
        return [], (f"nothing here could be judged: none of the first {judged} hits; see the warnings",)
    best = f"the highest confidence of the first {judged} hits is {confidence:.3f}"
    return [], (f"nothing here matches: {best}, below min_confidence={least:g}",)
