"""Scenes of a wider world: one to three objects in several designers' styles, before plain and other backgrounds."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageFilter

from abc_rag.scenes.drawing import bundled_sprite, soft_light
from abc_rag.scenes.kinds import BUNDLED, Kinds
from abc_rag.scenes.varying import varied
from abc_rag.scenes.world import BACKGROUNDS, CATEGORY_OF, Placed, Scene, is_held_out

__all__ = ["Ground", "WideScene", "as_wide", "boxes", "covered", "draw_scene", "draw_wide", "wear"]

Ground = Literal["plain", "gradient", "texture", "noise"]
_GROUNDS: tuple[Ground, ...] = ("plain", "gradient", "texture", "noise")
_EXTENT = {"big": 0.48, "small": 0.3}
_EXTENT_OF_THREE = {"big": 0.36, "small": 0.22}
_CENTRE = {
    "left": (0.26, 0.5), "right": (0.74, 0.5), "top": (0.5, 0.26), "bottom": (0.5, 0.74), "middle": (0.5, 0.5),
}  # fmt: skip
_FIELDS = 100  # of each way to paint a background
_OUTER = 0.07  # of three, the outer two stand nearer to the edge


@dataclass(frozen=True)
class WideScene(Scene):
    """A scene with the style of each object, and how its background is painted.

    Attributes:
        styles: One of each object; see `abc_rag.scenes.kinds`.
        categories: One of each object.
        ground: How the background is painted.
        seed: Of its texture.
    """

    styles: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    ground: Ground = "plain"
    seed: int = 0

    def category_of(self, kind: str) -> str:
        """The category of one of its kinds."""
        for placed, category in zip(self.objects, self.categories, strict=True):
            if placed.kind == kind:
                return category
        raise KeyError(kind)


def as_wide(scene: Scene) -> WideScene:
    """A scene of the package's own world, in its own style."""
    kinds = [placed.kind for placed in scene.objects]
    return WideScene(
        scene.objects, scene.background, scene.tint, (BUNDLED,) * len(kinds), tuple(CATEGORY_OF[k] for k in kinds)
    )


def draw_scene(
    kinds: Kinds,
    rng: random.Random,
    *,
    objects: int,
    among: Sequence[str],
    style: str | None = None,
    plain: float = 0.5,
    held_out: bool = False,
) -> WideScene:
    """Draw a scene at random.

    Args:
        kinds: The kinds.
        rng: Random generator.
        objects: 1 to 3.
        among: Kinds to choose from; pairs of the world's own that it keeps for evaluation occur only if ``held_out``.
        style: Of all objects; if not given, each in one that it is trained in, half of the time all in the same.
        plain: Share of plain backgrounds.
        held_out: Draw two objects of a pair that is kept for evaluation.
    """
    if objects == 1:
        chosen = [rng.choice(among)]
        sides: tuple[str, ...] = ("middle",)
    else:
        chosen = rng.sample(among, objects)
        while any(is_held_out(a, b) != held_out for i, a in enumerate(chosen) for b in chosen[i + 1 :]):
            chosen = rng.sample(among, objects)
        along = ("left", "middle", "right") if rng.random() < 0.5 else ("top", "middle", "bottom")
        sides = along if objects == 3 else (along[0], along[2])
    placed = []
    for kind, side in zip(chosen, sides, strict=True):
        near, far = rng.uniform(-0.03, 0.03), rng.uniform(-0.14, 0.14)
        if objects == 1:
            near = rng.uniform(-0.14, 0.14)
        shift = (far, near) if side in ("top", "bottom") or "top" in sides else (near, far)
        placed.append(Placed(kind, rng.choice(("big", "small")), side, shift))  # type: ignore[arg-type]
    styles: list[str] = []
    common = rng.choice(kinds.styles(chosen[0]) or [BUNDLED]) if rng.random() < 0.5 else None
    for kind in chosen:
        if style is not None:
            styles.append(style)
        elif common is not None and common in kinds.styles(kind):
            styles.append(common)
        else:
            styles.append(rng.choice(kinds.styles(kind)))
    tint = (rng.randint(-14, 14), rng.randint(-14, 14), rng.randint(-14, 14))
    ground: Ground = "plain" if rng.random() < plain else rng.choice(_GROUNDS[1:])
    categories = tuple(kinds.categories[kind] for kind in chosen)
    background, seed = rng.choice(list(BACKGROUNDS)), rng.randrange(1 << 30)
    return WideScene(tuple(placed), background, tint, tuple(styles), categories, ground, seed)


def draw_wide(scene: WideScene, kinds: Kinds, size: int, *, vary: random.Random | None = None) -> PIL.Image.Image:
    """Draw a scene as an RGB picture of ``size`` by ``size`` pixels; ``vary`` draws its objects in varied form."""
    picture = PIL.Image.fromarray(_ground(scene, size))
    for (x, y, extent), placed, style in zip(boxes(scene), scene.objects, scene.styles, strict=True):
        longest = round(extent * size)
        sprite = bundled_sprite(placed.kind, longest) if style == BUNDLED else kinds.sprite(placed.kind, style, longest)
        if vary is not None:
            sprite = varied(sprite, vary)
        picture.paste(sprite, (round(x * size - sprite.width / 2), round(y * size - sprite.height / 2)), sprite)
    return picture


def boxes(scene: WideScene) -> list[tuple[float, float, float]]:
    """Centre and extent of each object, as shares of the picture's width."""
    many = len(scene.objects) == 3
    extents = _EXTENT_OF_THREE if many else _EXTENT
    found = []
    for placed in scene.objects:
        x, y = _CENTRE[placed.side]
        if many:
            x, y = (c + (_OUTER if c > 0.5 else -_OUTER if c < 0.5 else 0.0) for c in (x, y))
        found.append((x + placed.shift[0], y + placed.shift[1], extents[placed.size]))
    return found


def covered(scene: WideScene, cells: int) -> list[npt.NDArray[np.int64]]:
    """Cells of a grid of ``cells`` by ``cells`` that each object covers, row by row; at least that of its centre."""
    centres = (np.arange(cells) + 0.5) / cells
    found = []
    for x, y, extent in boxes(scene):
        rows, columns = (np.abs(centres - c) < max(0.42 * extent, 0.5 / cells) for c in (y, x))
        found.append(np.flatnonzero(rows[:, None] & columns[None, :]))
    return found


def _ground(scene: WideScene, size: int) -> npt.NDArray[np.uint8]:
    colour = np.array(BACKGROUNDS[scene.background], dtype=np.float32) + np.array(scene.tint, dtype=np.float32)
    field = _plain(size) if scene.ground == "plain" else _field(scene.ground, scene.seed % _FIELDS, size)
    painted: npt.NDArray[np.uint8] = np.clip(colour + field, 0, 255).astype(np.uint8)
    return painted


@lru_cache(maxsize=8)
def _plain(size: int) -> npt.NDArray[np.float32]:
    return soft_light(size).astype(np.float32)


@lru_cache(maxsize=9 * _FIELDS)
def _field(ground: Ground, seed: int, size: int) -> npt.NDArray[np.float32]:
    """What is added to the colour, ``(size, size, 1)``."""
    rng = np.random.default_rng(seed)
    if ground == "gradient":
        angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(20, 50)
        ramp = np.linspace(-1, 1, size, dtype=np.float32)
        field = (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]) * depth
    elif ground == "texture":
        steps = np.arange(size, dtype=np.float32) / size * rng.uniform(20, 90)
        angle = rng.uniform(0, np.pi)
        wave = np.sin(np.cos(angle) * steps[None, :] + np.sin(angle) * steps[:, None])
        if rng.random() < 0.5:
            wave = np.sign(wave) * 0.6
        if rng.random() < 0.4:
            wave = wave * np.sin(np.sin(angle) * steps[None, :] - np.cos(angle) * steps[:, None])
        field = wave * rng.uniform(8, 22)
    else:
        field = np.zeros((size, size), dtype=np.float32)
        for cells, depth in ((3, 20.0), (8, 12.0), (28, 8.0)):
            small = PIL.Image.fromarray(rng.normal(0, depth, (cells, cells)).astype(np.float32))
            field += np.asarray(small.resize((size, size), PIL.Image.Resampling.BICUBIC))
        field += rng.normal(0, 3, (size, size)).astype(np.float32)
    whole: npt.NDArray[np.float32] = field.astype(np.float32)[:, :, None]
    return whole


def wear(picture: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """A worn copy of the same size: blurred, noisy, saved as JPEG at 30, enlarged from half its size, or cut off."""
    size = picture.size
    damage = rng.choice(("blur", "noise", "jpeg", "resize", "cut"))
    if damage == "blur":
        return picture.filter(PIL.ImageFilter.GaussianBlur(size[0] * rng.uniform(0.004, 0.009)))
    if damage == "noise":
        grain = np.random.default_rng(rng.randrange(1 << 30)).normal(0, rng.uniform(8, 22), (*size[::-1], 3))
        return PIL.Image.fromarray(np.clip(np.asarray(picture, dtype=np.float32) + grain, 0, 255).astype(np.uint8))
    if damage == "jpeg":
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=30)
        return PIL.Image.open(buffer).convert("RGB")
    if damage == "resize":
        share = rng.uniform(0.4, 0.6)
        return picture.resize((round(size[0] * share), round(size[1] * share))).resize(size)
    edge = [rng.uniform(0, 0.06) for _ in range(4)]
    box = (edge[0] * size[0], edge[1] * size[1], size[0] * (1 - edge[2]), size[1] * (1 - edge[3]))
    return picture.resize(size, box=box)
