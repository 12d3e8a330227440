"""Duplicates in one respect: pictures that are the same under some instructions, and differ under others.

All pairs of pictures are compared, in blocks: what is found is exact, and memory is bounded. A pair is the same under
an instruction if its score reaches that instruction's threshold, and different if it does not.

A threshold that is not given lies in the gap between pairs that are the same and pairs that are not. The scores of up
to 500 pictures with all others are counted, the counts are smoothed, and the emptiest place between two peaks is taken.
It counts as a gap if it is at most a third as high as the lower peak, and at least one pair in twenty lies below it.
Where there is no gap, no pair is called the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.search.sights import Rows, Sights
from abc_rag.types import Vectors

__all__ = ["Duplicates", "Pair", "duplicates_in", "gap"]

_BLOCK = 1024
_SAMPLE = 500
_SEED = 20_266
_BINS = 400  # of scores from 0 to 1
_WIDTH = 4.0  # bins, of the smoothing
_DEEP = 3.0
_BELOW = 0.05
# One pair, smoothed: of a few pairs, an empty place says little.
_ONE = 1.0 / (_WIDTH * np.sqrt(2.0 * np.pi))

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two pictures that are the same in the respects that were asked for.

    Attributes:
        first: The id of one, and
        second: of the other.
        score: Mean of ``(1 + cosine) / 2`` under each instruction in which they are the same.
    """

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class Duplicates:
    """Pictures that are the same under some instructions, and differ under others; a sequence of pairs.

    Attributes:
        same: Under which they are the same.
        different: Under which they differ.
        thresholds: For each instruction, the score from which on two pictures are the same; without those that have no
            gap.
        pairs: The best first; as many as were asked for.
        count: How many pairs there are.
        groups: Ids of pictures that pairs connect, the largest group first; in each, those with the most pairs first.
            Two pictures of a group need not be a pair.
        facets: How many pictures had a facet of each instruction.
        passes: How many were looked at.
        unusable: How many could not be looked at.
        left_out: How many more there are.
        notes: What the caller should know, in words.
    """

    same: tuple[str, ...]
    different: tuple[str, ...]
    thresholds: Mapping[str, float]
    pairs: tuple[Pair, ...]
    count: int
    groups: tuple[tuple[str, ...], ...]
    facets: int
    passes: int
    unusable: int
    left_out: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> Pair:
        return self.pairs[position]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "same": list(self.same),
            "different": list(self.different),
            "thresholds": {name: round(value, 6) for name, value in self.thresholds.items()},
            "count": self.count,
            **{name: getattr(self, name) for name in ("facets", "passes", "unusable", "left_out")},
            "notes": list(self.notes),
            "pairs": [{"first": p.first, "second": p.second, "score": round(p.score, 6)} for p in self.pairs],
            "groups": [list(group) for group in self.groups],
        }


def duplicates_in(
    sights: Sights, same: Sequence[str], different: Sequence[str], given: Mapping[str, float], *, most: int
) -> Duplicates:
    """Compare all pairs of pictures that were seen.

    Args:
        sights: Under all instructions, without a facet map.
        same: Instructions.
        different: Further instructions.
        given: Thresholds that need not be found, by instruction.
        most: Maximum number of pairs to return.
    """
    notes = []
    thresholds = dict(given)
    for instruction in [*same, *different]:
        if instruction in thresholds or len(sights.ids) < 2:
            continue
        counts = _counts(sights.rows[instruction])
        found = gap(counts)
        if found is None:
            half, high = (_quantile(counts, share) for share in (0.5, 0.99))
            notes.append(
                f"{instruction!r}: no gap tells pictures that are the same from others (half of the pairs score below "
                f"{half:.3f}, 99 in 100 below {high:.3f}); pass a threshold"
            )
        else:
            thresholds[instruction] = found
    if sights.unusable:
        notes.append(f"{sights.unusable} pictures could not be looked at; they are in no pair")
    if sights.left_out:
        notes.append(
            f"{sights.left_out} pictures were not looked at; index them with these instructions as facets, or raise "
            "passes"
        )
    counts_told = {name: count for name, count in sights.told.items() if name != "mapped"}
    pairs: list[Pair] = []
    count, groups = 0, list[tuple[str, ...]]()
    if len(sights.ids) > 1 and all(instruction in thresholds for instruction in (*same, *different)):
        comparison = _Comparison(sights, same, different, thresholds, most)
        pairs, count, groups = comparison.pairs, comparison.count, comparison.groups()
    return Duplicates(
        tuple(same), tuple(different), thresholds, tuple(pairs), count, tuple(groups), **counts_told, notes=tuple(notes)
    )


def gap(counts: Counts) -> float | None:
    """The score in the middle of the gap between two kinds of pairs; None where there is none.

    Args:
        counts: How many pairs have which score; bins of equal width from 0 to 1.
    """
    if not counts.any():
        return None
    reach = np.arange(-int(4 * _WIDTH), int(4 * _WIDTH) + 1)
    kernel = np.exp(-0.5 * (reach / _WIDTH) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum(), "same")
    left, right = np.maximum.accumulate(smooth), np.maximum.accumulate(smooth[::-1])[::-1]
    depth = np.minimum(left, right) / (smooth + _ONE)
    depth[np.cumsum(counts) < _BELOW * counts.sum()] = 0.0
    best = int(depth.argmax())
    if depth[best] < _DEEP:
        return None
    last = best
    while last + 1 < len(depth) and depth[last + 1] >= 0.99 * depth[best]:
        last += 1
    return (best + last + 1) / 2.0 / len(counts)


def _counts(rows: Rows) -> Counts:
    """How many pairs of some pictures with all others have which score."""
    chosen = np.arange(len(rows))
    if len(rows) > _SAMPLE:
        chosen = np.sort(np.random.default_rng(_SEED).choice(len(rows), _SAMPLE, replace=False))
    sample = np.concatenate([rows.read(place, place + 1) for place in chosen.tolist()])
    counts = np.zeros(_BINS)
    for start, block in rows.blocks(_BLOCK):
        scores = _scores(sample, block)
        own = (chosen >= start) & (chosen < start + len(block))
        scores[np.flatnonzero(own), chosen[own] - start] = np.nan  # a picture with itself
        counts += np.histogram(scores[~np.isnan(scores)], bins=_BINS, range=(0.0, 1.0))[0]
    return counts


def _quantile(counts: Counts, share: float) -> float:
    return float(np.searchsorted(np.cumsum(counts), share * counts.sum()) + 1) / len(counts)


def _scores(a: Vectors, b: Vectors) -> npt.NDArray[np.float32]:
    scores: npt.NDArray[np.float32] = (1.0 + np.clip(a @ b.T, -1.0, 1.0)) / 2.0
    return scores


class _Comparison:
    """All pairs, block by block; which pictures are connected is kept as a forest (union-find)."""

    def __init__(
        self,
        sights: Sights,
        same: Sequence[str],
        different: Sequence[str],
        thresholds: Mapping[str, float],
        most: int,
    ) -> None:
        self._ids = sights.ids
        self._most = most
        self._parents = np.arange(len(sights.ids))
        self._degrees = np.zeros(len(sights.ids), np.int64)
        self._best = (np.empty(0, np.float32), np.empty((2, 0), np.int64))
        self.count = 0
        starts = range(0, len(sights.ids), _BLOCK)
        for start in starts:
            own = {one: sights.rows[one].read(start, start + _BLOCK) for one in (*same, *different)}
            for other in starts[start // _BLOCK :]:
                scores, fits = np.float32(0.0), None
                for instruction, rows in own.items():
                    near = _scores(rows, sights.rows[instruction].read(other, other + _BLOCK))
                    reached = near >= thresholds[instruction]
                    right = reached if instruction in same else ~reached
                    fits = right if fits is None else fits & right
                    scores = scores + near / len(same) if instruction in same else scores
                assert fits is not None
                first, second = np.nonzero(np.triu(fits, 1) if start == other else fits)
                if len(first):
                    self._take(np.asarray(scores)[first, second], np.stack([first + start, second + other]))

    def _take(self, scores: npt.NDArray[np.float32], places: npt.NDArray[np.int64]) -> None:
        self.count += len(scores)
        self._degrees += np.bincount(places.ravel(), minlength=len(self._ids))
        self._connect(places)
        scores = np.concatenate([self._best[0], scores])
        places = np.concatenate([self._best[1], places], axis=1)
        order = np.lexsort((places[1], places[0], -scores))[: self._most]
        self._best = scores[order], places[:, order]

    def _connect(self, places: npt.NDArray[np.int64]) -> None:
        roots = self._roots(places)
        apart = np.unique(np.sort(roots[:, roots[0] != roots[1]], axis=0), axis=1)
        for a, b in apart.T:
            first, second = sorted((self._root(int(a)), self._root(int(b))))
            self._parents[second] = first

    def _root(self, place: int) -> int:
        while self._parents[place] != place:
            self._parents[place] = place = int(self._parents[self._parents[place]])
        return place

    def _roots(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        found = self._parents[places]
        while not np.array_equal(above := self._parents[found], found):
            found = above
        return found

    @property
    def pairs(self) -> list[Pair]:
        """The best pairs."""
        scores, places = self._best
        return [
            Pair(self._ids[a], self._ids[b], float(score)) for score, a, b in zip(scores, *places.tolist(), strict=True)
        ]

    def groups(self) -> list[tuple[str, ...]]:
        """What is connected."""
        members: dict[int, list[int]] = {}
        for place in np.flatnonzero(self._degrees):
            members.setdefault(self._root(int(place)), []).append(int(place))
        ordered = [sorted(one, key=lambda place: (-self._degrees[place], place)) for one in members.values()]
        return [
            tuple(self._ids[place] for place in one) for one in sorted(ordered, key=lambda one: (-len(one), one[0]))
        ]
