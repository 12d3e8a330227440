"""Training data: pictures with captions, and pictures with (instruction, phrase) pairs.

A source gives rows by number and holds no more than an index of them, so that millions fit into memory. Rows are text:
pictures are opened by whoever trains. Where a row or a part of it cannot be used, it is named, counted and left out,
up to a limit (``max_bad``); past that limit the data set is refused.

`open_captions` and `open_pairs` take

*   a folder with one JSONL file, or with ``train.jsonl``, or a JSONL file itself: one row a line,
    ``{"image": PATH, "caption": TEXT, "negatives": [TEXT, ...], "id": ID}`` (negatives nearest first; negatives and id
    may be left out) or ``{"image": PATH, "pairs": [{"instruction": TEXT, "phrase": TEXT}, ...], "id": ID}``. Paths
    are relative to the file's folder, or to ``images``. Further columns are not looked at;
*   a folder of parquet files, or one that the `datasets` library saved, with the columns of the published data sets;
*   ``"abc-pretraining"`` (captions) and ``"abc-vg-instruct"`` (pairs): the published data sets of arXiv 2503.00329.
"""

from __future__ import annotations

import itertools
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.training.data.rows import BadRows
from abc_rag.types import ImageSource

__all__ = ["Candidate", "CaptionRow", "CaptionSource", "Pair", "PairsRow", "PairsSource"]


@dataclass(frozen=True)
class Candidate:
    """A text that may answer a query.

    Attributes:
        text: The words.
        meaning: What they say, where different words can say the same; None where only equal words do.
    """

    text: str
    meaning: Hashable | None = None

    @property
    def key(self) -> Hashable:
        """Candidates with equal keys are never each other's negatives."""
        return self.text if self.meaning is None else self.meaning


@dataclass(frozen=True)
class CaptionRow:
    """A picture and its caption.

    Attributes:
        id: Unique within the source.
        image: The picture, unopened.
        caption: What describes it.
        negatives: Texts that nearly do, hardest first.
    """

    id: str
    image: ImageSource
    caption: Candidate
    negatives: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Pair:
    """What is asked of a picture, and the phrase that answers it."""

    instruction: str
    phrase: Candidate


@dataclass(frozen=True)
class PairsRow:
    """A picture and what can be asked of it.

    Attributes:
        id: Unique within the source.
        image: The picture, unopened.
        pairs: At least one.
    """

    id: str
    image: ImageSource
    pairs: tuple[Pair, ...]


class CaptionSource(ABC):
    """Rows of pictures with captions. Safe to use from several threads at once.

    Attributes:
        name: What to call it in messages.
        bad: What was left out.
    """

    name: str
    bad: BadRows

    @abstractmethod
    def __len__(self) -> int:
        """How many usable rows there are."""

    @abstractmethod
    def row(self, index: int) -> CaptionRow:
        """A row by number, from 0.

        Raises:
            DatasetError: The data have changed since they were opened.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the data are, for JSON: where from, which version, how many rows, what was left out."""

    def bare(self, index: int) -> CaptionRow:
        """A row whose negatives may be missing, for callers that do without: finding them may cost more than the rest.

        Raises:
            DatasetError: The data have changed since they were opened.
        """
        return self.row(index)

    def negatives_of(self, index: int, count: int, rng: random.Random) -> list[Candidate]:
        """Draw some of a row's negatives, easy and hard ones alike, as published.

        The ranked list is cut into ``count`` groups of consecutive ones, of equal size as near as can be, and one is
        drawn from each: of 35 negatives 7 are one of the first five, one of the next five, and so on.

        Args:
            index: The row.
            count: How many; all that there are where there are fewer.
            rng: Source of chance.
        """
        negatives = self.row(index).negatives
        return [negatives[place] for place in one_of_each_group(len(negatives), count, rng)]

    def excluded(self, rows: Sequence[CaptionRow], candidates: Sequence[Candidate]) -> npt.NDArray[np.bool_]:
        """Which candidates are true of which rows, and so must not count as wrong answers.

        Here: those with the key of the row's caption, or of the caption of another one of ``rows`` with the same
        picture file. The row's own target is among them; the caller, who knows which it is, takes it out.

        Args:
            rows: Rows of one batch.
            candidates: All texts of the batch.

        Returns:
            bool ``(rows, candidates)``.
        """
        return _true_of(
            [row.caption.key for row in rows],
            [_picture(row.image, row.id) for row in rows],
            [candidate.key for candidate in candidates],
        )


class PairsSource(ABC):
    """Rows of pictures with (instruction, phrase) pairs. Safe to use from several threads at once.

    Attributes:
        name: What to call it in messages.
        bad: What was left out.
    """

    name: str
    bad: BadRows

    @abstractmethod
    def __len__(self) -> int:
        """How many usable rows there are."""

    @abstractmethod
    def row(self, index: int) -> PairsRow:
        """A row by number, from 0.

        Raises:
            DatasetError: The data have changed since they were opened.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the data are, for JSON: where from, which version, how many rows, what was left out."""

    def excluded(
        self, pairs: Sequence[tuple[PairsRow, Pair]], candidates: Sequence[Candidate]
    ) -> npt.NDArray[np.bool_]:
        """Which candidates are true answers to which pairs, and so must not count as wrong ones.

        Here: those with the key of the pair's phrase, or of another phrase of ``pairs`` that answers the same
        instruction about the same picture file. The pair's own target is among them; the caller takes it out.

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


# --- Inside ---------------------------------------------------------------------------------------


def one_of_each_group(length: int, count: int, rng: random.Random) -> list[int]:
    """One place out of each of ``count`` groups of consecutive places below ``length``; all where there are fewer."""
    if length <= count:
        return list(range(length))
    if count <= 0:
        return []
    bounds = [length * group // count for group in range(count + 1)]
    return [rng.randrange(start, end) for start, end in itertools.pairwise(bounds)]


def _picture(image: ImageSource, fallback: str) -> Hashable:
    """What tells whether two rows show one picture; pictures in memory are taken for different ones."""
    return ("path", os.fspath(image)) if isinstance(image, (str, os.PathLike)) else ("row", fallback)


def _true_of(
    own: Sequence[Hashable], groups: Sequence[Hashable], candidates: Sequence[Hashable]
) -> npt.NDArray[np.bool_]:
    """Bool ``(own, candidates)``: the candidate's key is the query's own, or that of a query of the same group."""
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
