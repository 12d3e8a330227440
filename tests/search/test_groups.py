"""Groups by an instruction: of vectors that are known, and of abc-mini's scenes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from survey_helpers import INSTRUCTION, pictures

from abc_rag import ChromaStore, Record, Retriever
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.ingest.pictures import index_images
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import Placed, Scene, background_phrase, phrase, phrases
from abc_rag.search.facet_maps import made_map

WORDS = [str(number) for number in range(8)]  # the embedder's words for greens


def test_groups_are_pictures_that_are_alike_under_the_instruction(tmp_path: Path) -> None:
    greens = [0, 1, 2, 0, 0, 1]
    with pictures(tmp_path, list(enumerate(greens))) as looker:
        found = looker.groups(INSTRUCTION, phrases=WORDS)
        told = [(group.phrase, group.ids, group.fit, group.tightness, group.guessed) for group in found]
        assert told == [
            ("0", ("0", "3", "4"), 1.0, 1.0, 0), ("1", ("1", "5"), 1.0, 1.0, 0), ("2", ("2",), 1.0, 1.0, 0)
        ]  # fmt: skip
        assert [group.typical.id for group in found] == ["0", "1", "2"]
        assert (len(found), found[0].size, found.passes, found.facets, found.notes) == (3, 3, 6, 0, ())
        assert found.silhouette == pytest.approx(5 / 6)  # that of a picture that is alone is 0
        json.dumps(found.as_dict())
        # As many as are asked for; the nearest are joined, here all at the same distance.
        assert sorted(group.size for group in looker.groups(INSTRUCTION, k=2)) in ([1, 5], [2, 4], [3, 3])
        assert [group.size for group in looker.groups(INSTRUCTION, k=6, ids=["0", "1", "2", "3", "4", "5"])] == [1] * 6
        with pytest.raises(InputError, match="2 pictures do not make 3 groups"):
            looker.groups(INSTRUCTION, k=3, ids=["0", "1"])


def test_one_group_where_none_stands_out(tmp_path: Path) -> None:
    with pictures(tmp_path, [(number, 1) for number in range(5)]) as looker:
        found = looker.groups(INSTRUCTION, phrases=WORDS)
        assert ([group.phrase for group in found], found[0].size, found.silhouette) == (["1"], 5, None)
        assert "no grouping stands out" in found.notes[0]
        assert len(looker.groups(INSTRUCTION, where={"page": 1})) == 0
        assert "there are no pictures to group" in looker.groups(INSTRUCTION, where={"page": 1}).notes


def test_the_most_typical_comes_first_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    with pictures(tmp_path, [(number, 0) for number in range(7)]) as looker:
        rows = [[1, 0, 0.2], [1, 0, 0], [1, 0, -0.2], [0, 1, 0], [0, 1, 0.1]]
        looker.store.add_facets(["0", "1", "2", "3", "4"], INSTRUCTION, looker.unit(rows))
        found = looker.groups(INSTRUCTION, passes=0, phrases=[])
        assert [set(group.ids) for group in found] == [{"0", "1", "2"}, {"3", "4"}]
        assert found[0].ids[0] == found[0].typical.id == "1"
        cosine = (1 + 2 / np.sqrt(1.04)) / 3
        assert found[0].tightness == pytest.approx((1 + cosine) / 2, abs=1e-6)
        assert (found[0].phrase, found[0].fit, found.left_out) == ("", None, 2)
        assert "2 pictures were not looked at" in found.notes[0]
        (tmp_path / "6.png").unlink()
        assert "1 pictures could not be looked at" in looker.groups(INSTRUCTION, phrases=[]).notes[0]


def test_a_facet_maps_guesses_come_last_and_are_counted(tmp_path: Path) -> None:
    greens = [number % 3 for number in range(150)]
    with pictures(tmp_path, list(enumerate(greens))) as looker:
        assert made_map(looker, INSTRUCTION) is not None
        found = looker.groups(INSTRUCTION, passes=60, phrases=WORDS)
        assert (len(found), found.mapped, sum(group.guessed for group in found)) == (3, 90, 90)
        assert "90 pictures are in a group by a facet map's guess" in found.notes
        assert np.mean([greens[int(id_)] == int(group.phrase) for group in found for id_ in group.ids]) > 0.9
        assert all(group.tightness == 1.0 for group in found)  # of those that were seen


def test_many_pictures_join_the_groups_of_those_that_were_clustered(tmp_path: Path) -> None:
    with pictures(tmp_path, [(0, 0)]) as looker:
        rng = np.random.default_rng(1)
        kinds = rng.integers(4, size=2500)
        vectors = looker.unit((np.eye(8)[kinds] + 0.1 * rng.normal(size=(2500, 8))).tolist())
        ids = [f"{number:04}" for number in range(2500)]
        looker.store.add([Record(id_, "image") for id_ in ids], vectors)
        looker.store.add_facets(ids, INSTRUCTION, vectors)
        found = looker.groups(INSTRUCTION, phrases=WORDS, passes=0)
        assert [{str(kinds[int(id_)]) for id_ in group.ids} for group in found] == [{group.phrase} for group in found]
        assert sum(group.size for group in found) == 2500
        assert "2000 pictures, chosen at random, were clustered" in found.notes[-1]


def test_phrases_are_short_texts_of_the_store(tmp_path: Path) -> None:
    with pictures(tmp_path, [(0, 0), (1, 1), (2, 0), (3, 1)], passage="1") as looker:
        more = ["0", "7", "0\n0", "0" * 81, " "]
        looker.store.add([Record(f"t{place}", "text", text) for place, text in enumerate(more)], np.eye(24)[:5])
        assert [group.phrase for group in looker.groups(INSTRUCTION)] == ["0", "1"]


def test_a_phrase_that_fits_all_says_nothing(tmp_path: Path) -> None:
    with pictures(tmp_path, [(0, 0), (1, 1)]) as looker:
        # All pictures have the third number in common, and more of it than of their own.
        looker.store.add_facets(["0", "1"], INSTRUCTION, looker.unit([[1, 0, 3], [0, 1, 3]]))
        found = looker.groups(INSTRUCTION, k=2, phrases=["2", "0", "1"])
        assert {group.phrase: group.ids for group in found} == {"0": ("0",), "1": ("1",)}
        assert looker.groups(INSTRUCTION, k=1, phrases=["2", "0", "1"])[0].phrase == "2"


def _scenes() -> list[Scene]:
    rng = random.Random(3)
    return [
        Scene(
            (
                Placed(left, "big", "left", (0.0, rng.uniform(-0.1, 0.1))),
                Placed(right, "small", "right", (0.0, rng.uniform(-0.1, 0.1))),
            ),
            background,
        )
        for left in ("pig", "car", "rose")
        for right in ("piano", "pizza")
        for background in ("red", "blue", "white", "green")
    ]


def test_scenes_are_grouped_by_what_is_asked(mini: Embedder, tmp_path: Path) -> None:
    scenes = _scenes()
    with ChromaStore(tmp_path / "store", fingerprint=mini.fingerprint) as store:
        files = []
        for number, scene in enumerate(scenes):
            files.append(tmp_path / f"{number:02}.png")
            render(scene, 168).save(files[-1])
        wanted = {
            "what colour is the background?": [background_phrase(scene.background) for scene in scenes],
            "what is on the left?": [phrase(scene.objects[0].kind) for scene in scenes],
        }
        index_images(files, mini, store, ids=[str(number) for number in range(len(files))], facets=list(wanted))
        retriever = Retriever(mini, store)
        for instruction, answers in wanted.items():
            found = retriever.groups(instruction, phrases=phrases())
            assert {group.phrase: {int(id_) for id_ in group.ids} for group in found} == {
                answer: {place for place, own in enumerate(answers) if own == answer} for answer in answers
            }
        # The same thing on the left, before another background.
        left, ground = wanted["what is on the left?"], wanted["what colour is the background?"]
        found = retriever.duplicates(["what is on the left?"], different=["what colour is the background?"])
        assert {tuple(sorted((int(pair.first), int(pair.second)))) for pair in found.pairs} == {
            (a, b)
            for a in range(len(scenes))
            for b in range(a + 1, len(scenes))
            if left[a] == left[b] and ground[a] != ground[b]
        }
        assert {len(group) for group in found.groups} == {8}
