"""Exact full attention on a CPU by plain matrix products, one block of queries at a time.

torch's own kernel multiplies through MKL; `abc_rag.models.kernels.layers` says why that is slow, and why sizes are
rounded. MKL computes ``exp`` slowly too, but ``exp2`` fast, so the softmax uses powers of two. The maximum of a row is
subtracted only where a score could leave float32's range. Rows are divided by their sums after the product with the
values, which is smaller.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch

from abc_rag.models.kernels.layers import onednn_product, rounded_rows

__all__ = ["LEAST_SCORES", "attend_by_blocks", "suits_blocks"]

LEAST_SCORES = 400_000
"""With fewer scores, torch's own kernel is as fast."""
# Scores of a block: few enough to stay in the CPU's caches, and enough to outweigh the overhead of a call.
_SCORES = 1 << 21
# Queries of a block: a power of two, as oneDNN keeps a compiled kernel for every shape.
_MOST_ROWS, _LEAST_ROWS = 1024, 128
# Exponents of two: 2**80 leaves room in float32 for sums of many large values, and 2**-80 for small weights.
_LARGEST = 80.0


def suits_blocks(queries: int, keys: int) -> bool:
    """Whether there are enough scores, and rounding the sizes adds few."""
    scores = queries * keys
    return scores >= LEAST_SCORES and _round(queries) * rounded_rows(keys) <= 1.4 * scores


def attend_by_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
    """Full attention within one sequence, in float32; only where `onednn_is_faster`.

    Args:
        q: ``(n, heads, groups, dim)``: all heads of a group share keys. As the attention is not causal, a
            group's heads are treated as more queries.
        k: ``(m, heads, dim)``.
        v: ``(m, heads, dim)``.
        out: Receives the result; has the shape of ``q``.
    """
    count, heads, groups, dim = q.shape
    length = len(k)
    rows, columns = _round(count * groups), rounded_rows(length)
    # The rows and columns that round the sizes are zeros: such keys have scores of zero, left out of every sum, and
    # values of zero.
    scaled, keys = q.new_zeros(heads, rows, dim), k.new_zeros(heads, columns, dim)
    values, found = v.new_zeros(heads, dim, columns), torch.empty_like(scaled)
    in_turn = (heads, count, groups, dim)
    torch.mul(q.permute(1, 0, 2, 3), math.log2(math.e) * dim**-0.5, out=scaled[:, : count * groups].view(in_turn))
    keys[:, :length] = k.transpose(0, 1)
    values[:, :, :length] = v.permute(1, 2, 0)
    safe = (_longest(scaled) * _longest(keys) <= _LARGEST).tolist()
    for head, (begin, end) in itertools.product(range(heads), _blocks(rows, length)):
        part = scaled[head, begin:end]
        _weigh(part, keys[head], values[head], found[head, begin:end], length=length, safe=safe[head])
    out.copy_(found[:, : count * groups].view(in_turn).transpose(0, 1))


def _weigh(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, *, length: int, safe: bool) -> None:
    # A function of its own: when it returns, its memory is reused for the next scores while still in the CPU's caches.
    scores = onednn_product(q, k)
    real = scores[:, :length]
    if not safe:
        real.sub_(real.amax(dim=-1, keepdim=True))
    torch.exp2(scores, out=scores)
    torch.div(onednn_product(scores, v), real.sum(dim=-1, keepdim=True), out=out)


def _longest(vectors: torch.Tensor) -> torch.Tensor:
    """``(heads,)``: the largest norm. A dot product is never larger than the product of the norms."""
    largest: torch.Tensor = torch.linalg.vector_norm(vectors, dim=-1).amax(dim=-1)
    return largest


def _blocks(rows: int, keys: int) -> Iterator[tuple[int, int]]:
    """Bounds of the blocks: as large as the number of keys allows, then smaller ones for the remaining queries."""
    size = _MOST_ROWS
    while size > _LEAST_ROWS and size * keys > 1.25 * _SCORES:
        size //= 2
    begin = 0
    while begin < rows:
        while size > rows - begin:
            size //= 2
        yield begin, begin + size
        begin += size


def _round(queries: int) -> int:
    return -(-queries // _LEAST_ROWS) * _LEAST_ROWS
