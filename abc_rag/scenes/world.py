"""The small world of abc-mini: one or two emoji on a coloured background.

Training and evaluation draw from the same world: its kinds and scenes (here), questions (`abc_rag.scenes.questions`),
captions (`abc_rag.scenes.captions`) and pictures (`abc_rag.scenes.drawing`). Scenes whose *pair* of kinds is held out
(`is_held_out`) are never trained on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BACKGROUNDS",
    "CATEGORIES",
    "CATEGORY_OF",
    "KINDS",
    "Placed",
    "Scene",
    "Side",
    "SizeName",
    "background_phrase",
    "held_out_scenes",
    "is_held_out",
    "phrase",
    "phrases",
    "random_scene",
]

CATEGORIES: Mapping[str, Mapping[str, str]] = {
    "animal": {
        "dog": "🐶", "cat": "🐱", "rabbit": "🐰", "fox": "🦊", "panda": "🐼", "frog": "🐸", "chicken": "🐔",
        "penguin": "🐧", "horse": "🐴", "pig": "🐷", "cow": "🐮", "elephant": "🐘", "giraffe": "🦒", "turtle": "🐢",
        "butterfly": "🦋", "crab": "🦀",
    },
    "food": {
        "apple": "🍎", "banana": "🍌", "strawberry": "🍓", "bunch of grapes": "🍇", "watermelon": "🍉",
        "pineapple": "🍍", "lemon": "🍋", "carrot": "🥕", "pizza": "🍕", "burger": "🍔", "donut": "🍩", "cake": "🎂",
        "ice cream": "🍦", "piece of cheese": "🧀",
    },
    "vehicle": {
        "car": "🚗", "bus": "🚌", "bicycle": "🚲", "train": "🚂", "plane": "✈", "helicopter": "🚁", "sailboat": "⛵",
        "rocket": "🚀", "tractor": "🚜", "ambulance": "🚑",
    },
    "plant": {"tree": "🌳", "cactus": "🌵", "sunflower": "🌻", "rose": "🌹"},
    "instrument": {"guitar": "🎸", "trumpet": "🎺", "drum": "🥁", "piano": "🎹"},
    "clothing": {"crown": "👑", "hat": "🎩", "shoe": "👟", "pair of glasses": "👓", "dress": "👗"},
    "household object": {
        "key": "🔑", "hammer": "🔨", "pair of scissors": "✂", "camera": "📷", "umbrella": "☂", "light bulb": "💡",
        "alarm clock": "⏰", "pencil": "✏", "balloon": "🎈", "gift": "🎁",
    },
}  # fmt: skip
"""Category -> kind -> its emoji."""

KINDS: tuple[str, ...] = tuple(kind for kinds in CATEGORIES.values() for kind in kinds)
CATEGORY_OF: Mapping[str, str] = {kind: category for category, kinds in CATEGORIES.items() for kind in kinds}

BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "red": (205, 60, 60),
    "orange": (240, 150, 60),
    "yellow": (245, 225, 110),
    "green": (110, 185, 110),
    "blue": (90, 140, 220),
    "purple": (150, 95, 190),
    "white": (242, 242, 242),
    "gray": (140, 140, 145),
    "black": (45, 45, 50),
}
"""Colour name -> RGB before shading."""

Side = Literal["left", "right", "top", "bottom", "middle"]
SizeName = Literal["big", "small"]
_ALONE: tuple[Side, ...] = ("middle",)
_BESIDE: tuple[Side, ...] = ("left", "right")
_ABOVE_EACH_OTHER: tuple[Side, ...] = ("top", "bottom")


@dataclass(frozen=True)
class Placed:
    """One object of a scene.

    Attributes:
        kind: One of `KINDS`.
        size: ``"big"`` or ``"small"``.
        side: Where it is.
        shift: Offset of its centre from the centre of its side, as a share of the picture's width.
    """

    kind: str
    size: SizeName
    side: Side
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """One or two objects and a background; ``tint`` is added to the background's RGB values."""

    objects: tuple[Placed, ...]
    background: str
    tint: tuple[int, int, int] = (0, 0, 0)


def is_held_out(first: str, second: str) -> bool:
    """Whether scenes with these two kinds are reserved for evaluation: a fixed quarter of all pairs."""
    pair = "|".join(sorted((first, second)))
    return hashlib.sha256(pair.encode()).digest()[0] < 64


def random_scene(rng: random.Random, *, objects: int, held_out: bool = False) -> Scene:
    """Draw a scene at random.

    Args:
        rng: Random generator.
        objects: 1 or 2.
        held_out: With two objects, draw a pair that training never sees rather than one that it may see.
    """
    tint = (rng.randint(-14, 14), rng.randint(-14, 14), rng.randint(-14, 14))
    background = rng.choice(list(BACKGROUNDS))
    if objects == 1:
        kinds = [rng.choice(KINDS)]
        sides = _ALONE
    else:
        kinds = rng.sample(KINDS, 2)
        while is_held_out(*kinds) != held_out:
            kinds = rng.sample(KINDS, 2)
        sides = _BESIDE if rng.random() < 0.5 else _ABOVE_EACH_OTHER
    spread = 0.14 if objects == 1 else 0.03
    placed = []
    for kind, side in zip(kinds, sides, strict=True):
        along, across = rng.uniform(-spread, spread), rng.uniform(-0.14, 0.14)
        shift = (across, along) if side in ("top", "bottom") else (along, across)
        placed.append(Placed(kind, rng.choice(("big", "small")), side, shift))
    return Scene(tuple(placed), background, tint)


def held_out_scenes(count: int, *, seed: int) -> list[Scene]:
    """Scenes of two objects, in pairs that training never sees; no two have the same description."""
    rng = random.Random(seed)
    found: dict[tuple[object, ...], Scene] = {}
    while len(found) < count:
        scene = random_scene(rng, objects=2, held_out=True)
        key = tuple((o.kind, o.size, o.side) for o in scene.objects)
        found.setdefault((key, scene.background), scene)
    return list(found.values())


def phrase(kind: str) -> str:
    """``"apple"`` to ``"an apple"``."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def background_phrase(colour: str) -> str:
    """``"red"`` to ``"a red background"``."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} background"


def phrases() -> list[str]:
    """Every phrase that answers a question: the candidates of the evaluation."""
    return [phrase(k) for k in KINDS] + [background_phrase(c) for c in BACKGROUNDS]
