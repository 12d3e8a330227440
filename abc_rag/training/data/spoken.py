"""What conversations for abc-mini's base are made of: how things are asked, and passages about them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import PIL.Image

from abc_rag.scenes.asking import NOTHING, Asked, asked
from abc_rag.scenes.typing import typed
from abc_rag.scenes.wide import WideScene
from abc_rag.scenes.world import phrase
from abc_rag.types import Message

__all__ = [
    "FACTS",
    "PLACEHOLDER",
    "PLAIN_INSTRUCTION",
    "PLAIN_TARGET",
    "Asker",
    "Spoken",
    "further",
    "page_about",
    "passage_about",
]


@dataclass(frozen=True)
class Spoken:
    """A conversation and the answer that is expected.

    Attributes:
        messages: What is asked, with pictures.
        pictures: Positions of its pictures in the batch, in order.
        answer: What a right answer says.
        exact: The answer begins without a space, as JSON does.
    """

    messages: list[Message]
    pictures: tuple[int, ...]
    answer: str
    exact: bool = False


PLACEHOLDER = PIL.Image.new("RGB", (1, 1))
"""Stands for a picture in a conversation; the batch has the picture itself."""


PLAIN_INSTRUCTION = {
    "left": "what is on the left?", "right": "what is on the right?", "top": "what is at the top?",
    "bottom": "what is at the bottom?", "big": "which object is bigger?", "small": "which object is smaller?",
    "background": "what colour is the background?",
}  # fmt: skip
PLAIN_TARGET = {
    "left": "the object on the left", "right": "the object on the right", "top": "the object at the top",
    "bottom": "the object at the bottom", "big": "the bigger object", "small": "the smaller object",
    "background": "the background",
}  # fmt: skip
_FILL = {
    "The {k} is found in {x}.": ("a garden", "the house", "the woods", "a town", "the north", "a small shop"),
    "The {k} was bought for {x} coins.": ("two", "three", "ten", "five", "seven"),
    "A {k} belongs to {x}.": ("a king", "a farmer", "my sister", "the school", "an old man"),
    "The {k} likes {x}.": ("rain", "the sun", "music", "warm milk", "silence"),
    "The {k} is made in {x}.": ("winter", "spring", "summer", "autumn", "the city"),
}  # fmt: skip
FACTS = (
    ("The {k} is found in {x}.", "where is the {k} found?", "in {x}"),
    ("The {k} was bought for {x} coins.", "how many coins was the {k}?", "{x}"),
    ("A {k} belongs to {x}.", "who has the {k}?", "{x}"),
    ("The {k} likes {x}.", "what does the {k} like?", "{x}"),
    ("The {k} is made in {x}.", "when or where is the {k} made?", "in {x}"),
)
"""What a passage says of a kind, a question that it answers, and the answer."""
_SAID = (
    "A {k} {does} {what}{when}.", "The {k} {does} {what}{when}.", "Every {k} {does} {what}{when}.",
    "Nobody knows why the {k} {does} {what}.", "Keep the {k} away from {what}.", "With {what}, the {k} {does} {other}.",
)  # fmt: skip
_MORE = (
    "It {does} {what}{when}.", "Its owner {does} {what}{when}.", "Some say that it {does} {what}.",
    "The other one {does} {what}, and {other}{when}.", "Look for {what}{when}.",
)  # fmt: skip
_DOES = (
    "needs", "has", "keeps", "carries", "holds", "loses", "shows", "makes", "takes", "wants", "hears", "stands beside",
    "comes with", "fits into", "is older than", "is sold with", "looks like", "cannot do without", "turns into",
)  # fmt: skip
_WHAT = (
    "cold water", "a thin skin", "more light", "a long road", "its own name", "a warm place", "fresh air", "two parts",
    "a small box of wood", "thousands of pieces", "good weather", "the sound of a bell", "strong hands",
    "an empty room", "salt and sugar", "the evening", "a quiet street", "a piece of string", "iron and glass",
    "three other ones", "the first day of spring", "a deep hole", "clean clothes", "some bread", "the whole family",
    "a map of the coast",
)  # fmt: skip
_WHEN = (
    "", "", "", " in winter", " at night", " before a journey", " for hours", " every other year", " after the rain",
    " when nobody looks", " all over the world", " in the old days", " more often than people think",
)  # fmt: skip
_NOT_OF_ONE = ("count", "both", "kind", "where")


class Asker:
    """How things are asked in a group of conversations.

    Args:
        rng: Random generator.
        plain: In words that are always the same.
        sources: Most sources of an answer.
    """

    def __init__(self, rng: random.Random, plain: bool, sources: int = 4) -> None:
        self.rng, self.plain, self.sources = rng, plain, sources

    def typed(self, words: str) -> str:
        """As somebody types it."""
        return words if self.plain else typed(words, self.rng)

    def worded(self, question: Asked) -> str:
        """A question's words."""
        return PLAIN_INSTRUCTION.get(question.aspect, question.instruction) if self.plain else question.instruction

    def asked(self, scene: WideScene) -> list[Asked]:
        """Questions about a scene."""
        found = asked(scene, self.rng, plain=self.plain)
        return [q for q in found if q.aspect in (*PLAIN_INSTRUCTION, "category", "only")] if self.plain else found

    def unique(self, scene: WideScene) -> Asked:
        """A question that the scene answers."""
        return self.rng.choice([q for q in self.asked(scene) if q.answer != NOTHING and q.aspect not in _NOT_OF_ONE])

    def wrong(self, scene: WideScene) -> list[Asked]:
        """Questions to which the scene has no answer."""
        return [q for q in asked(scene, self.rng, plain=self.plain) if q.answer == NOTHING]

    def named(self, kind: str, question: str) -> str:
        """A question about one of several pictures, which names it by what it shows."""
        forms = ("in the picture with {k}, {q}", "{q} (in the one with {k})", "the picture shows {k}: {q}")
        return (forms[0] if self.plain else self.rng.choice(forms)).format(k=phrase(kind), q=question)

    def about_picture(self, scene: WideScene) -> tuple[str, str]:
        """A question about a picture, and the kind that answers it."""
        kind_of = {phrase(o.kind): o.kind for o in scene.objects}
        question = self.rng.choice([q for q in self.asked(scene) if q.answer in kind_of])
        return self.worded(question), kind_of[question.answer]


def passage_about(kind: str, rng: random.Random, fact: tuple[str, str, str] | None = None) -> tuple[str, str, str]:
    """A passage about a kind, a question that it answers, and the answer."""
    said, question, answer = fact or rng.choice(FACTS)
    thing = rng.choice(_FILL[said])
    return said.format(k=kind, x=thing), question.format(k=kind), answer.format(k=kind, x=thing)


def page_about(kind: str, rng: random.Random) -> str:
    """A passage of some sentences about a kind, as texts of other people's have: the first names it."""
    return " ".join((_sentence(rng.choice(_SAID), kind, rng), *further(rng)))


def further(rng: random.Random) -> list[str]:
    """Sentences that may follow any about a kind, and say nothing of what is asked."""
    return [_sentence(rng.choice(_MORE), "", rng) for _ in range(rng.choice((0, 1, 1, 2)))]


def _sentence(form: str, kind: str, rng: random.Random) -> str:
    what, other = rng.sample(_WHAT, 2)
    return form.format(k=kind, does=rng.choice(_DOES), what=what, other=other, when=rng.choice(_WHEN))
