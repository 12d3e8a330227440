"""One contrastive step over any number of processes and any amount of memory, for every family of models.

Every process makes the same plan of the whole batch (`Plan`), and computes its share of the vectors. Once all vectors
are there, the loss is cheap, so every process computes all of it and takes the gradient at its own vectors: two
processes get the gradients that one would get on the same batch.

Gradient caching: where a share does not fit into memory at once, its vectors are computed in chunks that keep no
activations. Each chunk is then computed again, to pass the gradient at its vectors on to the weights. The result is
the same; it costs one more forward pass.

Padding never enters a vector, and positions are counted from the first token, as at inference. The published training
code lets padding enter the mean: on batches of unequal lengths its loss differs from this one, on batches without
padding the two agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, TypedDict

import torch
from accelerate import Accelerator
from torch import nn
from typing_extensions import Required

from abc_rag.errors import DatasetError
from abc_rag.training.losses import loss_gradients
from abc_rag.training.shares import Chunk, Prompted, Share

__all__ = ["Encoder", "LossOptions", "accumulate", "seeded"]


class LossOptions(TypedDict, total=False):
    """The options of `accumulate` that an objective sets."""

    smoothing: Required[float]
    min_temperature: float
    fixed_candidates: Callable[[bool], None] | None
    true_negatives: Literal["all", "own"]


def seeded(*parts: object) -> int:
    """A seed for one purpose, the same for the same parts on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


class Encoder(nn.Module):
    """The network as training calls it: all vectors of a chunk in one forward, as wrappers (DDP, FSDP) require.

    Args:
        network: An `ABCNetwork` or a `VLM2VecNetwork`.
        bf16: Compute in bfloat16.
        temperature: A fixed temperature; the network's own if None.
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
        # A sum, not a view: FSDP frees the memory of a parameter after the forward.
        return q, c, self.network.temperature.temp.sum()

    def _embed(self, sequences: Sequence[Prompted], features: Sequence[torch.Tensor], packed: bool) -> torch.Tensor:
        backbone = self.network.backbone
        device = backbone.device
        if not sequences:
            return torch.zeros(0, backbone.hidden_size, device=device)
        rows, order = [], []
        for group in _even_groups([len(ids) for _, ids in sequences]) if packed else [list(range(len(sequences)))]:
            lengths = torch.tensor([len(sequences[i][1]) for i in group])
            # Multiples of four: matrix libraries set up each new shape once, which costs more than the padding.
            ids = torch.zeros(len(group), -(-int(lengths.max()) // 4) * 4 if len(group) > 1 else int(lengths[0]),
                              dtype=torch.long)  # fmt: skip
            for row, i in zip(ids, group, strict=True):
                row[: len(sequences[i][1])] = torch.from_numpy(sequences[i][1])
            seen = [features[n] for i in group for n in sequences[i][0]]
            rows.append(
                self.network(ids.to(device), lengths=lengths.to(device), features=torch.cat(seen) if seen else None)
            )
            order += group
        return torch.cat(rows)[torch.tensor(order, device=device).argsort()]


def _even_groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions in groups of similar length: less than a fifth of a group is padding."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and lengths[i] > 1.25 * lengths[group[0]] + 3:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


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
        model: An `Encoder`, wrapped by Accelerate.
        share: What this process computes.
        seed: Seed of this step's dropout; a chunk that is computed twice gets the same dropout.
        smoothing: Label smoothing.
        min_temperature: See `loss_gradients`.
        fixed_candidates: Switches the adapter, as instruction finetuning does: called with False before the candidates
            are computed, without gradients, and with True before the queries are. If None, candidates have gradients.
        true_negatives: See `PretrainConfig`.

    Returns:
        ``loss``, ``accuracy``, ``temperature`` and ``candidates``, equal in all processes.

    Raises:
        DatasetError: No row of the batch can be used.
    """
    ranks = accelerator.num_processes
    once = len(share.chunks) == 1

    def compute(
        at: int, chunk: Chunk, *, grad: bool, queries: bool = True, candidates: bool = True
    ) -> list[torch.Tensor]:
        torch.manual_seed(seeded(seed, accelerator.process_index, at))
        with torch.set_grad_enabled(grad):
            asked = chunk.queries if queries else []
            answers = chunk.candidates if candidates else []
            seen = any(pictures for pictures, _ in [*asked, *answers])
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
        # A query that does not count keeps all candidates: without any, its scores would be NaN.
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
        # Wrappers average over processes on the last backward only, once all gradients are there.
        context: AbstractContextManager[object] = nullcontext() if last else accelerator.no_sync(model)
        with context:
            q, c, temperature = outputs[n] if once else compute(n, chunk, grad=True, candidates=learnt)
            surrogate = _dot(q, query_rows[n], found.queries)
            if learnt:
                surrogate = surrogate + _dot(c, candidate_rows[n], at_candidates)
            # Each process has the whole batch's gradients at its own vectors; the wrapper averages, so undo that.
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


def _gather(accelerator: Accelerator, parts: list[torch.Tensor], rows: list[torch.Tensor], count: int) -> torch.Tensor:
    """The vectors of all processes, in the plan's order: each process fills its own rows of zeros; the sum is all."""
    values, at = torch.cat([p.detach() for p in parts]), torch.cat(rows)
    whole = torch.zeros(count, values.shape[1], device=values.device)
    whole[at[at >= 0]] = values[at >= 0].float()
    return _sum(accelerator, whole)


def _sum(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def _counted(accelerator: Accelerator, share: Share, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries that count, bool ``(queries,)``, and unusable candidates, bool ``(candidates,)``, of all processes."""
    queries, candidates = share.plan.excluded.shape
    bad = torch.zeros(queries + candidates, device=targets.device)
    bad[share.unusable_queries] = 1.0
    bad[[queries + row for row in share.unusable_candidates]] = 1.0
    bad_queries, bad_candidates = torch.split(_sum(accelerator, bad) > 0, [queries, candidates])
    return ~(bad_queries | bad_candidates[targets]), bad_candidates


def _dot(vectors: torch.Tensor, rows: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """The dot product of vectors and gradients: its gradient at the vectors is ``gradients``."""
    at = torch.where((rows >= 0)[:, None], gradients[rows.clamp(min=0)], 0.0)
    return (vectors.float() * at).sum()
