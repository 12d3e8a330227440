"""What several evaluations do alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.errors import DatasetError
from abc_rag.evaluation.metrics import Ranking
from abc_rag.evaluation.vectors import VectorCache
from abc_rag.types import Text, Vectors

__all__ = ["MOST_MISTAKES", "KnownTexts", "require_left", "scores_at", "share", "worst"]

MOST_MISTAKES = 24
"""How many mistakes a report shows."""


class KnownTexts:
    """Distinct texts and their vectors; without those that cannot be embedded.

    Attributes:
        texts: Each once, in order of first occurrence.
        vectors: float32 ``(texts, dim)``, unit rows.
        position: Text -> its row.
    """

    def __init__(self, cache: VectorCache, name: str, texts: Iterable[str]) -> None:
        distinct = list(dict.fromkeys(texts))
        vectors, ok = cache.embed(name, [Text(text) for text in distinct])
        self.texts = [text for text, fine in zip(distinct, ok, strict=True) if fine]
        self.vectors: Vectors = vectors[ok]
        self.position = {text: number for number, text in enumerate(self.texts)}


def require_left(count: int, what: str, cache: VectorCache) -> None:
    """Refuse to go on with nothing.

    Raises:
        DatasetError: ``count`` is 0; the message says why.
    """
    if count == 0:
        first = f"; first: {cache.bad.rows[0]}" if cache.bad.rows else ""
        raise DatasetError(f"{cache.bad.name}: no {what} could be embedded ({cache.bad.summary()}{first})")


def worst(margins: Vectors, ranks: npt.NDArray[np.integer], *, most: int = MOST_MISTAKES) -> list[int]:
    """Positions of the queries whose best wrong candidate beats the right one by most, worst first."""
    wrong = [int(position) for position in np.flatnonzero(np.asarray(ranks) > 1)]
    return sorted(wrong, key=lambda position: -float(margins[position]))[:most]


def scores_at(ranking: Ranking, at: int) -> dict[str, Any]:
    """What a `Mistake` says of a query in figures."""
    return {
        "score": float(ranking.found_scores[at]),
        "expected_score": float(ranking.expected_scores[at]),
        "rank": int(ranking.ranks[at]),
    }


def share(values: Sequence[bool] | Sequence[float] | npt.NDArray[np.generic]) -> float:
    """The mean; NaN of nothing."""
    return float(np.mean(np.asarray(values, dtype=np.float64))) if len(values) else float("nan")
