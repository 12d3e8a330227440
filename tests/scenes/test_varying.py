"""Varied drawings."""

from __future__ import annotations

import random

import numpy as np

from abc_rag.scenes.drawing import bundled_sprite
from abc_rag.scenes.kinds import load_kinds
from abc_rag.scenes.varying import varied
from abc_rag.scenes.wide import draw_wide
from abc_rag.training.data.wide import SIDE, wide_scene


def test_a_varied_drawing_keeps_its_extent_and_changes_in_many_ways() -> None:
    sprite = bundled_sprite("pig", 48)
    found = [varied(sprite, random.Random(seed)) for seed in range(60)]
    assert all(one.mode == "RGBA" and max(one.size) <= 48 and min(one.size) >= 0.8 * min(sprite.size) for one in found)
    same = sum(one.size == sprite.size and one.tobytes() == sprite.tobytes() for one in found)
    assert 5 <= same <= 30
    assert len({one.tobytes() for one in found}) >= 30
    shares = [(np.asarray(one)[..., 3] > 128).mean() for one in found]
    whole = (np.asarray(sprite)[..., 3] > 128).mean()
    assert max(abs(share - whole) for share in shares) < 0.3
    again = [varied(sprite, random.Random(seed)) for seed in range(60)]
    assert [one.tobytes() for one in again] == [one.tobytes() for one in found]


def test_only_training_sees_varied_drawings() -> None:
    kinds = load_kinds()
    scene = wide_scene(kinds, random.Random(4), own=1, simple=0)
    plain = np.asarray(draw_wide(scene, kinds, SIDE))
    assert np.array_equal(np.asarray(draw_wide(scene, kinds, SIDE)), plain)
    drawn = [np.asarray(draw_wide(scene, kinds, SIDE, vary=random.Random(seed))) for seed in range(6)]
    assert sum(not np.array_equal(one, plain) for one in drawn) >= 4
