"""VLM2Vec (arXiv 2410.05160): a vision-language model as it is, and the last token's state as the embedding.

What is known of an input and what is asked of it stand in one plain prompt, so there is one network for all inputs:

* `Text`: the text, and nothing else; with the instruction of its role, if one was given at load, as an `InstructedText`
* `InstructedText`: the instruction, a space, the text
* `Image`: the picture, and ``Represent the given image.``
* `InstructedImage`: the picture, and the instruction if it begins with one of `TASK_INSTRUCTIONS`; any other is asked
  as ``Represent the given image with the following question: ...``
* `Interleaved`: any number of pictures and texts, exactly as they stand; prompts of one's own are written so

No chat template, no token at the end; causal attention (Section 3.2 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.family import FamilyFacts, Picture, PictureRecipe, Prepared, check_length
from abc_rag.models.kernels.packed import PackedBatch
from abc_rag.models.packed_family import PackedFamily
from abc_rag.models.vlm2vec.backbone import VLM2VecBackbone, VLM2VecPrompts
from abc_rag.models.vlm2vec.prompts import prompt_of
from abc_rag.types import INPUT_TYPES, Fingerprint, Input

__all__ = ["VLM2VecFamily", "VLM2VecNetwork"]


class VLM2VecNetwork(nn.Module):
    """A backbone, and the pooling of the last token; the forward that training uses."""

    backbone: VLM2VecBackbone

    def __init__(self, backbone: VLM2VecBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self, input_ids: torch.Tensor, *, lengths: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Unit vectors ``(batch, dim)`` in float32 of right-padded sequences, with gradients.

        Args:
            input_ids: int64 ``(batch, length)``.
            lengths: int64 ``(batch,)``: how many tokens of each row are real.
            features: Of all pictures in order, ``(image tokens, hidden)``.
        """
        states = self.backbone.hidden_states(input_ids, lengths=lengths, features=features)
        last = states[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        return nn.functional.normalize(last.float(), dim=-1)


class VLM2VecFamily(PackedFamily):
    """VLM2Vec behind the engine's seam, on any backbone.

    Args:
        network: In inference mode, its adapter merged.
        prompts: The backbone's.
        recipe: How pictures are opened.
        fingerprint: Model, revision and resolution.
        image_limits: Which pictures are accepted.
        resolution: What the recipe was asked for by name or number; `at` keeps it.
        query_instruction: What a query in words is told, as in an `InstructedText`; None for nothing.
        document_instruction: What a passage is told; None for nothing.
    """

    def __init__(
        self,
        network: VLM2VecNetwork,
        prompts: VLM2VecPrompts,
        *,
        recipe: PictureRecipe,
        fingerprint: Fingerprint,
        image_limits: ImageLimits,
        resolution: int | str | None = None,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
    ) -> None:
        backbone: VLM2VecBackbone = network.backbone
        super().__init__(
            FamilyFacts(
                dim=backbone.hidden_size,
                fingerprint=fingerprint,
                device=backbone.device,
                dtype=backbone.dtype,
                image_limits=image_limits,
                recipe=recipe,
                accepts=INPUT_TYPES,
                query_instruction=query_instruction,
                document_instruction=document_instruction,
            ),
            backbone.image_token_id,
        )
        self.network = network
        self.backbone = backbone
        self._prompts = prompts
        self._resolution = resolution

    def _recipe_at(self, min_tokens: int, max_tokens: int) -> PictureRecipe:
        return self.backbone.recipe(self._resolution, min_tokens, max_tokens)

    def picture_tokens(self, opened: Any) -> int:  # noqa: ANN401
        """How many image tokens an opened picture has."""
        return self.backbone.picture_tokens(opened)

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> Prepared:
        """Prompt and tokenise; see `Family.prepare`."""
        opened = self.opened(item, pictures)
        ids = self._prompts(prompt_of(item, [picture.tokens for picture in opened], self.facts.told(item.role)))
        if not len(ids):
            raise InputError(f"an empty text has no tokens for {self.facts.fingerprint.model} to read; leave it out")
        prepared = Prepared("image" if opened else "text", ids, opened)
        check_length(prepared, item, self.backbone.max_length)
        return prepared

    def count_flops(self, item: Input) -> tuple[int, float]:
        """Tokens in the language model, and operations; see `Family.count_flops`."""
        prepared = self.prepare(item)
        return prepared.tokens, self.backbone.flops(prepared.tokens, [picture.opened for picture in prepared.pictures])

    def _features(self, opened: Sequence[Any]) -> torch.Tensor:
        return self.backbone.packed_features(opened)

    def _vectors(self, packed: PackedBatch) -> torch.Tensor:
        return nn.functional.normalize(self.backbone.packed_last_states(packed).float(), dim=-1)
