"""Shares of right answers by group of wordings."""

from __future__ import annotations

import pytest

from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.evaluation.wordings import WORDING_GROUPS, by_aspect, wording_groups
from abc_rag.scenes.drawing import render
from abc_rag.scenes.wide import as_wide
from abc_rag.scenes.world import held_out_scenes, phrases


def test_shares_are_counted_by_aspect() -> None:
    questions = [(0, "left", "q", "a"), (0, "right", "q", "a"), (1, "left", "q", "a"), (1, "left", "q", "a")]
    assert by_aspect(questions, [True, False, True, False]) == {
        "all": 0.5, "left": pytest.approx(2 / 3), "right": 0.0,
    }  # fmt: skip


def test_a_model_that_knows_nothing_is_at_chance_in_every_group() -> None:
    scenes = held_out_scenes(20, seed=0)
    found = wording_groups(
        FakeEmbedder(), [as_wide(s) for s in scenes], [render(s, 84) for s in scenes], phrases(), seed=0
    )
    assert found.keys() == WORDING_GROUPS.keys()
    assert all(shares["all"] < 0.15 for shares in found.values())
    assert all({"all", "background", "category"} <= shares.keys() for shares in found.values())
