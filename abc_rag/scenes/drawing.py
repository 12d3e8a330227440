"""Draws scenes from sprites.

The sprites are emoji of the Noto Color Emoji font (SIL Open Font License 1.1), cut once into ``sprites.png``, so that
neither training nor evaluation needs the font.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files

import numpy as np
import PIL.Image

from abc_rag.scenes.world import BACKGROUNDS, Scene

__all__ = ["bundled_sprite", "render", "soft_light"]

# Sizes and centres as shares of the picture's width.
_EXTENT: Mapping[str, float] = {"big": 0.48, "small": 0.3}
_CENTRE: Mapping[str, tuple[float, float]] = {
    "left": (0.26, 0.5),
    "right": (0.74, 0.5),
    "top": (0.5, 0.26),
    "bottom": (0.5, 0.74),
    "middle": (0.5, 0.5),
}


@lru_cache(maxsize=1)
def _sprites() -> dict[str, PIL.Image.Image]:
    folder = files("abc_rag.models.bundled")
    index = json.loads(folder.joinpath("sprites.json").read_text(encoding="utf-8"))
    with folder.joinpath("sprites.png").open("rb") as handle, PIL.Image.open(handle) as opened:
        sheet = opened.convert("RGBA")
    return {kind: sheet.crop(tuple(box)) for kind, box in index["boxes"].items()}


@lru_cache(maxsize=4096)
def bundled_sprite(kind: str, extent: int) -> PIL.Image.Image:
    """The world's own drawing of a kind, with a longer side of ``extent`` pixels."""
    sprite = _sprites()[kind]
    scale = extent / max(sprite.size)
    size = (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale)))
    return sprite.resize(size, PIL.Image.Resampling.BICUBIC)


@lru_cache(maxsize=8)
def soft_light(size: int) -> np.ndarray:
    """Soft light from the top left, to be added to the background, ``(size, size, 1)``."""
    ramp = np.linspace(1.0, -1.0, size)
    return (ramp[:, None] * 16 + ramp[None, :] * 10)[:, :, None]


def render(scene: Scene, size: int = 336) -> PIL.Image.Image:
    """Draw a scene as an RGB picture of ``size`` by ``size`` pixels."""
    colour = np.array(BACKGROUNDS[scene.background]) + np.array(scene.tint)
    picture = PIL.Image.fromarray(np.clip(colour + soft_light(size), 0, 255).astype(np.uint8))
    for placed in scene.objects:
        sprite = bundled_sprite(placed.kind, round(_EXTENT[placed.size] * size))
        x, y = _CENTRE[placed.side]
        corner = (
            round((x + placed.shift[0]) * size - sprite.width / 2),
            round((y + placed.shift[1]) * size - sprite.height / 2),
        )
        picture.paste(sprite, corner, sprite)
    return picture
