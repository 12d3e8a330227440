"""Full attention on a CPU by plain matrix products, a block of queries at a time; exact.

torch's own kernel multiplies through MKL; `abc_rag.models.kernels.layers` says why that is slow, and why sizes are
rounded. MKL computes ``exp`` slowly too, but not ``exp2``: so scores are in powers of two. The maximum of a row is
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
"""Below this many scores, torch's own kernel is as quick."""
# At a time: few enough to stay in the caches, and enough that the steps take longer than their calls.
_SCORES = 1 << 21
# Queries at a time: a power of two, as oneDNN keeps what it compiles for every shape.
_MOST_ROWS, _LEAST_ROWS = 1024, 128
# Of scores in powers of two: 2**80 leaves room in float32 for sums of many large values, and 2**-80 for small weights.
_LARGEST = 80.0


def suits_blocks(queries: int, keys: int) -> bool:
    """Whether there are enough scores, and rounding adds few."""
    scores = queries * keys
    return scores >= LEAST_SCORES and _round(queries) * rounded_rows(keys) <= 1.4 * scores


def attend_by_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
    """Full attention within one sequence, in float32; only where `onednn_is_faster`.

    Args:
        q: ``(n, heads, groups, dim)``: all queries of a group share keys. Without an order of tokens, a group is just
            more queries.
        k: ``(m, heads, dim)``.
        v: ``(m, heads, dim)``.
        out: Where to write what ``q`` finds, of its shape.
    """
    count, heads, groups, dim = q.shape
    length = len(k)
    rows, columns = _round(count * groups), rounded_rows(length)
    # Rows and columns that only round the sizes are zeros: such keys have scores of zero, which no sum contains, and
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
    # A call of its own, at whose end the memory of the scores is free for the next ones, while it is in the caches.
    scores = onednn_product(q, k)
    real = scores[:, :length]
    if not safe:
        real.sub_(real.amax(dim=-1, keepdim=True))
    torch.exp2(scores, out=scores)
    torch.div(onednn_product(scores, v), real.sum(dim=-1, keepdim=True), out=out)


def _longest(vectors: torch.Tensor) -> torch.Tensor:
    """``(heads,)``: the largest norm; no product of two vectors is larger than that of their norms."""
    largest: torch.Tensor = torch.linalg.vector_norm(vectors, dim=-1).amax(dim=-1)
    return largest


def _blocks(rows: int, keys: int) -> Iterator[tuple[int, int]]:
    """Where blocks begin and end: as large as the number of keys allows, and smaller ones for what is left."""
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
