"""Finds duplicates of a picture: saved again, resized, recompressed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image

__all__ = ["BITS", "LookAlikes", "Print", "print_of"]

_GRID = 16
BITS = _GRID * _GRID
# Steps in brightness up to this, of 255, are compression noise.
_STEP = 3
_COLOUR_GRID = 8
_COLOUR_TOLERANCE = 10.0
# Measured: copies of one picture stay above 0.98, two pages of text in the same layout reach 0.81.
_DETAIL_GRID = 48
_LEAST_CORRELATION = 0.95


@dataclass(frozen=True, eq=False)
class Print:
    """A perceptual fingerprint of a picture.

    Attributes:
        bits: bool ``(256,)``: where a 16 x 16 copy gets darker from left to right (a difference hash).
        colours: uint8 ``(192,)``: an 8 x 8 copy in RGB. Tells apart plain areas, and pictures that differ in colour
            only.
        detail: uint8 ``(2304,)``: a 48 x 48 copy in grey. Tells apart pages of text.
    """

    bits: npt.NDArray[np.bool_]
    colours: npt.NDArray[np.uint8]
    detail: npt.NDArray[np.uint8]


def print_of(image: PIL.Image.Image) -> Print:
    """The fingerprint of an RGB picture."""
    grey = image.convert("L")
    levels = _small(grey, _GRID + 1, _GRID).astype(np.int16)
    darker = levels[:, :-1] - levels[:, 1:] > _STEP
    colours = _small(image, _COLOUR_GRID, _COLOUR_GRID)
    return Print(darker.ravel(), colours.ravel(), _small(grey, _DETAIL_GRID, _DETAIL_GRID).ravel())


def _small(image: PIL.Image.Image, width: int, height: int) -> npt.NDArray[np.uint8]:
    return np.asarray(image.resize((width, height), PIL.Image.Resampling.BOX))


class LookAlikes:
    """The pictures kept so far, and the search for one that a new picture looks like.

    Args:
        most: Maximum of 256 bits in which duplicates may differ; 0 compares nothing.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: list[str] = []
        self._prints: list[Print] = []
        self._bits = np.zeros((64, BITS), dtype=np.bool_)

    def find(self, one: Print) -> str | None:
        """The name of the kept picture that looks most like this one, if any is near enough."""
        count = len(self._names)
        if not self._most or not count:
            return None
        distances = (self._bits[:count] != one.bits).sum(axis=1)
        near = np.flatnonzero(distances <= self._most)
        for index in map(int, near[np.argsort(distances[near], kind="stable")]):
            if _same(self._prints[index], one):
                return self._names[index]
        return None

    def add(self, name: str, one: Print) -> None:
        """Keep a picture."""
        count = len(self._names)
        if count == len(self._bits):
            self._bits = np.concatenate([self._bits, np.zeros_like(self._bits)])
        self._names.append(name)
        self._prints.append(one)
        self._bits[count] = one.bits


def _same(a: Print, b: Print) -> bool:
    if np.abs(a.colours.astype(np.float32) - b.colours).mean() > _COLOUR_TOLERANCE:
        return False
    x, y = (one.detail - one.detail.mean(dtype=np.float32) for one in (a, b))
    lengths = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if max(lengths) < _DETAIL_GRID:  # a step of one per pixel: both are plain, and of one colour
        return True
    return min(lengths) > 0 and float(x @ y) >= _LEAST_CORRELATION * lengths[0] * lengths[1]
