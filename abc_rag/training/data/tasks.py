"""Conversations for abc-mini's base: questions about a picture, and what `abc_rag.models.tasks` asks of a model."""

from __future__ import annotations

import random
from collections.abc import Sequence

from abc_rag.models.tasks import REFUSAL, Source, answering, judging, rewriting
from abc_rag.scenes.asking import asked
from abc_rag.scenes.lexicon import choose
from abc_rag.scenes.searching import said_of, searched
from abc_rag.scenes.typing import typed
from abc_rag.scenes.wide import WideScene
from abc_rag.scenes.words import mention
from abc_rag.scenes.world import phrase
from abc_rag.training.data.rewriting import rewritten
from abc_rag.training.data.spoken import (
    FACTS,
    PLACEHOLDER,
    PLAIN_INSTRUCTION,
    Asker,
    Spoken,
    further,
    page_about,
    passage_about,
)
from abc_rag.types import Image, Message, Text

__all__ = ["fixed_texts", "told", "worked"]

# What is soon learnt is asked seldom, what is learnt late often: where a thing is, and which is the smaller.
_SELDOM = {"count": 3.0, "kind": 2.0, "background": 2.0, "nothing": 1.5, "where": 0.3, "big": 0.6, "small": 0.6}
_WEIGHTS, _FROM_ONE = (25, 14, 46, 10, 5), (24, 34, 30, 10, 2)  # of the tasks, in the order of `worked`


def fixed_texts() -> list[str]:
    """The words of the tasks themselves."""
    conversations = (
        rewriting("a", examples=True),
        rewriting("a", history=[Message("user", [Text("a")])], examples=True),
        judging("a", Source(text="a")),
        answering("a", [Source(text="a")]),
    )
    return [REFUSAL, *(p.text for c in conversations for m in c for p in m.parts if isinstance(p, Text))]


def told(at: int, scene: WideScene, rng: random.Random, turns: int, *, plain: float = 0.0) -> list[Spoken]:
    """Some questions about one picture, each a conversation of its own.

    Args:
        at: Position of the picture.
        scene: What it shows.
        rng: Random generator.
        turns: Most questions.
        plain: Probability of words that are always the same; see `worked`.
    """
    ask = Asker(rng, rng.random() < plain)
    found = ask.asked(scene)
    found.sort(key=lambda question: rng.random() ** _SELDOM.get(question.aspect, 1.0), reverse=True)
    last = rng.random() < 0.3  # the picture behind the question, which it then is read in the light of

    def turn(words: str) -> Message:
        parts: list[Text | Image] = [Image(PLACEHOLDER), Text(words)]
        return Message("user", parts[::-1] if last else parts)

    return [Spoken([turn(ask.typed(ask.worded(question)))], (at,), question.answer) for question in found[:turns]]


def worked(
    scenes: Sequence[WideScene], rng: random.Random, turns: int = 1, *, plain: float = 0.0, sources: int = 4
) -> list[Spoken]:
    """A task, asked up to ``turns`` times in conversations that begin alike.

    Several questions are answered from the same sources, several sources are judged by the same question, and several
    questions are rewritten; a question after others stands alone.

    Args:
        scenes: What the pictures of the batch show; at least four.
        rng: Random generator.
        turns: Most conversations.
        plain: Probability of words that are always the same, without noise. What matches a question with a source is
            learnt from these at first: from the others alone, five hundred steps taught nothing but "no".
        sources: Most sources of an answer. From up to four at once, to tell whether one says what a picture shows is
            not learnt in a thousand steps.
    """
    tasks = (_answering, _answering_about, _judging, _rewriting, _chatting)
    task = rng.choices(tasks, weights=_WEIGHTS if sources > 1 else _FROM_ONE)[0]
    return task(scenes, Asker(rng, rng.random() < plain, sources), turns)


def _answering(scenes: Sequence[WideScene], ask: Asker, turns: int) -> list[Spoken]:
    """One source or several; each question is about one of them, or about none."""
    rng = ask.rng
    count = min(rng.choice((1, 1, 1, 2, 3, 4)), ask.sources)
    chosen = rng.sample(range(len(scenes)), count)
    pictured = [rng.random() < 0.7 for _ in chosen]
    sources, passages = [], []
    for at, is_picture in zip(chosen, pictured, strict=True):
        passage = passage_about(rng.choice(scenes[at].objects).kind, rng)
        passages.append(passage)
        caption = said_of(scenes[at], rng) if rng.random() < 0.2 else ""
        name = rng.choice((f"notes.pdf, page {rng.randint(1, 9)}", "notes.md")) if rng.random() < 0.15 else ""
        text = _told_of(passage[0], rng)
        sources.append(Source(PLACEHOLDER, caption, name) if is_picture else Source(text=text, name=name))
    pictures = tuple(at for at, is_picture in zip(chosen, pictured, strict=True) if is_picture)
    found: dict[str, str] = {}
    for _ in range(3 * turns):
        if len(found) == turns:
            break
        target, answered = rng.randrange(count), None
        if rng.random() < 0.7 and pictured[target]:
            answered = _of_picture([scenes[at] for at in chosen], pictured, target, ask)
        elif rng.random() < 0.7 and sum(passage[1] == passages[target][1] for passage in passages) == 1:
            answered = None if pictured[target] else passages[target][1:]
        words, answer = answered or (_unanswered(scenes, chosen, pictures, ask), "")
        found[words] = f"{answer} [{target + 1}]." if answer else REFUSAL
    return [Spoken(answering(ask.typed(words), sources), pictures, answer) for words, answer in found.items()]


def _of_picture(
    scenes: Sequence[WideScene], pictured: Sequence[bool], target: int, ask: Asker
) -> tuple[str, str] | None:
    """A question about one of the sources, and its answer; it names which of several pictures it means, or the one."""
    question = ask.unique(scenes[target])
    # One picture needs no name. With one it has to be answered all the same: else a name alone would mean "absent".
    if sum(pictured) == 1 and ask.rng.random() < 0.6:
        return ask.worded(question), question.answer
    others = {o.kind for i, scene in enumerate(scenes) if i != target for o in scene.objects}
    own = [o.kind for o in scenes[target].objects if o.kind not in others]
    return (ask.named(ask.rng.choice(own), ask.worded(question)), question.answer) if own else None


def _unanswered(scenes: Sequence[WideScene], chosen: Sequence[int], pictures: tuple[int, ...], ask: Asker) -> str:
    """A question that none of the chosen answers."""
    rng = ask.rng
    wrong = ask.wrong(scenes[pictures[0]]) if len(pictures) == 1 else []
    if wrong and rng.random() < 0.5:
        return ask.worded(rng.choice(wrong))
    there = {o.kind for at in chosen for o in scenes[at].objects}
    absent = rng.choice([o.kind for s in scenes for o in s.objects if o.kind not in there] or ["zebra"])
    question = ask.worded(rng.choice(ask.asked(rng.choice(scenes))))
    if ask.plain:
        return rng.choice((passage_about(absent, rng)[1], ask.named(absent, question)))
    return rng.choice(
        (
            passage_about(absent, rng)[1], f"what is left of the {absent}?", f"what is next to the {absent}?",
            f"what is above the {absent}?", f"is the {absent} big or small?", f"which side is the {absent} on?",
            f"in the picture with {phrase(absent)}, what is the background?", f"tell me about the {absent}",
            f"is there {phrase(absent)}, and what is beside it?",
            ask.named(absent, question),
        )
    )  # fmt: skip


def _text_about(kind: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.4:
        return page_about(kind, rng)
    return _told_of(passage_about(kind, rng)[0], rng) if draw < 0.7 else mention(kind, rng)


def _told_of(fact: str, rng: random.Random) -> str:
    """A passage: a fact, alone or with sentences behind it."""
    return fact if rng.random() < 0.6 else " ".join((fact, *further(rng)))


def _answering_about(scenes: Sequence[WideScene], ask: Asker, turns: int) -> list[Spoken]:
    """Questions about a picture of their own; the source about what answers one is cited, if there is any."""
    rng = ask.rng
    at, *others = rng.sample(range(len(scenes)), 4)
    own = {o.kind for o in scenes[at].objects}
    wrong = {rng.choice(scenes[i].objects).kind for i in others} - own
    about = [kind for kind in sorted(own) if rng.random() < 0.75] + rng.sample(
        sorted(wrong), rng.randint(0, len(wrong))
    )
    found: list[tuple[Source, str, tuple[int, ...]]]
    found = [(Source(text=_text_about(kind, rng)), kind, ()) for kind in about or sorted(wrong) or sorted(own)]
    if rng.random() < 0.3 and own.isdisjoint(o.kind for o in scenes[others[0]].objects):
        found.append((Source(PLACEHOLDER), "", (others[0],)))
    rng.shuffle(found)
    found = found[: min(rng.choice((1, 1, 2, 4)), ask.sources)]
    sources, kinds = [source for source, _, _ in found], [kind for _, kind, _ in found]
    pictures = (at, *(i for _, _, seen in found for i in seen))
    answers = {}
    for _ in range(turns):
        words, kind = ask.about_picture(scenes[at])
        answers[words] = f"{phrase(kind)} [{kinds.index(kind) + 1}]." if kind in kinds else REFUSAL
    return [
        Spoken(answering(ask.typed(words), sources, image=PLACEHOLDER), pictures, answer)
        for words, answer in answers.items()
    ]


def _judging(scenes: Sequence[WideScene], ask: Asker, turns: int) -> list[Spoken]:
    """Which pictures and passages are what a search or a question asks for."""
    rng = ask.rng
    judge = rng.choices((_judged_search, _judged_question, _judged_passage, _judged_about), weights=(40, 20, 20, 20))[0]
    words, image, found = judge(scenes, ask)
    words = ask.typed(words)
    # Of those that are wrong only some: what is mostly "no" is learnt as "no".
    right = [one for one in found if one[2]]
    wrong = rng.sample([one for one in found if not one[2]], min(len(found) - len(right), 1 + len(right)))
    found = [*right, *wrong]
    rng.shuffle(found)
    own = () if image is None else (image,)
    return [
        Spoken(
            judging(words, source, image=None if image is None else PLACEHOLDER),
            (*own, *seen),
            "yes" if right else "no",
        )
        for source, seen, right in found[:turns]
    ]


_Judged = tuple[str, "int | None", list[tuple[Source, tuple[int, ...], bool]]]
"""A question, the position of a picture that it is about, and sources with their pictures and what is right."""


def _judged_search(scenes: Sequence[WideScene], ask: Asker) -> _Judged:
    rng = ask.rng
    at, *others = rng.sample(range(len(scenes)), rng.choice((2, 2, 3)))
    search = searched(scenes[at], rng, edited=rng.random() < (0.25 if ask.plain else 0.5))
    found: list[tuple[Source, tuple[int, ...], bool]] = []
    for i in (at, *others):
        caption = said_of(scenes[i], rng) if rng.random() < 0.2 else ""
        found.append((Source(PLACEHOLDER, caption), (i,), search.fits(scenes[i])))
    if search.exact and rng.random() < 0.3:
        # Where something is in a picture, no passage says.
        found.append((Source(text=passage_about(rng.choice(scenes[at].objects).kind, rng)[0]), (), False))
    return search.plain if ask.plain else search.text, None, found


def _judged_question(scenes: Sequence[WideScene], ask: Asker) -> _Judged:
    """A question that a picture answers; or one about another picture, or about what the picture does not have."""
    rng = ask.rng
    at, *others = rng.sample(range(len(scenes)), 3)
    wrong = ask.wrong(scenes[at]) if rng.random() < 0.25 else []
    words = ask.worded(rng.choice(wrong) if wrong else ask.unique(scenes[at]))
    found: list[tuple[Source, tuple[int, ...], bool]] = [(Source(PLACEHOLDER), (at,), not wrong)]
    if rng.random() < 0.6:
        kind = rng.choice(scenes[at].objects).kind
        words = ask.named(kind, words)
        found += [(Source(PLACEHOLDER), (i,), False) for i in others if all(o.kind != kind for o in scenes[i].objects)]
    if rng.random() < 0.3:
        found.append((Source(text=passage_about(rng.choice(scenes[at].objects).kind, rng)[0]), (), False))
    return words, None, found


def _judged_passage(scenes: Sequence[WideScene], ask: Asker) -> _Judged:
    """A question of fact: the passage that answers it, others about the same or by the same words, and a picture."""
    rng = ask.rng
    at, other = rng.sample(range(len(scenes)), 2)
    kind, another = rng.choice(scenes[at].objects).kind, rng.choice(scenes[other].objects).kind
    fact, second = rng.sample(FACTS, 2)
    passage, question, _ = passage_about(kind, rng, fact)
    found: list[tuple[Source, tuple[int, ...], bool]] = [
        (Source(text=_told_of(passage, rng)), (), True),
        (Source(text=_told_of(passage_about(kind, rng, second)[0], rng)), (), False),
        (Source(PLACEHOLDER), (at,), False),
    ]
    if another != kind:
        found.append((Source(text=passage_about(another, rng, fact)[0]), (), False))
    return question, None, found


def _judged_about(scenes: Sequence[WideScene], ask: Asker) -> _Judged:
    """Whether a source is about what answers a question about another picture."""
    rng = ask.rng
    at, other = rng.sample(range(len(scenes)), 2)
    words, kind = ask.about_picture(scenes[at])
    wrong = sorted({o.kind for i in (at, other) for o in scenes[i].objects} - {kind})
    found: list[tuple[Source, tuple[int, ...], bool]] = [(Source(text=_text_about(kind, rng)), (), True)]
    found += [(Source(text=_text_about(one, rng)), (), False) for one in wrong]
    if rng.random() < 0.4:
        found.append((Source(PLACEHOLDER), (other,), any(o.kind == kind for o in scenes[other].objects)))
    return words, at, found


def _rewriting(scenes: Sequence[WideScene], ask: Asker, turns: int) -> list[Spoken]:
    return [rewritten(scenes, ask.rng) for _ in range(turns)]


def _chatting(scenes: Sequence[WideScene], ask: Asker, turns: int) -> list[Spoken]:
    """A question about a picture after one or two others; or one that stands before its picture."""
    rng = ask.rng
    at = rng.randrange(len(scenes))
    before = [
        (typed(q.instruction, rng), q.answer) for q in rng.sample(asked(scenes[at], rng), rng.choice((1, 2, 2, 3)))
    ]
    sides = [o for o in scenes[at].objects if o.side != "middle"]
    if len(before) > 1 and len(sides) == 2 and rng.random() < 0.5:
        first, second = rng.sample(sides, 2)
        short = rng.choice(("and {}?", "what about {}?", "{}?")).format(choose(second.side, "loc", rng, unseen=False))
        before[-2:] = [
            (typed(PLAIN_INSTRUCTION[first.side], rng), phrase(first.kind)),
            (typed(short, rng), phrase(second.kind)),
        ]
    messages: list[Message] = []
    for words, answer in before:
        messages += [Message("user", [Text(words)]), Message("assistant", [Text(answer)])]
    parts: list[Text | Image] = [Image(PLACEHOLDER), Text(before[0][0])]
    messages[0] = Message("user", parts if len(before) > 1 and rng.random() < 0.7 else parts[::-1])
    return [Spoken(messages[:-1], (at,), before[-1][1])]
