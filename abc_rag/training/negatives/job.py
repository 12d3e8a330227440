"""Turns rows of a caption corpus into searches: query, score bar, and what can never be a negative."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from abc_rag.training.negatives.corpus import Corpus
from abc_rag.training.negatives.neighbours import Found, Search

__all__ = ["MiningJob", "Vectors16"]

_SAMPLE = 200


@dataclass(frozen=True)
class Vectors16:
    """Stored vectors.

    Attributes:
        values: float16 ``(rows, dim)``.
        usable: bool ``(rows,)``; vectors of unusable rows are zero.
    """

    values: npt.NDArray[np.float16]
    usable: npt.NDArray[np.bool_]


class MiningJob:
    """Turns rows into searches.

    Args:
        corpus: The rows.
        texts: Vectors of the captions.
        pictures: Vectors of the pictures, if these are the queries; None if the captions are.
        epsilon: The score bar, as a fraction of the positive's own score.
        count: Negatives wanted per row.

    Attributes:
        candidates: int64, ascending: the first row of each distinct caption that has a vector.
    """

    def __init__(
        self, corpus: Corpus, texts: Vectors16, pictures: Vectors16 | None, *, epsilon: float, count: int
    ) -> None:
        self.corpus, self.texts, self.count = corpus, texts, count
        self._pictures, self._epsilon = pictures, epsilon
        _, first, inverse = np.unique(corpus.texts, return_index=True, return_inverse=True)
        kept = texts.usable[first]
        self.candidates: npt.NDArray[np.int64] = np.sort(first[kept]).astype(np.int64)
        position = np.full(len(first), -1, dtype=np.int64)
        position[kept] = np.searchsorted(self.candidates, first[kept])
        self._position: npt.NDArray[np.int64] = position[inverse.reshape(-1)]
        # This order puts rows with the same picture side by side.
        self._by_picture = np.argsort(corpus.pictures, kind="stable")
        self._sorted_pictures = corpus.pictures[self._by_picture]

    def find(self, rows: npt.NDArray[np.int64], search: Search) -> Found:
        """The negatives of some rows, int64 ``(n,)``; none for a row without a vector."""
        found = Found.nothing(len(rows), self.count)
        usable = self.texts.usable[rows]
        if self._pictures is not None:
            usable &= self._pictures.usable[rows]
        rows = rows[usable]
        if not len(rows) or not len(self.candidates):
            return found
        queries = self.texts.values[rows].astype(np.float32)
        scores = np.ones(len(rows), dtype=np.float32)
        if self._pictures is not None:
            captions, queries = queries, self._pictures.values[rows].astype(np.float32)
            scores = (queries * captions).sum(axis=1)
        bars = (self._epsilon * scores).astype(np.float32)
        found.put(usable, search.nearest(queries, bars, self._forbidden(rows), self.count))
        return found

    def _forbidden(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """For each row the candidates that equal a caption of its picture, its own among them."""
        pictures = self.corpus.pictures[rows]
        starts = np.searchsorted(self._sorted_pictures, pictures, side="left")
        ends = np.searchsorted(self._sorted_pictures, pictures, side="right")
        said = [self._position[self._by_picture[start:end]] for start, end in zip(starts, ends, strict=True)]
        return [np.unique(positions[positions >= 0]) for positions in said]

    def recall(self, search: Search, exact: Callable[[], Search]) -> float:
        """The share of the exact negatives of 200 rows that a search finds; 1 if there are none."""
        size = len(self.corpus)
        rows = np.array(sorted(random.Random(0).sample(range(size), min(_SAMPLE, size))), dtype=np.int64)
        found, wanted = self.find(rows, search).positions, self.find(rows, exact()).positions
        hits = sum(len(np.intersect1d(f[f >= 0], w[w >= 0])) for f, w in zip(found, wanted, strict=True))
        total = int((wanted >= 0).sum())
        return hits / total if total else 1.0
