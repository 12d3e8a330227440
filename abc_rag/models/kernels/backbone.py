"""What every backbone says of itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """A vision tower and a language model.

    Attributes:
        text_config: The configuration of the language model.
        language_model: The language model, with its ``embed_tokens``.
    """

    text_config: Any
    language_model: Any

    @property
    def embedding_weight(self) -> torch.Tensor:
        """The token embeddings ``(vocabulary, hidden)``."""
        weight: torch.Tensor = self.language_model.embed_tokens.weight
        return weight

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return int(self.text_config.hidden_size)

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence."""
        return int(self.text_config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.embedding_weight.dtype

    @property
    def language_layers(self) -> nn.Module:
        """The layers of the language model, which may be quantised."""
        layers: nn.Module = self.language_model.layers
        return layers
