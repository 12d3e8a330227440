"""Scenes of the wider world, as drawn."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from abc_rag.scenes.kinds import BUNDLED, load_kinds
from abc_rag.scenes.wide import as_wide, covered, draw_scene, draw_wide, wear
from abc_rag.scenes.world import CATEGORY_OF, KINDS, held_out_scenes, is_held_out

SIZE = 112


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_objects_are_drawn_where_their_cells_are(objects: int) -> None:
    kinds, rng = load_kinds(), random.Random(objects)
    for _ in range(20):
        scene = draw_scene(kinds, rng, objects=objects, among=KINDS, plain=0)
        empty = np.asarray(draw_wide(replace(scene, objects=(), styles=()), kinds, SIZE)).astype(int)
        drawn = np.asarray(draw_wide(scene, kinds, SIZE)).astype(int)
        changed = (np.abs(drawn - empty).sum(axis=2) > 0).reshape(4, 28, 4, 28).any(axis=(1, 3)).ravel()
        cells = covered(scene, 4)
        assert len(cells) == objects
        assert all(len(own) and changed[own].any() for own in cells)
        assert set(np.flatnonzero(changed)) >= set(np.concatenate(cells)) or objects > 1


def test_scenes_keep_to_their_side_of_the_held_out_pairs() -> None:
    rng = random.Random(0)
    for held_out in (False, True):
        for _ in range(30):
            scene = draw_scene(load_kinds(), rng, objects=2, among=KINDS, held_out=held_out)
            assert is_held_out(*(o.kind for o in scene.objects)) == held_out
            assert scene.styles == (BUNDLED, BUNDLED)
            assert [scene.category_of(o.kind) for o in scene.objects] == [CATEGORY_OF[o.kind] for o in scene.objects]


def test_a_scene_of_the_own_world_looks_as_before() -> None:
    from abc_rag.scenes.drawing import render

    scene = held_out_scenes(1, seed=3)[0]
    assert np.array_equal(np.asarray(draw_wide(as_wide(scene), load_kinds(), SIZE)), np.asarray(render(scene, SIZE)))


def test_worn_pictures_have_the_same_size_and_other_pixels() -> None:
    picture = draw_wide(as_wide(held_out_scenes(1, seed=3)[0]), load_kinds(), SIZE)
    for seed in range(20):
        worn = wear(picture, random.Random(seed))
        assert worn.size == picture.size
        difference = np.abs(np.asarray(worn).astype(int) - np.asarray(picture).astype(int)).mean()
        assert 0 < difference < 40
