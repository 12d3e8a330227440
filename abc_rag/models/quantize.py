"""Weights in 8 or 4 bits: linear layers that hold codes and multiply in full precision.

Only weights are quantised: each call dequantises a layer's weight and multiplies in the precision of its input, so a
vector does not depend on its batch. bitsandbytes' own 8-bit layer rounds inputs too and picks outlier columns from the
whole batch, and its 4-bit layer rounds to bfloat16 on some CPUs. Only its quantising and dequantising functions are
used here, which are the same on every device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from abc_rag.errors import InputError, MissingExtraError
from abc_rag.models.lora_layers import quiet

try:
    with quiet():
        from bitsandbytes.functional import (
            QuantState,
            create_linear_map,
            dequantize_4bit,
            dequantize_blockwise,
            quantize_4bit,
            quantize_blockwise,
        )
except ImportError as error:
    raise MissingExtraError(
        f"weights='int8' and 'int4' need bitsandbytes, which cannot be imported ({error}); "
        "pip install 'abc-rag[quantized]'"
    ) from error

__all__ = ["BLOCK", "DEVICES", "QuantizedLinear", "check_device", "quantize_linears"]

BLOCK = 64
"""Number of neighbouring weights in a row that share a scale."""
DEVICES = ("cpu", "cuda")
"""Device types for which bitsandbytes has its own kernels."""


@lru_cache(maxsize=8)
def _levels(device: torch.device) -> torch.Tensor:
    """float32 (256,): evenly spaced from -1 to 1; all layers of a device share them."""
    levels: torch.Tensor = create_linear_map(signed=True).to(device)
    return levels


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is kept in 8 bits, or in the 4 of QLoRA's NF4 (arXiv 2305.14314), without gradient.

    Args:
        linear: What it replaces; ``in_features`` must be a multiple of `BLOCK`.
        weights: ``"int8"`` or ``"int4"``.
        device: Where the codes are made and kept.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    levels: torch.Tensor

    def __init__(self, linear: nn.Linear, weights: Literal["int8", "int4"], device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features, self.weights = linear.in_features, linear.out_features, weights
        weight = linear.weight.detach().to(device).contiguous()
        if weights == "int8":
            codes, state = quantize_blockwise(weight, code=_levels(device), blocksize=BLOCK)
            self.register_buffer("levels", _levels(device), persistent=False)
        else:
            codes, state = quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
        self.register_buffer("codes", codes)
        self.register_buffer("scales", state.absmax)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device), requires_grad=False)

    def extra_repr(self) -> str:
        """Sizes and kind, for ``repr``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, weights={self.weights}"

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight ``(out_features, in_features)``, dequantised."""
        shape = torch.Size((self.out_features, self.in_features))
        state = QuantState(absmax=self.scales, shape=shape, blocksize=BLOCK, dtype=dtype)
        if self.weights == "int8":
            state.code = self.levels
            eight: torch.Tensor = dequantize_blockwise(self.codes, state)
            return eight
        state.quant_type = "nf4"
        four: torch.Tensor = dequantize_4bit(self.codes, state)
        return four

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in_features)`` to ``(..., out_features)``, in the precision of ``x``."""
        return nn.functional.linear(x, self.dequantized(x.dtype), self.bias)


def check_device(weights: str, device: str) -> None:
    """Refuse a device that is not in `DEVICES`, before anything is loaded.

    Raises:
        InputError: It is not.
    """
    if torch.device(device).type not in DEVICES:
        raise InputError(
            f"weights={weights!r} runs on {' and '.join(DEVICES)}, not on {device!r}; choose another device, or "
            "weights='full' with dtype='bfloat16'"
        )


def quantize_linears(root: nn.Module, weights: Literal["int8", "int4"], device: str) -> None:
    """Replace the linear layers under ``root``, one after the other, so that only one exists twice.

    LoRA's own matrices stay as they are, and so do layers whose width is no multiple of `BLOCK`. Adapters must have
    been injected before: peft knows no such layer, but calls one that it has wrapped.

    Raises:
        InputError: There is no layer to replace.
    """
    target = torch.device(device)
    replaced = 0
    for parent in root.modules():
        if isinstance(parent, nn.ModuleDict):  # where peft keeps its matrices
            continue
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.in_features % BLOCK == 0:
                setattr(parent, name, QuantizedLinear(child, weights, target))
                replaced += 1
    if not replaced:
        raise InputError(f"weights={weights!r}: no layer of this model is a multiple of {BLOCK} wide; use 'full'")
