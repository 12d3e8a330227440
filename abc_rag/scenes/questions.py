"""Questions about a scene: instructions in many wordings, each with the phrase that answers it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abc_rag.scenes.world import CATEGORY_OF, Scene, background_phrase, phrase

__all__ = ["Question", "questions"]

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


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        aspect: What it asks about, such as ``"left"`` or ``"background"``.
        instruction: Its wording.
        answer: The phrase that answers it.
    """

    aspect: str
    instruction: str
    answer: str


def questions(scene: Scene, rng: random.Random, *, held_out: bool = False) -> list[Question]:
    """One question for each aspect of a scene, worded at random.

    Args:
        scene: The scene.
        rng: Random generator of the wording.
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
