"""Pictures as Phi-3-vision takes them: resized, padded with white, in whole crops, in uint8.

Needs no torch, so that the processes that open pictures start quickly and stay small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import PIL.Image

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_pixels
from abc_rag.types import ImageSource

__all__ = ["CroppedPicture", "PhiPictures", "fit_crops", "possible_crops"]

_WHITE = 255


@dataclass(frozen=True)
class CroppedPicture:
    """A picture that can be cut into square crops.

    Attributes:
        pixels: uint8 of shape ``(rows * side, columns * side, 3)``, white above and below (or, where it is taller than
            wide, left and right of) what was opened.
        rows: Crops from top to bottom.
        columns: Crops from left to right.
        patch: Side in pixels of what the vision tower sees as one.
    """

    pixels: npt.NDArray[np.uint8]
    rows: int
    columns: int
    patch: int = 14

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return self.pixels.nbytes

    @property
    def side(self) -> int:
        """Side of a crop in pixels."""
        return int(self.pixels.shape[0]) // self.rows

    @property
    def patches(self) -> int:
        """How many the vision tower sees: those of the crops, and of the whole picture as small as one crop."""
        side = self.side // self.patch
        return (self.rows * self.columns + 1) * side * side


@dataclass(frozen=True)
class PhiPictures:
    """How pictures are resized and padded. Plain numbers, so that it can be told to another process.

    Attributes:
        crops: Most crops of a picture.
        side: Of a crop in pixels.
        patch: Of a patch in pixels.
    """

    crops: int
    side: int = 336
    patch: int = 14

    opens: ClassVar[type[CroppedPicture]] = CroppedPicture

    def open(self, source: ImageSource, *, limits: ImageLimits, name: str | None = None) -> CroppedPicture:
        """Open, resize to as many columns of crops as there may be, and pad to whole rows; ``name`` is for messages.

        All of it with the longer side lying: a picture that is taller than wide is mirrored at its diagonal before, and
        back again after.

        Raises:
            ImageError: It cannot be opened, or exceeds a limit.
            InputError: It is so long for its width that nothing would be left of it.
        """
        image = open_pixels(source, limits=limits, name=name)
        standing = image.width < image.height
        if standing:
            image = image.transpose(PIL.Image.Transpose.TRANSPOSE)
        columns, height = fit_crops(image.width, image.height, crops=self.crops, side=self.side)
        lying = np.asarray(_resized(image, columns * self.side, height), dtype=np.uint8)
        rows = -(-height // self.side)
        pixels = np.full((rows * self.side, columns * self.side, 3), _WHITE, dtype=np.uint8)
        above = (rows * self.side - height) // 2
        pixels[above : above + height] = lying
        if standing:
            return CroppedPicture(np.ascontiguousarray(pixels.transpose(1, 0, 2)), columns, rows, self.patch)
        return CroppedPicture(pixels, rows, columns, self.patch)


def fit_crops(width: int, height: int, *, crops: int, side: int) -> tuple[int, int]:
    """Columns of crops, and height in pixels after resizing to their width, of a picture that is not taller than wide.

    As many columns as fit with their rows into ``crops``, however small the picture is. Computed with floats, which
    decide at the edges, as published.

    Raises:
        InputError: Less than one pixel of height would be left.
    """
    ratio = width / height
    columns = 1
    while (columns + 1) * math.ceil((columns + 1) / ratio) <= crops:
        columns += 1
    fitted = int(columns * side / ratio)
    if fitted < 1:
        raise InputError(
            f"a picture whose sides are {width} and {height} pixels long is too narrow for {columns} crop(s); crop it"
        )
    return columns, fitted


def possible_crops(crops: int) -> Iterator[tuple[int, int]]:
    """All (rows, columns) that pictures of any shape get out of at most ``crops``."""
    for columns in range(1, crops + 1):
        for rows in range(1, min(columns, crops // columns) + 1):
            # One column more would have needed one row more, at the shape that needs the fewest columns for its rows.
            if (columns + 1) * (rows + 1) > crops:
                yield rows, columns
                if rows != columns:
                    yield columns, rows


def _resized(image: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    """Bilinear, width first, as every version of Pillow did when the weights were trained."""
    for size in ((width, image.height), (width, height)):
        if image.size != size:
            image = image.resize(size, PIL.Image.Resampling.BILINEAR)
    return image
