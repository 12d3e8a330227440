"""The small world: what is drawn, what is said of it, and what is kept for evaluation."""

from __future__ import annotations

import random

import numpy as np
import pytest

from abc_rag.scenes.captions import Description, caption_edits, captions, describe
from abc_rag.scenes.drawing import render
from abc_rag.scenes.questions import questions
from abc_rag.scenes.world import (
    BACKGROUNDS,
    CATEGORIES,
    KINDS,
    Placed,
    Scene,
    held_out_scenes,
    is_held_out,
    phrases,
    random_scene,
)

DOG_PIZZA = Scene((Placed("dog", "big", "left"), Placed("pizza", "small", "right")), "blue")


def test_the_world_is_large_enough() -> None:
    assert len(KINDS) >= 60
    assert len(set(KINDS)) == len(KINDS)
    assert len(CATEGORIES) >= 4
    assert len(phrases()) == len(set(phrases())) == len(KINDS) + len(BACKGROUNDS)


def test_training_never_draws_a_held_out_pair() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        first, second = (o.kind for o in random_scene(rng, objects=2).objects)
        assert not is_held_out(first, second)
        assert is_held_out(first, second) == is_held_out(second, first)


def test_held_out_scenes_are_all_held_out_distinct_and_fixed() -> None:
    scenes = held_out_scenes(1000, seed=5)
    assert len(scenes) == 1000
    assert all(len(s.objects) == 2 and is_held_out(*(o.kind for o in s.objects)) for s in scenes)
    described = {(tuple((o.kind, o.size, o.side) for o in s.objects), s.background) for s in scenes}
    assert len(described) == 1000
    assert scenes == held_out_scenes(1000, seed=5)
    assert {o.kind for s in scenes for o in s.objects} == set(KINDS)


def test_objects_are_drawn_where_they_are_said_to_be() -> None:
    empty = np.asarray(render(Scene((), "blue"), 168)).astype(int)
    with_objects = np.asarray(render(DOG_PIZZA, 168)).astype(int)
    changed = np.abs(with_objects - empty).sum(axis=2) > 0
    left, right = changed[:, :84].sum(), changed[:, 84:].sum()
    assert left > 1.5 * right > 0  # a big object on the left, a small one on the right
    below = np.asarray(render(Scene((Placed("dog", "small", "bottom"),), "blue"), 168)).astype(int)
    assert not (np.abs(below - empty)[:80].sum() > 0)


def test_every_kind_looks_different_from_every_other() -> None:
    pictures = [np.asarray(render(Scene((Placed(k, "small", "middle"),), "white"), 84)).astype(int) for k in KINDS]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one - other).mean() > 1.0


def test_a_picture_is_the_same_at_every_size() -> None:
    large = render(DOG_PIZZA, 336).resize((84, 84))
    small = render(DOG_PIZZA, 84)
    assert np.abs(np.asarray(large).astype(int) - np.asarray(small).astype(int)).mean() < 4


def test_questions_name_one_aspect_and_its_answer() -> None:
    asked = {q.aspect: q.answer for q in questions(DOG_PIZZA, random.Random(0))}
    assert asked["left"] == "a dog"
    assert asked["right"] == "a pizza"
    assert asked["big"] == "a dog"
    assert asked["small"] == "a pizza"
    assert asked["background"] == "a blue background"
    same_category = Scene((Placed("dog", "big", "top"), Placed("cat", "big", "bottom")), "red")
    aspects = [q.aspect for q in questions(same_category, random.Random(0))]
    assert sorted(aspects) == ["background", "bottom", "top"]  # "which animal" would have two answers


def test_every_answer_is_a_candidate_and_held_out_wordings_are_new() -> None:
    rng = random.Random(3)
    seen, unseen = set(), set()
    for _ in range(2000):
        scene = random_scene(rng, objects=rng.choice((1, 2)))
        for q in questions(scene, rng):
            assert q.answer in phrases()
            seen.add(q.instruction)
        unseen |= {q.instruction for q in questions(scene, rng, held_out=True)}
    assert len(seen) > 150
    assert len(unseen) > 25
    assert not seen & unseen


def test_edits_differ_from_the_scene_in_what_a_caption_says() -> None:
    rng = random.Random(1)
    for _ in range(200):
        scene = random_scene(rng, objects=rng.choice((1, 2)))
        said = ({(o.kind, o.size, o.side) for o in scene.objects}, scene.background)
        for edited in caption_edits(scene, rng):
            assert ({(o.kind, o.size, o.side) for o in edited.objects}, edited.background) != said


def test_descriptions_are_true_of_their_scene_and_not_of_others() -> None:
    rng = random.Random(2)
    for _ in range(500):
        scene = random_scene(rng, objects=rng.choice((1, 2)))
        assert describe(scene, rng).fits(scene)
    assert Description("", (("dog", None, None),)).fits(DOG_PIZZA)
    assert Description("", (("dog", "big", "left"), ("pizza", None, None)), "blue").fits(DOG_PIZZA)
    for wrong in (
        Description("", (("cat", None, None),)),
        Description("", (("dog", "small", None),)),
        Description("", (("dog", None, "right"),)),
        Description("", (("dog", None, None),), "red"),
    ):
        assert not wrong.fits(DOG_PIZZA)


@pytest.mark.parametrize("objects", [1, 2])
def test_captions_say_everything(objects: int) -> None:
    rng = random.Random(4)
    for _ in range(100):
        scene = random_scene(rng, objects=objects)
        caption = captions(scene, rng)
        assert scene.background in caption
        assert all(o.kind in caption for o in scene.objects)
