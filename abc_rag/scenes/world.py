"""The small world of abc-mini: one or two emoji on a coloured background.

Everything that abc-mini knows is described here: which kinds of object there are, how a scene is drawn,
which captions describe it, and which instructions can be asked of it with which phrase as the answer.
Training and evaluation draw from the same descriptions; scenes whose *pair* of kinds is held out
(`is_held_out`) are never trained on.

The drawings come from the Noto Color Emoji font (SIL Open Font License 1.1), cut once into
``bundled/sprites.png``, so that neither training nor evaluation needs the font.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BACKGROUNDS",
    "CATEGORIES",
    "KINDS",
    "Description",
    "Placed",
    "Question",
    "Scene",
    "caption_edits",
    "captions",
    "describe",
    "held_out_scenes",
    "is_held_out",
    "phrases",
    "questions",
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
"""Category -> kind -> the character that draws it."""

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
_EXTENT: Mapping[str, float] = {"big": 0.48, "small": 0.3}
_ALONE: tuple[Side, ...] = ("middle",)
_BESIDE: tuple[Side, ...] = ("left", "right")
_ABOVE_EACH_OTHER: tuple[Side, ...] = ("top", "bottom")
_CENTRE: Mapping[str, tuple[float, float]] = {
    "left": (0.26, 0.5),
    "right": (0.74, 0.5),
    "top": (0.5, 0.26),
    "bottom": (0.5, 0.74),
    "middle": (0.5, 0.5),
}


@dataclass(frozen=True)
class Placed:
    """One object of a scene.

    Attributes:
        kind: One of `KINDS`.
        size: ``"big"`` or ``"small"``.
        side: Where it is.
        shift: Offset of its centre from the side's own, in parts of the picture's width.
    """

    kind: str
    size: SizeName
    side: Side
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """One or two objects and a background; ``tint`` shifts the background's RGB a little."""

    objects: tuple[Placed, ...]
    background: str
    tint: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Question:
    """What can be asked of a scene: the aspect, how it is worded, and the phrase that answers it."""

    aspect: str
    instruction: str
    answer: str


# --- Drawing --------------------------------------------------------------------------------------


# --- Scenes ---------------------------------------------------------------------------------------


def is_held_out(first: str, second: str) -> bool:
    """Whether scenes with these two kinds are kept for evaluation: a fixed quarter of all pairs."""
    pair = "|".join(sorted((first, second)))
    return hashlib.sha256(pair.encode()).digest()[0] < 64


def random_scene(rng: random.Random, *, objects: int, held_out: bool = False) -> Scene:
    """Draw a scene at random.

    Args:
        rng: Source of chance.
        objects: 1 or 2.
        held_out: With two objects: take a pair that training never sees, instead of one that it may.
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
    """Scenes of two objects in pairs that training never sees, no two with the same description."""
    rng = random.Random(seed)
    found: dict[tuple[object, ...], Scene] = {}
    while len(found) < count:
        scene = random_scene(rng, objects=2, held_out=True)
        key = tuple((o.kind, o.size, o.side) for o in scene.objects)
        found.setdefault((key, scene.background), scene)
    return list(found.values())


# --- Words ----------------------------------------------------------------------------------------


def phrase(kind: str) -> str:
    """``"apple"`` to ``"an apple"``."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def background_phrase(colour: str) -> str:
    """``"red"`` to ``"a red background"``."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} background"


def phrases() -> list[str]:
    """Every phrase that answers some question: the candidates of the evaluation."""
    return [phrase(k) for k in KINDS] + [background_phrase(c) for c in BACKGROUNDS]


_ON: Mapping[str, Sequence[str]] = {
    "left": ("on the left", "on the left side", "at the left", "to the left", "in the left half"),
    "right": ("on the right", "on the right side", "at the right", "to the right", "in the right half"),
    "top": ("at the top", "in the upper half", "at the top of the picture", "up at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower half", "at the bottom of the picture", "down at the bottom",
               "in the lower part"),
}  # fmt: skip
_ASK: Sequence[str] = (
    "what is {}?", "what is {}", "what's {}?", "which object is {}?", "the object {}", "the thing {}",
    "identify the object {}", "name the object {}", "describe the object {}", "look at the object {}",
    "focus on what is {}", "what do you see {}?", "what can be seen {}?", "tell me what is {}", "what is shown {}?",
    "find the thing {}", "pay attention to the object {}", "what object is located {}?", "the item {}",
)  # fmt: skip
_HELD_ASK: Sequence[str] = ("what have we got {}?", "which item is {}?", "concentrate on the thing {}")
_ASK_CATEGORY: Sequence[str] = (
    "which {} is in the picture?", "what {} is in the picture?", "which {} is shown?", "what kind of {} is this?",
    "the {}", "identify the {}", "name the {}", "find the {}", "look at the {}", "focus on the {}",
    "which {} do you see?", "what {} can be seen here?", "describe the {} in the image", "what type of {} is there?",
    "tell me which {} is there", "the {} in the picture",
)  # fmt: skip
_HELD_CATEGORY: Sequence[str] = ("what sort of {} is in the image?", "pay attention to the {}")
_CATEGORY_WORDS: Mapping[str, Sequence[str]] = {
    "animal": ("animal", "creature"),
    "food": ("food", "thing to eat"),
    "vehicle": ("vehicle", "means of transport"),
    "plant": ("plant",),
    "instrument": ("musical instrument", "instrument"),
    "clothing": ("piece of clothing", "thing to wear"),
    "household object": ("household object", "tool"),
}
_ASK_BACKGROUND: Sequence[str] = (
    "what colour is the background?", "what color is the background?", "which colour is the background?",
    "the background", "the colour of the background", "the background color", "name the background colour",
    "describe the background", "look at the background", "focus on the color of the background",
    "what is the color behind the objects?", "which color does the background have?",
    "identify the colour of the background", "tell me the background color",
)  # fmt: skip
_HELD_BACKGROUND: Sequence[str] = ("in which colour is the background painted?", "pay attention to the background")
_ASK_SIZE: Mapping[str, Sequence[str]] = {
    "big": (
        "which object is bigger?", "what is the bigger object?", "the big object", "the larger object",
        "name the largest thing", "what is the biggest thing in the picture?", "look at the large object",
        "identify the bigger thing", "which thing is larger?", "focus on the biggest object",
    ),
    "small": (
        "which object is smaller?", "what is the smaller object?", "the small object", "the little object",
        "name the smallest thing", "what is the smallest thing in the picture?", "look at the small object",
        "identify the smaller thing", "which thing is smaller?", "focus on the smallest object",
    ),
}  # fmt: skip
_HELD_SIZE: Mapping[str, Sequence[str]] = {
    "big": ("what is the large thing?", "find the bigger object"),
    "small": ("what is the small thing?", "find the smaller object"),
}
_ASK_ONLY: Sequence[str] = (
    "what is in the picture?", "what is this?", "which object is shown?", "what is in the middle?", "the object",
    "name the object", "what do you see?", "identify the object in the image", "look at the object in the middle",
)  # fmt: skip
_HELD_ONLY: Sequence[str] = ("what can you see in this picture?", "tell me what this is")


def questions(scene: Scene, rng: random.Random, *, held_out: bool = False) -> list[Question]:
    """One question for each aspect that the scene has, worded at random.

    Args:
        scene: The scene that is asked about.
        rng: Source of chance for the wording.
        held_out: Use wordings that training never sees.
    """

    def ask(seen: Sequence[str], unseen: Sequence[str]) -> str:
        return rng.choice(unseen if held_out else seen)

    found = [Question("background", ask(_ASK_BACKGROUND, _HELD_BACKGROUND), background_phrase(scene.background))]
    if len(scene.objects) == 1:
        found.append(Question("only", ask(_ASK_ONLY, _HELD_ONLY), phrase(scene.objects[0].kind)))
    categories = [CATEGORY_OF[o.kind] for o in scene.objects]
    sizes = {o.size for o in scene.objects}
    for placed, category in zip(scene.objects, categories, strict=True):
        answer = phrase(placed.kind)
        if placed.side in _ON:
            found.append(Question(placed.side, ask(_ASK, _HELD_ASK).format(rng.choice(_ON[placed.side])), answer))
        if categories.count(category) == 1:
            word = rng.choice(_CATEGORY_WORDS[category])
            found.append(Question("category", ask(_ASK_CATEGORY, _HELD_CATEGORY).format(word), answer))
        if len(scene.objects) == 2 and len(sizes) == 2:
            wording = ask(_ASK_SIZE[placed.size], _HELD_SIZE[placed.size])
            found.append(Question(placed.size, wording, answer))
    return found


_ABOVE: Mapping[str, Sequence[str]] = {
    "left": ("{a} to the left of {b}", "{a} left of {b}", "{a} on the left and {b} on the right",
             "{b} on the right, {a} on the left", "{b} to the right of {a}", "{b} right of {a}"),
    "top": ("{a} above {b}", "{a} at the top and {b} at the bottom", "{a} over {b}", "{b} below {a}",
            "{b} at the bottom, {a} at the top", "{b} under {a}"),
}  # fmt: skip
_WITH_BACKGROUND: Sequence[str] = (
    "{} on {}", "{} in front of {}", "a picture of {} on {}", "{}, {}", "{} with {}", "there is {} on {}",
)  # fmt: skip


def captions(scene: Scene, rng: random.Random) -> str:
    """A caption that says everything: kinds, sizes, sides and background, worded at random."""
    named = []
    for placed in scene.objects:
        size = rng.choice(("big", "large") if placed.size == "big" else ("small", "little"))
        named.append(f"a {size} {placed.kind}")
    if len(named) == 1:
        content = named[0]
    else:
        content = rng.choice(_ABOVE[scene.objects[0].side]).format(a=named[0], b=named[1])
    return rng.choice(_WITH_BACKGROUND).format(content, background_phrase(scene.background))


def caption_edits(scene: Scene, rng: random.Random) -> Iterator[Scene]:
    """Scenes that differ from this one in a single respect, hardest first: their captions are hard negatives."""
    first = scene.objects[0]
    edits: list[Scene] = []
    if len(scene.objects) == 2:
        second = scene.objects[1]
        edits.append(
            Scene(
                (
                    Placed(second.kind, second.size, first.side),
                    Placed(first.kind, first.size, second.side),
                ),
                scene.background,
            )
        )
        sides: tuple[Side, Side] = ("top", "bottom") if first.side == "left" else ("left", "right")
        edits.append(
            Scene((Placed(first.kind, first.size, sides[0]), Placed(second.kind, second.size, sides[1])),
                  scene.background)
        )  # fmt: skip
    for position, placed in enumerate(scene.objects):
        others = [k for k in KINDS if k not in {o.kind for o in scene.objects}]
        for changed in (
            Placed(placed.kind, "small" if placed.size == "big" else "big", placed.side),
            Placed(rng.choice(others), placed.size, placed.side),
        ):
            objects = tuple(changed if i == position else o for i, o in enumerate(scene.objects))
            edits.append(Scene(objects, scene.background))
    edits.append(Scene(scene.objects, rng.choice([b for b in BACKGROUNDS if b != scene.background])))
    rng.shuffle(edits)
    yield from edits


@dataclass(frozen=True)
class Description:
    """A text that says part of what a scene shows, and what a scene must have for it to be true.

    Attributes:
        text: The words.
        objects: (kind, size or ``None``, side or ``None``) of each object that is mentioned.
        background: Colour, if it is mentioned.
    """

    text: str
    objects: tuple[tuple[str, SizeName | None, Side | None], ...]
    background: str | None = None

    def fits(self, scene: Scene) -> bool:
        """Whether the text is true of a scene."""
        return self.background in (None, scene.background) and all(
            any(
                placed.kind == kind and size in (None, placed.size) and side in (None, placed.side)
                for placed in scene.objects
            )
            for kind, size, side in self.objects
        )


_SEARCH: Sequence[str] = (
    "which picture shows {}?", "show me {}", "find {}", "a picture of {}", "an image with {}", "the picture with {}",
    "look for {}", "pictures of {}", "where can I see {}?", "is there a picture of {}?",
)  # fmt: skip
_TOGETHER: Sequence[str] = ("{a} and {b}", "{a} next to {b}", "{a} with {b}", "{b} and {a}", "{b} together with {a}")


def describe(scene: Scene, rng: random.Random) -> Description:
    """Say part of what a scene shows, as people do when they search: a kind, a pair, a kind and a colour."""
    objects: list[tuple[str, SizeName | None, Side | None]] = []
    named = []
    for placed in rng.sample(scene.objects, rng.randint(1, len(scene.objects))):
        size = placed.size if rng.random() < 0.3 else None
        objects.append((placed.kind, size, None))
        named.append(f"a {size} {placed.kind}" if size else phrase(placed.kind))
    if len(named) == 2:
        content = rng.choice(_TOGETHER).format(a=named[0], b=named[1])
    else:
        content = named[0]
        (placed,) = (o for o in scene.objects if o.kind == objects[0][0])
        if placed.side in _ON and rng.random() < 0.4:
            objects = [(placed.kind, objects[0][1], placed.side)]
            content = f"{content} {rng.choice(_ON[placed.side])}"
    background = scene.background if rng.random() < 0.3 else None
    if background is not None:
        content = rng.choice(_WITH_BACKGROUND[:4]).format(content, background_phrase(background))
    if rng.random() < 0.4:
        content = rng.choice(_SEARCH).format(content)
    return Description(content, tuple(objects), background)
