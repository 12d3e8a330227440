"""What VLM2Vec needs of a vision-language model, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from abc_rag.models.family import PictureRecipe
from abc_rag.models.kernels.backbone import Backbone
from abc_rag.models.kernels.packed import PackedBatch

__all__ = ["VLM2VecBackbone", "VLM2VecPrompts"]


class VLM2VecPrompts(Protocol):
    """Makes token ids of a prompt: text pieces, and pictures as the number of their image tokens."""

    def __call__(self, parts: Sequence[str | int], /) -> npt.NDArray[np.int64]:
        """Token ids, with `VLM2VecBackbone.image_token_id` where pictures go.

        Raises:
            InputError: A text holds half a character.
        """
        ...


class VLM2VecBackbone(Backbone, ABC):
    """A vision tower and a causal language model.

    Args:
        model: One of the backbones in `abc_rag.models`, its adapter merged.

    Attributes:
        compiled: Whether the forward without gradients runs its layers through ``torch.compile``.
    """

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.compiled = False

    @property
    def text_config(self) -> Any:  # noqa: ANN401
        """The configuration of the language model."""
        return self.model.text_config

    @property
    def embedding_weight(self) -> torch.Tensor:
        """See `Backbone.embedding_weight`."""
        weight: torch.Tensor = self.model.embedding_weight
        return weight

    @property
    def image_token_id(self) -> int:
        """What stands in ``input_ids`` where an image token goes."""
        return int(self.model.image_token_id)

    @property
    def language_layers(self) -> nn.Module:
        """The layers of the language model, which may be quantised."""
        layers: nn.Module = self.model.language_layers
        return layers

    def picture_tokens(self, opened: Any) -> int:  # noqa: ANN401
        """How many image tokens an opened picture has."""
        return int(self.model.picture_tokens(opened))

    def image_features(self, opened: Sequence[Any]) -> torch.Tensor:
        """Vision features ``(sum of tokens, hidden)``, with gradients."""
        features: torch.Tensor = self.model.image_features(opened)
        return features

    def use_library(self) -> None:
        """Make ready for gradients; see `Qwen2VLBackbone.use_library`. Others are ready."""

    def recompute_activations(self) -> None:
        """Keep no activations of the layers in training; the backward pass computes them again."""
        self.model.recompute_activations()

    @abstractmethod
    def published_name(self, name: str) -> str:
        """The name that one of its parameters has in the hub's checkpoints, from which adapters' names are made."""

    @abstractmethod
    def recipe(self, resolution: int | str | None, min_tokens: int | None, max_tokens: int | None) -> PictureRecipe:
        """How pictures are opened at a resolution.

        Raises:
            InputError: There is no such resolution.
        """

    @abstractmethod
    def token_limits(self, recipe: Any) -> tuple[int, int]:  # noqa: ANN401
        """Fewest and most image tokens of a picture that is opened by ``recipe``."""

    @abstractmethod
    def flops(self, tokens: int, pictures: Sequence[Any]) -> float:
        """Floating-point operations of the matrix products that one input needs; see `abc_rag.models.flops`.

        Args:
            tokens: Length of the sequence in the language model, image tokens included.
            pictures: Those whose features are not known yet.
        """

    @abstractmethod
    def hidden_states(
        self, input_ids: torch.Tensor, *, lengths: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Final-norm states ``(batch, length, hidden)`` of right-padded sequences, causal, with gradients."""

    @abstractmethod
    def packed_features(self, opened: Sequence[Any]) -> torch.Tensor:
        """`image_features` without gradients."""

    @abstractmethod
    def packed_last_states(self, packed: PackedBatch) -> torch.Tensor:
        """Final-norm state ``(n, hidden)`` of each input's last token, causal, without gradients."""
