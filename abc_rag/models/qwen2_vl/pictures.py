"""Pictures as Qwen2-VL's vision tower takes them: resized, cut into patches, in uint8.

Needs no torch, so that the processes that open pictures start quickly and stay small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import PIL.Image

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_pixels
from abc_rag.types import ImageSource

__all__ = ["Patches", "QwenPictures", "fit_size", "patchify", "resize_as_pillow_12"]

_MAX_ASPECT_RATIO = 200
# Colours are resized multiplied by their alpha.
_WITH_ALPHA = {"RGBA": "RGBa", "LA": "La"}


@dataclass(frozen=True)
class Patches:
    """A picture cut into patches.

    Attributes:
        pixels: uint8 of shape ``(rows * columns, 3 * patch * patch)``, patches in the order in which the
            vision tower merges them (2x2 neighbours together).
        rows: Patches from top to bottom.
        columns: Patches from left to right.
    """

    pixels: npt.NDArray[np.uint8]
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return self.pixels.nbytes

    @property
    def patches(self) -> int:
        """How many there are."""
        return self.rows * self.columns


@dataclass(frozen=True)
class QwenPictures:
    """How pictures become patches. Plain numbers, so that it can be told to another process.

    Attributes:
        patch: Side of a patch in pixels.
        merge: Patches along each side of an image token.
        resizes: Fewest and most image tokens of each resize, in turn.
        square: Side in pixels of the square that pictures are first stretched to, whatever their shape, and before
            they are converted to RGB; 0 for none.
    """

    patch: int
    merge: int
    resizes: tuple[tuple[int, int], ...]
    square: int = 0

    opens: ClassVar[type[Patches]] = Patches

    def open(self, source: ImageSource, *, limits: ImageLimits, name: str | None = None) -> Patches:
        """Open, resize as often as `resizes` says, and cut into patches; ``name`` is for messages.

        Raises:
            ImageError: It cannot be opened, or exceeds a limit.
            InputError: It is too long for its width.
        """
        image = open_pixels(source, limits=limits, name=name, first=self._stretched if self.square else None)
        factor = self.patch * self.merge
        for fewest, most in self.resizes:
            height, width = fit_size(
                image.height,
                image.width,
                factor=factor,
                min_pixels=fewest * factor**2,
                max_pixels=most * factor**2,
            )
            image = resize_as_pillow_12(image, height, width)
        return patchify(image, patch=self.patch, merge=self.merge)

    def _stretched(self, image: PIL.Image.Image) -> PIL.Image.Image:
        if image.mode in _WITH_ALPHA:  # Pillow itself resizes these so
            alpha = _WITH_ALPHA[image.mode]
            return resize_as_pillow_12(image.convert(alpha), self.square, self.square).convert(image.mode)
        return resize_as_pillow_12(image, self.square, self.square)


def fit_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest (height, width) in multiples of ``factor`` whose area lies in the limits.

    Qwen2-VL's rule: round each side; if the area is then out of bounds, scale both sides by the
    same amount and round towards the inside.

    Raises:
        InputError: One side is more than 200 times the other.
    """
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise InputError(
            f"a picture of {width}x{height} pixels is more than {_MAX_ASPECT_RATIO} times as long as wide; crop it"
        )
    fitted_h = max(factor, round(height / factor) * factor)
    fitted_w = max(factor, round(width / factor) * factor)
    if fitted_h * fitted_w > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        fitted_h = max(factor, math.floor(height / scale / factor) * factor)
        fitted_w = max(factor, math.floor(width / scale / factor) * factor)
    elif fitted_h * fitted_w < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        fitted_h = math.ceil(height * scale / factor) * factor
        fitted_w = math.ceil(width * scale / factor) * factor
    return fitted_h, fitted_w


def resize_as_pillow_12(image: PIL.Image.Image, height: int, width: int) -> PIL.Image.Image:
    """Bicubic resize with the result of Pillow 10 to 12, which the published weights saw.

    Pillow 13 may run the vertical pass first; one axis at a time, width first, is the older order on
    every version.
    """
    if image.width != width:
        image = image.resize((width, image.height), PIL.Image.Resampling.BICUBIC)
    if image.height != height:
        image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    return image


def patchify(image: PIL.Image.Image, *, patch: int, merge: int) -> Patches:
    """Cut an RGB picture, whose sides are multiples of ``patch * merge``, into patches."""
    array = np.asarray(image, dtype=np.uint8)
    rows, columns = array.shape[0] // patch, array.shape[1] // patch
    grid = array.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    # -> row block, column block, row in block, column in block, channel, y, x
    pixels = grid.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3 * patch * patch)
    return Patches(np.ascontiguousarray(pixels), rows, columns)
