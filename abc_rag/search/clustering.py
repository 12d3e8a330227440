"""Groups of vectors: average linkage by cosine, cut where the silhouette is best. NumPy alone, and deterministic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from abc_rag.types import Vectors

__all__ = ["APART", "Clustering", "clustered"]

APART = 0.25
"""The mean silhouette below which Kaufman and Rousseeuw (1990) see no groups."""
_MOST_GROUPS = 200

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Clustering:
    """Which vector is in which group.

    Attributes:
        labels: ``(n,)``, from 0 on.
        silhouette: Mean over all vectors, in [-1, 1]; None for one group, and where every vector is its own.
    """

    labels: Labels
    silhouette: float | None


def clustered(vectors: Vectors, k: int | None = None) -> Clustering:
    """Group vectors by average linkage (UPGMA) of cosine distances.

    Memory and time grow with the square of their number.

    Args:
        vectors: ``(n, dim)``, unit length; ``n`` is at least 1.
        k: Number of groups, at most ``n``. If not given: the number, up to 200, with the best mean silhouette
            (Rousseeuw, 1987); one group where even that is below `APART`.
    """
    count = len(vectors)
    distances = np.maximum(1.0 - vectors @ vectors.T, 0.0).astype(np.float64)
    np.fill_diagonal(distances, 0.0)
    merges = _linkage(distances)
    if k is not None:
        labels = _cut(merges, count, k)
        return Clustering(labels, _silhouette(*_sums(distances, labels), labels) if 1 < k < count else None)
    best, silhouette = 1, APART
    labels = _cut(merges, count, most := min(count - 1, _MOST_GROUPS)) if count > 2 else np.zeros(count, np.int64)
    sums, sizes = _sums(distances, labels)
    for groups in range(most, 1, -1) if count > 2 else ():
        found = _silhouette(sums, sizes, labels)
        if found >= silhouette:  # of equals, the fewest groups
            best, silhouette = groups, found
        a, b = sorted(labels[list(merges[count - groups])])
        sums[:, a] += sums[:, b]
        sizes[a] += sizes[b]
        sums, sizes = np.delete(sums, b, axis=1), np.delete(sizes, b)
        labels = np.where(labels == b, a, labels - (labels > b))
    return Clustering(_cut(merges, count, best), silhouette if best > 1 else None)


def _linkage(distances: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Which groups are joined, the nearest first, each named by its first vector (nearest-neighbour chain)."""
    between = distances.copy()
    np.fill_diagonal(between, np.inf)
    sizes = np.ones(len(between))
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < len(between) - 1:
        if not chain:
            chain.append(int(np.flatnonzero(sizes)[0]))
        last = chain[-1]
        nearest = int(np.argmin(between[last]))
        before = chain[-2] if len(chain) > 1 else -1
        # Of equally near ones the one before, or the chain would never end.
        if before < 0 or between[last, nearest] < between[last, before]:
            chain.append(nearest)
            continue
        del chain[-2:]
        a, b = sorted((last, before))
        merges.append((float(between[a, b]), a, b))
        joined = (sizes[a] * between[a] + sizes[b] * between[b]) / (sizes[a] + sizes[b])
        joined[a] = np.inf
        between[a] = between[:, a] = joined
        between[b] = between[:, b] = np.inf
        sizes[a] += sizes[b]
        sizes[b] = 0
    return [(a, b) for _, a, b in sorted(merges, key=lambda one: one[0])]


def _cut(merges: list[tuple[int, int]], count: int, k: int) -> Labels:
    """Labels of ``k`` groups."""
    parents = list(range(count))

    def root(one: int) -> int:
        while parents[one] != one:
            parents[one] = one = parents[parents[one]]
        return one

    for a, b in merges[: count - k]:
        first, second = sorted((root(a), root(b)))
        parents[second] = first
    labels: Labels = np.unique([root(one) for one in range(count)], return_inverse=True)[1].astype(np.int64)
    return labels


def _sums(
    distances: npt.NDArray[np.float64], labels: Labels
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The sum of each vector's distances to each group, ``(n, k)``, and the groups' sizes."""
    members = np.eye(labels.max() + 1)[labels]
    return distances @ members, members.sum(axis=0)


def _silhouette(sums: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], labels: Labels) -> float:
    """The mean silhouette; that of a vector that is alone is 0."""
    rows = np.arange(len(labels))
    alone = sizes[labels] == 1
    own = sums[rows, labels] / np.maximum(sizes[labels] - 1, 1)
    others = sums / sizes
    others[rows, labels] = np.inf
    nearest = others.min(axis=1)
    return float(np.mean(np.where(alone, 0.0, (nearest - own) / np.maximum(np.maximum(nearest, own), 1e-12))))
