"""Captions of a scene: complete ones, partial ones as people search, and hard negatives."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from abc_rag.scenes.questions import _ON
from abc_rag.scenes.world import BACKGROUNDS, KINDS, Placed, Scene, Side, SizeName, background_phrase, phrase

__all__ = ["Description", "caption_edits", "captions", "describe"]

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
    """A complete caption: kinds, sizes, sides and background, worded at random."""
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
    """Scenes that differ from this one in a single respect, in random order; their captions are hard negatives."""
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
    """A text that describes part of a scene, and the conditions under which it is true.

    Attributes:
        text: The text.
        objects: (kind, size or None, side or None) of each object that it mentions.
        background: Colour of the background, if it mentions one.
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
    """Describe part of a scene, as people do when they search: a kind, a pair, a kind and a colour."""
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
