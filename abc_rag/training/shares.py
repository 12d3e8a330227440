"""One process's share of a batch: what it prepares and computes, and in which chunks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.errors import DatasetError
from abc_rag.models.family import Prepared
from abc_rag.types import Input

__all__ = ["Chunk", "Plan", "Prompted", "Share", "share_of"]

Prompted = tuple[tuple[int, ...], npt.NDArray[np.int64]]
"""Positions of an input's pictures among those of its chunk, and its token ids."""


@dataclass(frozen=True)
class Plan:
    """A whole batch, equal in all processes: what is asked, what may answer, and what does.

    Attributes:
        rows: Number of rows of data in the batch.
        queries: One input per query.
        query_rows: The row that each query comes from.
        candidates: Distinct inputs.
        candidate_rows: The row that each candidate comes from; one process computes a row with all that belongs to it.
        targets: int64 ``(queries,)``: the position of each query's own candidate.
        excluded: bool ``(queries, candidates)``: candidates that are true of a query without being its own.
    """

    rows: int
    queries: Sequence[Input]
    query_rows: Sequence[int]
    candidates: Sequence[Input]
    candidate_rows: Sequence[int]
    targets: npt.NDArray[np.int64]
    excluded: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Chunk:
    """What one process computes in one forward pass.

    Attributes:
        packed: Group sequences of similar length into separate passes rather than pad all to the longest.
        pictures: Each once, however many inputs show it.
        queries: Inputs computed as queries.
        query_rows: Each query's position in the plan; -1 for a filler.
        candidates: Inputs computed as candidates.
        candidate_rows: Each candidate's position in the plan; -1 for a filler.
    """

    packed: bool
    pictures: list[Any] = field(default_factory=list)
    queries: list[Prompted] = field(default_factory=list)
    query_rows: list[int] = field(default_factory=list)
    candidates: list[Prompted] = field(default_factory=list)
    candidate_rows: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Share:
    """One process's part of a plan.

    Attributes:
        plan: The whole batch.
        chunks: Equally many in every process, as FSDP requires.
        unusable_queries: Queries of this process that could not be prepared; they do not count.
        unusable_candidates: Candidates of this process that could not be prepared. Neither they nor the queries whose
            target they are count.
        what: What the batch consists of, for messages.
    """

    plan: Plan
    chunks: list[Chunk]
    unusable_queries: list[int]
    unusable_candidates: list[int]
    what: str


def share_of(
    plan: Plan,
    prepare: Callable[[Input, int], Prepared | None],
    filler: Callable[[], Prepared],
    *,
    rank: int,
    ranks: int,
    chunk: int | None,
    pool: ThreadPoolExecutor,
    packed: bool = True,
    what: str = "rows",
) -> Share:
    """Prepare one process's part of a plan on the CPU.

    Args:
        plan: The batch.
        prepare: Prepares an input of a row; None if it is unusable.
        filler: Makes an input with a picture, for chunks that would lack one.
        rank: This process.
        ranks: Number of processes.
        chunk: Maximum rows per chunk; None for a single chunk.
        pool: Prepares the inputs.
        packed: See `Chunk`. Not for FSDP, where all processes must pass through a layer equally often.
        what: What the rows are called in messages.

    Raises:
        DatasetError: There are fewer rows than processes.
    """
    if plan.rows < ranks:
        raise DatasetError(f"a batch of {plan.rows} {what} cannot be shared by {ranks} processes; make it larger")
    own = range(plan.rows * rank // ranks, plan.rows * (rank + 1) // ranks)
    asked = [n for n, row in enumerate(plan.query_rows) if row in own]
    offered = [n for n, row in enumerate(plan.candidate_rows) if row in own]
    # Both sides are submitted before either is awaited, so that no thread idles.
    found = pool.map(lambda n: prepare(plan.queries[n], plan.query_rows[n]), asked)
    others = pool.map(lambda n: prepare(plan.candidates[n], plan.candidate_rows[n]), offered)
    queries, candidates = dict(zip(asked, found, strict=True)), dict(zip(offered, others, strict=True))
    most = -(-plan.rows // ranks)
    count = 1 if chunk is None else -(-most // chunk)
    chunks = []
    for ask, offer in zip(
        _parts(queries, plan.query_rows, count), _parts(candidates, range(len(plan.candidates)), count), strict=True
    ):
        made = Chunk(packed)
        positions: dict[int, int] = {}
        _fill(made, positions, made.queries, made.query_rows, {row: queries[row] for row in ask})
        _fill(made, positions, made.candidates, made.candidate_rows, {row: candidates[row] for row in offer})
        # Every forward of a wrapped network must use all of its weights, perhaps those of the vision tower too.
        if not ask or (ranks > 1 and not made.pictures):
            _fill(made, positions, made.queries, made.query_rows, {-1: filler()})
        if not offer:
            _fill(made, positions, made.candidates, made.candidate_rows, {-1: filler()})
        chunks.append(made)
    return Share(
        plan,
        chunks,
        [row for row, prepared in queries.items() if prepared is None],
        [row for row, prepared in candidates.items() if prepared is None],
        f"{plan.rows} {what}",
    )


def _parts(prepared: Mapping[int, Prepared | None], row_of: Sequence[int], count: int) -> list[list[int]]:
    """The usable inputs in ``count`` parts, those of a row together, by length, so that little of a part is padding."""
    rows: dict[int, list[int]] = {}
    longest: dict[int, int] = {}
    for n, one in prepared.items():
        if one is not None:
            rows.setdefault(row_of[n], []).append(n)
            longest[row_of[n]] = max(longest.get(row_of[n], 0), one.tokens)
    order = sorted(rows, key=lambda row: (longest[row], row))
    bounds = [len(order) * part // count for part in range(count + 1)]
    return [[n for row in order[start:end] for n in rows[row]] for start, end in itertools.pairwise(bounds)]


def _fill(
    chunk: Chunk,
    positions: dict[int, int],
    side: list[Prompted],
    places: list[int],
    prepared: Mapping[int, Prepared | None],
) -> None:
    """Add inputs to one side of a chunk; ``positions`` holds where each picture is, by identity."""
    for place, one in prepared.items():
        assert one is not None
        for picture in one.pictures:
            if id(picture) not in positions:
                positions[id(picture)] = len(chunk.pictures)
                chunk.pictures.append(picture.opened)
        side.append((tuple(positions[id(picture)] for picture in one.pictures), one.input_ids))
        places.append(place)
