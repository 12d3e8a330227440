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
from abc_rag.scenes.words import mention
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
    """One task: half of the time answering from sources, else judging, rewriting, or a question after others.

    Args:
        scenes: What the pictures of the batch show; at least four.
        rng: Random generator.
    """
    tasks = (_answering, _answering_about, _judging, _rewriting, _chatting)
    return rng.choices(tasks, weights=(38, 8, 25, 25, 4))[0](scenes, rng)


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
    """One to four sources; the question is about one of them, or about none."""
    count = rng.choice((1, 2, 2, 3, 3, 4))
    chosen = rng.sample(range(len(scenes)), count)
    pictured = [rng.random() < 0.7 for _ in chosen]
    sources, passages = [], []
    for at, is_picture in zip(chosen, pictured, strict=True):
        passage = _passage(rng.choice(scenes[at].objects).kind, rng)
        passages.append(passage)
        caption = said_of(scenes[at], rng) if rng.random() < 0.2 else ""
        name = rng.choice((f"notes.pdf, page {rng.randint(1, 9)}", "notes.md")) if rng.random() < 0.15 else ""
        sources.append(Source(_PLACEHOLDER, caption, name) if is_picture else Source(text=passage[0], name=name))
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
        unique = _unique(scene, rng)
        words = _named(rng.choice(placed).kind, unique.instruction, rng)
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


def _named(kind: str, question: str, rng: random.Random) -> str:
    """A question about one of several pictures, which names it by what it shows."""
    about = rng.choice(("in the picture with {k}, {q}", "{q} (in the one with {k})", "the picture shows {k}: {q}"))
    return about.format(k=phrase(kind), q=question)


def _about_picture(scene: WideScene, rng: random.Random) -> tuple[str, str]:
    """A question about a picture of its own, and the kind that answers it."""
    kind_of = {phrase(o.kind): o.kind for o in scene.objects}
    question = rng.choice([q for q in asked(scene, rng) if q.answer in kind_of])
    return question.instruction, kind_of[question.answer]


def _text_about(kind: str, rng: random.Random) -> str:
    return _passage(kind, rng)[0] if rng.random() < 0.6 else mention(kind, rng)


def _answering_about(scenes: Sequence[WideScene], rng: random.Random) -> Spoken:
    """A question about a picture of its own; the source about what answers it is cited, if there is one."""
    at, *others = rng.sample(range(len(scenes)), rng.choice((2, 3, 4)))
    words, kind = _about_picture(scenes[at], rng)
    wrong = {o.kind for o in scenes[at].objects} | {rng.choice(scenes[i].objects).kind for i in others}
    wrong.discard(kind)
    found: list[tuple[Source, tuple[int, ...]]]
    found = [(Source(text=_text_about(one, rng)), ()) for one in rng.sample(sorted(wrong), min(len(wrong), 3))]
    found += [
        (Source(_PLACEHOLDER), (i,))
        for i in others[:1]
        if rng.random() < 0.3 and all(o.kind != kind for o in scenes[i].objects)
    ]
    found = found[: rng.randint(1, 3)]
    answer = REFUSAL
    if rng.random() < 0.75 or not found:
        number = rng.randint(1, len(found) + 1)
        found.insert(number - 1, (Source(text=_text_about(kind, rng)), ()))
        answer = f"{phrase(kind)} [{number}]."
    pictures = (*(i for _, seen in found for i in seen), at)
    sources = [source for source, _ in found]
    return Spoken(answering(typed(words, rng), sources, image=_PLACEHOLDER), pictures, answer)


def _judging(scenes: Sequence[WideScene], rng: random.Random) -> Spoken:
    """Whether a picture or a passage is what a search or a question asks for."""
    judge = rng.choices((_judged_search, _judged_question, _judged_passage, _judged_about), weights=(50, 20, 20, 10))[0]
    messages, pictures, right = judge(scenes, rng)
    return Spoken(messages, pictures, "yes" if right else "no")


_Judged = tuple[list[Message], tuple[int, ...], bool]


def _judged_search(scenes: Sequence[WideScene], rng: random.Random) -> _Judged:
    at, other = rng.sample(range(len(scenes)), 2)
    right = rng.random() < 0.5
    search = searched(scenes[at] if right or rng.random() < 0.75 else scenes[other], rng, edited=not right)
    caption = said_of(scenes[at], rng) if rng.random() < 0.2 else ""
    return judging(typed(search.text, rng), Source(_PLACEHOLDER, caption)), (at,), search.fits(scenes[at])


def _judged_question(scenes: Sequence[WideScene], rng: random.Random) -> _Judged:
    """A question that a picture answers; or one about another picture, or about what the picture does not have."""
    at, other = rng.sample(range(len(scenes)), 2)
    source, there = Source(_PLACEHOLDER), [o.kind for o in scenes[at].objects]
    absent = [o.kind for o in scenes[other].objects if o.kind not in there]
    draw = rng.random()
    if draw < 0.25 and absent:
        words = _named(rng.choice(absent), _unique(scenes[other], rng).instruction, rng)
        return judging(typed(words, rng), source), (at,), False
    if draw < 0.35:
        return judging(typed(_passage(rng.choice(there), rng)[1], rng), source), (at,), False
    wrong = [q for q in asked(scenes[at], rng) if q.answer == NOTHING] if draw < 0.5 else []
    words = (rng.choice(wrong) if wrong else _unique(scenes[at], rng)).instruction
    words = _named(rng.choice(there), words, rng) if rng.random() < 0.6 else words
    return judging(typed(words, rng), source), (at,), not wrong


def _judged_passage(scenes: Sequence[WideScene], rng: random.Random) -> _Judged:
    at, other = rng.sample(range(len(scenes)), 2)
    right = rng.random() < 0.5
    kind, another = rng.choice(scenes[at].objects).kind, rng.choice(scenes[other].objects).kind
    passage, question, _ = _passage(kind, rng)
    search = searched(scenes[at], rng)
    if not right and search.exact and rng.random() < 0.5:
        # Where something is in a picture, no passage says.
        return judging(typed(search.text, rng), Source(text=passage)), (), False
    if not right:
        question = _passage(another if rng.random() < 0.7 else kind, rng)[1]
        right = question == _passage_question(passage, kind)
    return judging(typed(question, rng), Source(text=passage)), (), right


def _judged_about(scenes: Sequence[WideScene], rng: random.Random) -> _Judged:
    """Whether a source is about what answers a question about another picture."""
    at, other = rng.sample(range(len(scenes)), 2)
    words, kind = _about_picture(scenes[at], rng)
    if rng.random() < 0.2:
        asked_for = judging(typed(words, rng), Source(_PLACEHOLDER), image=_PLACEHOLDER)
        return asked_for, (at, other), any(o.kind == kind for o in scenes[other].objects)
    wrong = {o.kind for i in (at, other) for o in scenes[i].objects} - {kind}
    right = rng.random() < 0.5 or not wrong
    text = _text_about(kind if right else rng.choice(sorted(wrong)), rng)
    return judging(typed(words, rng), Source(text=text), image=_PLACEHOLDER), (at,), right


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
            return _following(scene, rng) if rng.random() < 0.7 else _following_fact(scene, rng)
        pictured = rng.random() < 0.85
        return Spoken(
            rewriting(typed(question.instruction, rng), has_image=pictured, examples=False), (), answer, exact=True
        )
    kind = rng.choice(scene.objects).kind
    if rng.random() < 0.2:
        # The record that answers is a passage about a thing, or the picture that the question names.
        words, answer = _passage(kind, rng)[1], rewriting_answer(WHOLE_PICTURE, f"the {kind}", "any")
        if rng.random() < 0.5:
            words = _named(kind, _unique(scene, rng).instruction, rng)
            answer = rewriting_answer(WHOLE_PICTURE, phrase(kind), "image")
        return Spoken(rewriting(typed(words, rng), examples=False), (), answer, exact=True)
    if rng.random() < 0.15:
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
        Message("assistant", [Text(phrase(scene.objects[0].kind) + rng.choice(("", ".")))]),
    ]
    pictured = rng.random() < 0.6
    if not pictured:
        history = [replace(history[0], parts=[Text(before)]), history[1]]
    answer = rewriting_answer(
        _PLAIN_INSTRUCTION[second], _PLAIN_TARGET[second], "any", question=_PLAIN_INSTRUCTION[second]
    )
    # A retriever takes the picture of an earlier turn along, where it sees that the question needs one.
    asked_again = rewriting(
        typed(short, rng), has_image=pictured and rng.random() < 0.85, history=history, examples=False
    )
    return Spoken(asked_again, (), answer, exact=True)


def _following_fact(scene: WideScene, rng: random.Random) -> Spoken:
    """A question about the thing of the question before."""
    kind = rng.choice(scene.objects).kind
    (_, before, said), (_, again, _) = _passage(kind, rng), _passage(kind, rng)
    history = [Message("user", [Text(typed(before, rng))]), Message("assistant", [Text(f"{said}.")])]
    short = rng.choice(("and {}", "{}", "but {}")).format(again.replace(f"the {kind}", "it"))
    answer = rewriting_answer(WHOLE_PICTURE, f"the {kind}", "any", question=again)
    return Spoken(rewriting(typed(short, rng), history=history, examples=False), (), answer, exact=True)


def _chatting(scenes: Sequence[WideScene], rng: random.Random) -> Spoken:
    """A question about a picture after one or two others; or one that stands before its picture."""
    at = rng.randrange(len(scenes))
    turns = [
        (typed(q.instruction, rng), q.answer) for q in rng.sample(asked(scenes[at], rng), rng.choice((1, 2, 2, 3)))
    ]
    sides = [o for o in scenes[at].objects if o.side != "middle"]
    if len(turns) > 1 and len(sides) == 2 and rng.random() < 0.5:
        first, second = rng.sample(sides, 2)
        short = rng.choice(("and {}?", "what about {}?", "{}?")).format(choose(second.side, "loc", rng, unseen=False))
        turns[-2:] = [
            (typed(_PLAIN_INSTRUCTION[first.side], rng), phrase(first.kind)),
            (typed(short, rng), phrase(second.kind)),
        ]
    messages: list[Message] = []
    for words, answer in turns:
        messages += [Message("user", [Text(words)]), Message("assistant", [Text(answer)])]
    parts: list[Text | Image] = [Image(_PLACEHOLDER), Text(turns[0][0])]
    messages[0] = Message("user", parts if len(turns) > 1 and rng.random() < 0.7 else parts[::-1])
    return Spoken(messages[:-1], (at,), turns[-1][1])
