"""Attention within each of several sequences that lie end to end, without padding between them.

There are three implementations, all exact: kernels for sequences of different lengths where the platform has them
(torch's own, or flash-attention); one call for each length, which is fastest on a CPU; and elsewhere, padding in the
attention only.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache

import torch
from torch import nn

from abc_rag.errors import MissingExtraError
from abc_rag.models.kernels.blocked_attention import LEAST_SCORES, attend_by_blocks, suits_blocks
from abc_rag.models.kernels.layers import onednn_is_faster

__all__ = ["Attend", "Segments", "attend_in_window", "attend_to_segments", "choose_attention"]

_BLOCK = 512  # queries that look at a window together
_WIDEST_FLASH = 256  # heads that kernels for different lengths take

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "Segments", bool], torch.Tensor]
"""``attend(q, k, v, segments, causal)``: q ``(total, heads, dim)``, k and v ``(total, kv_heads, dim)`` -> q's shape."""


class Segments:
    """The bounds of sequences that lie end to end in one tensor.

    Args:
        lengths: The length of each sequence in tokens.
        device: The device of the tensors.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.device = device
        self.total = sum(self.lengths)
        self.longest = max(self.lengths, default=0)

    @cached_property
    def counts(self) -> torch.Tensor:
        """int64 ``(n,)``: the lengths."""
        return torch.tensor(self.lengths, device=self.device)

    @cached_property
    def bounds(self) -> torch.Tensor:
        """int32 ``(n + 1,)``: the start of each sequence, and the end of the last one."""
        ends = list(itertools.accumulate(self.lengths, initial=0))
        return torch.tensor(ends, dtype=torch.int32, device=self.device)

    @cached_property
    def positions(self) -> torch.Tensor:
        """int64 ``(total,)``: 0, 1, 2, ... within each sequence."""
        # Given the size, torch does not wait for a GPU to compute it.
        begins = self.bounds[:-1].long().repeat_interleave(self.counts, output_size=self.total)
        return torch.arange(self.total, device=self.device) - begins

    @cached_property
    def rows(self) -> torch.Tensor:
        """int64 ``(total,)``: the sequence of each token."""
        return torch.arange(len(self.lengths), device=self.device).repeat_interleave(
            self.counts, output_size=self.total
        )

    @cached_property
    def real(self) -> torch.Tensor:
        """Of type bool, ``(n, longest)``: False at the padding, if the sequences are padded."""
        return torch.arange(self.longest, device=self.device)[None] < self.counts[:, None]

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """``(start, count, length)`` of each run of sequences with the same length."""
        begin = 0
        for length, same in itertools.groupby(self.lengths):
            count = len(list(same))
            yield begin, count, length
            begin += count * length


def choose_attention(name: str, *, device: torch.device, dtype: torch.dtype, widest_head: int = 0) -> Attend:
    """The attention function for a device.

    Args:
        name: ``"sdpa"`` (the fastest of torch's own), ``"eager"`` or ``"flash_attention_2"``.
        device: The device of the tensors.
        dtype: The dtype of the tensors.
        widest_head: The largest width of a head, where it is more than 256.

    Raises:
        MissingExtraError: flash-attention was asked for and is not installed.
    """
    if name == "eager":
        return _eager
    half = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if name == "flash_attention_2":
        return _flash()
    if half and widest_head <= _WIDEST_FLASH and _has_varlen() and torch.cuda.get_device_capability(device) >= (8, 0):
        return _varlen
    return _by_length if device.type == "cpu" else _padded


def attend_to_segments(
    attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, causal: bool
) -> torch.Tensor:
    """``attend`` for tensors with more rows than the segments have: the extra rows of the result are zeros."""
    more = len(q) - segments.total
    if not more:
        return attend(q, k, v, segments, causal)
    total = segments.total
    found = attend(q[:total], k[:total], v[:total], segments, causal)
    return nn.functional.pad(found, (0, 0, 0, 0, 0, more))


def attend_in_window(
    attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, window: int | None
) -> torch.Tensor:
    """Attention both ways, in which a token sees no other one farther away than ``window``; None for no such limit.

    Args:
        attend: For sequences that the window holds as a whole.
        q: See `attend_to_segments`; rows behind the segments come out as zeros.
        k: The same.
        v: The same.
        segments: The longest first, as in a `PackedBatch`.
        window: Distance in tokens.
    """
    long = sum(length > window + 1 for length in segments.lengths) if window is not None else 0
    if window is None or not long:
        return attend_to_segments(attend, q, k, v, segments, False)
    done = sum(segments.lengths[:long])
    ends = list(itertools.accumulate(segments.lengths[:long], initial=0))
    parts = [_banded(q[one:end], k[one:end], v[one:end], window) for one, end in itertools.pairwise(ends)]
    if long == len(segments.lengths):
        return torch.cat([*parts, torch.zeros_like(q[done:])])
    rest = Segments(segments.lengths[long:], segments.device)
    return torch.cat([*parts, attend_to_segments(attend, q[done:], k[done:], v[done:], rest, False)])


def _banded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    # A block of queries sees the keys around it, most of which all of its queries see.
    parts = []
    for begin in range(0, len(q), _BLOCK):
        first, last = max(0, begin - window), begin + _BLOCK + window
        rows = (q[begin : begin + _BLOCK], k[first:last], v[first:last])
        queries, keys, values = (x.transpose(0, 1)[None] for x in rows)
        at = torch.arange(begin, begin + queries.shape[2], device=q.device)
        there = torch.arange(first, first + keys.shape[2], device=q.device)
        near = (at[:, None] - there[None]).abs() <= window
        found = nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=near, enable_gqa=q.shape[1] != k.shape[1]
        )
        parts.append(found[0].transpose(0, 1))
    return torch.cat(parts)


def _by_length(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, causal: bool) -> torch.Tensor:
    out = torch.empty_like(q)
    heads, kv_heads, dim = q.shape[1], k.shape[1], q.shape[2]
    groups = heads // kv_heads
    many = groups * segments.longest**2 >= LEAST_SCORES
    fast = many and not causal and q.device.type == "cpu" and q.dtype == torch.float32 and onednn_is_faster()
    for begin, count, length in segments.runs():
        if fast and suits_blocks(groups * length, length):
            for one in range(begin, begin + count * length, length):
                rows = slice(one, one + length)
                queries, into = (x[rows].view(length, kv_heads, groups, dim) for x in (q, out))
                attend_by_blocks(queries, k[rows], v[rows], into)
            continue
        part = slice(begin, begin + count * length)
        keys, values = (x[part].view(count, length, kv_heads, dim).transpose(1, 2) for x in (k, v))
        into = out[part].view(count, length, kv_heads, groups, dim)
        if causal:
            queries = q[part].view(count, length, heads, dim).transpose(1, 2)
            found = nn.functional.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, enable_gqa=groups > 1
            )
            into.copy_(found.transpose(1, 2).view_as(into))
            continue
        # Heads that share keys are treated as more queries.
        queries = q[part].view_as(into).permute(0, 2, 3, 1, 4).reshape(count, kv_heads, groups * length, dim)
        found = nn.functional.scaled_dot_product_attention(queries, keys, values)
        into.copy_(found.reshape(count, kv_heads, groups, length, dim).permute(0, 3, 1, 2, 4))
    return out


def _eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, causal: bool) -> torch.Tensor:
    out = torch.empty_like(q)
    groups, scale = q.shape[1] // k.shape[1], q.shape[2] ** -0.5
    for begin, count, length in segments.runs():
        part = slice(begin, begin + count * length)
        queries = q[part].view(count, length, *q.shape[1:]).transpose(1, 2)
        keys, values = (
            x[part].view(count, length, *x.shape[1:]).transpose(1, 2).repeat_interleave(groups, dim=1) for x in (k, v)
        )
        scores = queries @ keys.transpose(2, 3) * scale
        if causal:
            later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
        out[part].view(count, length, *q.shape[1:]).copy_((weights @ values).transpose(1, 2))
    return out


def _padded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, causal: bool) -> torch.Tensor:
    at = (segments.rows, segments.positions)
    size = (len(segments.lengths), segments.longest)

    def widened(x: torch.Tensor) -> torch.Tensor:
        padded = x.new_zeros(*size, *x.shape[1:])
        padded[at] = x
        return padded.transpose(1, 2)

    mask = segments.real[:, None, None, :]
    if causal:
        steps = torch.arange(segments.longest, device=q.device)
        mask = mask & (steps[:, None] >= steps[None, :])
    found = nn.functional.scaled_dot_product_attention(
        widened(q), widened(k), widened(v), attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
    )
    return found.transpose(1, 2)[at]


def _varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, causal: bool) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    found = varlen_attn(
        q,
        k,
        v,
        segments.bounds,
        segments.bounds,
        segments.longest,
        segments.longest,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(found, torch.Tensor)
    return found


@lru_cache(maxsize=1)
def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    # Its first versions did not support grouped heads.
    return {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)


def _flash() -> Attend:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise MissingExtraError(
            "attention='flash_attention_2' needs flash-attention: pip install flash-attn, or leave attention='auto'"
        ) from error

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, causal: bool) -> torch.Tensor:
        ends, longest = segments.bounds, segments.longest
        found: torch.Tensor = flash_attn_varlen_func(q, k, v, ends, ends, longest, longest, causal=causal)
        return found

    return attend
