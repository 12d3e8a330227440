"""Phi-3-vision's forward for embedding: sequences end to end without padding, and only what their last tokens need.

Walks over the modules of `Phi3VBackbone`, whose own methods compute the same for padded batches, with gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from abc_rag.models.kernels.attention import Attend, Segments, attend_to_segments
from abc_rag.models.kernels.layers import Rotation, activated, linear, linears, rms_norm, rotated, rotation_of
from abc_rag.models.kernels.packed import PackedForward
from abc_rag.models.phi3_v.network import Phi3VBackbone, crop
from abc_rag.models.phi3_v.pictures import CroppedPicture

__all__ = ["PackedPhi3V"]

# Enough to fill a GPU, and about a gigabyte of a tower of the published size in single precision.
_CROPS_AT_ONCE = 32


class PackedPhi3V(PackedForward):
    """See `PackedForward`; of the last layer, only what the last tokens need."""

    def __init__(self, backbone: Phi3VBackbone, *, compiled: bool = False) -> None:
        super().__init__(backbone, vision=_vision_layer, text=_text_layer, compiled=compiled)

    def image_features(self, opened: Sequence[CroppedPicture]) -> torch.Tensor:
        """Vision features of some pictures, one after the other: ``(sum of tokens, hidden)``.

        Some crops at a time, so that memory is bounded.
        """
        parts = self.backbone.vision_embed_tokens
        found = []
        for group in _groups(opened):
            crops = torch.cat([crop(one, self.backbone.device) for one in group])
            states = torch.cat([self._seen(parts.tower, some) for some in torch.split(crops, _CROPS_AT_ONCE)])
            arranged = parts.arranged(states, group)
            first, activation, second = parts.img_projection
            wide = linear(first, self.rounded(arranged))
            found.append(linear(second, activation(wide))[: len(arranged)])
        return torch.cat(found)

    def _seen(self, tower: Any, crops: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        embedded = tower.embedded(crops)
        count, length, width = embedded.shape
        segments = Segments([length] * count, embedded.device)
        states = self.rounded(embedded.reshape(count * length, width))
        for layer in tower.layers:
            states = self.vision_layer(layer, states, segments, self.attend)
        return states[: segments.total].view(count, length, width)[:, 1:]

    def last_states(
        self,
        input_ids: torch.Tensor,
        segments: Segments,
        *,
        features: torch.Tensor | None = None,
        image_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final-norm state ``(n, hidden)`` of the last token of each of several sequences that lie end to end.

        Args:
            input_ids: int64 ``(total,)``.
            segments: Where they begin and end.
            features: ``(image tokens, hidden)``, of all pictures in turn.
            image_positions: int64 ``(image tokens,)``: where in ``input_ids`` they go.
        """
        backbone = self.backbone
        states = backbone.embed_tokens(input_ids.clamp(min=0))
        if features is not None and image_positions is not None:
            states = states.index_copy(0, image_positions, features.to(states.dtype))
        states = self.rounded(states)
        cos, sin = backbone.rotary(segments.positions, segments.counts[segments.rows])
        rotation = rotation_of(self.rounded(cos)[:, None], self.rounded(sin)[:, None])
        last = segments.bounds[1:].long() - 1
        for layer in backbone.layers[:-1]:
            states = self.text_layer(layer, states, rotation, segments, self.attend, None)
        states = self.text_layer(backbone.layers[-1], states, rotation, segments, self.attend, last)
        return rms_norm(backbone.norm, states)


def _groups(opened: Sequence[CroppedPicture]) -> Iterator[list[CroppedPicture]]:
    """Neighbours that together have few enough crops, or one picture that has more."""
    group: list[CroppedPicture] = []
    crops = 0
    for one in opened:
        more = one.rows * one.columns + 1
        if group and crops + more > _CROPS_AT_ONCE:
            yield group
            group, crops = [], 0
        group.append(one)
        crops += more
    yield group


def _vision_layer(layer: Any, x: torch.Tensor, segments: Segments, attend: Attend) -> torch.Tensor:  # noqa: ANN401
    attention, mlp = layer.self_attn, layer.mlp
    normed = layer.layer_norm1(x)
    q, k, v = linears(normed, attention.q_proj, attention.k_proj, attention.v_proj)
    heads = (len(x), attention.num_heads, -1)
    q, k, v = q.view(heads), k.view(heads), v.view(heads)
    x = linear(attention.out_proj, attend_to_segments(attend, q, k, v, segments, False).reshape(len(x), -1)).add_(x)
    return linear(mlp.fc2, activated(mlp.activation_fn, linear(mlp.fc1, layer.layer_norm2(x)))).add_(x)


def _text_layer(
    layer: Any,  # noqa: ANN401
    x: torch.Tensor,
    rotation: Rotation,
    segments: Segments,
    attend: Attend,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """One layer; with ``kept``, only its results in these rows, for which the others need only be attended to."""
    attention, mlp = layer.self_attn, layer.mlp
    heads, kv_heads = attention.config.num_attention_heads, attention.num_key_value_heads
    normed = rms_norm(layer.input_layernorm, x)
    parts = linear(attention.qkv_proj, normed).view(len(x), heads + 2 * kv_heads, attention.head_dim)
    q, k, v = torch.split(parts, [heads, kv_heads, kv_heads], dim=1)
    q, k = rotated(q, rotation), rotated(k, rotation)
    found = attend_to_segments(attend, q, k, v, segments, True).reshape(len(x), -1)
    if kept is not None:
        found, x = found[kept], x[kept]
    x = linear(attention.o_proj, found).add_(x)
    gate, up = linear(mlp.gate_up_proj, rms_norm(layer.post_attention_layernorm, x)).chunk(2, dim=-1)
    return linear(mlp.down_proj, mlp.activation_fn(gate).mul_(up)).add_(x)
