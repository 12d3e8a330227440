"""Pictures under instructions: by facets, by passes, by a facet map; and vectors that lie in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from survey_helpers import INSTRUCTION, ByPixel, Looks, pictures

from abc_rag.errors import InputError
from abc_rag.search.facet_maps import made_map
from abc_rag.search.sights import Rows, Sights, seen_pictures


def rows_of(sights: Sights, instruction: str = INSTRUCTION) -> dict[str, list[float]]:
    vectors = sights.rows[instruction].read(0, len(sights.ids))
    assert len(vectors) == len(sights.ids)
    return dict(zip(sights.ids, vectors.tolist(), strict=True))


@pytest.mark.parametrize(("count", "in_memory"), [(3, 2**20), (90, 2**20), (90, 400), (90, 1)])
def test_vectors_come_back_from_memory_and_from_a_file(count: int, in_memory: int) -> None:
    vectors = np.random.default_rng(1).normal(size=(count, 17)).astype(np.float32)
    rows = Rows(in_memory)
    for part in np.array_split(vectors, 3):
        rows.append(part)
    assert len(rows) == count
    assert np.array_equal(rows.read(1, 3), vectors[1:3])
    assert np.array_equal(rows.read(count - 1, count + 9), vectors[-1:])
    for start, block in rows.blocks(7):
        assert np.array_equal(block, vectors[start : start + 7])
    assert [start for start, _ in rows.blocks(2, start=1)][:2] == [1, 3][: count // 2]


def test_facets_are_read_and_the_others_are_looked_at(tmp_path: Path) -> None:
    with pictures(tmp_path, [(0, 0), (1, 1), (2, 0), (3, 1)]) as looker:
        looker.store.add_facets(["0", "1"], INSTRUCTION, looker.unit([[0, 1], [1, 0]]))
        sights = seen_pictures(looker, [INSTRUCTION])
        assert sights.told == {"facets": 2, "passes": 2, "mapped": 0, "unusable": 0, "left_out": 0}
        found = rows_of(sights)
        assert sights.ids == ["0", "1", "2", "3"]
        assert (found["0"][:2], found["2"][:2], found["3"][:2]) == ([0, 1], [1, 0], [0, 1])
        assert looker.embedder.looks == 2
        # Under two instructions, a picture counts that is seen under both.
        both = seen_pictures(looker, [INSTRUCTION, "other"], ids=["3", "0", "3"])
        assert (both.ids, both.passes, looker.embedder.looks) == (["3", "0"], 2, 5)
        assert rows_of(both)["0"][:2] == [0, 1]
        assert rows_of(both, "other").keys() == {"0", "3"}


def test_a_limit_of_passes_and_a_lost_picture(tmp_path: Path) -> None:
    with pictures(tmp_path, [(number, number % 2) for number in range(20)]) as looker:
        (tmp_path / "7.png").unlink()
        sights = seen_pictures(looker, [INSTRUCTION], passes=5)
        assert (sights.passes + sights.unusable, sights.left_out, len(sights.ids)) == (5, 15, sights.passes)
        assert seen_pictures(looker, [INSTRUCTION], passes=5).ids == sights.ids
        whole = seen_pictures(looker, [INSTRUCTION], where={"abc:source": {"$ne": str(tmp_path / "3.png")}})
        assert (whole.passes, whole.unusable, whole.left_out) == (18, 1, 0)
        assert not {"3", "7"} & set(whole.ids)
        assert seen_pictures(looker, [INSTRUCTION], passes=0).told["left_out"] == 20


def test_a_facet_map_speaks_for_the_rest(tmp_path: Path) -> None:
    with pictures(tmp_path, [(number, number % 3) for number in range(150)]) as looker:
        assert seen_pictures(looker, [INSTRUCTION], passes=60, facet_map="auto").left_out == 90
        assert made_map(looker, INSTRUCTION) is not None
        before = looker.embedder.looks
        sights = seen_pictures(looker, [INSTRUCTION], passes=60, facet_map="auto")
        assert sights.told == {"facets": 0, "passes": 60, "mapped": 90, "unusable": 0, "left_out": 0}
        assert looker.embedder.looks - before == 60
        assert sorted(sights.ids) == sorted(str(number) for number in range(150))
        right = [int(np.argmax(rows_of(sights)[id_][:3])) == int(id_) % 3 for id_ in sights.ids[60:]]
        assert np.mean(right) > 0.9
        assert seen_pictures(looker, [INSTRUCTION], passes=60, facet_map=False).left_out == 90


class Blind(ByPixel):
    """Looks at no picture under an instruction."""

    @property
    def accepts(self) -> Any:
        return tuple(kind for kind in super().accepts if kind.__name__ != "InstructedImage")


def test_what_cannot_be_seen_is_named(tmp_path: Path) -> None:
    with pictures(tmp_path, [(0, 0), (1, 1)], passage="text") as looker:
        for wrong, message in (
            ({"ids": ["0", "none"]}, "'none' is not the id of a stored picture"),
            ({"ids": ["text"]}, "'text' is not the id of a stored picture"),
            ({"ids": ["0"], "where": {"page": 1}}, "give ids or where"),
            ({"passes": -1}, "passes must be"),
            ({"passes": True}, "passes must be"),
            ({"facet_map": "yes"}, "facet_map must be"),
        ):
            with pytest.raises(InputError, match=message):
                seen_pictures(looker, [INSTRUCTION], **wrong)  # type: ignore[arg-type]
        blind = Looks(Blind(), looker.store)
        with pytest.raises(InputError, match=r"does not look at pictures under an instruction, and 2 pictures"):
            seen_pictures(blind, [INSTRUCTION])
        assert seen_pictures(blind, [INSTRUCTION], passes=0).left_out == 2


def test_the_pictures_of_the_tests_are_what_they_say(tmp_path: Path) -> None:
    chosen: Sequence[tuple[int, int]] = [(4, 2)]
    with pictures(tmp_path, chosen), PIL.Image.open(tmp_path / "0.png") as opened:
        assert opened.getpixel((0, 0)) == (4, 2, 0)
