"""Drawing a scene from the sprites."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files

import numpy as np
import PIL.Image

from abc_rag.scenes.world import _CENTRE, _EXTENT, BACKGROUNDS, Scene

__all__ = ["render"]


@lru_cache(maxsize=1)
def _sprites() -> dict[str, PIL.Image.Image]:
    folder = files("abc_rag.models.bundled")
    index = json.loads(folder.joinpath("sprites.json").read_text(encoding="utf-8"))
    with folder.joinpath("sprites.png").open("rb") as handle, PIL.Image.open(handle) as opened:
        sheet = opened.convert("RGBA")
    return {kind: sheet.crop(tuple(box)) for kind, box in index["boxes"].items()}


@lru_cache(maxsize=4096)
def _sprite(kind: str, extent: int) -> PIL.Image.Image:
    sprite = _sprites()[kind]
    scale = extent / max(sprite.size)
    size = (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale)))
    return sprite.resize(size, PIL.Image.Resampling.BICUBIC)


@lru_cache(maxsize=8)
def _light(size: int) -> np.ndarray:
    """Soft light from the top left: what is added to every background pixel, ``(size, size, 1)``."""
    ramp = np.linspace(1.0, -1.0, size)
    return (ramp[:, None] * 16 + ramp[None, :] * 10)[:, :, None]


def render(scene: Scene, size: int = 336) -> PIL.Image.Image:
    """Draw a scene as an RGB picture of ``size`` by ``size`` pixels."""
    colour = np.array(BACKGROUNDS[scene.background]) + np.array(scene.tint)
    picture = PIL.Image.fromarray(np.clip(colour + _light(size), 0, 255).astype(np.uint8))
    for placed in scene.objects:
        sprite = _sprite(placed.kind, round(_EXTENT[placed.size] * size))
        x, y = _CENTRE[placed.side]
        corner = (
            round((x + placed.shift[0]) * size - sprite.width / 2),
            round((y + placed.shift[1]) * size - sprite.height / 2),
        )
        picture.paste(sprite, corner, sprite)
    return picture
