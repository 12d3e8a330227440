"""The steps of a transformer layer on rows, without gradients: products, norms, rotations, activations.

Matrix products on a CPU use whichever of torch's libraries is faster on this machine. For float32, torch calls MKL,
which reaches half of the peak rate on many CPUs that Intel did not make. torch also contains oneDNN, whose products
have the same precision; it is used where a short trial finds it clearly faster.

oneDNN compiles a kernel for every shape and keeps it, half a megabyte each. `rounded_rows` keeps the shapes few.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

__all__ = [
    "QuickGELU",
    "Rotation",
    "activated",
    "linear",
    "linears",
    "onednn_is_faster",
    "onednn_product",
    "product",
    "rms_norm",
    "rotated",
    "rotation_of",
    "rounded_rows",
]

Rotation = tuple[torch.Tensor, torch.Tensor]
"""What turns queries and keys by their positions; see `rotation_of`."""

# With fewer rows or columns, the call costs more than the product.
_LEAST_ROWS, _LEAST_COLUMNS = 128, 64
_TRIAL = (512, 512, 512)
_CLEARLY = 1.2


def linear(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``layer(x)`` for rows ``(n, in)``, without gradients.

    Args:
        layer: An ``nn.Linear``; one wrapped in a LoRA adapter, ours or peft's, which is used if it is enabled; or any
            other module, such as a quantised layer, which is called as it is.
        x: ``(n, in)``.

    Returns:
        ``(n, out)``.
    """
    if type(layer) is not nn.Linear:
        if hasattr(layer, "lora_A"):  # a LoRA adapter, ours or peft's
            return _with_adapter(layer, x)
        called: torch.Tensor = layer(x)
        return called
    return product(x, layer.weight, layer.bias)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias`` for rows ``(n, in)``, by whichever library is faster.

    In float32 on a CPU the result is the same, bit for bit, on any number of threads.
    """
    # The compiler chooses the library itself.
    chosen = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.compiler.is_compiling()
    if chosen and len(x) >= _LEAST_ROWS and len(weight) >= _LEAST_COLUMNS and onednn_is_faster():
        return onednn_product(x, weight, bias)
    if chosen and 4 < len(x) < 12 and len(x) % 4:
        # Of 5, 6, 7, 9, 10 and 11 rows, but no other number, MKL rounds the sums differently on several threads.
        return nn.functional.linear(nn.functional.pad(x, (0, 0, 0, -len(x) % 4)), weight, bias)[: len(x)]
    return nn.functional.linear(x, weight, bias)


def linears(x: torch.Tensor, *layers: nn.Module) -> list[torch.Tensor]:
    """`linear` of several layers for the same rows."""
    return [linear(layer, x) for layer in layers]


def _with_adapter(layer: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  (peft's classes are mixins)
    off = layer.disable_adapters or layer.merged
    if not off and any(name in layer.lora_variant for name in layer.active_adapters):
        varied: torch.Tensor = layer(x)  # DoRA and similar adapters do more than add a product
        return varied
    base: torch.Tensor = linear(layer.base_layer, x)
    if off:
        return base
    for name in layer.active_adapters:
        if name in layer.lora_A:
            low = linear(layer.lora_A[name], x.to(layer.lora_A[name].weight.dtype))
            base = base + (linear(layer.lora_B[name], low) * layer.scaling[name]).to(base.dtype)
    return base


def rotation_of(cos: torch.Tensor, sin: torch.Tensor) -> Rotation:
    """The factors of `rotated`: the sine has the sign of the swapped halves."""
    first, second = sin.chunk(2, dim=-1)
    return cos, torch.cat([-first, second], dim=-1)


def rotated(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Apply the rotary position embedding to queries or keys."""
    cos, signed = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), signed)


def rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """``norm(x)`` for an RMS norm of transformers."""
    if x.is_cuda:  # one kernel instead of seven
        return nn.functional.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon)
    product: torch.Tensor = norm.weight * scaled.to(x.dtype)
    return product


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each element by itself."""
        return x * torch.sigmoid(1.702 * x)


def activated(activation: Any, wide: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """``activation(wide)``, with one tensor fewer where it is the quick approximation of GELU."""
    # By its name: transformers' own class takes a second to import.
    if isinstance(activation, QuickGELU) or type(activation).__name__ == "QuickGELUActivation":
        return (wide * 1.702).sigmoid_().mul_(wide)
    found: torch.Tensor = activation(wide)
    return found


def rounded_rows(count: int) -> int:
    """The next rounded number of rows: one of 20 values up to 4,096, and at most an eighth more above."""
    if count < _LEAST_ROWS:
        return count
    step = 128 if count <= 1024 else 256 if count <= 4096 else 1 << (count.bit_length() - 4)
    return -(-count // step) * step


def onednn_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias`` of float32 on a CPU by oneDNN; only where `onednn_is_faster`."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@lru_cache(maxsize=1)
def onednn_is_faster() -> bool:
    """Whether oneDNN is available, agrees with torch's default, and is clearly faster. A few milliseconds, once."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    rows, inner, outer = _TRIAL
    with torch.inference_mode():
        x, weight = torch.randn(rows, inner), torch.randn(outer, inner)
        try:
            if not torch.allclose(onednn_product(x, weight), nn.functional.linear(x, weight), rtol=1e-4, atol=1e-3):
                return False
        except (RuntimeError, NotImplementedError):  # a private operator of torch, which another version may change
            return False
        ours = _best(lambda: onednn_product(x, weight))
        return _CLEARLY * ours < _best(lambda: nn.functional.linear(x, weight))


def _best(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
