"""Qwen3-VL-Embedding (arXiv 2601.04720): the last token's state under an instruction in the system's message.

* `Text`, `Image`, `Interleaved`: the user's message, under the instruction of their role
* `InstructedText`: the text under its instruction
* `InstructedImage`: the picture under its instruction; as a query, the picture and the question in the user's message,
  under a query's instruction
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from abc_rag.images.limits import ImageLimits
from abc_rag.models.family import FamilyFacts, Picture, Prepared, check_length
from abc_rag.models.kernels.packed import PackedBatch
from abc_rag.models.packed_family import PackedFamily, parts_of
from abc_rag.models.qwen2_vl.pictures import Patches, QwenPictures
from abc_rag.models.qwen3_vl.network import PackedQwen3VL, Qwen3VLNetwork
from abc_rag.models.qwen3_vl.prompts import DOCUMENT, QUERY, Qwen3VLPrompts, sentence
from abc_rag.types import INPUT_TYPES, Fingerprint, Input, InstructedImage, InstructedText

__all__ = ["Qwen3VLFamily"]

_MOST_TOKENS = 32768
"""What the model card calls the sequence length."""


class Qwen3VLFamily(PackedFamily):
    """Qwen3-VL-Embedding behind the engine's seam.

    Args:
        network: In inference mode.
        prompts: The checkpoint's.
        fingerprint: Model, revision and resolution: its limits are those of a picture's tokens.
        image_limits: Which pictures are accepted.
        dims: Length of a vector.
        query_instruction: What a query is told; the authors' own if None.
        document_instruction: What a document is told; the authors' own if None.
    """

    def __init__(
        self,
        network: Qwen3VLNetwork,
        prompts: Qwen3VLPrompts,
        *,
        fingerprint: Fingerprint,
        image_limits: ImageLimits,
        dims: int,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
    ) -> None:
        self.network = network
        super().__init__(
            FamilyFacts(
                dim=dims,
                fingerprint=fingerprint,
                device=network.device,
                dtype=network.dtype,
                image_limits=image_limits,
                recipe=self._recipe_at(fingerprint.min_tokens, fingerprint.max_tokens),
                accepts=INPUT_TYPES,
                cuts=True,
                query_instruction=QUERY if query_instruction is None else query_instruction,
                document_instruction=DOCUMENT if document_instruction is None else document_instruction,
            ),
            network.image_token_id,
        )
        self._prompts = prompts
        self._most = min(_MOST_TOKENS, network.max_length)

    def _recipe_at(self, min_tokens: int, max_tokens: int) -> QwenPictures:
        return QwenPictures(self.network.patch, self.network.merge, ((min_tokens, max_tokens),))

    def picture_tokens(self, opened: Patches) -> int:
        """How many image tokens an opened picture has."""
        return opened.patches // self.network.merge**2

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> Prepared:
        """Prompt and tokenise; see `Family.prepare`."""
        opened = self.opened(item, pictures)
        told = self.facts.told(item.role) or DOCUMENT
        parts = parts_of(item, [picture.tokens for picture in opened])
        if isinstance(item, InstructedImage) and item.role == "query":
            parts.append(item.instruction)
        elif isinstance(item, (InstructedImage, InstructedText)):
            told = item.instruction
        ids = self._prompts(sentence(told), parts)
        prepared = Prepared("image" if opened else "text", ids, opened)
        check_length(prepared, item, self._most)
        return prepared

    def _features(self, opened: Sequence[Patches]) -> torch.Tensor:
        return PackedQwen3VL(self.network).image_features(opened)

    def _vectors(self, packed: PackedBatch) -> torch.Tensor:
        states = PackedQwen3VL(self.network).last_states(packed)[:, : self.facts.dim]
        return nn.functional.normalize(states.float(), dim=-1)
