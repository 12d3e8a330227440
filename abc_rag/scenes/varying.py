"""Drawings as another designer might have drawn them: mirrored, turned, bent, in other shades, with an outline.

Only training sees them. What a thing is has to be told by its shape, as no two sets of drawings share their colours.
"""

from __future__ import annotations

import random

import numpy as np
import PIL.Image
import PIL.ImageFilter
import PIL.ImageOps

__all__ = ["varied"]

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def varied(sprite: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """A varied copy of an RGBA drawing, of about the same extent; one in seven is left as it is."""
    if rng.random() < 0.15:
        return sprite
    if rng.random() < 0.3:
        sprite = sprite.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.4:
        stretch = rng.uniform(0.86, 1.0)
        width, height = (stretch, 1.0) if rng.random() < 0.5 else (1.0, stretch)
        size = (max(1, round(width * sprite.width)), max(1, round(height * sprite.height)))
        sprite = sprite.resize(size, PIL.Image.Resampling.BILINEAR)
    if rng.random() < 0.4:
        sprite = sprite.rotate(rng.uniform(-15, 15), PIL.Image.Resampling.BILINEAR)
    if rng.random() < 0.4:
        sprite = _bent(sprite, rng)
    look = rng.random()
    if look < 0.45:
        sprite = _shaded(sprite, rng)
    elif look < 0.65:
        sprite = _recoloured(sprite, rng)
    elif look < 0.85:
        sprite = _engraved(sprite, rng)
    if rng.random() < 0.25:
        sprite = _outlined(sprite, rng)
    if rng.random() < 0.1:
        sprite = _hidden(sprite, rng)
    return sprite


def _bent(sprite: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """Other proportions: the four quarters take up more or less room, and their corners are moved."""
    width, height = sprite.size
    at = [
        [(width * (x / 2 + rng.uniform(-0.1, 0.1)), height * (y / 2 + rng.uniform(-0.1, 0.1))) for x in range(3)]
        for y in range(3)
    ]
    middle, halfway = width // 2, height // 2
    quarters = []
    for y, (top, bottom) in enumerate(((0, halfway), (halfway, height))):
        for x, (left, right) in enumerate(((0, middle), (middle, width))):
            corners = (at[y][x], at[y + 1][x], at[y + 1][x + 1], at[y][x + 1])
            quarters.append(((left, top, right, bottom), tuple(c for corner in corners for c in corner)))
    return sprite.transform(sprite.size, PIL.Image.Transform.MESH, quarters, PIL.Image.Resampling.BILINEAR)


def _hidden(sprite: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """Without a part, so that no single detail tells what a thing is."""
    width, height = (max(1, round(side * rng.uniform(0.2, 0.45))) for side in sprite.size)
    left, top = rng.randint(0, sprite.width - width), rng.randint(0, sprite.height - height)
    sprite = sprite.copy()
    sprite.paste((0, 0, 0, 0), (left, top, left + width, top + height))
    return sprite


def _shaded(sprite: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """Other shades: less or more colour, lighter or darker, a little of each colour in the others; or other hues."""
    hues = np.eye(3, dtype=np.float32)[rng.sample(range(3), 3) if rng.random() < 0.15 else [0, 1, 2]]
    mix = hues + np.random.default_rng(rng.randrange(1 << 30)).normal(0, 0.09, (3, 3))
    colour = 0.0 if rng.random() < 0.08 else rng.uniform(0.4, 1.4)
    mix = mix @ (colour * np.eye(3) + (1 - colour) * np.outer(np.ones(3), _GREY)).T
    pixels = np.asarray(sprite).copy()
    painted = pixels[..., :3].astype(np.float32) @ mix.astype(np.float32)
    painted = (painted - 128) * rng.uniform(0.75, 1.2) + 128 + rng.uniform(-25, 25)
    pixels[..., :3] = np.clip(painted, 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(pixels)


def _recoloured(sprite: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """Dark, middle and light shades in three colours of their own."""
    dark, middle, light = ([rng.randint(low, low + 110) for _ in range(3)] for low in (0, 70, 145))
    painted = PIL.ImageOps.colorize(sprite.convert("L"), dark, light, middle)  # type: ignore[arg-type]
    painted.putalpha(sprite.getchannel("A"))
    return painted


def _engraved(sprite: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """Dark lines where shades change, on fewer shades or on one."""
    lines = sprite.convert("L").filter(PIL.ImageFilter.FIND_EDGES).point(lambda edge: 255 * (edge > 60))
    if rng.random() < 0.5:
        flat = PIL.ImageOps.posterize(sprite.convert("RGB"), 2)
    else:
        flat = PIL.Image.new("RGB", sprite.size, tuple(rng.randint(110, 255) for _ in range(3)))
    flat.paste((20, 20, 20), mask=lines)
    flat.putalpha(sprite.getchannel("A"))
    return flat


def _outlined(sprite: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """A dark line around what is not transparent."""
    around = sprite.getchannel("A").filter(PIL.ImageFilter.MaxFilter(rng.choice((3, 3, 5))))
    shade = rng.randint(0, 60)
    line = PIL.Image.merge("RGBA", [*(PIL.Image.new("L", sprite.size, shade) for _ in range(3)), around])
    line.alpha_composite(sprite)
    return line
