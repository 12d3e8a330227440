"""What families share whose networks take the inputs of a batch end to end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from abc_rag.models.family import Family, FamilyFacts, Prepared
from abc_rag.models.kernels.packed import PackedBatch, split_features
from abc_rag.types import Input, InstructedText, Interleaved, Text

__all__ = ["PackedFamily", "parts_of"]


class PackedFamily(Family):
    """A family that sees pictures, and computes batches, end to end.

    Args:
        facts: What is fixed once it has been loaded.
        image_token_id: Stands for pictures among the ids of tokens.
    """

    concurrent = True

    def __init__(self, facts: FamilyFacts, image_token_id: int) -> None:
        super().__init__(facts)
        self._image_token_id = image_token_id

    def see(self, opened: Sequence[Any]) -> list[torch.Tensor]:
        """Vision features of some pictures; see `Family.see`."""
        with torch.inference_mode():
            return split_features(self._features(opened), [self.picture_tokens(one) for one in opened])

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Embed a batch; see `Family.forward`."""
        self.see_all(batch)
        packed = PackedBatch.of(batch, image_token_id=self._image_token_id, device=self.facts.device)
        with torch.inference_mode():
            return packed.in_order(self._vectors(packed))

    @abstractmethod
    def _features(self, opened: Sequence[Any]) -> torch.Tensor:
        """Vision features of some pictures, end to end."""

    @abstractmethod
    def _vectors(self, packed: PackedBatch) -> torch.Tensor:
        """Float32 unit rows, in the order of ``packed``."""


def parts_of(item: Input, tokens: Sequence[int]) -> list[str | int]:
    """The texts of an input, and the numbers of image tokens of its pictures, as they stand; no instruction."""
    if isinstance(item, Interleaved):
        numbers = iter(tokens)
        return [part.text if isinstance(part, Text) else next(numbers) for part in item.parts]
    return [item.text] if isinstance(item, (Text, InstructedText)) else [*tokens]
