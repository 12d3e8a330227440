"""Passages and pictures made on the spot, each different from all others, for measuring."""

from __future__ import annotations

import io
import random

import numpy as np
import PIL.Image

__all__ = ["QUESTIONS", "random_jpeg", "random_passage"]

# Each is one token after a space, in Qwen2-VL's tokenizer and in abc-mini's.
_WORDS = (
    "about after again all almost also always among another any around because become before best between both bring "
    "build call came can care carry change clean close common could country day deep design different does done down "
    "early easy every example eyes face far fast few first five follow for found four from full garden general get "
    "give good great grow guide hand hard have head help high history hold home hot house how idea important into just "
    "keep kitchen know large last late learn less let life light like line little live long look made make many may"
).split()

QUESTIONS = tuple(
    f"what is {where} the {what}?"
    for what in ("house", "garden", "table", "street")
    for where in ("on", "under", "behind", "around")
)
"""Sixteen instructions, of about ten tokens."""


def random_passage(rng: random.Random, words: int) -> str:
    """A text of ``words`` words, one token each."""
    return " ".join(rng.choices(_WORDS, k=words))


def random_jpeg(rng: np.random.Generator, width: int = 640, height: int = 480) -> bytes:
    """A JPEG file with about as much in it as a photograph: some 0.3 bytes a pixel."""
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    fine = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    layers = [
        PIL.Image.fromarray(layer).resize((width, height), PIL.Image.Resampling.BILINEAR) for layer in (coarse, fine)
    ]
    file = io.BytesIO()
    PIL.Image.blend(layers[0], layers[1], 0.25).save(file, "JPEG", quality=85)
    return file.getvalue()
