"""ABC as a family of the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from abc_rag.images.limits import ImageLimits
from abc_rag.models.abc.network import FIRST_RESIZE, ABCNetwork
from abc_rag.models.abc.prompts import ABCPrompts
from abc_rag.models.family import FamilyFacts, Picture, Prepared, check_length
from abc_rag.models.flops import count_flops
from abc_rag.models.kernels.packed import PackedBatch
from abc_rag.models.packed_family import PackedFamily
from abc_rag.models.qwen2_vl.pictures import Patches, QwenPictures
from abc_rag.types import BASIC_TYPES, Fingerprint, Input, InstructedImage, MaskedImage, Text

__all__ = ["ABCFamily"]


class ABCFamily(PackedFamily):
    """ABC behind the engine's seam."""

    def __init__(
        self,
        network: ABCNetwork,
        prompts: ABCPrompts,
        *,
        fingerprint: Fingerprint,
        image_limits: ImageLimits,
    ) -> None:
        backbone = network.backbone
        self.network = network
        super().__init__(
            FamilyFacts(
                dim=backbone.hidden_size,
                fingerprint=fingerprint,
                device=backbone.device,
                dtype=backbone.dtype,
                image_limits=image_limits,
                recipe=self._recipe_at(fingerprint.min_tokens, fingerprint.max_tokens),
                accepts=(*BASIC_TYPES, MaskedImage),
            ),
            backbone.image_token_id,
        )
        self._prompts = prompts
        self._max_length = backbone.max_length

    def _recipe_at(self, min_tokens: int, max_tokens: int) -> QwenPictures:
        backbone = self.network.backbone
        return QwenPictures(backbone.patch, backbone.merge, (FIRST_RESIZE, (min_tokens, max_tokens)))

    def picture_tokens(self, opened: Patches) -> int:
        """How many image tokens an opened picture has."""
        return self.network.backbone.picture_tokens(opened)

    def grid(self, opened: Patches) -> tuple[int, int]:
        """Rows and columns of an opened picture's image tokens."""
        merge = self.network.backbone.merge
        return opened.rows // merge, opened.columns // merge

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> Prepared:
        """Prompt and tokenise; see `Family.prepare`."""
        if isinstance(item, Text):
            prepared = Prepared("text", self._prompts(item.text))
        else:
            opened = self.opened(item) if pictures is None else tuple(pictures)
            told = item.instruction if isinstance(item, (InstructedImage, MaskedImage)) else None
            ids = self._prompts("" if told is None else f"Instruction: {told}", image_tokens=opened[0].tokens)
            prepared = Prepared("image" if told is None else "image+instruction", ids, opened)
            if isinstance(item, MaskedImage):
                prepared = prepared.without(item.without, self.network.backbone.image_token_id)
        if len(prepared.input_ids) > self._max_length:
            check_length(prepared, item, self._max_length)
        return prepared

    def count_flops(self, item: Input) -> tuple[int, float]:
        """Tokens in the language model, and operations; see `Family.count_flops`."""
        prepared, backbone = self.prepare(item), self.network.backbone
        flops = count_flops(
            backbone.config,
            tokens=prepared.tokens,
            patches=sum(picture.tokens for picture in prepared.pictures) * backbone.merge**2,
            instructed=isinstance(item, InstructedImage),
            head_hidden=self.network.head.linear_layer1.out_features,
        )
        return prepared.tokens, flops

    def _features(self, opened: Sequence[Patches]) -> torch.Tensor:
        return self.network.packed.image_features(opened)

    def _vectors(self, packed: PackedBatch) -> torch.Tensor:
        self.network.set_instruct(packed.inputs[0].kind == "image+instruction")
        return self.network.embed(packed)
