"""Qwen2-VL's forward for embedding: sequences end to end without padding, plain positions, no state.

Walks over the modules of `Qwen2VLBackbone`, ours or transformers', so the weights, the adapters and their names are
transformers' and peft's; only the order of operations is here. `Qwen2VLBackbone.hidden_states` computes the same for
padded batches, with gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from abc_rag.models.kernels.attention import Attend, Segments, attend_to_segments
from abc_rag.models.kernels.layers import Rotation, activated, linear, linears, rms_norm, rotated, rotation_of
from abc_rag.models.kernels.packed import PackedForward
from abc_rag.models.kernels.pixels import moved
from abc_rag.models.qwen2_vl.network import Qwen2VLBackbone, normalise
from abc_rag.models.qwen2_vl.pictures import Patches

__all__ = ["PackedQwen2VL", "grid_positions"]


class PackedQwen2VL(PackedForward):
    """See `PackedForward`."""

    def __init__(self, backbone: Qwen2VLBackbone, *, compiled: bool = False) -> None:
        super().__init__(backbone, vision=_vision_block, text=_text_layer, compiled=compiled)

    def image_features(self, pictures: Sequence[Patches]) -> torch.Tensor:
        """Vision features of some pictures, one after the other: ``(sum of tokens, hidden)``."""
        backbone = self.backbone
        visual: Any = backbone.visual
        pixels = torch.from_numpy(
            np.concatenate([p.pixels for p in pictures]) if len(pictures) > 1 else pictures[0].pixels
        )
        segments = Segments([p.rows * p.columns for p in pictures], backbone.device)
        pixels_in = self.rounded(normalise(moved(pixels, backbone.device)))
        states = linear(visual.patch_embed.proj, pixels_in.to(backbone.dtype))
        at = np.concatenate([grid_positions(p.rows, p.columns, backbone.merge) for p in pictures])
        cos, sin = visual.rotary_pos_emb(states, self.rounded(moved(torch.from_numpy(at), backbone.device)))
        rotation = rotation_of(cos[:, None], sin[:, None])
        for block in visual.blocks:
            states = self.vision_layer(block, states, rotation, segments, self.attend)
        merger = visual.merger
        merged = merger.ln_q(states).view(-1, merger.hidden_size)
        features: torch.Tensor = linear(merger.mlp[2], merger.mlp[1](linear(merger.mlp[0], merged)))
        return features[: segments.total // backbone.merge**2]

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        segments: Segments,
        *,
        features: torch.Tensor | None = None,
        image_positions: torch.Tensor | None = None,
        causal: bool = False,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final-norm hidden states of sequences that lie end to end.

        Args:
            input_ids: int64 ``(total,)``.
            segments: Where they begin and end.
            features: ``(image tokens, hidden)``, of all pictures in turn.
            image_positions: int64 ``(image tokens,)``: where in ``input_ids`` they go.
            causal: Attend to earlier tokens only.
            position_ids: ``(total,)``; 0, 1, 2, ... in each sequence if not given.

        Returns:
            ``(total, hidden)``.
        """
        model: Any = self.backbone.language_model
        states = model.embed_tokens(input_ids)
        if features is not None and image_positions is not None:
            states = states.index_copy(0, image_positions, features.to(states.dtype))
        states = self.rounded(states)
        positions = self.rounded(segments.positions if position_ids is None else position_ids)
        # Three equal axes of positions are one: transformers' own code then mixes equal halves.
        cos, sin = model.rotary_emb(states, positions.expand(3, 1, -1))
        rotation = rotation_of(cos[0][:, None], sin[0][:, None])
        for layer in model.layers:
            states = self.text_layer(layer, states, rotation, segments, self.attend, causal)
        normed: torch.Tensor = rms_norm(model.norm, states[: segments.total])
        return normed


@lru_cache(maxsize=256)
def grid_positions(rows: int, columns: int, merge: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64 (patches, 2): row and column of each patch, in the order in which patches are merged."""
    grid = np.indices((rows, columns)).reshape(2, rows // merge, merge, columns // merge, merge)
    return np.ascontiguousarray(grid.transpose(0, 1, 3, 2, 4).reshape(2, -1).T)


def _vision_block(block: Any, x: torch.Tensor, rotation: Rotation, segments: Segments, attend: Attend) -> torch.Tensor:  # noqa: ANN401
    attention = block.attn
    q, k, v = linear(attention.qkv, block.norm1(x)).view(len(x), 3, attention.num_heads, -1).unbind(1)
    # Rotated in single precision, as published.
    q, k = (rotated(part.float(), rotation).to(part.dtype) for part in (q, k))
    x = linear(attention.proj, attend_to_segments(attend, q, k, v, segments, False).reshape(len(x), -1)).add_(x)
    wide = linear(block.mlp.fc1, block.norm2(x))
    return linear(block.mlp.fc2, activated(block.mlp.act, wide)).add_(x)


def _text_layer(
    layer: Any,  # noqa: ANN401
    x: torch.Tensor,
    rotation: Rotation,
    segments: Segments,
    attend: Attend,
    causal: bool,
) -> torch.Tensor:
    attention, mlp = layer.self_attn, layer.mlp
    normed = rms_norm(layer.input_layernorm, x)
    q, k, v = linears(normed, attention.q_proj, attention.k_proj, attention.v_proj)
    heads = (len(x), -1, attention.head_dim)
    q, k, v = rotated(q.view(heads), rotation), rotated(k.view(heads), rotation), v.view(heads)
    x = linear(attention.o_proj, attend_to_segments(attend, q, k, v, segments, causal).reshape(len(x), -1)).add_(x)
    normed = rms_norm(layer.post_attention_layernorm, x)
    gate, up = linears(normed, mlp.gate_proj, mlp.up_proj)
    return linear(mlp.down_proj, nn.functional.silu(gate, inplace=True).mul_(up)).add_(x)
