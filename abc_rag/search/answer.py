"""What a search gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from abc_rag.search.rewriting.rewriter import Rewrite
from abc_rag.types import (
    Hit,
)

__all__ = ["Answer"]


@dataclass(frozen=True)
class Answer:
    """What a search found, and how it was asked. As a sequence, it is its hits.

    Attributes:
        question: The question, if one was asked.
        instruction: What pictures were looked at for: the one that was given, or, after a second look, those that
            were found. None where no picture was seen under an instruction.
        hits: Best first; after MMR, in the order of choice.
        rewrite: What the question became; None for a picture alone.
    """

    question: str | None
    instruction: str | None
    hits: list[Hit]
    rewrite: Rewrite | None = None

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
            "instruction": self.instruction,
            "target": None if self.rewrite is None else self.rewrite.target,
            "hits": [
                {
                    "score": round(hit.score, 6),
                    "id": hit.record.id,
                    "modality": hit.record.modality,
                    "source": hit.record.source,
                    "text": hit.record.text,
                    "metadata": dict(hit.record.metadata),
                    **({} if hit.trace is None else {"trace": asdict(hit.trace)}),
                }
                for hit in self.hits
            ],
        }
