"""Batches for abc-mini's base."""

from __future__ import annotations

import random

import numpy as np
import pytest

from abc_rag.scenes.kinds import load_kinds
from abc_rag.scenes.searching import Search
from abc_rag.scenes.wide import WideScene, covered
from abc_rag.scenes.world import Placed
from abc_rag.training.data.spoken import PLAIN_INSTRUCTION
from abc_rag.training.data.wide import CELLS, SIDES, SIZES, WideBatch, named_by, true_names, wide_batch, wide_scene


def batch(seed: int) -> WideBatch:
    rng, kinds = random.Random(seed), load_kinds()
    scenes = [wide_scene(kinds, rng, own=0.5, simple=0.3) for _ in range(12)]
    return wide_batch(scenes, kinds, rng, per_picture=4, negatives=1, chats=4, tasks=5, turns=4, sentences=3, taught=10)


@pytest.fixture(scope="module")
def one() -> WideBatch:
    return batch(3)


def test_the_same_seed_gives_the_same_batch(one: WideBatch) -> None:
    again = batch(3)
    assert one.asked == again.asked
    assert one.captions == again.captions
    assert all((a.pixels == b.pixels).all() for a, b in zip(one.pictures, again.pictures, strict=True))


def test_every_question_has_its_answer_among_the_candidates(one: WideBatch) -> None:
    assert one.excluded is not None
    assert one.said is not None
    assert len(one.asked) == 12 * 4
    assert one.excluded.shape == (len(one.asked), len(one.candidates))
    assert not any(one.excluded[row, target] for row, (_, _, target) in enumerate(one.asked))
    assert one.excluded.mean() < 0.2
    assert one.said.shape == (12, len(one.captions))
    assert not one.said[np.arange(12), np.arange(12)].any()
    assert [len(group) for group in one.told] == [4] * 4
    assert len(one.worked) == 5
    assert all(0 <= at < 10 for at in one.sentences)
    # A kind's number is at the cells that it covers.
    assert ((one.cells > 0).sum(axis=1) >= 1).all()


def test_cells_say_on_which_side_and_how_big_their_thing_is(one: WideBatch) -> None:
    rng, kinds = random.Random(3), load_kinds()
    scenes = [wide_scene(kinds, rng, own=0.5, simple=0.3) for _ in range(12)]
    for at, scene in enumerate(scenes):
        for placed, inside in zip(scene.objects, covered(scene, CELLS), strict=True):
            assert {SIDES[n] for n in one.sides[at, inside]} == {placed.side}
            assert {SIZES[n] for n in one.sizes[at, inside]} == {placed.size}


def test_plain_batches_ask_in_words_that_are_always_the_same() -> None:
    rng, kinds = random.Random(5), load_kinds()
    scenes = [wide_scene(kinds, rng, own=1, simple=0) for _ in range(12)]
    found = wide_batch(
        scenes, kinds, rng, per_picture=3, negatives=-1, chats=12, tasks=0, turns=4, sentences=0, taught=0, plain=1.0,
        worn=0.0,
    )  # fmt: skip
    assert (found.captions, found.said, found.worked) == ([], None, [])
    always = set(PLAIN_INSTRUCTION.values())
    asked = [words for _, words, _ in found.asked]
    assert len(asked) == 3 * 12
    assert sum(words in always for words in asked) > len(asked) / 2
    assert {"what is on the left?", "which object is bigger?"} <= set(asked)
    for _, _, target in found.asked:
        assert found.candidates[target].startswith(("a ", "an "))


def test_names_tell_true_statements_from_false_ones() -> None:
    dog, apple = Placed("dog", "big", "left"), Placed("apple", "small", "right")
    scene = WideScene((dog, apple), "blue", styles=("", ""), categories=("animal", "food"))
    true = true_names(scene)
    assert true >= {"dog", "apple", "blue", "dog left", "apple small"}
    assert named_by(Search("", "", "left", (dog,), exact=True)) <= true
    assert not named_by(Search("", "", "right", (dog,), exact=True)) <= true
    assert not named_by(Search("", "", "background", (dog,), background="red")) <= true
