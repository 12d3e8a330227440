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


def worked(scenes: Sequence[WideScene], rng: random.Random, turns: int = 1) -> list[Spoken]:
    """A task, asked up to ``turns`` times in conversations that begin alike.

    Several questions are answered from the same sources, several sources are judged by the same question, and several
    questions are rewritten; a question after others stands alone.

    Args:
        scenes: What the pictures of the batch show; at least four.
        rng: Random generator.
        turns: Most conversations.
    """
    tasks = (_answering, _answering_about, _judging, _rewriting, _chatting)
    return rng.choices(tasks, weights=(36, 14, 33, 12, 5))[0](scenes, rng, turns)


def _unique(scene: WideScene, rng: random.Random) -> Asked:
    """A question that the scene answers."""
    return rng.choice(
        [q for q in asked(scene, rng) if q.answer != NOTHING and q.aspect not in ("count", "both", "kind", "where")]
    )


def _passage(kind: str, rng: random.Random, fact: tuple[str, str, str] | None = None) -> tuple[str, str, str]:
    """A passage about a kind, a question that it answers, and the answer."""
    said, question, answer = fact or rng.choice(_FACTS)
    thing = rng.choice(_FILL[said])
    return said.format(k=kind, x=thing), question.format(k=kind), answer.format(k=kind, x=thing)


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


def _answering(scenes: Sequence[WideScene], rng: random.Random, turns: int) -> list[Spoken]:
    """One to four sources; each question is about one of them, or about none."""
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
    pictures = tuple(at for at, is_picture in zip(chosen, pictured, strict=True) if is_picture)
    found: dict[str, str] = {}
    for _ in range(3 * turns):
        if len(found) == turns:
            break
        target, answered = rng.randrange(count), None
        if rng.random() < 0.7 and pictured[target]:
            answered = _of_picture([scenes[at] for at in chosen], pictured, target, rng)
        elif rng.random() < 0.7 and sum(passage[1] == passages[target][1] for passage in passages) == 1:
            answered = None if pictured[target] else passages[target][1:]
        words, answer = answered or (_unanswered(scenes, chosen, pictures, rng), "")
        found[words] = f"{answer} [{target + 1}]." if answer else REFUSAL
    return [Spoken(answering(typed(words, rng), sources), pictures, answer) for words, answer in found.items()]


def _of_picture(
    scenes: Sequence[WideScene], pictured: Sequence[bool], target: int, rng: random.Random
) -> tuple[str, str] | None:
    """A question about one of the sources, and its answer; of several pictures it names the one that it means."""
    question = _unique(scenes[target], rng)
    if sum(pictured) == 1:
        return question.instruction, question.answer
    others = {o.kind for i, scene in enumerate(scenes) if i != target for o in scene.objects}
    own = [o.kind for o in scenes[target].objects if o.kind not in others]
    return (_named(rng.choice(own), question.instruction, rng), question.answer) if own else None


def _unanswered(
    scenes: Sequence[WideScene], chosen: Sequence[int], pictures: tuple[int, ...], rng: random.Random
) -> str:
    """A question that none of the chosen answers."""
    wrong = [q for q in asked(scenes[pictures[0]], rng) if q.answer == NOTHING] if len(pictures) == 1 else []
    if wrong and rng.random() < 0.5:
        return rng.choice(wrong).instruction
    there = {o.kind for at in chosen for o in scenes[at].objects}
    absent = rng.choice([o.kind for s in scenes for o in s.objects if o.kind not in there] or ["zebra"])
    return rng.choice(
        (
            _passage(absent, rng)[1], f"what is left of the {absent}?", f"what is next to the {absent}?",
            f"what is above the {absent}?", f"is the {absent} big or small?", f"which side is the {absent} on?",
            f"in the picture with {phrase(absent)}, what is the background?", f"tell me about the {absent}",
            f"is there {phrase(absent)}, and what is beside it?",
            _named(absent, rng.choice(asked(rng.choice(scenes), rng)).instruction, rng),
        )
    )  # fmt: skip


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


def _answering_about(scenes: Sequence[WideScene], rng: random.Random, turns: int) -> list[Spoken]:
    """Questions about a picture of their own; the source about what answers one is cited, if there is any."""
    at, *others = rng.sample(range(len(scenes)), 4)
    own = {o.kind for o in scenes[at].objects}
    wrong = {rng.choice(scenes[i].objects).kind for i in others} - own
    about = [kind for kind in own if rng.random() < 0.75] + rng.sample(sorted(wrong), rng.randint(0, len(wrong)))
    found: list[tuple[Source, str, tuple[int, ...]]]
    found = [(Source(text=_text_about(kind, rng)), kind, ()) for kind in about or sorted(wrong) or sorted(own)]
    if rng.random() < 0.3 and own.isdisjoint(o.kind for o in scenes[others[0]].objects):
        found.append((Source(_PLACEHOLDER), "", (others[0],)))
    rng.shuffle(found)
    found = found[:4]
    sources, kinds = [source for source, _, _ in found], [kind for _, kind, _ in found]
    pictures = (*(i for _, _, seen in found for i in seen), at)
    spoken = []
    for _ in range(turns):
        words, kind = _about_picture(scenes[at], rng)
        answer = f"{phrase(kind)} [{kinds.index(kind) + 1}]." if kind in kinds else REFUSAL
        spoken.append(Spoken(answering(typed(words, rng), sources, image=_PLACEHOLDER), pictures, answer))
    return spoken


def _judging(scenes: Sequence[WideScene], rng: random.Random, turns: int) -> list[Spoken]:
    """Which pictures and passages are what a search or a question asks for."""
    judge = rng.choices((_judged_search, _judged_question, _judged_passage, _judged_about), weights=(40, 20, 20, 20))[0]
    words, image, found = judge(scenes, rng)
    words = typed(words, rng)
    rng.shuffle(found)
    own = () if image is None else (image,)
    return [
        Spoken(
            judging(words, source, image=None if image is None else _PLACEHOLDER),
            (*own, *seen),
            "yes" if right else "no",
        )
        for source, seen, right in found[:turns]
    ]


_Judged = tuple[str, "int | None", list[tuple[Source, tuple[int, ...], bool]]]
"""A question, the position of a picture that it is about, and sources with their pictures and what is right."""


def _judged_search(scenes: Sequence[WideScene], rng: random.Random) -> _Judged:
    at, *others = rng.sample(range(len(scenes)), rng.choice((2, 2, 3, 4)))
    search = searched(scenes[at], rng, edited=rng.random() < 0.4)
    found: list[tuple[Source, tuple[int, ...], bool]] = []
    for i in (at, *others):
        caption = said_of(scenes[i], rng) if rng.random() < 0.2 else ""
        found.append((Source(_PLACEHOLDER, caption), (i,), search.fits(scenes[i])))
    if search.exact and rng.random() < 0.3:
        # Where something is in a picture, no passage says.
        found.append((Source(text=_passage(rng.choice(scenes[at].objects).kind, rng)[0]), (), False))
    return search.text, None, found


def _judged_question(scenes: Sequence[WideScene], rng: random.Random) -> _Judged:
    """A question that a picture answers; or one about another picture, or about what the picture does not have."""
    at, *others = rng.sample(range(len(scenes)), 3)
    wrong = [q for q in asked(scenes[at], rng) if q.answer == NOTHING] if rng.random() < 0.25 else []
    words = (rng.choice(wrong) if wrong else _unique(scenes[at], rng)).instruction
    found: list[tuple[Source, tuple[int, ...], bool]] = [(Source(_PLACEHOLDER), (at,), not wrong)]
    if rng.random() < 0.6:
        kind = rng.choice(scenes[at].objects).kind
        words = _named(kind, words, rng)
        found += [(Source(_PLACEHOLDER), (i,), False) for i in others if all(o.kind != kind for o in scenes[i].objects)]
    if rng.random() < 0.3:
        found.append((Source(text=_passage(rng.choice(scenes[at].objects).kind, rng)[0]), (), False))
    return words, None, found


def _judged_passage(scenes: Sequence[WideScene], rng: random.Random) -> _Judged:
    """A question of fact: the passage that answers it, others about the same or by the same words, and a picture."""
    at, other = rng.sample(range(len(scenes)), 2)
    kind, another = rng.choice(scenes[at].objects).kind, rng.choice(scenes[other].objects).kind
    fact, second = rng.sample(_FACTS, 2)
    passage, question, _ = _passage(kind, rng, fact)
    found: list[tuple[Source, tuple[int, ...], bool]] = [
        (Source(text=passage), (), True),
        (Source(text=_passage(kind, rng, second)[0]), (), False),
        (Source(_PLACEHOLDER), (at,), False),
    ]
    if another != kind:
        found.append((Source(text=_passage(another, rng, fact)[0]), (), False))
    return question, None, found


def _judged_about(scenes: Sequence[WideScene], rng: random.Random) -> _Judged:
    """Whether a source is about what answers a question about another picture."""
    at, other = rng.sample(range(len(scenes)), 2)
    words, kind = _about_picture(scenes[at], rng)
    wrong = sorted({o.kind for i in (at, other) for o in scenes[i].objects} - {kind})
    found: list[tuple[Source, tuple[int, ...], bool]] = [(Source(text=_text_about(kind, rng)), (), True)]
    found += [(Source(text=_text_about(one, rng)), (), False) for one in wrong]
    if rng.random() < 0.4:
        found.append((Source(_PLACEHOLDER), (other,), any(o.kind == kind for o in scenes[other].objects)))
    return words, at, found


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


def _rewriting(scenes: Sequence[WideScene], rng: random.Random, turns: int) -> list[Spoken]:
    return [_rewritten(scenes, rng) for _ in range(turns)]


def _rewritten(scenes: Sequence[WideScene], rng: random.Random) -> Spoken:
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


def _chatting(scenes: Sequence[WideScene], rng: random.Random, turns: int) -> list[Spoken]:
    """A question about a picture after one or two others; or one that stands before its picture."""
    at = rng.randrange(len(scenes))
    before = [
        (typed(q.instruction, rng), q.answer) for q in rng.sample(asked(scenes[at], rng), rng.choice((1, 2, 2, 3)))
    ]
    sides = [o for o in scenes[at].objects if o.side != "middle"]
    if len(before) > 1 and len(sides) == 2 and rng.random() < 0.5:
        first, second = rng.sample(sides, 2)
        short = rng.choice(("and {}?", "what about {}?", "{}?")).format(choose(second.side, "loc", rng, unseen=False))
        before[-2:] = [
            (typed(_PLAIN_INSTRUCTION[first.side], rng), phrase(first.kind)),
            (typed(short, rng), phrase(second.kind)),
        ]
    messages: list[Message] = []
    for words, answer in before:
        messages += [Message("user", [Text(words)]), Message("assistant", [Text(answer)])]
    parts: list[Text | Image] = [Image(_PLACEHOLDER), Text(before[0][0])]
    messages[0] = Message("user", parts if len(before) > 1 and rng.random() < 0.7 else parts[::-1])
    return [Spoken(messages[:-1], (at,), before[-1][1])]
