"""Qwen3-VL as a feature extractor, over sequences that lie end to end, without gradients.

Walks over the modules of transformers' ``Qwen3VLModel``, so the weights and their names are transformers'; its forward
is not called, as it keeps state between calls. Three things are Qwen3-VL's own: positions of image tokens are those of
a grid (three axes, interleaved), some layers of the vision tower are added to the first layers of the language model
(DeepStack), and queries and keys are normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from abc_rag.models.checkpoint import fill, match_tensors, stored_tensors
from abc_rag.models.kernels.attention import Attend, Segments, attend_to_segments
from abc_rag.models.kernels.backbone import Backbone
from abc_rag.models.kernels.layers import Rotation, activated, linear, linears, rms_norm, rotated, rotation_of
from abc_rag.models.kernels.packed import PackedBatch, PackedForward
from abc_rag.models.kernels.pixels import moved
from abc_rag.models.placement import CPU, Placement
from abc_rag.models.qwen2_vl.network import backbone_name
from abc_rag.models.qwen2_vl.pictures import Patches
from abc_rag.models.qwen3_vl.config import read_config

__all__ = ["GRID", "PackedQwen3VL", "Qwen3VLNetwork", "grid_of", "load_network", "positions_of"]

GRID = 4
"""Columns behind a picture's features that say how many rows and columns of tokens it has; see `grid_of`."""
_BASE = 128  # whole numbers below 256 are exact in bfloat16
_PATCH_EMBED = "visual.patch_embed.proj.weight"


class _PatchEmbed(nn.Module):
    """The patch projection for still pictures: the sum of the published convolution over its two equal frames."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, width)


class Qwen3VLNetwork(Backbone):
    """A vision tower and a language model.

    Args:
        config: A Qwen3-VL configuration.
        attention: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.

    Attributes:
        compiled: Whether layers run through ``torch.compile``.
    """

    def __init__(self, config: Qwen3VLConfig, *, attention: str) -> None:
        super().__init__()
        parts: Any = config
        vision = parts.vision_config
        self.config: Any = config
        self.attention = attention
        self.compiled = False
        self.patch: int = vision.patch_size
        self.merge: int = vision.spatial_merge_size
        self.image_token_id: int = config.image_token_id
        self.text_config = parts.text_config
        model = Qwen3VLModel(config)
        model.visual.patch_embed = _PatchEmbed(vision.in_channels * self.patch**2, vision.hidden_size)
        self.visual: Any = model.visual
        self.language_model: Any = model.language_model


def grid_of(features: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """Rows and columns of image tokens of pictures whose features are ``(tokens, ... + GRID)``."""
    if not features:
        return []
    told = torch.stack([one[-1, -GRID:] for one in features]).tolist()
    return [(int(a * _BASE + b), int(c * _BASE + d)) for a, b, c, d in told]


def positions_of(
    ids: npt.NDArray[np.int64], grids: Sequence[tuple[int, int]], image_token_id: int
) -> npt.NDArray[np.int64]:
    """Positions ``(3, length)``: in time, from top to bottom, from left to right.

    Texts count on all three axes alike; a picture stays at one time, and what follows it begins behind its longer side.
    """
    found = np.zeros((3, len(ids)), dtype=np.int64)
    at = position = 0
    starts = np.flatnonzero((ids == image_token_id) & (np.roll(ids, 1) != image_token_id))
    for start, (rows, columns) in zip(starts, grids, strict=True):
        found[:, at:start] = position + np.arange(start - at)
        position += int(start) - at
        at = int(start) + rows * columns
        grid = np.stack([np.zeros((rows, columns), dtype=np.int64), *np.indices((rows, columns))])
        found[:, start:at] = position + grid.reshape(3, -1)
        position += max(rows, columns)
    found[:, at:] = position + np.arange(len(ids) - at)
    return found


class PackedQwen3VL(PackedForward):
    """See `PackedForward`."""

    def __init__(self, network: Qwen3VLNetwork) -> None:
        super().__init__(network, vision=_vision_block, text=_text_layer, compiled=network.compiled)

    def image_features(self, pictures: Sequence[Patches]) -> torch.Tensor:
        """Vision features ``(sum of tokens, hidden * (1 + deep layers) + GRID)``, of one picture after the other."""
        network = self.backbone
        visual, device = network.visual, network.device
        segments = Segments([p.patches for p in pictures], device)
        pixels = moved(torch.from_numpy(np.concatenate([p.pixels for p in pictures])), device)
        scaled = self.rounded(pixels.float().div_(255.0).sub_(0.5).div_(0.5)).to(network.dtype)
        states = linear(visual.patch_embed.proj, scaled)
        grid = torch.tensor([[1, p.rows, p.columns] for p in pictures], device=device)
        at, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=network.merge,
        )
        states = states + self.rounded((visual.pos_embed(at) * weights[:, :, None]).sum(1)).to(states.dtype)
        cos, sin = visual.rotary_pos_emb(states, self.rounded(get_vision_position_ids(grid, network.merge)))
        rotation = rotation_of(cos[:, None], sin[:, None])
        deep = []
        for number, block in enumerate(visual.blocks):
            states = self.vision_layer(block, states, rotation, segments, self.attend)
            if number in visual.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
                deep.append(_merged(merger, states))
        tokens = segments.total // network.merge**2
        sides = [
            [*divmod(p.rows // network.merge, _BASE), *divmod(p.columns // network.merge, _BASE)] for p in pictures
        ]
        told = torch.tensor(sides, dtype=states.dtype, device=device)
        told = told.repeat_interleave(segments.counts // network.merge**2, dim=0, output_size=tokens)
        return torch.cat([*(part[:tokens] for part in (_merged(visual.merger, states), *deep)), told], dim=1)

    def last_states(self, packed: PackedBatch) -> torch.Tensor:
        """Final-norm state ``(n, hidden)`` of the last token of each input, in the order of ``packed``."""
        network = self.backbone
        model, device = network.language_model, network.device
        segments = packed.segments
        states = model.embed_tokens(packed.input_ids)
        deep: list[torch.Tensor] = []
        if packed.features is not None:
            first, *deep = torch.split(packed.features[:, :-GRID].to(states.dtype), network.hidden_size, dim=1)
            states = states.index_copy(0, packed.image_positions, first)
        states = self.rounded(states)
        grids = iter(grid_of([p.features for one in packed.inputs for p in one.pictures if p.features is not None]))
        at = np.concatenate(
            [
                positions_of(one.input_ids, [next(grids) for _ in one.pictures], network.image_token_id)
                for one in packed.inputs
            ],
            axis=1,
        )
        positions = self.rounded(torch.from_numpy(np.ascontiguousarray(at.T)).to(device)).T[:, None]
        cos, sin = model.rotary_emb(states, positions)
        rotation = rotation_of(cos[0][:, None], sin[0][:, None])
        for number, layer in enumerate(model.layers):
            states = self.text_layer(layer, states, rotation, segments, self.attend)
            if number < len(deep):
                states = states.index_add(0, packed.image_positions, deep[number])
        last: torch.Tensor = rms_norm(model.norm, states[segments.bounds[1:].long() - 1])
        return last


def _merged(merger: Any, states: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    width = merger.hidden_size
    rows = merger.norm(states.view(-1, width) if merger.use_postshuffle_norm else states).view(-1, width)
    return linear(merger.linear_fc2, merger.act_fn(linear(merger.linear_fc1, rows)))


def _vision_block(block: Any, x: torch.Tensor, rotation: Rotation, segments: Segments, attend: Attend) -> torch.Tensor:  # noqa: ANN401
    attention, mlp = block.attn, block.mlp
    q, k, v = linear(attention.qkv, block.norm1(x)).view(len(x), 3, attention.num_heads, -1).unbind(1)
    q, k = (rotated(part.float(), rotation).to(part.dtype) for part in (q, k))
    x = linear(attention.proj, attend_to_segments(attend, q, k, v, segments, False).reshape(len(x), -1)).add_(x)
    return linear(mlp.linear_fc2, activated(mlp.act_fn, linear(mlp.linear_fc1, block.norm2(x)))).add_(x)


def _text_layer(layer: Any, x: torch.Tensor, rotation: Rotation, segments: Segments, attend: Attend) -> torch.Tensor:  # noqa: ANN401
    attention, mlp = layer.self_attn, layer.mlp
    normed = rms_norm(layer.input_layernorm, x)
    q, k, v = linears(normed, attention.q_proj, attention.k_proj, attention.v_proj)
    heads = (len(x), -1, attention.head_dim)
    q = rotated(rms_norm(attention.q_norm, q.view(heads)), rotation)
    k = rotated(rms_norm(attention.k_norm, k.view(heads)), rotation)
    attended = attend_to_segments(attend, q, k, v.view(heads), segments, True)
    x = linear(attention.o_proj, attended.reshape(len(x), -1)).add_(x)
    normed = rms_norm(layer.post_attention_layernorm, x)
    gate, up = linears(normed, mlp.gate_proj, mlp.up_proj)
    return linear(mlp.down_proj, nn.functional.silu(gate, inplace=True).mul_(up)).add_(x)


def load_network(folder: Path, place: Placement = CPU) -> Qwen3VLNetwork:
    """Read a Qwen3-VL folder (config.json and safetensors), every tensor accounted for.

    Raises:
        CheckpointError: It is no Qwen3-VL, or a tensor is missing, left over or of another shape.
        MissingExtraError: ``attention`` needs a package that is not installed.
    """
    place.check()
    config: Any = read_config(folder)
    vision = config.vision_config
    stored = stored_tensors(folder, "model")
    for name, count in (("num_hidden_layers", config.text_config.num_hidden_layers), ("depth", vision.depth)):
        stored.check_layers(folder / "config.json", name, count)
    with torch.device("meta"):
        network = Qwen3VLNetwork(config, attention=place.attention)
    frames, patch, channels = vision.temporal_patch_size, vision.patch_size, vision.in_channels
    conv = torch.empty(vision.hidden_size, channels, frames, patch, patch, device="meta")
    names = match_tensors({**dict(network.named_parameters()), _PATCH_EMBED: conv}, stored, backbone_name)
    network.to(place.dtype).to_empty(device=place.device)
    # Rotary frequencies are computed, not stored: on the meta device they came out empty.
    for parent, name in ((network.language_model, "rotary_emb"), (network.visual, "rotary_pos_emb")):
        old = getattr(parent, name)
        setattr(parent, name, type(old)(config=old.config).to(place.device))

    def as_plane(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float().sum(dim=2).flatten(1) if name == _PATCH_EMBED else tensor

    fill(dict(network.named_parameters()), stored, names, change=as_plane)
    return network.eval().requires_grad_(False)
