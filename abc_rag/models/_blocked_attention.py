"""Full attention on a CPU by plain matrix products, a block of queries at a time; exact.

torch's own kernel multiplies through MKL; see `abc_rag.models._linear`, also for why sizes are rounded. MKL computes
``exp`` as slowly, but not ``exp2``: so scores are in powers of two. They need not be made relative to the largest of
their row where none can leave float32's range, and rows are divided by their sums after they have met the values.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from abc_rag.models._linear import onednn_product, rounded_rows

__all__ = ["attend_by_blocks", "suits_blocks"]

# Below this many scores, torch's own kernel is as quick.
_LEAST_SCORES = 400_000
# At a time: few enough to stay in the caches, and enough that the steps take longer than their calls.
_SCORES = 1 << 20
# Queries at a time: a power of two, as oneDNN keeps what it compiles for every shape.
_MOST_ROWS, _LEAST_ROWS = 1024, 128
# Of scores in powers of two: 2**80 leaves room in float32 for sums of many large values, and 2**-80 for small weights.
_LARGEST = 80.0


def suits_blocks(queries: int, keys: int) -> bool:
    """Whether there are enough scores, and rounding adds few."""
    scores = queries * keys
    return scores >= _LEAST_SCORES and _round(queries) * rounded_rows(keys) <= 1.4 * scores


def attend_by_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
    """Full attention of one head, in float32; only where `onednn_is_faster`.

    Args:
        q: ``(n, groups, dim)``: of all heads that share these keys. Without an order of tokens, these are just more
            queries.
        k: ``(m, dim)``.
        v: ``(m, dim)``.
        out: Where to write what ``q`` finds, of its shape.
    """
    length, dim = k.shape
    queries, columns = q.shape[0] * q.shape[1], rounded_rows(length)
    # Rows and columns that only round the sizes are zeros: such keys have scores of zero, which no sum contains, and
    # values of zero.
    scaled = _widened(q.reshape(queries, dim) * (math.log2(math.e) * dim**-0.5), _round(queries))
    keys, values = _widened(k, columns), _widened(v, columns).t().contiguous()
    safe = bool(_longest(scaled) * _longest(keys) <= _LARGEST)
    found = torch.empty_like(scaled)
    begin = 0
    while begin < len(scaled):
        rows = _block_of(length)
        while rows > len(scaled) - begin:
            rows //= 2
        block = slice(begin, begin + rows)
        found[block] = _weighed(scaled[block], keys, values, length, safe)
        begin += rows
    out.copy_(found[:queries].view_as(q))


def _weighed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: int, safe: bool) -> torch.Tensor:
    scores = onednn_product(q, k)
    real = scores[:, :length]
    if not safe:
        real.sub_(real.amax(dim=-1, keepdim=True))
    torch.exp2(scores, out=scores)
    # Memory of the scores is free again for those of the next block, while it is still in the caches.
    return onednn_product(scores, v).div_(real.sum(dim=-1, keepdim=True))


def _longest(vectors: torch.Tensor) -> torch.Tensor:
    """The largest norm; no product of two vectors is larger than that of their norms."""
    largest: torch.Tensor = torch.linalg.vector_norm(vectors, dim=-1).amax()
    return largest


def _widened(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Contiguous, with rows of zeros up to this many."""
    return nn.functional.pad(rows, (0, 0, 0, count - len(rows))).contiguous()


def _round(queries: int) -> int:
    return -(-queries // _LEAST_ROWS) * _LEAST_ROWS


def _block_of(keys: int) -> int:
    """How many queries at a time."""
    rows = _MOST_ROWS
    while rows > _LEAST_ROWS and rows * keys > 1.25 * _SCORES:
        rows //= 2
    return rows
