"""Matrix products of a linear layer, by whichever of torch's CPU libraries is the faster one on this machine.

For float32 on a CPU torch asks MKL, which runs at half of what the chip can do on many that are not Intel's. torch also
holds oneDNN, whose products have the same precision; it is used where a short trial finds it clearly faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

__all__ = ["linear"]

# Below this many rows the call costs more than the product.
_LEAST_ROWS = 32
_TRIAL = (512, 512, 512)
_CLEARLY = 1.2


def linear(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``layer(x)`` for rows ``(n, in)``, without gradients.

    Args:
        layer: An ``nn.Linear``, one with a LoRA adapter of peft's around it (used if it is switched on), or any other
            module, such as a quantised layer, which is called as it is.
        x: ``(n, in)``.

    Returns:
        ``(n, out)``.
    """
    if isinstance(layer, LoraLayer):
        return _with_adapter(layer, x)
    if type(layer) is not nn.Linear:
        called: torch.Tensor = layer(x)
        return called
    weight = layer.weight
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and len(x) >= _LEAST_ROWS and _onednn():
        product: torch.Tensor = _pointwise()(x, weight, layer.bias, "none", [], "")
        return product
    return nn.functional.linear(x, weight, layer.bias)


def _with_adapter(layer: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  (peft's classes are mixins)
    base: torch.Tensor = linear(layer.get_base_layer(), x)
    if layer.disable_adapters or layer.merged:
        return base
    for name in layer.active_adapters:
        if name in layer.lora_A:
            low = linear(layer.lora_A[name], x.to(layer.lora_A[name].weight.dtype))
            base = base + (linear(layer.lora_B[name], low) * layer.scaling[name]).to(base.dtype)
    return base


def _pointwise() -> Callable[..., torch.Tensor]:
    found: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise
    return found


@lru_cache(maxsize=1)
def _onednn() -> bool:
    """Whether oneDNN is here, agrees, and is clearly faster; a few milliseconds, once."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    rows, inner, outer = _TRIAL
    x, weight = torch.randn(rows, inner), torch.randn(outer, inner)

    def ours() -> torch.Tensor:
        return _pointwise()(x, weight, None, "none", [], "")

    def theirs() -> torch.Tensor:
        return nn.functional.linear(x, weight)

    try:
        if not torch.allclose(ours(), theirs(), rtol=1e-4, atol=1e-3):
            return False
    except (RuntimeError, NotImplementedError):  # an operator of torch's own, which another version may change
        return False
    return _CLEARLY * _best(ours) < _best(theirs)


def _best(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
