"""Qwen2-VL as a feature extractor: pixels in patches, text in token ids, plain hidden states out.

With gradients or padding, the parts of transformers' own ``Qwen2VLModel`` are held, not subclassed, and never called
as a whole: its forward would compute 3-D rotary positions and keep state between calls. The vision tower and the
language model are called one after the other with explicit positions and an explicit mask instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from abc_rag.errors import CheckpointError
from abc_rag.models.checkpoint import allocate, fill, match_tensors, stored_tensors
from abc_rag.models.kernels.backbone import Backbone
from abc_rag.models.kernels.packed import with_features
from abc_rag.models.kernels.pixels import clip_normalised
from abc_rag.models.placement import CPU, Placement
from abc_rag.models.qwen2_vl.config import QwenConfig, library_config, read_config, ties_embeddings
from abc_rag.models.qwen2_vl.modules import LanguageModel, VisionTower, library_modules
from abc_rag.models.qwen2_vl.pictures import Patches

if TYPE_CHECKING:
    from transformers import Qwen2VLConfig

__all__ = [
    "Qwen2VLBackbone",
    "SpeakingBase",
    "backbone_name",
    "base_state_dict",
    "build_backbone",
    "load_backbone",
    "load_speaking",
    "normalise",
]


# --- Pixels ---------------------------------------------------------------------------------------


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Patches in uint8 ``(n, 3 * p * p)`` to normalised float32, on the device that they are on.

    Bit-identical to the published processor, which rescales in double precision: for none of the 256 levels does the
    quotient in single precision differ from its product with 1/255, rounded.
    """
    return clip_normalised(pixels.view(len(pixels), 3, -1), axis=1).view(len(pixels), -1)


# --- The network ----------------------------------------------------------------------------------


class Qwen2VLBackbone(Backbone):
    """A vision tower and a language model; positions and masks are the caller's decision.

    It begins as the weights alone, with which `PackedQwen2VL` computes. What needs gradients or padded batches builds
    transformers' modules around them; see `use_library`.

    Args:
        config: A Qwen2-VL configuration.
        attention: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.
    """

    def __init__(self, config: QwenConfig | Qwen2VLConfig, *, attention: str = "sdpa") -> None:
        super().__init__()
        # transformers types the two parts as optional; a Qwen2-VL configuration always has both.
        parts: Any = config
        vision = parts.vision_config
        self.text_config = parts.text_config
        self.config: Any = config
        self.attention = attention
        self.image_token_id: int = config.image_token_id
        self.patch: int = vision.patch_size
        self.merge: int = vision.spatial_merge_size
        self.visual: Any = VisionTower(vision)
        self.language_model: Any = LanguageModel(self.text_config)
        self._library = False

    def use_library(self) -> None:
        """Put transformers' modules in place, around the same weights and adapters; once, and for good.

        Whatever changes modules, such as sharding, comes after this.
        """
        if self._library:
            return
        self.config = library_config(self.config)
        self.text_config = self.config.text_config
        self.config._attn_implementation = self.attention
        self.visual, self.language_model = library_modules(self.config, self.visual, self.language_model)
        self._library = True
        self.train(self.training)

    def picture_tokens(self, patches: Patches) -> int:
        """How many image tokens a picture has."""
        return patches.patches // self.merge**2

    def recompute_activations(self) -> None:
        """Keep no activations of the layers in training; the backward pass computes them again."""
        self.use_library()
        for part in (self.visual, self.language_model):
            how = {"use_reentrant": False}
            # The name that transformers has had since it deprecated the other.
            if hasattr(part, "activation_checkpointing_enable"):
                part.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
            else:
                part.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)

    def image_features(self, patches: Sequence[Patches]) -> torch.Tensor:
        """Vision features of some pictures, one after the other: ``(sum of tokens, hidden)``.

        A picture of ``rows`` by ``columns`` patches gives ``rows * columns / merge**2`` tokens.
        """
        self.use_library()
        pixels = torch.from_numpy(np.concatenate([p.pixels for p in patches])).to(self.device)
        grid = torch.tensor([[1, p.rows, p.columns] for p in patches], device=self.device)
        features: torch.Tensor = self.visual(normalise(pixels), grid_thw=grid).pooler_output
        return features

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        *,
        lengths: torch.Tensor,
        features: torch.Tensor | None = None,
        causal: bool = False,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final-norm hidden states of right-padded sequences.

        Args:
            input_ids: int64 ``(batch, length)``, padded on the right with anything.
            lengths: int64 ``(batch,)``: how many tokens of each row are real.
            features: ``(image tokens of the whole batch, hidden)``, put in place of the image tokens in order.
            causal: Attend to earlier tokens only.
            position_ids: ``(batch, length)`` or, for 3-D positions, ``(3, batch, length)``; plain 0, 1, 2, ... if
                not given.

        Returns:
            ``(batch, length, hidden)``; rows of padding are meaningless.
        """
        self.use_library()
        embeds = self.language_model.embed_tokens(input_ids)
        if features is not None:
            embeds = with_features(embeds, features, input_ids == self.image_token_id)
        length = input_ids.shape[1]
        steps = torch.arange(length, device=input_ids.device)
        if position_ids is None:
            position_ids = steps.expand(input_ids.shape[0], -1)
        padded = bool((lengths < length).any())
        states: torch.Tensor = self.language_model(
            inputs_embeds=embeds,
            position_ids=position_ids,
            attention_mask={"full_attention": self._mask(steps, lengths, embeds.dtype, causal, padded)},
            is_causal=causal,
            use_cache=False,
        ).last_hidden_state
        return states

    def _mask(
        self, steps: torch.Tensor, lengths: torch.Tensor, dtype: torch.dtype, causal: bool, padded: bool
    ) -> torch.Tensor | None:
        real = steps[None, :] < lengths[:, None]
        if self.attention.startswith("flash"):
            return real if padded else None
        if not padded and not causal:
            return None
        allowed = real[:, None, None, :].expand(-1, 1, len(steps), -1)
        if causal:
            allowed = allowed & (steps[:, None] >= steps[None, :])
        if self.attention == "sdpa":
            return allowed
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


# --- Weights --------------------------------------------------------------------------------------

_RENAMES = (
    (re.compile(r"^(?:model\.)?visual\."), "visual."),
    (re.compile(r"^model\.(?:language_model\.)?"), "language_model."),
)
_PATCH_EMBED = "visual.patch_embed.proj.weight"
_LM_HEAD = "lm_head.weight"


def backbone_name(name: str) -> str | None:
    """The parameter that a checkpoint's tensor belongs to; both layouts that Qwen2-VL has had are known."""
    if name == _LM_HEAD:
        return None  # embedding computes no logits
    for pattern, replacement in _RENAMES:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    return name


def build_backbone(config: QwenConfig | Qwen2VLConfig, place: Placement) -> Qwen2VLBackbone:
    """A backbone with memory but no weights yet.

    Raises:
        MissingExtraError: ``attention`` needs a package that is not installed.
    """
    place.check()
    return _allocated(_outline(config, place.attention), place)


def _outline(config: QwenConfig | Qwen2VLConfig, attention: str) -> Qwen2VLBackbone:
    with torch.device("meta"):
        return Qwen2VLBackbone(config, attention=attention)


def _allocated(backbone: Qwen2VLBackbone, place: Placement) -> Qwen2VLBackbone:
    backbone.to(place.dtype)
    allocate(backbone, place.device)
    # In single precision, whatever that of the weights.
    for rotary in (backbone.language_model.rotary_emb, backbone.visual.rotary_pos_emb):
        rotary.compute(place.device)
    return backbone


def load_backbone(folder: Path, place: Placement = CPU) -> Qwen2VLBackbone:
    """Read a Qwen2-VL folder (config.json and safetensors).

    Raises:
        CheckpointError: It is no Qwen2-VL, or a tensor is missing, left over or of another shape.
        MissingExtraError: ``attention`` needs a package that is not installed.
    """
    return _load(folder, {}, place)


@dataclass(frozen=True)
class SpeakingBase:
    """A base as it was published, to generate with.

    Attributes:
        backbone: Modules of its own over the tensors of another backbone, which adapters may be put on.
        lm_head: ``(vocabulary, hidden)``; the embeddings themselves where it is tied.
    """

    backbone: Qwen2VLBackbone
    lm_head: nn.Linear


def load_speaking(folder: Path, place: Placement = CPU) -> tuple[Qwen2VLBackbone, SpeakingBase]:
    """`load_backbone`, and the same weights once more without taking more memory, with the output layer.

    Adapters that are put on the first leave the second as it is: nothing has to be switched between the two.

    Raises:
        CheckpointError: As `load_backbone`, or there is no output layer.
    """
    tied = ties_embeddings(folder)
    config: Any = read_config(folder)
    text = config.text_config
    head = nn.Linear(text.hidden_size, text.vocab_size, bias=False, device="meta", dtype=place.dtype)
    if not tied and _LM_HEAD not in stored_tensors(folder, "model").shapes:
        raise CheckpointError(
            f"{folder}: holds no {_LM_HEAD}, and config.json does not tie it to the embeddings; this base embeds "
            "but cannot generate: use one with its output layer"
        )
    backbone = _load(folder, {} if tied else {_LM_HEAD: head}, place)
    if tied:
        head.weight = backbone.language_model.embed_tokens.weight
    twin = _outline(config, place.attention)
    twin.load_state_dict(backbone.state_dict(), assign=True)
    for rotary in (twin.language_model.rotary_emb, twin.visual.rotary_pos_emb):
        rotary.compute(place.device)
    twin.use_library()
    return backbone, SpeakingBase(twin.eval().requires_grad_(False), head.eval().requires_grad_(False))


def _load(folder: Path, others: Mapping[str, nn.Linear], place: Placement) -> Qwen2VLBackbone:
    """``others`` are layers on the meta device, by the names of their weights in the files."""
    place.check()
    config = read_config(folder)
    parts: Any = config
    vision = parts.vision_config
    stored = stored_tensors(folder, "model")
    for name, count in (("num_hidden_layers", parts.text_config.num_hidden_layers), ("depth", vision.depth)):
        stored.check_layers(folder / "config.json", name, count)
    outline = _outline(config, place.attention)
    frames, patch, channels = vision.temporal_patch_size, vision.patch_size, vision.in_channels
    conv = torch.empty(vision.embed_dim, channels, frames, patch, patch, device="meta")
    wanted = {**dict(outline.named_parameters()), _PATCH_EMBED: conv}
    wanted |= {name: layer.weight for name, layer in others.items()}
    names = match_tensors(wanted, stored, lambda name: name if name in others else backbone_name(name))
    backbone = _allocated(outline, place)
    more = {name: layer.to_empty(device=place.device).weight for name, layer in others.items()}

    def as_plane(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float().sum(dim=2).flatten(1) if name == _PATCH_EMBED else tensor

    fill({**dict(backbone.named_parameters()), **more}, stored, names, change=as_plane)
    return backbone.eval()


def base_state_dict(backbone: Qwen2VLBackbone) -> dict[str, torch.Tensor]:
    """The backbone's tensors under the names, and in the shapes, that the hub's checkpoints have."""
    vision: Any = backbone.config.vision_config
    state = {}
    for name, tensor in backbone.state_dict().items():
        value = tensor.detach().cpu()
        if name == _PATCH_EMBED:
            frames = vision.temporal_patch_size
            planes = value.view(vision.embed_dim, vision.in_channels, 1, vision.patch_size, vision.patch_size)
            value = (planes / frames).repeat(1, 1, frames, 1, 1)
        state[re.sub(r"^language_model\.", "model.", name)] = value.contiguous()
    return state
