"""The result of a search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from abc_rag.search.rewriting.rewriter import Rewrite
from abc_rag.types import Hit

__all__ = ["Answer", "Citation"]


@dataclass(frozen=True)
class Citation:
    """A source that an answer in words cites.

    Attributes:
        number: Its number in the text.
        hit: What was found.
    """

    number: int
    hit: Hit


@dataclass(frozen=True)
class Answer:
    """The result of a search, and what `abc_rag.Retriever.answer` makes of it in words.

    Iterating over it, indexing it and its length are those of its hits.

    Attributes:
        question: The question, if there was one.
        instruction: The instruction under which pictures were embedded: the given picture or, in a second look, those
            that were found. None if there was none.
        hits: Best first; after MMR, in the order in which they were chosen.
        rewrite: What the question became; None for a picture alone.
        confidence: The highest confidence of any hit that was judged, also of those that were then left out; None
            without judging.
        notes: What the caller should know, in words: why there are no hits, or what was left out.
        text: The answer in words; empty after a search alone.
        citations: The sources that it cites, in the order of their first mention. Source ``n`` is hit ``n - 1``.
        unsupported: Its sentences that cite no source.
    """

    question: str | None
    instruction: str | None
    hits: list[Hit]
    rewrite: Rewrite | None = None
    confidence: float | None = None
    notes: tuple[str, ...] = ()
    text: str = ""
    citations: tuple[Citation, ...] = ()
    unsupported: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, position: int) -> Hit:
        return self.hits[position]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "question": self.question,
            **({} if not self.text else self._told()),
            "instruction": self.instruction,
            "target": None if self.rewrite is None else self.rewrite.target,
            **({} if self.confidence is None else {"confidence": round(self.confidence, 6)}),
            **({"notes": list(self.notes)} if self.notes else {}),
            "hits": [
                {
                    "score": round(hit.score, 6),
                    "id": hit.record.id,
                    "modality": hit.record.modality,
                    "source": hit.record.source,
                    "text": hit.record.text,
                    "metadata": dict(hit.record.metadata),
                    **({} if hit.confidence is None else {"confidence": round(hit.confidence, 6)}),
                    **({} if hit.trace is None else {"trace": asdict(hit.trace)}),
                }
                for hit in self.hits
            ],
        }

    def _told(self) -> dict[str, Any]:
        cited = [{"number": one.number, "id": one.hit.id, "source": one.hit.source} for one in self.citations]
        return {"text": self.text, "citations": cited, "unsupported": list(self.unsupported)}
