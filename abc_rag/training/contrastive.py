"""One contrastive step over any number of processes and any amount of memory, for every family of models.

A batch is planned as a whole, in text, by every process alike (`Plan`, `PairPlan`); each then computes its share of the
vectors. The loss is a small matter once all vectors are there, so every process computes all of it and takes the
gradient at its own vectors: the gradients of two processes are those of one on the same batch.

Gradient caching: where a share does not fit into memory at once, its vectors are computed in chunks without keeping
anything, and each chunk is computed a second time, with the gradient at its vectors at hand, to pass that on to the
weights. The result is the same; it costs one more forward pass.

Padding never enters a vector and positions are plain, as when the model is used. The published training code lets
padding enter the mean, so the loss of a batch of unequal lengths differs from what that code computes; batches without
padding give its figures.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import nn

from abc_rag.errors import DatasetError
from abc_rag.models._pictures import Patches
from abc_rag.models.abc import ABCPrompts
from abc_rag.models.family import Prepared
from abc_rag.training.losses import loss_gradients

__all__ = ["Chunk", "Encoder", "PairPlan", "Plan", "Prompted", "Share", "accumulate", "share_of", "share_of_pairs"]

_Ids = npt.NDArray[np.int64]
_Item = TypeVar("_Item")

Prompted = _Ids | tuple[int | tuple[int, ...], _Ids]
"""Token ids; or the positions of the pictures in it, among those of its chunk, and the token ids."""


# --- What is computed where -----------------------------------------------------------------------


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


class Encoder(nn.Module):
    """The network as training calls it: a chunk in, its vectors out, in one forward, as wrappers (DDP, FSDP) need it.

    Args:
        network: An `ABCNetwork` or a `VLM2VecNetwork`.
        bf16: Compute in bfloat16.
        temperature: A fixed one; if not given, the network's own.
    """

    def __init__(self, network: nn.Module, *, bf16: bool = False, temperature: float | None = None) -> None:
        super().__init__()
        self.network: Any = network
        self._bf16 = bf16
        self._temperature = temperature

    def forward(
        self,
        pictures: Sequence[Any],
        queries: Sequence[Prompted],
        candidates: Sequence[Prompted],
        packed: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Vectors of the queries ``(q, dim)`` and of the candidates ``(c, dim)``, float32, and the temperature."""
        backbone = self.network.backbone
        with torch.autocast(backbone.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            features: Sequence[torch.Tensor] = ()
            if pictures:
                tokens = [backbone.picture_tokens(one) for one in pictures]
                features = torch.split(backbone.image_features(pictures), tokens)
            q, c = (self._embed(side, features, packed) for side in (queries, candidates))
        if self._temperature is not None:
            return q, c, torch.tensor(self._temperature, device=backbone.device)
        # A sum, not a view: FSDP takes the memory of a parameter back after the forward.
        return q, c, self.network.temperature.temp.sum()

    def _embed(self, sequences: Sequence[Prompted], features: Sequence[torch.Tensor], packed: bool) -> torch.Tensor:
        backbone = self.network.backbone
        device = backbone.device
        if not sequences:
            return torch.zeros(0, backbone.hidden_size, device=device)
        parts = [_seen_and_ids(one) for one in sequences]
        rows, order = [], []
        for group in _even_groups([len(ids) for _, ids in parts]) if packed else [list(range(len(parts)))]:
            lengths = torch.tensor([len(parts[i][1]) for i in group])
            # Multiples of four: matrix libraries prepare each new shape once, and that costs more than the padding.
            ids = torch.zeros(len(group), -(-int(lengths.max()) // 4) * 4 if len(group) > 1 else int(lengths[0]),
                              dtype=torch.long)  # fmt: skip
            for row, i in zip(ids, group, strict=True):
                row[: len(parts[i][1])] = torch.from_numpy(parts[i][1])
            seen = [features[n] for i in group for n in parts[i][0]]
            rows.append(
                self.network(ids.to(device), lengths=lengths.to(device), features=torch.cat(seen) if seen else None)
            )
            order += group
        return torch.cat(rows)[torch.tensor(order, device=device).argsort()]


def _seen_and_ids(sequence: Prompted) -> tuple[tuple[int, ...], _Ids]:
    if not isinstance(sequence, tuple):
        return (), sequence
    pictures, ids = sequence
    return (pictures,) if isinstance(pictures, int) else pictures, ids


def _even_groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions in groups of similar length, so that less than a fifth of a group is padding."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and lengths[i] > 1.25 * lengths[group[0]] + 3:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


# --- One step -------------------------------------------------------------------------------------


def accumulate(
    accelerator: Accelerator,
    model: nn.Module,
    share: Share,
    *,
    seed: int,
    smoothing: float,
    min_temperature: float = 0.0,
    fixed_candidates: Callable[[bool], None] | None = None,
    true_negatives: Literal["all", "own"] = "all",
) -> dict[str, float]:
    """Add the gradients of one step to the weights.

    Args:
        accelerator: Knows the processes.
        model: An `Encoder`, as Accelerate has wrapped it.
        share: What this process computes.
        seed: Of dropout in this step; a chunk that is computed twice sees the same.
        smoothing: Label smoothing.
        min_temperature: See `loss_gradients`.
        fixed_candidates: Called with False before the candidates are computed, without gradient, and with True before
            the queries are: how instruction finetuning switches its adapter. If not given, candidates are learnt too.
        true_negatives: See `PretrainConfig`.

    Returns:
        ``loss``, ``accuracy``, ``temperature`` and ``candidates``, the same in all processes.

    Raises:
        DatasetError: No picture of the batch can be used.
    """
    ranks = accelerator.num_processes
    once = len(share.chunks) == 1

    def compute(
        at: int, chunk: Chunk, *, grad: bool, queries: bool = True, candidates: bool = True
    ) -> list[torch.Tensor]:
        torch.manual_seed(_mixed(seed, accelerator.process_index, at))
        with torch.set_grad_enabled(grad):
            asked = chunk.queries if queries else []
            answers = chunk.candidates if candidates else []
            seen = any(_seen_and_ids(one)[0] for one in [*asked, *answers])
            return list(model(chunk.pictures if seen else [], asked, answers, chunk.packed))

    answers: list[torch.Tensor] = []
    if fixed_candidates is not None:
        fixed_candidates(False)
        answers = [compute(n, c, grad=False, queries=False)[1] for n, c in enumerate(share.chunks)]
        fixed_candidates(True)
    learnt = fixed_candidates is None
    outputs = [compute(n, c, grad=once, candidates=learnt) for n, c in enumerate(share.chunks)]
    if learnt:
        answers = [o[1] for o in outputs]
    plan, device = share.plan, outputs[0][0].device
    query_rows = [torch.tensor(c.query_rows, device=device) for c in share.chunks]
    candidate_rows = [torch.tensor(c.candidate_rows, device=device) for c in share.chunks]
    all_queries = _gather(accelerator, [o[0] for o in outputs], query_rows, len(plan.targets))
    all_candidates = _gather(accelerator, answers, candidate_rows, plan.excluded.shape[1])
    targets, excluded = torch.from_numpy(plan.targets).to(device), torch.from_numpy(plan.excluded).to(device)
    counted, lost = _counted(accelerator, share, targets)
    if not bool(counted.any()):
        raise DatasetError(f"none of a batch's {share.what} can be used; look at the data's rows")
    differentiate = partial(
        loss_gradients,
        all_queries,
        all_candidates,
        targets,
        outputs[0][2],
        smoothing=smoothing,
        min_temperature=min_temperature,
        # Of a query that does not count nothing is left out, or there might be nothing left.
        excluded=excluded | (lost[None, :] & counted[:, None]),
    )
    found = differentiate(counted=counted)
    at_candidates = found.candidates
    if true_negatives == "own" and ranks > 1:
        mine = torch.zeros_like(counted)
        mine[torch.cat([rows[rows >= 0] for rows in query_rows])] = True
        mine &= counted
        share_of_mean = mine.sum() / counted.sum()
        at_candidates = differentiate(counted=mine).candidates * share_of_mean if mine.any() else 0 * at_candidates
    for n, chunk in enumerate(share.chunks):
        last = n == len(share.chunks) - 1
        # Wrappers average over processes on the last backward only, when all gradients are there.
        context: AbstractContextManager[object] = nullcontext() if last else accelerator.no_sync(model)
        with context:
            q, c, temperature = outputs[n] if once else compute(n, chunk, grad=True, candidates=learnt)
            surrogate = _dot(q, query_rows[n], found.queries)
            if learnt:
                surrogate = surrogate + _dot(c, candidate_rows[n], at_candidates)
            # Each process has the gradients of the whole batch at its own vectors; the average would divide them.
            surrogate = surrogate * ranks
            if last and temperature.requires_grad:
                surrogate = surrogate + temperature * found.temperature
            accelerator.backward(surrogate)
    return {
        "loss": found.loss,
        "accuracy": found.accuracy,
        "temperature": outputs[0][2].item(),
        "candidates": float(plan.excluded.shape[1]),
    }


def _mixed(*numbers: int) -> int:
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _gather(accelerator: Accelerator, parts: list[torch.Tensor], rows: list[torch.Tensor], count: int) -> torch.Tensor:
    """The vectors of all processes in the plan's order: each writes its own rows into zeros, and all are added."""
    values, at = torch.cat([p.detach() for p in parts]), torch.cat(rows)
    whole = torch.zeros(count, values.shape[1], device=values.device)
    whole[at[at >= 0]] = values[at >= 0].float()
    return _sum(accelerator, whole)


def _sum(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def _counted(accelerator: Accelerator, share: Share, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which queries count, and which candidates do not, in all processes: bool ``(queries,)`` and ``(candidates,)``."""
    queries, candidates = share.plan.excluded.shape
    bad = torch.zeros(queries + candidates, device=targets.device)
    bad[share.unusable_queries] = 1.0
    bad[[queries + row for row in share.unusable_candidates]] = 1.0
    bad_queries, bad_candidates = torch.split(_sum(accelerator, bad) > 0, [queries, candidates])
    return ~(bad_queries | bad_candidates[targets]), bad_candidates


def _dot(vectors: torch.Tensor, rows: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """The sum of vector times gradient, whose own gradient at the vectors is just that."""
    at = torch.where((rows >= 0)[:, None], gradients[rows.clamp(min=0)], 0.0)
    return (vectors.float() * at).sum()
