"""Pictures as Gemma 4's vision tower takes them: scaled to fill a budget of image tokens, cut into patches, in uint8.

Needs no torch, so that the processes that open pictures start quickly and stay small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_pixels
from abc_rag.models.qwen2_vl.pictures import Patches, patchify, resize_as_pillow_12
from abc_rag.types import ImageSource

__all__ = ["BUDGETS", "GemmaPictures", "fill_size"]

BUDGETS = (70, 140, 280, 560, 1120)
"""The numbers of image tokens that the model was trained with (transformers' ``Gemma4ImageProcessor``)."""


@dataclass(frozen=True)
class GemmaPictures:
    """How pictures become patches. Plain numbers, so that it can be told to another process.

    Attributes:
        patch: Side of a patch in pixels.
        merge: Patches along each side of an image token.
        most: Most image tokens; a picture of any size is scaled to nearly as many.
    """

    patch: int
    merge: int
    most: int

    opens: ClassVar[type[Patches]] = Patches

    def open(self, source: ImageSource, *, limits: ImageLimits, name: str | None = None) -> Patches:
        """Open, scale and cut into patches; ``name`` is for messages.

        Raises:
            ImageError: It cannot be opened, or exceeds a limit.
            InputError: It is too long for its width.
        """
        image = open_pixels(source, limits=limits, name=name)
        height, width = fill_size(image.height, image.width, factor=self.patch * self.merge, most=self.most)
        return patchify(resize_as_pillow_12(image, height, width), patch=self.patch, merge=self.merge)


def fill_size(height: int, width: int, *, factor: int, most: int) -> tuple[int, int]:
    """The largest (height, width) in multiples of ``factor`` that keeps the shape and has at most ``most`` tokens.

    Gemma 4's rule: small pictures are enlarged too.

    Raises:
        InputError: Nothing of that shape fits.
    """
    scale = math.sqrt(most * factor**2 / (height * width))
    rows, columns = (math.floor(scale * side / factor) for side in (height, width))
    if not rows and not columns:
        raise InputError(f"a picture of {width}x{height} pixels has no room in {most} image tokens; raise max_tokens")
    # A side that came out as nothing is one token; the other one is then as long as it was, in tokens.
    if not rows:
        rows, columns = 1, min(width // height, most)
    elif not columns:
        rows, columns = min(height // width, most), 1
    return rows * factor, columns * factor
