"""Pixels on their way into a vision tower."""

from __future__ import annotations

import torch

__all__ = ["clip_normalised", "moved"]

# CLIP's means and standard deviations, as in the published preprocessor_config.json of both backbones.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move ``tensor`` to ``device``."""
    if device.type != "cuda":
        return tensor.to(device)
    # From pinned memory, the copy overlaps with the computation.
    return tensor.pin_memory().to(device, non_blocking=True)


def clip_normalised(pixels: torch.Tensor, *, axis: int) -> torch.Tensor:
    """Normalise uint8 pixels as CLIP does, in float32 and on their own device.

    Args:
        pixels: A tensor with three channels.
        axis: The axis of the channels.
    """
    shape = [3 if at == axis else 1 for at in range(pixels.ndim)]
    mean, deviation = (torch.tensor(values, device=pixels.device).view(shape) for values in (_MEAN, _STD))
    return pixels.float().div_(255.0).sub_(mean).div_(deviation)
