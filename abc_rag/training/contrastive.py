"""One contrastive step over any number of processes and any amount of memory.

A batch is planned as a whole, in text, by every process alike; each then computes its share of the vectors. The loss
is a small matter once all vectors are there, so every process computes all of it and takes the gradient at its own
vectors: the gradients of two processes are those of one on the same batch.

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import nn

from abc_rag.errors import DatasetError
from abc_rag.models._pictures import Patches
from abc_rag.models.abc import ABCNetwork, ABCPrompts
from abc_rag.training.losses import loss_gradients

__all__ = ["Chunk", "Encoder", "Plan", "Share", "accumulate", "share_of"]

_Ids = npt.NDArray[np.int64]
_Item = TypeVar("_Item")


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
class Chunk:
    """What one process computes at once.

    Attributes:
        pictures: Each once.
        queries: One (position among ``pictures``, token ids) per query.
        query_rows: The query's position in the plan; -1 for one that only fills up.
        texts: Token ids of candidates.
        text_rows: The candidate's position in the plan; -1 for one that only fills up.
        packed: Whether sequences of similar length go through the network together, and others after them.
    """

    pictures: list[Patches]
    queries: list[tuple[int, _Ids]]
    query_rows: list[int]
    texts: list[_Ids]
    text_rows: list[int]
    packed: bool


@dataclass(frozen=True)
class Share:
    """One process's part of a plan.

    Attributes:
        plan: The whole.
        chunks: As many in every process, as FSDP requires.
        unusable: Pictures (positions in the plan) of this process that could not be opened, whose queries do not count.
    """

    plan: Plan
    chunks: list[Chunk]
    unusable: list[int]


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
    own, most = _own(len(plan.pictures), rank, ranks)
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
        queries, query_rows = [], []
        for n, (position, real) in enumerate(pictures):
            tokens = patches[n].rows * patches[n].columns // merge**2
            for row in queries_of.get(position, []):
                queries.append((n, prompts(plan.queries[row][1], image_tokens=tokens)))
                query_rows.append(row if real else -1)
        # Every chunk has a text, as every forward of a wrapped network must use all of its weights.
        filled = rows or list(ids)[:1]
        chunks.append(Chunk(patches, queries, query_rows, [ids[row] for row in filled], rows or [-1], packed))
    return Share(plan, chunks, [p for p, patches in opened.items() if patches is None])


def _blank(patch: int, merge: int) -> Patches:
    """Stands for a picture that cannot be used, whose queries do not count: one image token."""
    return Patches(np.zeros((merge**2, 3 * patch**2), dtype=np.uint8), merge, merge)


def _own(count: int, rank: int, ranks: int) -> tuple[list[int], int]:
    """The pictures of one process, and the most that any has."""
    if count < ranks:
        raise DatasetError(f"a batch of {count} pictures cannot be shared by {ranks} processes; make it larger")
    bounds = [count * r // ranks for r in range(ranks + 1)]
    return list(range(bounds[rank], bounds[rank + 1])), -(-count // ranks)


def _parts(items: Sequence[_Item], count: int) -> list[list[_Item]]:
    """Consecutive parts of nearly equal size; empty ones where there are fewer items."""
    bounds = [len(items) * n // count for n in range(count + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(bounds)]


class Encoder(nn.Module):
    """The network as training calls it: a chunk in, its vectors out, in one forward, as wrappers (DDP, FSDP) need it.

    Args:
        network: Backbone, head and temperature.
        bf16: Compute in bfloat16.
    """

    def __init__(self, network: ABCNetwork, *, bf16: bool = False) -> None:
        super().__init__()
        self.network = network
        self._bf16 = bf16

    def forward(
        self, pictures: list[Patches], queries: list[tuple[int, _Ids]], texts: list[_Ids], packed: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Vectors of the queries ``(q, dim)`` and of the texts ``(t, dim)``, float32, and the temperature."""
        device = self.network.backbone.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._bf16):
            q = self._queries(pictures, queries, packed) if queries else self._none()
            t = self._embed(texts, None, packed) if texts else self._none()
        # A sum, not a view: FSDP takes the memory of a parameter back after the forward.
        return q, t, self.network.temperature.temp.sum()

    def _none(self) -> torch.Tensor:
        return torch.zeros(0, self.network.backbone.hidden_size, device=self.network.backbone.device)

    def _queries(self, pictures: list[Patches], queries: list[tuple[int, _Ids]], packed: bool) -> torch.Tensor:
        backbone = self.network.backbone
        tokens = [p.rows * p.columns // backbone.merge**2 for p in pictures]
        features = torch.split(backbone.image_features(pictures), tokens)
        return self._embed([ids for _, ids in queries], [features[n] for n, _ in queries], packed)

    def _embed(self, prompts: list[_Ids], features: list[torch.Tensor] | None, packed: bool) -> torch.Tensor:
        device = self.network.backbone.device
        rows, order = [], []
        for group in _even_groups([len(p) for p in prompts]) if packed else [list(range(len(prompts)))]:
            lengths = torch.tensor([len(prompts[i]) for i in group])
            # Multiples of four: matrix libraries prepare each new shape once, and that costs more than the padding.
            ids = torch.zeros(len(group), -(-int(lengths.max()) // 4) * 4 if len(group) > 1 else int(lengths[0]),
                              dtype=torch.long)  # fmt: skip
            for row, i in zip(ids, group, strict=True):
                row[: len(prompts[i])] = torch.from_numpy(prompts[i])
            seen = None if features is None else torch.cat([features[i] for i in group])
            rows.append(self.network(ids.to(device), lengths=lengths.to(device), features=seen))
            order += group
        return torch.cat(rows)[torch.tensor(order, device=device).argsort()]


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

    def compute(at: int, chunk: Chunk, *, grad: bool, queries: bool = True, texts: bool = True) -> list[torch.Tensor]:
        torch.manual_seed(_mixed(seed, accelerator.process_index, at))
        with torch.set_grad_enabled(grad):
            return list(
                model(
                    chunk.pictures if queries else [],
                    chunk.queries if queries else [],
                    chunk.texts if texts else [],
                    chunk.packed,
                )
            )

    candidates: list[torch.Tensor] = []
    if fixed_candidates is not None:
        fixed_candidates(False)
        candidates = [compute(n, c, grad=False, queries=False)[1] for n, c in enumerate(share.chunks)]
        fixed_candidates(True)
    learnt = fixed_candidates is None
    outputs = [compute(n, c, grad=once, texts=learnt) for n, c in enumerate(share.chunks)]
    if learnt:
        candidates = [o[1] for o in outputs]
    plan, device = share.plan, outputs[0][0].device
    query_rows = [torch.tensor(c.query_rows, device=device) for c in share.chunks]
    text_rows = [torch.tensor(c.text_rows, device=device) for c in share.chunks]
    all_queries = _gather(accelerator, [o[0] for o in outputs], query_rows, len(plan.queries))
    all_candidates = _gather(accelerator, candidates, text_rows, len(plan.candidates))
    counted = _counted(accelerator, share, device)
    if not bool(counted.any()):
        raise DatasetError(f"none of a batch's {len(plan.pictures)} pictures can be used; look at the data's rows")
    differentiate = partial(
        loss_gradients,
        all_queries,
        all_candidates,
        torch.from_numpy(plan.targets).to(device),
        outputs[0][2],
        smoothing=smoothing,
        min_temperature=min_temperature,
        excluded=torch.from_numpy(plan.excluded).to(device),
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
            q, t, temperature = outputs[n] if once else compute(n, chunk, grad=True, texts=learnt)
            surrogate = _dot(q, query_rows[n], found.queries)
            if learnt:
                surrogate = surrogate + _dot(t, text_rows[n], at_candidates)
            # Each process has the gradients of the whole batch at its own vectors; the average would divide them.
            surrogate = surrogate * ranks
            if last and temperature.requires_grad:
                surrogate = surrogate + temperature * found.temperature
            accelerator.backward(surrogate)
    return {
        "loss": found.loss,
        "accuracy": found.accuracy,
        "temperature": outputs[0][2].item(),
        "candidates": float(len(plan.candidates)),
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


def _counted(accelerator: Accelerator, share: Share, device: torch.device) -> torch.Tensor:
    """Which queries ``(queries,)`` count: those whose picture could be opened, in all processes."""
    bad = torch.zeros(len(share.plan.pictures), device=device)
    bad[share.unusable] = 1.0
    bad = _sum(accelerator, bad)
    return bad[torch.tensor([p for p, _ in share.plan.queries], device=device)] == 0


def _dot(vectors: torch.Tensor, rows: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """The sum of vector times gradient, whose own gradient at the vectors is just that."""
    at = torch.where((rows >= 0)[:, None], gradients[rows.clamp(min=0)], 0.0)
    return (vectors.float() * at).sum()
