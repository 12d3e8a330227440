"""Searches are true of what they are made of."""

from __future__ import annotations

import random

import pytest

from abc_rag.scenes.kinds import load_kinds
from abc_rag.scenes.searching import edits, said_of, searched
from abc_rag.scenes.wide import draw_scene
from abc_rag.scenes.world import KINDS


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_a_search_fits_its_scene_and_no_other_side_or_size(objects: int) -> None:
    rng, kinds = random.Random(objects), load_kinds()
    for _ in range(60):
        scene = draw_scene(kinds, rng, objects=objects, among=KINDS)
        search = searched(scene, rng)
        assert search.fits(scene)
        assert "{" not in search.text + search.plain
        for edit in edits(scene, rng):
            again = searched(edit, rng, aspect=search.aspect)
            assert again.fits(edit)
            if search.aspect == again.aspect in ("left", "top") and [o.kind for o in edit.objects] != [
                o.kind for o in scene.objects
            ]:
                assert not again.fits(scene)


def test_an_edited_search_is_made_of_a_scene_that_differs_in_one_respect() -> None:
    rng, kinds = random.Random(5), load_kinds()
    scenes = [draw_scene(kinds, rng, objects=2, among=KINDS) for _ in range(200)]
    false = [not searched(scene, rng, edited=True).fits(scene) for scene in scenes]
    assert 0.2 < sum(false) / len(false) < 0.9


def test_captions_name_everything() -> None:
    rng, kinds = random.Random(2), load_kinds()
    for _ in range(40):
        scene = draw_scene(kinds, rng, objects=2, among=KINDS)
        caption = said_of(scene, rng)
        assert all(o.kind in caption for o in scene.objects)
        assert scene.background in caption
