"""Ranks and recall of the right candidates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import InputError
from abc_rag.types import Vectors

__all__ = [
    "MOST_MISTAKES",
    "TIE",
    "Ranking",
    "auroc",
    "best_threshold",
    "figure_of_each",
    "join",
    "rank_candidates",
    "ranks",
    "recall_at",
    "share",
    "worst",
]

TIE = 1e-6
"""Scores this close are a tie. Cosines in float32 have errors of about this size, which depend on the shape of the
matrix; a model that maps everything to one vector must not be ranked by them."""

MOST_MISTAKES = 24
"""How many mistakes a report shows."""

_BLOCK_BYTES = 64 * 2**20

Ranks = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class Ranking:
    """The rank of each query's right candidate, and the wrong candidate that scores highest.

    Attributes:
        ranks: 1-based rank of the best right candidate, ``(queries,)``; ties count against the query.
        expected: Position of the best right candidate, ``(queries,)``.
        expected_scores: Its cosine, ``(queries,)``.
        found: Position of the best wrong candidate, ``(queries,)``; -1 where there is none.
        found_scores: Its cosine, ``(queries,)``; -inf where there is none.
    """

    ranks: Ranks
    expected: npt.NDArray[np.int64]
    expected_scores: Vectors
    found: npt.NDArray[np.int64]
    found_scores: Vectors

    @property
    def margins(self) -> Vectors:
        """Score of the best wrong candidate minus that of the best right one, ``(queries,)``."""
        return self.found_scores - self.expected_scores

    def figures(self, query: int) -> dict[str, Any]:
        """A query's figures, as the arguments of `abc_rag.evaluation.results.Mistake`."""
        return {
            "score": float(self.found_scores[query]),
            "expected_score": float(self.expected_scores[query]),
            "rank": int(self.ranks[query]),
        }

    def at(self, columns: npt.NDArray[np.integer]) -> Ranking:
        """The same ranking, with candidate ``i`` renumbered as ``columns[i]``."""
        found = np.where(self.found < 0, -1, columns[self.found])
        return replace(self, expected=columns[self.expected].astype(np.int64), found=found.astype(np.int64))


def join(parts: Sequence[Ranking]) -> Ranking:
    """Concatenate the rankings of several groups of queries; at least one."""
    return Ranking(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Ranking)))


def ranks(scores: npt.NDArray[np.floating], positives: Sequence[Collection[int]]) -> Ranks:
    """The 1-based rank of each query's best right candidate among all wrong ones.

    Other right candidates do not lower its rank. A wrong candidate with the same score (within `TIE`) ranks before it,
    so that a model which cannot tell candidates apart gets no credit for luck.

    Args:
        scores: ``(queries, candidates)``, higher is better.
        positives: The positions of each query's right candidates; at least one per query.

    Raises:
        InputError: The lengths differ, or a query has no right candidate, or one that does not exist.
    """
    return _rank(np.asarray(scores), positives).ranks


def rank_candidates(queries: Vectors, candidates: Vectors, positives: Sequence[Collection[int]]) -> Ranking:
    """Rank all candidates for each query by cosine, in blocks of queries, so that memory is bounded.

    Args:
        queries: Unit vectors ``(queries, dim)``.
        candidates: Unit vectors ``(candidates, dim)``.
        positives: As for `ranks`.

    Raises:
        InputError: As for `ranks`.
    """
    block = max(1, _BLOCK_BYTES // max(1, 4 * len(candidates)))
    if len(positives) != len(queries):
        raise InputError(f"{len(queries)} queries but {len(positives)} lists of right candidates")
    parts = [
        _rank(queries[start : start + block] @ candidates.T, positives[start : start + block])
        for start in range(0, max(1, len(queries)), block)
    ]
    return join(parts)


def figure_of_each(
    label: str, items: Sequence[T], figure: Callable[[T], float], *, progress: bool = False
) -> npt.NDArray[np.float64]:
    """A figure of each item, ``(items,)``, with a progress bar of that label."""
    found = []
    with progress_bar(label, total=len(items), enabled=progress) as bar:
        for item in items:
            found.append(figure(item))
            bar.advance()
    return np.array(found, dtype=np.float64)


def recall_at(ranks: npt.NDArray[np.integer], k: int) -> float:
    """The share of queries, in [0, 1], whose best right candidate is among the first ``k``; NaN without queries."""
    return float(np.mean(np.asarray(ranks) <= k)) if len(ranks) else float("nan")


def auroc(positives: npt.NDArray[np.floating], negatives: npt.NDArray[np.floating]) -> float:
    """Probability that a positive is higher than a negative, ties counted as half; NaN where one kind is missing.

    Args:
        positives: Shape ``(n,)``.
        negatives: Shape ``(m,)``.
    """
    if not len(positives) or not len(negatives):
        return float("nan")
    difference = positives[:, None] - negatives[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def best_threshold(positives: npt.NDArray[np.floating], negatives: npt.NDArray[np.floating]) -> float:
    """The threshold with the best balanced accuracy: positives at or above it, negatives below.

    It lies half-way between two neighbouring values; of equally good ones, it is the lowest. NaN where one kind is
    missing.
    """
    if not len(positives) or not len(negatives):
        return float("nan")
    values = np.unique(np.concatenate([positives, negatives]))
    middles = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2.0])
    balanced = [np.mean(positives >= one) + np.mean(negatives < one) for one in middles]
    return float(middles[int(np.argmax(balanced))])


def share(values: Sequence[bool] | Sequence[float] | npt.NDArray[np.generic]) -> float:
    """The mean; NaN if there are no values."""
    return float(np.mean(np.asarray(values, dtype=np.float64))) if len(values) else float("nan")


def worst(margins: Vectors, ranks: npt.NDArray[np.integer], *, most: int = MOST_MISTAKES) -> list[int]:
    """Positions of the wrongly answered queries, largest margin of the wrong candidate first."""
    wrong = [int(position) for position in np.flatnonzero(np.asarray(ranks) > 1)]
    return sorted(wrong, key=lambda position: -float(margins[position]))[:most]


def _rank(scores: npt.NDArray[np.floating], positives: Sequence[Collection[int]]) -> Ranking:
    if scores.ndim != 2 or len(scores) != len(positives):
        raise InputError(f"scores of shape {scores.shape} do not fit {len(positives)} lists of right candidates")
    count, width = scores.shape
    right = np.zeros(scores.shape, dtype=bool)
    for row, chosen in enumerate(positives):
        columns = list(chosen)
        if not columns or not all(0 <= column < width for column in columns):
            raise InputError(
                f"query {row}: right candidates {columns[:5]} among {width}; give at least one that exists"
            )
        right[row, columns] = True
    rows = np.arange(count)
    of_right = np.where(right, scores, -np.inf)
    of_wrong = np.where(right, -np.inf, scores)
    expected = of_right.argmax(axis=1) if count else np.zeros(0, dtype=np.int64)
    found = of_wrong.argmax(axis=1) if count else np.zeros(0, dtype=np.int64)
    expected_scores, found_scores = of_right[rows, expected], of_wrong[rows, found]
    return Ranking(
        ranks=1 + (of_wrong >= expected_scores[:, None] - TIE).sum(axis=1).astype(np.int64),
        expected=expected.astype(np.int64),
        expected_scores=expected_scores.astype(np.float32),
        found=np.where(np.isfinite(found_scores), found, -1).astype(np.int64),
        found_scores=found_scores.astype(np.float32),
    )
