"""Conversations for abc-mini's base: questions about a picture, and what `abc_rag.models.tasks` asks of a model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import PIL.Image

from abc_rag.models.tasks import REFUSAL, WHOLE_PICTURE, Source, Wants, answering, judging, rewriting, rewriting_answer
from abc_rag.scenes.asking import NOTHING, Asked, asked
from abc_rag.scenes.lexicon import choose
from abc_rag.scenes.searching import said_of, searched
from abc_rag.scenes.typing import typed
from abc_rag.scenes.wide import WideScene
from abc_rag.scenes.world import phrase
from abc_rag.types import Image, Message, Text

__all__ = ["Spoken", "fixed_texts", "told", "worked"]


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


_PLACEHOLDER = PIL.Image.new("RGB", (1, 1))
"""Stands for a picture in a conversation; the batch has the picture itself."""


def fixed_texts() -> list[str]:
    """The words of the tasks themselves."""
    conversations = (
        rewriting("a", examples=True),
        rewriting("a", history=[Message("user", [Text("a")])], examples=True),
        judging("a", Source(text="a")),
        answering("a", [Source(text="a")]),
    )
    return [REFUSAL, *(p.text for c in conversations for m in c for p in m.parts if isinstance(p, Text))]


def told(at: int, scene: WideScene, rng: random.Random, turns: int) -> list[Spoken]:
    """Some questions about one picture, each a conversation of its own.

    Args:
        at: Position of the picture.
        scene: What it shows.
        rng: Random generator.
        turns: Most questions.
    """
    found = asked(scene, rng)
    rng.shuffle(found)
    picture, spoken = Image(_PLACEHOLDER), []
    for question in found[:turns]:
        words = Text(typed(question.instruction, rng))
        spoken.append(Spoken([Message("user", [picture, words])], (at,), question.answer))
    return spoken


def worked(scenes: Sequence[WideScene], rng: random.Random) -> Spoken:
    """One task: half of the time answering from sources, else judging or rewriting.

    Args:
        scenes: What the pictures of the batch show.
        rng: Random generator.
    """
    task = rng.choices((_answering, _judging, _rewriting), weights=(45, 25, 30))[0]
    return task(scenes, rng)


def _unique(scene: WideScene, rng: random.Random) -> Asked:
    """A question that the scene answers."""
    return rng.choice(
        [q for q in asked(scene, rng) if q.answer != NOTHING and q.aspect not in ("count", "both", "kind", "where")]
    )


def _passage(kind: str, rng: random.Random) -> tuple[str, str, str]:
    """A passage about a kind, a question that it answers, and the answer."""
    fact, question, answer = rng.choice(_FACTS)
    thing = rng.choice(_FILL[fact])
    return (
        fact.format(k=kind, x=thing),
        question.format(k=kind),
        answer.format(k=kind, x=thing),
    )


_FILL = {
    "The {k} is found in {x}.": ("a garden", "the house", "the woods", "a town", "the north", "a small shop"),
    "The {k} was bought for {x} coins.": ("two", "three", "ten", "five", "seven"),
    "A {k} belongs to {x}.": ("a king", "a farmer", "my sister", "the school", "an old man"),
    "The {k} likes {x}.": ("rain", "the sun", "music", "warm milk", "silence"),
    "The {k} is made in {x}.": ("winter", "spring", "summer", "autumn", "the city"),
}  # fmt: skip
_FACTS = (
    ("The {k} is found in {x}.", "where is the {k} found?", "in {x}"),
    ("The {k} was bought for {x} coins.", "how many coins was the {k}?", "{x}"),
    ("A {k} belongs to {x}.", "who has the {k}?", "{x}"),
    ("The {k} likes {x}.", "what does the {k} like?", "{x}"),
    ("The {k} is made in {x}.", "when or where is the {k} made?", "in {x}"),
)


def _answering(scenes: Sequence[WideScene], rng: random.Random) -> Spoken:
    """One to three sources; the question is about one of them, or about none."""
    count = rng.choice((1, 2, 2, 3))
    chosen = rng.sample(range(len(scenes)), count)
    pictured = [rng.random() < 0.7 for _ in chosen]
    sources, passages = [], []
    for at, is_picture in zip(chosen, pictured, strict=True):
        passage = _passage(rng.choice(scenes[at].objects).kind, rng)
        passages.append(passage)
        caption = said_of(scenes[at], rng) if rng.random() < 0.2 else ""
        name = f"notes.pdf, page {rng.randint(1, 9)}" if not is_picture and rng.random() < 0.2 else ""
        sources.append(Source(_PLACEHOLDER, caption) if is_picture else Source(text=passage[0], name=name))
    target = rng.randrange(count)
    pictures = tuple(at for at, is_picture in zip(chosen, pictured, strict=True) if is_picture)
    if rng.random() < 0.3:
        return _refused(scenes, sources, chosen, pictures, rng)
    if not pictured[target]:
        if any(p[1] == passages[target][1] for i, p in enumerate(passages) if i != target):
            return _answering(scenes, rng)
        _, question, answer = passages[target]
        return Spoken(answering(typed(question, rng), sources), pictures, f"{answer} [{target + 1}].")
    scene = scenes[chosen[target]]
    if sum(pictured) > 1:
        # Of several pictures, the question names the one it means by what it shows.
        others = {o.kind for i, at in enumerate(chosen) if i != target for o in scenes[at].objects}
        placed = [o for o in scene.objects if o.kind not in others]
        if not placed:
            return _answering(scenes, rng)
        kind = rng.choice(placed).kind
        about = rng.choice(("in the picture with {k}, {q}", "{q} (in the one with {k})", "the picture shows {k}: {q}"))
        unique = _unique(scene, rng)
        words = about.format(k=phrase(kind), q=unique.instruction)
    else:
        unique = _unique(scene, rng)
        words = unique.instruction
    return Spoken(answering(typed(words, rng), sources), pictures, f"{unique.answer} [{target + 1}].")


def _refused(
    scenes: Sequence[WideScene],
    sources: Sequence[Source],
    chosen: Sequence[int],
    pictures: tuple[int, ...],
    rng: random.Random,
) -> Spoken:
    there = {o.kind for at in chosen for o in scenes[at].objects}
    absent = rng.choice([o.kind for s in scenes for o in s.objects if o.kind not in there] or ["zebra"])
    words = rng.choice(
        (
            _passage(absent, rng)[1], f"what is left of the {absent}?", f"what is next to the {absent}?",
            f"what is above the {absent}?", f"is the {absent} big or small?", f"which side is the {absent} on?",
            f"in the picture with {phrase(absent)}, what is the background?", f"tell me about the {absent}",
        )
    )  # fmt: skip
    if pictures and rng.random() < 0.5 and len(pictures) == 1:
        wrong = [q for q in asked(scenes[pictures[0]], rng) if q.answer == NOTHING]
        words = rng.choice(wrong).instruction
    return Spoken(answering(typed(words, rng), sources), pictures, REFUSAL)


def _judging(scenes: Sequence[WideScene], rng: random.Random) -> Spoken:
    """Whether a picture is one that a search asks for; or a passage."""
    at, other = rng.sample(range(len(scenes)), 2)
    right = rng.random() < 0.5
    if rng.random() < 0.2:
        kind, another = rng.choice(scenes[at].objects).kind, rng.choice(scenes[other].objects).kind
        passage, question, _ = _passage(kind, rng)
        if not right:
            question = _passage(another, rng)[1]
            right = question == _passage_question(passage, kind)
        return Spoken(judging(typed(question, rng), Source(text=passage)), (), "yes" if right else "no")
    search = searched(scenes[at] if right or rng.random() < 0.75 else scenes[other], rng, edited=not right)
    fits = search.fits(scenes[at])
    caption = said_of(scenes[at], rng) if rng.random() < 0.2 else ""
    asked_for = judging(typed(search.text, rng), Source(_PLACEHOLDER, caption))
    return Spoken(asked_for, (at,), "yes" if fits else "no")


def _passage_question(passage: str, kind: str) -> str | None:
    for fact, question, _ in _FACTS:
        if any(passage == fact.format(k=kind, x=x) for x in _FILL[fact]):
            return question.format(k=kind)
    return None


_PLAIN_INSTRUCTION = {
    "left": "what is on the left?", "right": "what is on the right?", "top": "what is at the top?",
    "bottom": "what is at the bottom?", "big": "which object is bigger?", "small": "which object is smaller?",
    "background": "what colour is the background?",
}  # fmt: skip
_PLAIN_TARGET = {
    "left": "the object on the left", "right": "the object on the right", "top": "the object at the top",
    "bottom": "the object at the bottom", "big": "the bigger object", "small": "the smaller object",
    "background": "the background",
}  # fmt: skip


def _rewriting(scenes: Sequence[WideScene], rng: random.Random) -> Spoken:
    scene = rng.choice(scenes)
    if rng.random() < 0.3:
        question = rng.choice([q for q in asked(scene, rng) if q.aspect in _PLAIN_INSTRUCTION])
        answer = rewriting_answer(_PLAIN_INSTRUCTION[question.aspect], _PLAIN_TARGET[question.aspect], "any")
        if rng.random() < 0.3:
            return _following(scene, rng)
        return Spoken(
            rewriting(typed(question.instruction, rng), has_image=True, examples=False), (), answer, exact=True
        )
    if rng.random() < 0.15:
        kind = rng.choice(scene.objects).kind
        words = rng.choice(
            ("find the passage about {k}", "what do the texts say about {k}?", "a document on {k}", "text about {k}")
        )
        answer = rewriting_answer(WHOLE_PICTURE, f"the {kind}", "text")
        return Spoken(rewriting(typed(words.format(k=f"the {kind}"), rng), examples=False), (), answer, exact=True)
    search = searched(scene, rng)
    instruction = _PLAIN_INSTRUCTION.get(search.aspect, WHOLE_PICTURE)
    if search.aspect == "category":
        instruction = f"which {search.category} is in the picture?"
    wants: Wants = "image" if search.pictured else "any"
    answer = rewriting_answer(instruction, search.plain, wants)
    return Spoken(rewriting(typed(search.text, rng), examples=False), (), answer, exact=True)


def _following(scene: WideScene, rng: random.Random) -> Spoken:
    first, second = rng.choice(
        (("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top"), ("big", "small"), ("small", "big"))
    )
    before = typed(_PLAIN_INSTRUCTION[first], rng)
    part = "loc" if first in ("left", "right", "top", "bottom") else "cmp"
    short = rng.choice(("and {}?", "what about {}?", "{}?", "and {} then?")).format(
        choose(second, part, rng, unseen=False)
    )
    history = [
        Message("user", [Image(_PLACEHOLDER), Text(before)]),
        Message("assistant", [Text(phrase(scene.objects[0].kind))]),
    ]
    if rng.random() < 0.5:
        history = [replace(history[0], parts=[Text(before)]), history[1]]
    answer = rewriting_answer(
        _PLAIN_INSTRUCTION[second], _PLAIN_TARGET[second], "any", question=_PLAIN_INSTRUCTION[second]
    )
    return Spoken(rewriting(typed(short, rng), history=history, examples=False), (), answer, exact=True)
