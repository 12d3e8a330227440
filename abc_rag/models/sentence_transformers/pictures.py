"""Pictures as they are, for models whose own processors resize them.

Needs no torch, so that the processes that open pictures start quickly and stay small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_pixels
from abc_rag.types import ImageSource

__all__ = ["Pixels", "PlainPictures"]

_PATCH = 14  # what budgets of the engine count in


@dataclass(frozen=True)
class Pixels:
    """A picture.

    Attributes:
        pixels: uint8 of shape ``(height, width, 3)``: RGB, upright.
    """

    pixels: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return self.pixels.nbytes

    @property
    def patches(self) -> int:
        """How many squares of 14x14 pixels cover it."""
        height, width = (int(side) for side in self.pixels.shape[:2])
        return math.ceil(height / _PATCH) * math.ceil(width / _PATCH)


@dataclass(frozen=True)
class PlainPictures:
    """Pictures are decoded, turned upright and converted to RGB, and nothing else."""

    opens: ClassVar[type[Pixels]] = Pixels

    def open(self, source: ImageSource, *, limits: ImageLimits, name: str | None = None) -> Pixels:
        """Open a picture; ``name`` is for messages.

        Raises:
            ImageError: It cannot be opened, or exceeds a limit.
        """
        # A copy, as torch wants arrays that may be written to.
        return Pixels(np.array(open_pixels(source, limits=limits, name=name), dtype=np.uint8))
