"""The benchmark of groups and duplicates: its scenes, and what abc-mini makes of them."""

from __future__ import annotations

import pytest

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.surveys import ANSWERS, evaluate_groups, survey_scenes
from abc_rag.scenes.world import is_held_out, phrase


def test_each_scene_answers_each_instruction() -> None:
    scenes = survey_scenes(200)
    assert len(scenes) == len(set(scenes)) == 200
    for scene in scenes:
        (left,) = [one for one in scene.objects if one.side == "left"]
        (bigger,) = [one for one in scene.objects if one.size == "big"]
        assert is_held_out(*(one.kind for one in scene.objects))
        told = [answer(scene) for answer in ANSWERS.values()]
        assert told[1:] == [phrase(left.kind), phrase(bigger.kind)]
        assert scene.background in told[0]
    with pytest.raises(InputError, match="at least 20 pictures"):
        survey_scenes(19)


def test_groups_and_pairs_of_backgrounds_are_right(mini: Embedder) -> None:
    found = evaluate_groups(mini, scenes=40)
    groups, pairs = found.tables
    background = groups.rows[0]
    assert (background[1], background[2], background[-1]) == (9, 9, 100.0)
    for row in (pairs.rows[0], pairs.rows[-1]):
        assert min(row[3], row[4]) > 90  # type: ignore[type-var]
    assert found.metrics["what colour is the background?: groups"] == 9
    assert all(len(row) == len(table.columns) for table in found.tables for row in table.rows)
