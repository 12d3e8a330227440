"""Phi-3-vision's forward for embedding: sequences end to end without padding, and only what their last tokens need.

Walks over the modules of `abc_rag.models.phi3_v.network.Phi3VBackbone`, whose own methods compute the same for padded batches,
with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from abc_rag.models.kernels.attention import Attend, Segments, attend_to_segments, choose_attention
from abc_rag.models.kernels.linear import linear
from abc_rag.models.kernels.packed import activated, rms_norm, rotated, rotation_of, with_round_rows
from abc_rag.models.phi3_v.pictures import CroppedPicture

if TYPE_CHECKING:
    from abc_rag.models.phi3_v.network import Phi3VBackbone

__all__ = ["PackedPhi3V"]

Layer = Callable[..., torch.Tensor]

# Enough to fill a GPU, and about a gigabyte of a tower of the published size in single precision.
_CROPS_AT_ONCE = 32


class PackedPhi3V:
    """The forward of a backbone over packed sequences, without gradients.

    Args:
        backbone: Whose weights are used, as they are at the time of each call.
    """

    def __init__(self, backbone: Phi3VBackbone) -> None:
        self._backbone = backbone
        attend = choose_attention(backbone.attention, device=backbone.device, dtype=backbone.dtype)
        # Its kernels are finished ones, and compiled code would be made anew for every mix of lengths.
        self._attend: Attend = torch.compiler.disable(attend) if backbone.compiled else attend  # type: ignore[no-untyped-call]
        self._vision: Layer
        self._text: Layer
        self._vision, self._text = _compiled_layers() if backbone.compiled else (_vision_layer, _text_layer)

    def image_features(self, opened: Sequence[CroppedPicture]) -> torch.Tensor:
        """See `Phi3VBackbone.packed_features`."""
        from abc_rag.models.phi3_v.network import crop

        parts: Any = self._backbone.vision_embed_tokens
        found = []
        for group in _groups(opened):
            crops = torch.cat([crop(one, self._backbone.device) for one in group])
            states = torch.cat([self._seen(parts.tower, some) for some in torch.split(crops, _CROPS_AT_ONCE)])
            arranged = parts.arranged(states, group)
            first, activation, second = parts.img_projection
            wide = linear(first, self._rounded(arranged))
            found.append(linear(second, activation(wide))[: len(arranged)])
        return torch.cat(found)

    def _seen(self, tower: Any, crops: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        embedded = tower.embedded(crops)
        count, length, width = embedded.shape
        segments = Segments([length] * count, embedded.device)
        states = self._rounded(embedded.reshape(count * length, width))
        for layer in tower.layers:
            states = self._vision(layer, states, segments, self._attend)
        return states[: segments.total].view(count, length, width)[:, 1:]

    def last_states(
        self,
        input_ids: torch.Tensor,
        segments: Segments,
        *,
        features: torch.Tensor | None = None,
        image_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Phi3VBackbone.packed_last_states`."""
        backbone: Any = self._backbone
        states = backbone.embed_tokens(input_ids.clamp(min=0))
        if features is not None and image_positions is not None:
            states = states.index_copy(0, image_positions, features.to(states.dtype))
        states = self._rounded(states)
        cos, sin = backbone.rotary(segments.positions, segments.counts[segments.rows])
        rotation = rotation_of(self._rounded(cos)[:, None], self._rounded(sin)[:, None])
        last = segments.bounds[1:].long() - 1
        for layer in backbone.layers[:-1]:
            states = self._text(layer, states, rotation, segments, self._attend, None)
        states = self._text(backbone.layers[-1], states, rotation, segments, self._attend, last)
        return rms_norm(backbone.norm, states)

    def _rounded(self, rows: torch.Tensor) -> torch.Tensor:
        return with_round_rows(rows, device=self._backbone.device, dtype=self._backbone.dtype)


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
    q, k, v = (
        linear(projection, normed).view(len(x), attention.num_heads, -1)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    x = linear(attention.out_proj, attend_to_segments(attend, q, k, v, segments, False).reshape(len(x), -1)).add_(x)
    return linear(mlp.fc2, activated(mlp.activation_fn, linear(mlp.fc1, layer.layer_norm2(x)))).add_(x)


def _text_layer(
    layer: Any,  # noqa: ANN401
    x: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
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


@lru_cache(maxsize=1)
def _compiled_layers() -> tuple[Layer, Layer]:
    return torch.compile(_vision_layer, dynamic=True), torch.compile(_text_layer, dynamic=True)
