"""What surveys refuse, and their twins for event loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from survey_helpers import INSTRUCTION, pictures

from abc_rag.errors import InputError

OTHER = "what is on the right?"


async def test_surveys_for_event_loops_and_thresholds(tmp_path: Path) -> None:
    with pictures(tmp_path, [(0, 0), (1, 1), (2, 0)]) as looker:
        assert await looker.agroups(INSTRUCTION, phrases=["0", "1"]) == looker.groups(INSTRUCTION, phrases=["0", "1"])
        found = await looker.aduplicates([INSTRUCTION, INSTRUCTION], threshold=0.9)
        assert [(pair.first, pair.second, pair.score) for pair in found.pairs] == [("0", "2", 1.0)]
        assert (found.thresholds, found.count, found.passes) == ({INSTRUCTION: 0.9}, 1, 3)
        assert looker.duplicates([INSTRUCTION], threshold={INSTRUCTION: 0.4}).count == 3
        # Both instructions are seen alike here: nothing is the same and different.
        assert looker.duplicates([INSTRUCTION], different=[OTHER], threshold=0.9).count == 0
        assert looker.duplicates([INSTRUCTION], threshold=0.9, ids=["0", "1"]).count == 0
        few = looker.duplicates([INSTRUCTION], threshold=0.9, passes=1)
        assert (few.count, few.left_out) == (0, 2)
        assert "2 pictures were not looked at" in few.notes[0]
        json.dumps(found.as_dict())


@pytest.mark.parametrize(
    ("same", "options", "message"),
    [
        ([], {}, "same is empty"),
        (INSTRUCTION, {}, "same must be a list of instructions"),
        ([INSTRUCTION], {"different": [INSTRUCTION]}, "is in same and in different"),
        ([INSTRUCTION], {"threshold": 2}, r"threshold must be a number in \[0, 1\]"),
        ([INSTRUCTION], {"threshold": {OTHER: 0.5}}, "which is neither in same nor in different"),
        ([INSTRUCTION], {"most": 0}, "most must be a positive number"),
        ([INSTRUCTION], {"passes": -1}, "passes must be"),
    ],
)
def test_duplicates_that_make_no_sense(tmp_path: Path, same: Any, options: dict[str, Any], message: str) -> None:
    with pictures(tmp_path, []) as looker, pytest.raises(InputError, match=message):
        looker.duplicates(same, **options)


@pytest.mark.parametrize(
    ("instruction", "options", "message"),
    [
        (" ", {}, "none is blank"),
        (INSTRUCTION, {"k": 0}, "k must be a positive int"),
        (INSTRUCTION, {"k": True}, "k must be a positive int"),
        (INSTRUCTION, {"phrases": "a pig"}, "phrases must be a list"),
        (INSTRUCTION, {"phrases": [" "]}, "phrases must be a list"),
        (INSTRUCTION, {"facet_map": 1}, "facet_map must be"),
    ],
)
def test_groups_that_make_no_sense(tmp_path: Path, instruction: str, options: dict[str, Any], message: str) -> None:
    with pictures(tmp_path, []) as looker, pytest.raises(InputError, match=message):
        looker.groups(instruction, **options)
