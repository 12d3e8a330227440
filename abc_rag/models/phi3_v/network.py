"""Phi-3-vision (also 3.5) as a feature extractor: crops of pictures, text in token ids, plain hidden states out.

Made of transformers' own CLIP and Phi-3 layers; what joins them is here, and all modules have the names that the
published files give them.

Undocumented behaviour of the published code, which the published weights expect:

* the last layer of the vision tower, its norm and its class token are not used;
* the thumbnail is made from the normalised and padded pixels, without antialiasing;
* rotary positions have one set of frequencies in short sequences and another in long ones.

One deviation, on purpose: which set that is depends on the sequence, not on the longest one of its batch, so a state
does not depend on its batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionEmbeddings
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3RMSNorm

from abc_rag.errors import InputError
from abc_rag.models.kernels.backbone import Backbone
from abc_rag.models.kernels.packed import with_features
from abc_rag.models.kernels.pixels import clip_normalised, moved
from abc_rag.models.phi3_v.config import Phi3VConfig
from abc_rag.models.phi3_v.pictures import CroppedPicture
from abc_rag.models.phi3_v.prompts import IMAGE_TOKEN_ID

__all__ = ["Phi3VBackbone", "crop"]

_ATTENTIONS = ("sdpa", "eager", "flash_attention_2")


# --- Pixels ---------------------------------------------------------------------------------------


def crop(opened: CroppedPicture, device: torch.device) -> torch.Tensor:
    """Normalised float32 crops ``(rows * columns + 1, 3, side, side)``: row by row, then the whole picture as one."""
    pixels = clip_normalised(moved(torch.from_numpy(opened.pixels), device).permute(2, 0, 1), axis=0)
    side, rows, columns = opened.side, opened.rows, opened.columns
    crops = pixels.reshape(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
    whole = nn.functional.interpolate(pixels[None], size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([crops, whole])


# --- The network ----------------------------------------------------------------------------------


class CLIPTower(nn.Module):
    """CLIP's vision tower up to its last layer but one."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.config = config
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        layers = [CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers - 1)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})

    @property
    def layers(self) -> Any:  # noqa: ANN401
        """Those that are computed."""
        return self.encoder["layers"]

    def embedded(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops ``(n, 3, side, side)`` to what the first layer takes, ``(n, 1 + patches, width)``."""
        parts = self.embeddings
        conv, width, patch = parts.patch_embedding, self.config.hidden_size, self.config.patch_size
        crops = crops.to(parts.class_embedding.dtype)
        if type(conv) is nn.Conv2d:
            # Patches do not overlap, so it is one product; a GPU would round the numbers of a convolution.
            grid = crops.shape[-1] // patch
            patches = crops.reshape(len(crops), 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
            seen = nn.functional.linear(patches.reshape(len(crops), grid**2, -1), conv.weight.flatten(1))
        else:  # with an adapter around it
            seen = conv(crops).flatten(2).transpose(1, 2)
        states = torch.cat([parts.class_embedding.expand(len(crops), 1, width), seen], dim=1)
        normed: torch.Tensor = self.pre_layrnorm(states + parts.position_embedding.weight)
        return normed

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops to the states of their patches, ``(n, patches, width)``."""
        states = self.embedded(crops)
        for layer in self.layers:
            states = layer(states, None)
        return states[:, 1:]


class PictureEmbedding(nn.Module):
    """Vision tower, separators, and the projection to the width of the language model."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        vision: Any = config.vision
        text: Any = config.text
        self.grid: int = vision.image_size // vision.patch_size // 2
        wide = 4 * vision.hidden_size
        self.img_processor = nn.ModuleDict({"vision_model": CLIPTower(vision)})
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, wide))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, wide))
        self.img_projection = nn.Sequential(
            nn.Linear(wide, text.hidden_size), nn.GELU(), nn.Linear(text.hidden_size, text.hidden_size)
        )

    @property
    def tower(self) -> Any:  # noqa: ANN401
        """A `CLIPTower`."""
        return self.img_processor["vision_model"]

    def tokens(self, rows: int, columns: int) -> int:
        """Image tokens of a picture with this number of crops: those of the crops, a separator, and of the whole."""
        grid = self.grid
        return rows * grid * (columns * grid + 1) + 1 + grid * (grid + 1)

    def arranged(self, states: torch.Tensor, opened: Sequence[CroppedPicture]) -> torch.Tensor:
        """The states of patches, four by four, in the order of the image tokens; before the projection.

        Args:
            states: ``(crops of all pictures, patches, width)``, as `crop` orders them.
            opened: The pictures.

        Returns:
            ``(sum of tokens, 4 * width)``.
        """
        count, grid = len(states), self.grid
        # Crop, row, upper or lower, column, left or right.
        merged = states.reshape(count, grid, 2, grid, 2, -1).transpose(2, 3).reshape(count, grid, grid, -1)
        parts, begin = [], 0
        for picture in opened:
            crops = picture.rows * picture.columns
            parts += [
                self._with_row_ends(merged[begin : begin + crops], picture.rows, picture.columns),
                self.glb_GN[0],
                self._with_row_ends(merged[begin + crops : begin + crops + 1], 1, 1),
            ]
            begin += crops + 1
        return torch.cat(parts)

    def _with_row_ends(self, crops: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        grid = self.grid
        whole = crops.reshape(rows, columns, grid, grid, -1).transpose(1, 2).reshape(rows * grid, columns * grid, -1)
        ends = self.sub_GN[0].expand(rows * grid, 1, -1)
        return torch.cat([whole, ends], dim=1).flatten(0, 1)


class Phi3VBackbone(Backbone):
    """A vision tower and a causal language model.

    Args:
        config: Sizes.
        attention: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.

    Attributes:
        image_token_id: What stands in ``input_ids`` where an image token goes: -1, for which no embedding is looked up.

    Raises:
        InputError: There is no such attention.
    """

    image_token_id = IMAGE_TOKEN_ID

    def __init__(self, config: Phi3VConfig, *, attention: str = "sdpa") -> None:
        super().__init__()
        if attention not in _ATTENTIONS:
            raise InputError(f"attention must be one of {', '.join(_ATTENTIONS)}, not {attention!r}")
        # A copy, as the layers read from it how to attend.
        self.config = config = copy.deepcopy(config)
        self.attention = attention
        self.text_config = text = config.text
        for part in (config.text, config.vision):
            part._attn_implementation = attention
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size)
        self.vision_embed_tokens = PictureEmbedding(config)
        self.layers = nn.ModuleList([Phi3DecoderLayer(text, i) for i in range(text.num_hidden_layers)])
        self.norm = Phi3RMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        # No buffer: a change of precision would round it.
        self._frequencies = config.rotary.frequencies()

    @property
    def embedding_weight(self) -> torch.Tensor:
        """See `Backbone.embedding_weight`."""
        return self.embed_tokens.weight

    @property
    def language_layers(self) -> nn.ModuleList:
        """The layers of the language model, which may be quantised."""
        return self.layers

    def picture_tokens(self, opened: CroppedPicture) -> int:
        """How many image tokens an opened picture has."""
        return self.vision_embed_tokens.tokens(opened.rows, opened.columns)

    def image_features(self, opened: Sequence[CroppedPicture]) -> torch.Tensor:
        """Vision features of some pictures, one after the other: ``(sum of tokens, hidden)``, with gradients."""
        parts = self.vision_embed_tokens
        states = parts.tower(torch.cat([crop(one, self.device) for one in opened]))
        features: torch.Tensor = parts.img_projection(parts.arranged(states, opened))
        return features

    def rotary(self, positions: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine ``(..., head_dim)``, in the precision of the weights.

        Args:
            positions: Of the tokens, of any shape.
            lengths: Of the sequences that they are in, of a shape that fits.
        """
        rotary = self.config.rotary
        frequencies = self._frequencies.to(self.device)[(lengths > rotary.original).long()]
        angles = positions.unsqueeze(-1).float() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * rotary.scale).to(self.dtype), (angles.sin() * rotary.scale).to(self.dtype)

    def hidden_states(
        self, input_ids: torch.Tensor, *, lengths: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Final-norm hidden states of right-padded sequences, with gradients.

        Args:
            input_ids: int64 ``(batch, length)``, padded on the right with anything.
            lengths: int64 ``(batch,)``: how many tokens of each row are real.
            features: ``(image tokens of the whole batch, hidden)``, put in place of the image tokens in order.

        Returns:
            ``(batch, length, hidden)``; rows of padding are meaningless.
        """
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        states: torch.Tensor = self.embed_tokens(input_ids.clamp(min=0))
        if features is not None:
            at_image = (input_ids == self.image_token_id) & (steps < lengths[:, None])
            states = with_features(states, features, at_image)
        mask = None
        if self.attention == "eager":
            later = steps > steps[:, None]
            mask = torch.zeros_like(later, dtype=states.dtype).masked_fill(later, torch.finfo(states.dtype).min)
            mask = mask[None, None]
        # The other kernels know the order of tokens; and with it no real token sees padding, which comes after.
        rotation = self.rotary(steps[None], lengths[:, None])
        for layer in self.layers:
            states = layer(states, mask, position_embeddings=rotation)
        normed: torch.Tensor = self.norm(states)
        return normed

    def recompute_activations(self) -> None:
        """Keep no activations of the layers in training; the backward pass computes them again."""
        layers: list[Any] = [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]
        for layer in layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
