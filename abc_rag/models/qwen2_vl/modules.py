"""Qwen2-VL's modules as a tree of weights, by transformers' names; `abc_rag.models.qwen2_vl.packed` computes with them.

transformers takes seconds to import, so its own modules are used only where gradients or padded batches are needed:
`library_modules` builds them around the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abc_rag.models.kernels.layers import QuickGELU, rms_norm
from abc_rag.models.qwen2_vl.config import TextConfig, VisionConfig

if TYPE_CHECKING:
    from transformers import Qwen2VLConfig

__all__ = ["LanguageModel", "PlanePatchEmbed", "VisionTower", "library_modules"]

_EPSILON = 1e-6  # of the vision tower's norms
_VISION_THETA = 10000.0


class PlanePatchEmbed(nn.Module):
    """The patch projection for still pictures.

    The published one is a 3-D convolution over two frames; a still picture is the same frame twice, so the
    convolution is one matrix: the sum over its temporal axis.
    """

    def __init__(self, in_features: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, embed_dim, bias=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """``(n, 3 * p * p)`` to ``(n, embed_dim)``."""
        projected: torch.Tensor = self.proj(patches.to(self.proj.weight.dtype))
        return projected


class RMSNorm(nn.Module):
    """A root mean square norm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., size)``."""
        return rms_norm(self, x)


class _Rotary(nn.Module):
    """Frequencies ``theta ** (-2 i / dim)``, in single precision."""

    inv_freq: torch.Tensor

    def __init__(self, dim: int, theta: float) -> None:
        super().__init__()
        self._dim, self._theta = dim, theta
        self.compute("cpu")

    def compute(self, device: str | torch.device) -> None:
        """Compute the frequencies, which are in no file."""
        with torch.device("cpu"):
            steps = torch.arange(0, self._dim, 2, dtype=torch.float) / self._dim
            frequencies = 1.0 / (self._theta**steps)
        self.register_buffer("inv_freq", frequencies.to(device), persistent=False)

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        return positions[..., None].float() * self.inv_freq.to(device=positions.device, dtype=torch.float)


class TextRotary(_Rotary):
    """Of the language model, for positions whose three axes are equal."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines ``(1, n, head)`` in the precision of ``x``; positions are ``(3, 1, n)``."""
        angles = self.angles(position_ids[0])
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class VisionRotary(_Rotary):
    """Of the vision tower: rows, then columns."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines ``(n, head)`` in float32; positions are ``(n, 2)``."""
        angles = self.angles(position_ids).flatten(1)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


class _VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)


class _VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.act = _activation(config.hidden_act)
        self.fc2 = nn.Linear(hidden, config.embed_dim)


class _VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=_EPSILON)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=_EPSILON)
        self.attn = _VisionAttention(config)
        self.mlp = _VisionMLP(config)


class _Merger(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.hidden_size = config.embed_dim * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.embed_dim, eps=_EPSILON)
        self.mlp = nn.Sequential(
            nn.Linear(self.hidden_size, self.hidden_size), nn.GELU(), nn.Linear(self.hidden_size, config.hidden_size)
        )


class VisionTower(nn.Module):
    """The weights of the vision tower."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = PlanePatchEmbed(config.in_channels * config.patch_size**2, config.embed_dim)
        self.rotary_pos_emb = VisionRotary(config.embed_dim // config.num_heads // 2, _VISION_THETA)
        self.blocks = nn.ModuleList(_VisionBlock(config) for _ in range(config.depth))
        self.merger = _Merger(config)


class _TextAttention(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.head_dim = hidden // config.num_attention_heads
        keys = self.head_dim * config.num_key_value_heads
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, keys)
        self.v_proj = nn.Linear(hidden, keys)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)


class _TextMLP(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


class _TextLayer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = _TextAttention(config)
        self.mlp = _TextMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LanguageModel(nn.Module):
    """The weights of the language model."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        # Not drawn at random, as its own constructor does: on the meta device that imports torch's compiler.
        rows = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(rows, freeze=False)  # type: ignore[no-untyped-call]
        self.layers = nn.ModuleList(_TextLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        head = config.hidden_size // config.num_attention_heads
        self.rotary_emb = TextRotary(head, config.rope_parameters["rope_theta"])


def _activation(name: str) -> nn.Module:
    found: dict[str, Callable[[], nn.Module]] = {
        "quick_gelu": QuickGELU,
        "gelu": nn.GELU,
        "gelu_new": lambda: nn.GELU(approximate="tanh"),
        "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
        "silu": nn.SiLU,
        "relu": nn.ReLU,
    }
    return found[name]()


def library_modules(
    config: Qwen2VLConfig,
    visual: Any,  # noqa: ANN401
    language_model: Any,  # noqa: ANN401
) -> tuple[nn.Module, nn.Module]:
    """Transformers' own vision tower and language model around the weights, adapters included, of ours.

    Args:
        config: transformers' configuration of the same sizes, with the attention to use.
        visual: A `VisionTower`; it gives up its layers.
        language_model: A `LanguageModel`; it gives up its layers.
    """
    from transformers import Qwen2VLModel

    with torch.device("meta"):
        model: Any = Qwen2VLModel(config)
    model.visual.patch_embed = visual.patch_embed
    for parent, name, ours in (
        (model.visual, "rotary_pos_emb", visual.rotary_pos_emb),
        (model.language_model, "rotary_emb", language_model.rotary_emb),
    ):
        old, device = getattr(parent, name), ours.inv_freq.device
        # Made anew, as on the meta device its frequencies came out empty.
        setattr(parent, name, type(old)(config=old.config).to(device=device, dtype=ours.inv_freq.dtype))
    _hand_over(visual, model.visual)
    _hand_over(language_model, model.language_model)
    return model.visual, model.language_model


def _hand_over(ours: nn.Module, library: nn.Module) -> None:
    for name, child in ours.named_children():
        if isinstance(child, (_Rotary, PlanePatchEmbed)) or not any(True for _ in child.parameters()):
            continue
        if isinstance(child, RMSNorm):
            library.get_submodule(name).weight = child.weight
        elif type(child).__module__ == __name__ or isinstance(child, (nn.ModuleList, nn.Sequential)):
            _hand_over(child, library.get_submodule(name))
        else:
            setattr(library, name, child)  # a layer, with its adapter if it has one
