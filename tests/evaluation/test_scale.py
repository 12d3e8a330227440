"""The benchmark of scale: one right picture for each question, and what is known of its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.scale import evaluate_scale, projection, scale_scenes
from abc_rag.scenes.world import phrase


def test_each_question_has_one_right_picture_among_many_of_the_same_things() -> None:
    scenes, queries = scale_scenes(400)
    assert len(scenes) == 400
    assert len(queries) == 40
    for query in queries:
        right = []
        for number, scene in enumerate(scenes):
            side = {f"{phrase(one.kind)} on the left" for one in scene.objects if one.side == "left"}
            size = {phrase(one.kind) for one in scene.objects if one.size == "big"}
            if query.text in (side if query.aspect == "side" else size):
                right.append(number)
        assert right == [query.right]
        kinds = {one.kind for one in scenes[query.right].objects}
        assert sum({one.kind for one in scene.objects} == kinds for scene in scenes) == 10
    with pytest.raises(InputError, match="at least 200 pictures"):
        scale_scenes(100)


def test_a_projection_keeps_what_texts_differ_in() -> None:
    texts = np.array([[1, 0, 5, 5], [-1, 0, 5, 5], [0, 2, 5, 5], [0, -2, 5, 5]], dtype=np.float32)
    np.testing.assert_allclose(projection(texts), np.diag([1, 1, 0, 0]), atol=1e-6)


def test_stored_facets_are_right_and_vectors_are_read_again(mini: Embedder, tmp_path: Path) -> None:
    first = evaluate_scale(mini, pictures=200, candidates=10, out=tmp_path)
    assert first.metrics["stored facets: first"] >= 0.8
    (table,) = first.tables
    assert table.rows[0][0] == "plain search"
    assert table.rows[-1][-2:] == [200, 4 * mini.dim * 200 / 1e6]
    assert all(len(row) == len(table.columns) for row in table.rows)
    again = evaluate_scale(mini, pictures=200, candidates=10, out=tmp_path)
    assert again.metrics["seconds_a_pass"] == 0
    assert {**again.metrics, "seconds_a_pass": 0} == {**first.metrics, "seconds_a_pass": 0}
    # All pictures are candidates: a second look at them is right wherever facets are.
    whole = evaluate_scale(mini, pictures=200, candidates=200, out=tmp_path)
    assert whole.metrics["second look at 200: among the candidates"] == 1
