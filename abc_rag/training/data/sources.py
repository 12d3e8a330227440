"""Training data: pictures with captions, and pictures with (instruction, phrase) pairs.

A source returns rows by number and keeps only an index of them in memory, so that millions of rows fit. Pictures are
not opened. Unusable rows, and unusable parts of rows, are named, counted and left out, up to a limit (``max_bad``);
beyond it the data set is refused.

`abc_rag.training.data.open.open_captions` and ``open_pairs`` take

*   a JSONL file, or a folder that holds one (or ``train.jsonl``): one row per line,
    ``{"image": PATH, "caption": TEXT, "negatives": [TEXT, ...], "id": ID}`` (hardest negatives first; negatives and id
    are optional) or ``{"image": PATH, "pairs": [{"instruction": TEXT, "phrase": TEXT}, ...], "id": ID}``. Paths
    are relative to the file's folder, or to ``images``. Other columns are ignored;
*   a folder of parquet files, or one saved by the `datasets` library, with the columns of the published data sets;
*   ``"abc-pretraining"`` (captions) and ``"abc-vg-instruct"`` (pairs): the published data sets of arXiv 2503.00329.
"""

from __future__ import annotations

import itertools
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from abc_rag.training.data.rows import BadRows
from abc_rag.types import ImageSource

__all__ = ["Candidate", "CaptionRow", "CaptionSource", "Pair", "PairsRow", "PairsSource", "one_of_each_group"]


@dataclass(frozen=True)
class Candidate:
    """A text that may answer a query.

    Attributes:
        text: The text.
        meaning: What it says, if other words can say the same; None if only equal texts are equivalent.
    """

    text: str
    meaning: Hashable | None = None

    @property
    def key(self) -> Hashable:
        """Identifies equivalent candidates, which are never each other's negatives."""
        return self.text if self.meaning is None else self.meaning


@dataclass(frozen=True)
class CaptionRow:
    """A picture and its caption.

    Attributes:
        id: Unique within the source.
        image: The picture, unopened.
        caption: Describes the picture.
        negatives: Texts that nearly describe it, hardest first.
    """

    id: str
    image: ImageSource
    caption: Candidate
    negatives: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Pair:
    """An instruction for a picture, and the phrase that answers it."""

    instruction: str
    phrase: Candidate


@dataclass(frozen=True)
class PairsRow:
    """A picture with its instructions and phrases.

    Attributes:
        id: Unique within the source.
        image: The picture, unopened.
        pairs: At least one pair.
    """

    id: str
    image: ImageSource
    pairs: tuple[Pair, ...]


Row = TypeVar("Row")


class Source(ABC, Generic[Row]):
    """Rows by number. Safe to use from several threads at once.

    Attributes:
        name: Name of the data in messages.
        bad: Rows that were left out.
    """

    name: str
    bad: BadRows

    @abstractmethod
    def __len__(self) -> int:
        """Number of usable rows."""

    @abstractmethod
    def row(self, index: int) -> Row:
        """A row by number, from 0.

        Raises:
            DatasetError: The data have changed since they were opened.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Origin, version, number of rows and rows left out, as plain values for JSON."""


class CaptionSource(Source[CaptionRow]):
    """Rows of pictures with captions."""

    def bare(self, index: int) -> CaptionRow:
        """A row without its negatives, where leaving them out saves time.

        Raises:
            DatasetError: The data have changed since they were opened.
        """
        return self.row(index)

    def negatives_of(self, index: int, count: int, rng: random.Random) -> list[Candidate]:
        """Draw some of a row's negatives, from easy to hard, as published.

        The ranked list is cut into ``count`` consecutive groups of nearly equal size, and one negative is drawn from
        each: 7 of 35 negatives are one of the first five, one of the next five, and so on.

        Args:
            index: The row.
            count: Number of negatives; all if there are fewer.
            rng: Random generator.
        """
        negatives = self.row(index).negatives
        return [negatives[place] for place in one_of_each_group(len(negatives), count, rng)]

    def excluded(self, rows: Sequence[CaptionRow], candidates: Sequence[Candidate]) -> npt.NDArray[np.bool_]:
        """Candidates that are true of a row, and so must not count as wrong answers.

        By default, candidates whose key is that of the row's caption, or that of the caption of another row with the
        same picture file. The row's own target is among them; the caller removes it.

        Args:
            rows: The rows of one batch.
            candidates: All texts of the batch.

        Returns:
            bool ``(rows, candidates)``.
        """
        return _true_of(
            [row.caption.key for row in rows],
            [_picture(row.image, row.id) for row in rows],
            [candidate.key for candidate in candidates],
        )


class PairsSource(Source[PairsRow]):
    """Rows of pictures with (instruction, phrase) pairs."""

    def excluded(
        self, pairs: Sequence[tuple[PairsRow, Pair]], candidates: Sequence[Candidate]
    ) -> npt.NDArray[np.bool_]:
        """Candidates that truly answer a pair's instruction, and so must not count as wrong answers.

        These are candidates whose key is that of the pair's phrase, or that of another phrase in ``pairs`` for the same
        instruction and the same picture file. The pair's own target is among them; the caller removes it.

        Args:
            pairs: The queries of one batch.
            candidates: All texts of the batch.

        Returns:
            bool ``(pairs, candidates)``.
        """
        return _true_of(
            [pair.phrase.key for _, pair in pairs],
            [(_picture(row.image, row.id), pair.instruction) for row, pair in pairs],
            [candidate.key for candidate in candidates],
        )


def one_of_each_group(length: int, count: int, rng: random.Random) -> list[int]:
    """Draw one index below ``length`` from each of ``count`` consecutive groups; all indices if there are fewer."""
    if length <= count:
        return list(range(length))
    if count <= 0:
        return []
    bounds = [length * group // count for group in range(count + 1)]
    return [rng.randrange(start, end) for start, end in itertools.pairwise(bounds)]


def _picture(image: ImageSource, fallback: str) -> Hashable:
    """Equal for rows that show the same picture file; pictures in memory all count as different."""
    return ("path", os.fspath(image)) if isinstance(image, (str, os.PathLike)) else ("row", fallback)


def _true_of(
    own: Sequence[Hashable], groups: Sequence[Hashable], candidates: Sequence[Hashable]
) -> npt.NDArray[np.bool_]:
    """Bool ``(own, candidates)``: the candidate's key is that of the query, or of a query in the same group."""
    codes: dict[Hashable, int] = {}
    queries = _coded(own, codes)
    texts = _coded(candidates, codes)
    true: npt.NDArray[np.bool_] = np.equal(queries[:, None], texts[None, :])
    members: dict[Hashable, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    for together in members.values():
        if len(together) > 1:
            true[together] = true[together].any(axis=0)
    return true


def _coded(keys: Iterable[Hashable], codes: dict[Hashable, int]) -> npt.NDArray[np.int64]:
    return np.fromiter((codes.setdefault(key, len(codes)) for key in keys), dtype=np.int64)
