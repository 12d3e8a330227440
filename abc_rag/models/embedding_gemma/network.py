"""EmbeddingGemma 2 as a feature extractor, over sequences that lie end to end, without gradients.

Walks over the modules of transformers' ``EmbeddingGemma2Model``, so the weights and their names are transformers'; its
forward is not called, as it pads. Attention sees both ways, in some layers only so far; attention is not scaled, as
queries and keys are normalised; each layer is gated by its own projection of the input embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EmbeddingGemma2Config, EmbeddingGemma2Model

from abc_rag.models.checkpoint import fill, match_tensors, stored_tensors
from abc_rag.models.embedding_gemma.config import read_config
from abc_rag.models.kernels.attention import Attend, Segments, attend_in_window, attend_to_segments
from abc_rag.models.kernels.backbone import Backbone
from abc_rag.models.kernels.layers import Rotation, activated, linear, linears, product, rotated, rotation_of
from abc_rag.models.kernels.packed import PackedBatch, PackedForward
from abc_rag.models.kernels.pixels import moved
from abc_rag.models.placement import CPU, Placement
from abc_rag.models.qwen2_vl.pictures import Patches

__all__ = ["GemmaNetwork", "PackedGemma", "load_network"]

_UNUSED = ("audio_tower.", "embed_audio.")
_PATCHES = "vision_tower.patch_embedder.input_proj.weight"
_SCALAR = "layer_scalar"


class GemmaNetwork(Backbone):
    """A vision tower and a text model.

    Args:
        config: Of an EmbeddingGemma 2.
        attention: ``"sdpa"`` or ``"eager"``.

    Attributes:
        compiled: Whether layers run through ``torch.compile``.
    """

    def __init__(self, config: EmbeddingGemma2Config, *, attention: str) -> None:
        super().__init__()
        parts: Any = config
        self.config: Any = config
        self.attention = attention
        self.compiled = False
        self.patch: int = parts.vision_config.patch_size
        self.merge: int = parts.vision_config.pooling_kernel_size
        self.dim: int = parts.text_config.embedding_dim
        self.text_config = parts.text_config
        model = EmbeddingGemma2Model(config)
        self.vision_tower: Any = model.vision_tower
        self.embed_vision: Any = model.embed_vision
        self.language_model: Any = model.language_model

    @property
    def widest_head(self) -> int:
        """The largest width of an attention head."""
        widest: int = max(layer.self_attn.head_dim for layer in self.language_model.layers)
        return widest


class PackedGemma(PackedForward):
    """See `PackedForward`."""

    def __init__(self, network: GemmaNetwork) -> None:
        super().__init__(
            network, vision=_vision_layer, text=_text_layer, compiled=network.compiled, widest_head=network.widest_head
        )

    def image_features(self, pictures: Sequence[Patches]) -> torch.Tensor:
        """Vision features ``(sum of tokens, hidden)``, of one picture after the other."""
        network = self.backbone
        tower, device = network.vision_tower, network.device
        segments = Segments([p.patches for p in pictures], device)
        pixels = moved(torch.from_numpy(np.concatenate([p.pixels for p in pictures])), device)
        scaled = self.rounded(pixels.float().div_(255.0).sub_(0.5).mul_(2)).to(network.dtype)
        places = np.concatenate([_places(p.rows, p.columns, network.merge) for p in pictures])
        at = self.rounded(moved(torch.from_numpy(places), device))
        table = tower.patch_embedder.position_embedding_table
        states = linear(tower.patch_embedder.input_proj, scaled) + table[0][at[:, 0]] + table[1][at[:, 1]]
        cos, sin = tower.encoder.rotary_emb(states, at[None])
        # The two halves of a head are turned by the column and by the row.
        cos, sin = (part[0].view(len(at), 1, 2, -1) for part in (cos, sin))
        rotation = rotation_of(cos, sin)
        for layer in tower.encoder.layers:
            states = self.vision_layer(layer, states, rotation, segments, self.attend)
        seen = states[: segments.total].float().view(-1, network.merge**2, states.shape[-1]).mean(1)
        seen = (seen * seen.shape[-1] ** 0.5).to(network.dtype)
        embedder = network.embed_vision
        return linear(embedder.embedding_projection, _norm(embedder.embedding_pre_projection_norm, seen))

    def vectors(self, packed: PackedBatch) -> torch.Tensor:
        """The mean of the tokens' projected states, ``(n, dim)``, in the order of ``packed``."""
        network = self.backbone
        model, segments = network.language_model, packed.segments
        # The scale is rounded as the weights are.
        scale = torch.tensor(model.config.hidden_size**0.5, dtype=network.dtype, device=network.device)
        states = nn.functional.embedding(packed.input_ids, model.embed_tokens.weight) * scale
        if packed.features is not None:
            states = states.index_copy(0, packed.image_positions, packed.features.to(states.dtype))
        states = given = self.rounded(states)
        positions = self.rounded(segments.positions)[None]
        rotations = {
            kind: rotation_of(*(part[0][:, None] for part in model.rotary_emb(states, positions, kind)))
            for kind in model.unique_layer_types
        }
        for number, layer in enumerate(model.layers):
            kind = model.config.layer_types[number]
            window = model.config.sliding_window if kind == "sliding_attention" else None
            gate = _gate(model.ple, given, number)
            states = self.text_layer(layer, states, gate, rotations[kind], segments, self.attend, window)
        states = _norm(model.norm, states)[: segments.total].float()
        means = torch.stack([part.mean(0) for part in torch.split(states, segments.lengths)])
        # A projection of the mean is the mean of the projections.
        return nn.functional.linear(means, model.embedding_projection.weight.float())


def _places(rows: int, columns: int, merge: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Column and row of each patch, ``(patches, 2)``, neighbours that become one token together."""
    down, right = np.indices((rows, columns))
    grid = np.stack([right, down], axis=-1).reshape(rows // merge, merge, columns // merge, merge, 2)
    return np.ascontiguousarray(grid.transpose(0, 2, 1, 3, 4).reshape(-1, 2))


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    weight = norm.weight.float() if norm.with_scale else None
    if x.is_cuda:
        return nn.functional.rms_norm(x.float(), (x.shape[-1],), weight, norm.eps).to(x.dtype)
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + norm.eps)
    return (scaled if weight is None else scaled * weight).to(x.dtype)


def _gate(ple: Any, given: torch.Tensor, number: int) -> torch.Tensor:  # noqa: ANN401
    """What a layer is gated by; one layer at a time, as all together would be the largest tensor."""
    width = ple.hidden_size_per_layer_input
    weight = ple.per_layer_model_projection.weight[number * width : (number + 1) * width]
    return _norm(ple.per_layer_projection_norm, product(given, weight) * ple.per_layer_model_projection_scale)


def _vision_layer(layer: Any, x: torch.Tensor, rotation: Rotation, segments: Segments, attend: Attend) -> torch.Tensor:  # noqa: ANN401
    attention, mlp = layer.self_attn, layer.mlp
    normed = _norm(layer.input_layernorm, x)
    layers = (attention.q_proj.linear, attention.k_proj.linear, attention.v_proj.linear)
    q, k, v = (part.view(len(x), -1, attention.head_dim) for part in linears(normed, *layers))
    q, k = (
        rotated(_norm(norm, part).view(*part.shape[:2], 2, -1), rotation).flatten(2)
        for norm, part in ((attention.q_norm, q), (attention.k_norm, k))
    )
    q = q * attention.head_dim**0.5  # attention divides by it, but the model was trained without
    attended = attend_to_segments(attend, q, k, _norm(attention.v_norm, v), segments, False)
    out = linear(attention.o_proj.linear, attended.reshape(len(x), -1))
    x = x + _norm(layer.post_attention_layernorm, out)
    normed = _norm(layer.pre_feedforward_layernorm, x)
    gate, up = linears(normed, mlp.gate_proj.linear, mlp.up_proj.linear)
    out = linear(mlp.down_proj.linear, activated(mlp.act_fn, gate).mul_(up))
    return x + _norm(layer.post_feedforward_layernorm, out)


def _text_layer(
    layer: Any,  # noqa: ANN401
    x: torch.Tensor,
    gate: torch.Tensor,
    rotation: Rotation,
    segments: Segments,
    attend: Attend,
    window: int | None,
) -> torch.Tensor:
    attention, mlp, ple = layer.self_attn, layer.mlp, layer.ple_block
    normed = _norm(layer.input_layernorm, x)
    q, k, v = (
        part.view(len(x), -1, attention.head_dim)
        for part in linears(normed, attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q = rotated(_norm(attention.q_norm, q), rotation) * attention.head_dim**0.5
    k = rotated(_norm(attention.k_norm, k), rotation)
    v = _norm(attention.v_norm, v)
    attended = attend_in_window(attend, q, k, v, segments, window)
    out = linear(attention.o_proj, attended.reshape(len(x), -1))
    x = x + _norm(layer.post_attention_layernorm, out)
    gated, up = linears(_norm(layer.pre_feedforward_layernorm, x), mlp.gate_proj, mlp.up_proj)
    out = linear(mlp.down_proj, activated(mlp.act_fn, gated).mul_(up))
    x = x + _norm(layer.post_feedforward_layernorm, out)
    mixed = activated(ple.act_fn, linear(ple.per_layer_input_gate, x)).mul_(gate)
    x = x + _norm(ple.post_per_layer_input_norm, linear(ple.per_layer_projection, mixed))
    scaled: torch.Tensor = x * layer.layer_scalar
    return scaled


def load_network(folder: Path, place: Placement = CPU) -> GemmaNetwork:
    """Read an EmbeddingGemma 2 folder (config.json and safetensors); the audio tower is left in the file.

    Raises:
        CheckpointError: It is no EmbeddingGemma 2, or a tensor is missing, left over or of another shape.
    """
    place.check()
    config: Any = read_config(folder)
    vision, text = config.vision_config, config.text_config
    stored = stored_tensors(folder, "model")
    for name, part in (("num_hidden_layers", text), ("num_hidden_layers", vision)):
        stored.check_layers(folder / "config.json", name, part.num_hidden_layers)
    with torch.device("meta"):
        network = GemmaNetwork(config, attention=place.attention)

    def stays(name: str) -> str | None:
        return None if name.startswith(_UNUSED) else name

    wanted: dict[str, torch.Tensor] = dict(network.named_parameters())
    wanted |= {name: buffer for name, buffer in network.named_buffers() if name.endswith(_SCALAR)}
    names = match_tensors(wanted, stored, stays)
    network.to(place.dtype).to_empty(device=place.device)
    # Rotary frequencies are computed, not stored: on the meta device they came out empty.
    for parent in (network.language_model, network.vision_tower.encoder):
        parent.rotary_emb = type(parent.rotary_emb)(parent.rotary_emb.config).to(place.device)
    side, channels = network.patch, 3

    def channels_first(name: str, tensor: torch.Tensor) -> torch.Tensor:
        # Pixels are cut with their channels apart.
        return tensor.view(-1, side, side, channels).permute(0, 3, 1, 2).flatten(1) if name == _PATCHES else tensor

    fill({**dict(network.named_parameters()), **dict(network.named_buffers())}, stored, names, change=channels_first)
    return network.eval().requires_grad_(False)
