"""How the toy family of `toy_family` opens pictures; imported by processes that open them, so it needs no torch."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_image
from abc_rag.types import ImageSource

KILLS, HANGS = (255, 0, 0), (0, 255, 0)
"""Pictures of these colours end the process that opens them, or are never done."""

hanging = threading.Event()
"""Set while a picture hangs in a thread of this process."""
go_on = threading.Event()
"""Ends the hanging of those in threads."""


@dataclass(frozen=True)
class ToyOpened:
    pixels: Any  # uint8 (patches, 3)
    tokens: int

    @property
    def nbytes(self) -> int:
        return int(self.pixels.nbytes)

    @property
    def patches(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class ToyPictures:
    """A picture has as many patches as it is wide, and as many tokens as it is high."""

    dangerous: bool = False

    opens: ClassVar[type[ToyOpened]] = ToyOpened

    def open(self, source: ImageSource, *, limits: ImageLimits, name: str | None = None) -> ToyOpened:
        image = open_image(source, limits=limits, name=name).image
        pixels = np.array(image)[0]
        if self.dangerous and tuple(pixels[0]) == KILLS:
            os._exit(3)
        if self.dangerous and tuple(pixels[0]) == HANGS:
            hanging.set()
            go_on.wait(120)
        return ToyOpened(pixels, image.height)
