"""What each process computes of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from abc_rag.errors import DatasetError
from abc_rag.models.abc.prompts import ABCPrompts
from abc_rag.models.family import Prepared
from abc_rag.models.qwen2_vl.pictures import Patches

__all__ = ["Chunk", "PairPlan", "Plan", "Prompted", "Share", "share_of", "share_of_pairs"]


_Ids = npt.NDArray[np.int64]
_Item = TypeVar("_Item")
Prompted = _Ids | tuple[int | tuple[int, ...], _Ids]
"""Token ids; or the positions of the pictures in it, among those of its chunk, and the token ids."""


@dataclass(frozen=True)
class Plan:
    """A batch of all processes, in text: who asks, what may answer, what does.

    Attributes:
        pictures: Names its pictures; what they are, the caller knows.
        queries: One (picture's position, what the prompt says beside the picture) per query, in order of pictures.
        candidates: Different texts.
        targets: int64 ``(queries,)``: the position of each query's candidate.
        excluded: bool ``(queries, candidates)``: what is true of a query without being its own candidate.
        owners: The picture that each candidate comes with: one process computes both.
    """

    pictures: tuple[str, ...]
    queries: tuple[tuple[int, str], ...]
    candidates: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    excluded: npt.NDArray[np.bool_]
    owners: tuple[int, ...]


@dataclass(frozen=True)
class PairPlan:
    """A batch of all processes whose queries and candidates are of one kind: a text, pictures, or both.

    Attributes:
        targets: int64 ``(queries,)``: the position of each query's candidate.
        excluded: bool ``(queries, candidates)``: what is true of a query without being its own candidate.
        owners: The query that each candidate comes with: one process computes both.
    """

    targets: npt.NDArray[np.int64]
    excluded: npt.NDArray[np.bool_]
    owners: tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """What one process computes at once.

    Attributes:
        pictures: Each once.
        queries: What is computed as queries.
        query_rows: The query's position in the plan; -1 for one that only fills up.
        candidates: What is computed as candidates.
        candidate_rows: The candidate's position in the plan; -1 for one that only fills up.
        packed: Whether sequences of similar length go through the network together, and others after them.
    """

    pictures: list[Any]
    queries: list[Prompted]
    query_rows: list[int]
    candidates: list[Prompted]
    candidate_rows: list[int]
    packed: bool


@dataclass(frozen=True)
class Share:
    """One process's part of a plan.

    Attributes:
        plan: The whole.
        chunks: As many in every process, as FSDP requires.
        unusable_queries: Queries of this process that could not be prepared, and do not count.
        unusable_candidates: Candidates of this process that could not be prepared; neither they nor those whose target
            they are count.
        what: What the batch consists of, for messages.
    """

    plan: Plan | PairPlan
    chunks: list[Chunk]
    unusable_queries: list[int]
    unusable_candidates: list[int]
    what: str


def share_of(
    plan: Plan,
    prompts: ABCPrompts,
    picture: Callable[[int], Patches | None],
    *,
    patch: int,
    merge: int,
    rank: int,
    ranks: int,
    chunk: int | None,
    pool: ThreadPoolExecutor,
    packed: bool = True,
) -> Share:
    """Prepare one process's part of a plan on the CPU.

    Args:
        plan: The batch.
        prompts: Makes token ids.
        picture: The patches of a picture by its position in the plan; None if it is unusable.
        patch: Pixels a side of a patch.
        merge: Patches a side that become one image token.
        rank: Which process.
        ranks: How many.
        chunk: Most pictures of a chunk; None for one chunk.
        pool: Opens the pictures.
        packed: Spare padding by computing sequences of similar length together. Not for FSDP, where all processes must
            pass through a layer equally often.

    Raises:
        DatasetError: There are fewer pictures than processes.
    """
    own, most = _own(len(plan.pictures), rank, ranks, "pictures")
    opened = dict(zip(own, pool.map(picture, own), strict=True))
    queries_of: dict[int, list[int]] = {}
    for row, (position, _) in enumerate(plan.queries):
        queries_of.setdefault(position, []).append(row)
    # Every chunk has a text, as every forward of a wrapped network must use all of its weights.
    texts = [row for row, picture in enumerate(plan.owners) if picture in opened]
    ids = {row: prompts(plan.candidates[row]) for row in texts or [0]}

    # A process with fewer pictures repeats its first one, so that all have as many chunks.
    chosen = [*((p, True) for p in own), *[(own[0], False)] * (most - len(own))]
    count = 1 if chunk is None else -(-most // chunk)
    # In order of length, so that little of a chunk is padding.
    text_parts = _parts(sorted(texts, key=lambda row: len(ids[row])), count)
    chunks = []
    for pictures, rows in zip(_parts(chosen, count), text_parts, strict=True):
        patches = [opened[p] or _blank(patch, merge) for p, _ in pictures]
        queries: list[Prompted] = []
        query_rows = []
        for n, (position, real) in enumerate(pictures):
            tokens = patches[n].rows * patches[n].columns // merge**2
            for row in queries_of.get(position, []):
                queries.append((n, prompts(plan.queries[row][1], image_tokens=tokens)))
                query_rows.append(row if real else -1)
        # Every chunk has a text, as every forward of a wrapped network must use all of its weights.
        filled = rows or list(ids)[:1]
        chunks.append(Chunk(patches, queries, query_rows, [ids[row] for row in filled], rows or [-1], packed))
    lost = [row for position, patches in opened.items() if patches is None for row in queries_of.get(position, [])]
    return Share(plan, chunks, lost, [], f"{len(plan.pictures)} pictures")


def share_of_pairs(
    plan: PairPlan,
    query: Callable[[int], Prepared | None],
    candidate: Callable[[int], Prepared | None],
    *,
    filler: Callable[[], Prepared],
    rank: int,
    ranks: int,
    chunk: int | None,
    pool: ThreadPoolExecutor,
    packed: bool = True,
) -> Share:
    """Prepare one process's part of a plan, where both sides may have pictures, on the CPU.

    Args:
        plan: The batch.
        query: A query by its position in the plan; None if it is unusable.
        candidate: A candidate, likewise.
        filler: Makes an input with a picture, which fills up chunks that would lack one.
        rank: Which process.
        ranks: How many.
        chunk: Most queries of a chunk, beside the candidates that come with them; None for one chunk.
        pool: Prepares the inputs.
        packed: See `share_of`.

    Raises:
        DatasetError: There are fewer queries than processes.
    """
    own, most = _own(len(plan.targets), rank, ranks, "rows")
    held = [row for row, owner in enumerate(plan.owners) if own[0] <= owner <= own[-1]]
    # Both at once, so that no thread waits for the other side.
    queries_wanted, candidates_wanted = pool.map(query, own), pool.map(candidate, held)
    queries = dict(zip(own, queries_wanted, strict=True))
    candidates = dict(zip(held, candidates_wanted, strict=True))
    count = 1 if chunk is None else -(-most // chunk)
    chunks = []
    for rows, others in zip(_in_parts(queries, count), _in_parts(candidates, count), strict=True):
        made = _Filling(packed)
        made.add(made.chunk.queries, made.chunk.query_rows, queries, rows)
        made.add(made.chunk.candidates, made.chunk.candidate_rows, candidates, others)
        # Every forward of a wrapped network must use all of its weights, maybe those of the vision tower too.
        if not rows or (ranks > 1 and not made.chunk.pictures):
            made.fill(made.chunk.queries, made.chunk.query_rows, filler())
        if not others:
            made.fill(made.chunk.candidates, made.chunk.candidate_rows, filler())
        chunks.append(made.chunk)
    return Share(
        plan,
        chunks,
        [row for row, prepared in queries.items() if prepared is None],
        [row for row, prepared in candidates.items() if prepared is None],
        f"{len(plan.targets)} rows",
    )


class _Filling:
    """A chunk while inputs are put into it: a picture that several of them have is in it once."""

    def __init__(self, packed: bool) -> None:
        self.chunk = Chunk([], [], [], [], [], packed)
        self._positions: dict[int, int] = {}

    def add(
        self, side: list[Prompted], places: list[int], prepared: Mapping[int, Prepared | None], rows: list[int]
    ) -> None:
        for row in rows:
            one = prepared[row]
            assert one is not None
            side.append(self._sequence(one))
            places.append(row)

    def fill(self, side: list[Prompted], places: list[int], filler: Prepared) -> None:
        side.append(self._sequence(filler))
        places.append(-1)

    def _sequence(self, prepared: Prepared) -> Prompted:
        positions = []
        for picture in prepared.pictures:
            if id(picture) not in self._positions:
                self._positions[id(picture)] = len(self.chunk.pictures)
                self.chunk.pictures.append(picture.opened)
            positions.append(self._positions[id(picture)])
        return tuple(positions), prepared.input_ids


def _in_parts(prepared: Mapping[int, Prepared | None], count: int) -> list[list[int]]:
    """The usable ones in parts, in order of length, so that little of a part is padding."""
    usable = [(one.tokens, row) for row, one in prepared.items() if one is not None]
    return _parts([row for _, row in sorted(usable)], count)


def _blank(patch: int, merge: int) -> Patches:
    """Stands for a picture that cannot be used, whose queries do not count: one image token."""
    return Patches(np.zeros((merge**2, 3 * patch**2), dtype=np.uint8), merge, merge)


def _own(count: int, rank: int, ranks: int, what: str) -> tuple[list[int], int]:
    """The pictures or rows of one process, and the most that any has."""
    if count < ranks:
        raise DatasetError(f"a batch of {count} {what} cannot be shared by {ranks} processes; make it larger")
    bounds = [count * r // ranks for r in range(ranks + 1)]
    return list(range(bounds[rank], bounds[rank + 1])), -(-count // ranks)


def _parts(items: Sequence[_Item], count: int) -> list[list[_Item]]:
    """Consecutive parts of nearly equal size; empty ones where there are fewer items."""
    bounds = [len(items) * n // count for n in range(count + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(bounds)]
