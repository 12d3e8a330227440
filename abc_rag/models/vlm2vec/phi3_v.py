"""Phi-3.5-vision as VLM2Vec uses it, which is as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from abc_rag.errors import InputError
from abc_rag.models.kernels.packed import PackedBatch
from abc_rag.models.phi3_v.packed import PackedPhi3V
from abc_rag.models.phi3_v.pictures import CroppedPicture, PhiPictures, possible_crops
from abc_rag.models.phi3_v.prompts import Phi3VPrompts, load_phi3_v_prompts
from abc_rag.models.phi3_v.weights import load_phi3_v
from abc_rag.models.placement import CPU, Placement
from abc_rag.models.tokenizer import check_vocabulary
from abc_rag.models.vlm2vec.backbone import VLM2VecBackbone

__all__ = ["VLM2VecPhi3V", "load_vlm2vec_phi3_v"]

_CROPS = 4  # of the published evaluation; the demonstration has 16


class VLM2VecPhi3V(VLM2VecBackbone):
    """A `Phi3VBackbone`."""

    def recipe(self, resolution: int | str | None, min_tokens: int | None, max_tokens: int | None) -> PhiPictures:
        """How pictures are opened at a resolution.

        Args:
            resolution: Most crops of a picture; 4 if None, as in the published evaluation.
            min_tokens: None: the number of image tokens follows from the crops.
            max_tokens: None, as well.

        Raises:
            InputError: ``resolution`` is no such number, or one of the others is given.
        """
        if min_tokens is not None or max_tokens is not None:
            raise InputError(
                "this model's image tokens follow from its crops and cannot be limited by min_tokens or max_tokens; "
                f"use resolution=CROPS, such as resolution={_CROPS}"
            )
        crops = _CROPS if resolution is None else resolution
        if type(crops) is not int or crops < 1:
            raise InputError(f"resolution must be a number of crops, 1 or more, not {resolution!r}")
        vision = self.model.config.vision
        recipe = PhiPictures(crops, vision.image_size, vision.patch_size)
        # All crops in one row are always possible: a number that is far too large needs no list of all shapes.
        most = self.model.vision_embed_tokens.tokens(1, crops)
        if most <= self.max_length:
            most = self.token_limits(recipe)[1]
        if most > self.max_length:
            raise InputError(
                f"resolution={crops} can give a picture {most:,} image tokens, more than the {self.max_length:,} that "
                "the model can read; use fewer crops"
            )
        return recipe

    def token_limits(self, recipe: PhiPictures) -> tuple[int, int]:
        """Fewest and most image tokens of any picture."""
        found = [self.model.vision_embed_tokens.tokens(*shape) for shape in possible_crops(recipe.crops)]
        return min(found), max(found)

    def flops(self, tokens: int, pictures: Sequence[CroppedPicture]) -> float:
        """See `VLM2VecBackbone.flops`; of the last layer, only what its last token needs after attention."""
        text, vision = self.model.config.text, self.model.config.vision
        hidden, layers = text.hidden_size, text.num_hidden_layers
        keys = hidden // text.num_attention_heads * text.num_key_value_heads
        after = 2 * (hidden**2 + 3 * hidden * text.intermediate_size)
        total = layers * (2 * tokens * hidden * (hidden + 2 * keys) + 4 * tokens**2 * hidden)
        total += ((layers - 1) * tokens + 1) * after
        width, depth = vision.hidden_size, vision.num_hidden_layers - 1
        seen = (vision.image_size // vision.patch_size) ** 2
        crop_layer = 2 * (seen + 1) * (4 * width**2 + 2 * width * vision.intermediate_size)
        crop_layer += 4 * (seen + 1) ** 2 * width
        for picture in pictures:
            crops = picture.rows * picture.columns + 1
            total += crops * (2 * seen * 3 * vision.patch_size**2 * width + depth * crop_layer)
            total += 2 * self.picture_tokens(picture) * (4 * width * hidden + hidden**2)
        return float(total)

    def published_name(self, name: str) -> str:
        """See `VLM2VecBackbone`: as it is."""
        return name

    def hidden_states(
        self, input_ids: torch.Tensor, *, lengths: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `VLM2VecBackbone`."""
        states: torch.Tensor = self.model.hidden_states(input_ids, lengths=lengths, features=features)
        return states

    def packed_features(self, opened: Sequence[CroppedPicture]) -> torch.Tensor:
        """See `VLM2VecBackbone`."""
        return self._packed.image_features(opened)

    def packed_last_states(self, packed: PackedBatch) -> torch.Tensor:
        """See `VLM2VecBackbone`."""
        return self._packed.last_states(**packed.sequence)

    @property
    def _packed(self) -> PackedPhi3V:
        return PackedPhi3V(self.model, compiled=self.compiled)


def load_vlm2vec_phi3_v(base: Path, adapter: Path | None, place: Placement = CPU) -> tuple[VLM2VecPhi3V, Phi3VPrompts]:
    """Read a Phi-3-vision folder, and an adapter that is merged into it; see `load_phi3_v`.

    Raises:
        CheckpointError: A file is missing, or a tensor is missing, left over or of another shape.
    """
    prompts = load_phi3_v_prompts(base)
    backbone = load_phi3_v(base, adapter, place)
    check_vocabulary(prompts.tokenizer, backbone.embed_tokens.num_embeddings, base)
    return VLM2VecPhi3V(backbone).eval(), prompts
