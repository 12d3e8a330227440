"""Questions that abc-mini's base learns to rewrite for a search, as JSON."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from abc_rag.models.tasks import WHOLE_PICTURE, Wants, rewriting, rewriting_answer
from abc_rag.scenes.asking import asked
from abc_rag.scenes.lexicon import choose
from abc_rag.scenes.searching import searched
from abc_rag.scenes.typing import typed
from abc_rag.scenes.wide import WideScene
from abc_rag.scenes.world import phrase
from abc_rag.training.data.spoken import PLACEHOLDER, PLAIN_INSTRUCTION, PLAIN_TARGET, Asker, Spoken, passage_about
from abc_rag.types import Image, Message, Text

__all__ = ["rewritten"]


def rewritten(scenes: Sequence[WideScene], rng: random.Random) -> Spoken:
    """A question about one of the scenes, or to find it, and what it becomes."""
    scene = rng.choice(scenes)
    if rng.random() < 0.3:
        question = rng.choice([q for q in asked(scene, rng) if q.aspect in PLAIN_INSTRUCTION])
        answer = rewriting_answer(PLAIN_INSTRUCTION[question.aspect], PLAIN_TARGET[question.aspect], "any")
        if rng.random() < 0.3:
            return _following(scene, rng) if rng.random() < 0.7 else _following_fact(scene, rng)
        pictured = rng.random() < 0.85
        return Spoken(
            rewriting(typed(question.instruction, rng), has_image=pictured, examples=False), (), answer, exact=True
        )
    kind = rng.choice(scene.objects).kind
    if rng.random() < 0.2:
        # The record that answers is a passage about a thing, or the picture that the question names.
        words, answer = passage_about(kind, rng)[1], rewriting_answer(WHOLE_PICTURE, f"the {kind}", "any")
        if rng.random() < 0.5:
            asker = Asker(rng, plain=False)
            words = asker.named(kind, asker.unique(scene).instruction)
            answer = rewriting_answer(WHOLE_PICTURE, phrase(kind), "image")
        return Spoken(rewriting(typed(words, rng), examples=False), (), answer, exact=True)
    if rng.random() < 0.15:
        words = rng.choice(
            ("find the passage about {k}", "what do the texts say about {k}?", "a document on {k}", "text about {k}")
        )
        answer = rewriting_answer(WHOLE_PICTURE, f"the {kind}", "text")
        return Spoken(rewriting(typed(words.format(k=f"the {kind}"), rng), examples=False), (), answer, exact=True)
    search = searched(scene, rng)
    instruction = PLAIN_INSTRUCTION.get(search.aspect, WHOLE_PICTURE)
    if search.aspect == "category":
        instruction = f"which {search.category} is in the picture?"
    wants: Wants = "image" if search.pictured else "any"
    answer = rewriting_answer(instruction, search.plain, wants)
    return Spoken(rewriting(typed(search.text, rng), examples=False), (), answer, exact=True)


def _following(scene: WideScene, rng: random.Random) -> Spoken:
    first, second = rng.choice(
        (("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top"), ("big", "small"), ("small", "big"))
    )
    before = typed(PLAIN_INSTRUCTION[first], rng)
    part = "loc" if first in ("left", "right", "top", "bottom") else "cmp"
    short = rng.choice(("and {}?", "what about {}?", "{}?", "and {} then?")).format(
        choose(second, part, rng, unseen=False)
    )
    history = [
        Message("user", [Image(PLACEHOLDER), Text(before)]),
        Message("assistant", [Text(phrase(scene.objects[0].kind) + rng.choice(("", ".")))]),
    ]
    pictured = rng.random() < 0.6
    if not pictured:
        history = [replace(history[0], parts=[Text(before)]), history[1]]
    answer = rewriting_answer(
        PLAIN_INSTRUCTION[second], PLAIN_TARGET[second], "any", question=PLAIN_INSTRUCTION[second]
    )
    # A retriever takes the picture of an earlier turn along, where it sees that the question needs one.
    asked_again = rewriting(
        typed(short, rng), has_image=pictured and rng.random() < 0.85, history=history, examples=False
    )
    return Spoken(asked_again, (), answer, exact=True)


def _following_fact(scene: WideScene, rng: random.Random) -> Spoken:
    """A question about the thing of the question before."""
    kind = rng.choice(scene.objects).kind
    (_, before, said), (_, again, _) = passage_about(kind, rng), passage_about(kind, rng)
    history = [Message("user", [Text(typed(before, rng))]), Message("assistant", [Text(f"{said}.")])]
    short = rng.choice(("and {}", "{}", "but {}")).format(again.replace(f"the {kind}", "it"))
    answer = rewriting_answer(WHOLE_PICTURE, f"the {kind}", "any", question=again)
    return Spoken(rewriting(typed(short, rng), history=history, examples=False), (), answer, exact=True)
