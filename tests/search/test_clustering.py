"""Average linkage and silhouettes, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from abc_rag.search.clustering import APART, clustered
from abc_rag.types import Vectors


def unit(rows: np.ndarray) -> Vectors:
    found: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def planted(groups: int, each: int, noise: float, dim: int = 16, seed: int = 1) -> Vectors:
    rng = np.random.default_rng(seed)
    return unit(np.repeat(np.eye(dim)[:groups], each, axis=0) + noise * rng.normal(size=(groups * each, dim)))


def naive(vectors: Vectors, k: int) -> set[frozenset[int]]:
    """Average linkage by its definition."""
    distances = 1.0 - vectors.astype(np.float64) @ vectors.T
    groups = [frozenset([one]) for one in range(len(vectors))]
    while len(groups) > k:
        pairs = [(a, b) for place, a in enumerate(groups) for b in groups[place + 1 :]]
        a, b = min(pairs, key=lambda two: np.mean([distances[i, j] for i in two[0] for j in two[1]]))
        groups = [*(one for one in groups if one not in (a, b)), a | b]
    return set(groups)


def silhouette(vectors: Vectors, labels: np.ndarray) -> float:
    """The mean silhouette by its definition."""
    distances = 1.0 - vectors.astype(np.float64) @ vectors.T
    np.fill_diagonal(distances, 0)
    found = []
    for one, label in enumerate(labels):
        own = (labels == label) & (np.arange(len(labels)) != one)
        if not own.any():
            found.append(0.0)
            continue
        a = distances[one, own].mean()
        b = min(distances[one, labels == other].mean() for other in set(labels) - {label})
        found.append((b - a) / max(a, b))
    return float(np.mean(found))


@pytest.mark.parametrize("k", [1, 2, 5, 12, 24, 25])
def test_groups_are_those_of_average_linkage(k: int) -> None:
    vectors = unit(np.random.default_rng(k).normal(size=(25, 6)))
    found = clustered(vectors, k)
    assert {frozenset(np.flatnonzero(found.labels == label).tolist()) for label in range(k)} == naive(vectors, k)
    expected = None if k in (1, 25) else silhouette(vectors, found.labels)
    assert found.silhouette == (None if expected is None else pytest.approx(expected, abs=1e-6))


@pytest.mark.parametrize(("groups", "each"), [(2, 30), (5, 8), (12, 4)])
def test_the_number_of_groups_is_that_of_the_best_silhouette(groups: int, each: int) -> None:
    vectors = planted(groups, each, 0.05)
    found = clustered(vectors)
    assert found.labels.reshape(groups, each).tolist() == [[group] * each for group in range(groups)]
    assert found.silhouette == pytest.approx(silhouette(vectors, found.labels), abs=1e-6)
    for k in range(2, groups * each):
        assert (clustered(vectors, k).silhouette or 0) <= found.silhouette + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_equal_vectors_are_one_group(seed: int) -> None:
    noise = unit(np.random.default_rng(seed).normal(size=(80, 64)))
    for vectors in (noise, np.repeat(noise[:1], 9, axis=0), noise[:2], noise[:1]):
        found = clustered(vectors)
        assert (set(found.labels.tolist()), found.silhouette) == ({0}, None)
    best = max(clustered(noise, k).silhouette or 0 for k in range(2, 80))
    assert best < APART
