"""A linear layer with a LoRA adapter beside it: all that embedding needs of peft, which takes seconds to import.

The names and switches are those of peft's ``LoraLayer``, so both kinds are filled, computed and saved by the same code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["LoraLinear", "is_adapted", "merge_linears", "wrap_linears"]


class LoraLinear(nn.Module):
    """``base_layer(x) + B A x * scaling``, or the base alone.

    Args:
        base_layer: What is adapted.
        adapter: The adapter's name.
        rank: Rows of ``A`` and columns of ``B``, which are on the meta device until they are filled.
        scaling: Factor of the product.
    """

    merged = False

    def __init__(self, base_layer: nn.Linear, adapter: str, *, rank: int, scaling: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        narrow = nn.Linear(base_layer.in_features, rank, bias=False, device="meta")
        wide = nn.Linear(rank, base_layer.out_features, bias=False, device="meta")
        self.lora_A = nn.ModuleDict({adapter: narrow})
        self.lora_B = nn.ModuleDict({adapter: wide})
        self.scaling = {adapter: scaling}
        self.lora_variant: dict[str, Any] = {}
        self.active_adapters = [adapter]
        self.disable_adapters = False

    def get_base_layer(self) -> nn.Module:
        """The layer without its adapter."""
        return self.base_layer

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapter on or off."""
        self.disable_adapters = not enabled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in)`` to ``(..., out)``, with gradients."""
        base: torch.Tensor = self.base_layer(x)
        if self.disable_adapters:
            return base
        (name,) = self.active_adapters
        narrow: Any = self.lora_A[name]
        low = narrow(x.to(narrow.weight.dtype))
        adapted: torch.Tensor = base + (self.lora_B[name](low) * self.scaling[name]).to(base.dtype)
        return adapted


def is_adapted(layer: nn.Module) -> bool:
    """Whether a layer has LoRA matrices, ours or peft's."""
    return hasattr(layer, "lora_A")


def wrap_linears(module: nn.Module, names: Iterable[str], adapter: str, *, rank: int, scaling: float) -> None:
    """Put a `LoraLinear` in the place of each layer that is named; all of them are ``nn.Linear``."""
    for name in names:
        parent, _, last = name.rpartition(".")
        holder = module.get_submodule(parent)
        layer: Any = holder.get_submodule(last)
        setattr(holder, last, LoraLinear(layer, adapter, rank=rank, scaling=scaling))


def merge_linears(module: nn.Module, names: Iterable[str]) -> None:
    """Add each adapter to the weight of its layer, and put the layer back in its place."""
    for name in names:
        parent, _, last = name.rpartition(".")
        holder = module.get_submodule(parent)
        adapted: Any = holder.get_submodule(last)
        ((adapter, factor),) = adapted.scaling.items()
        layer = adapted.base_layer
        layer.weight.data += adapted.lora_B[adapter].weight.data @ adapted.lora_A[adapter].weight.data * factor
        setattr(holder, last, layer)
