"""Where and how a network computes, as one value for everything that loads one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from abc_rag.models.kernels.attention import choose_attention
from abc_rag.models.loader import LoadOptions, Weights

__all__ = ["CPU", "Placement"]


@dataclass(frozen=True)
class Placement:
    """Where a network is, what it computes in, and how it attends.

    Attributes:
        attention: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.
        dtype: Precision of the weights.
        device: Any torch device.
    """

    attention: str = "sdpa"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @classmethod
    def of(cls, options: LoadOptions) -> Placement:
        """What a caller of `abc_rag.load_embedder` wants."""
        return cls(options.attention, options.dtype, str(options.device))

    def check(self) -> None:
        """Refuse an attention that is not there.

        Raises:
            MissingExtraError: It needs a package that is not installed.
        """
        choose_attention(self.attention, device=torch.device(self.device), dtype=self.dtype)

    def before(self, weights: Weights) -> Placement:
        """Where a network is put together that gets such weights: those of 8 or 4 bits in the computer's own memory.

        Raises:
            InputError: The device does not allow such weights.
            MissingExtraError: bitsandbytes is needed and not installed.
        """
        if weights == "full":
            return self
        from abc_rag.models.quantize import check_device

        check_device(weights, self.device)
        return replace(self, device="cpu")

    def bring(self, network: nn.Module, layers: nn.Module, weights: Weights) -> None:
        """Bring a network that was put together by `before`, rounding the matrices of ``layers``.

        They reach ``device`` layer by layer: it never holds more than the result and one layer.

        Raises:
            InputError: The network's sizes do not allow such weights.
        """
        if weights != "full":
            from abc_rag.models.quantize import quantize_linears

            quantize_linears(layers, weights, self.device)
            network.to(self.device)


CPU = Placement()
"""Single precision on the CPU."""
