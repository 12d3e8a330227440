"""Questions about scenes, and their answers."""

from __future__ import annotations

import random

import pytest

from abc_rag.scenes.asking import NOTHING, asked, count_phrase, forms, wordings
from abc_rag.scenes.wide import WideScene
from abc_rag.scenes.world import Placed

SCENE = WideScene(
    (Placed("dog", "big", "left"), Placed("apple", "small", "right")),
    "blue",
    styles=("", ""),
    categories=("animal", "food"),
)
ANSWERS = {"left": "a dog", "right": "an apple", "big": "a dog", "small": "an apple", "background": "a blue background"}


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("synonym", [False, True])
def test_answers_are_true_of_the_scene(form: bool, synonym: bool) -> None:
    rng = random.Random(0)
    for _ in range(50):
        found = asked(SCENE, rng, form=form, synonym=synonym)
        for question in found:
            assert "{" not in question.instruction
            assert question.answer == ANSWERS.get(question.aspect, question.answer)
        assert [q.answer for q in found if q.aspect == "count"] == ["two things"]
        assert {q.answer for q in found if q.aspect == "category"} == {"a dog", "an apple"}
        (where,) = [q for q in found if q.aspect == "where"]
        assert where.answer == ("the left" if "dog" in where.instruction else "the right")
        assert {q.answer for q in found if q.aspect == "nothing"} == {NOTHING}


def test_one_object_has_no_sides_or_sizes() -> None:
    scene = WideScene((Placed("dog", "big", "middle"),), "red", styles=("",), categories=("animal",))
    found = asked(scene, random.Random(0), extra=False)
    assert [(q.aspect, q.answer) for q in found] == [
        ("background", "a red background"),
        ("only", "a dog"),
        ("category", "a dog"),
    ]


def test_every_aspect_has_hundreds_of_forms() -> None:
    aspects = ("left", "top", "big", "small", "background", "category", "only", "other", "where", "count", "kind")
    assert all(forms(aspect) >= 300 for aspect in aspects), {a: forms(a) for a in aspects}
    assert len(set(wordings())) > 400


def test_training_never_uses_an_unseen_core() -> None:
    rng = random.Random(0)
    seen = {q.instruction for _ in range(300) for q in asked(SCENE, rng, plain=True, extra=False)}
    unseen = {q.instruction for _ in range(300) for q in asked(SCENE, rng, form=True, plain=True, extra=False)}
    # Words in other places can give the same text, seldom.
    assert len(seen & unseen) < 0.05 * len(unseen)


def test_counts_are_said_in_words() -> None:
    assert [count_phrase(n) for n in (1, 2, 3)] == ["one thing", "two things", "three things"]
