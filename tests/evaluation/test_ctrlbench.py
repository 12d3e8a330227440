"""CtrlBench: does the instruction steer?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from embedders import Given

from abc_rag.cli import main as cli
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import DatasetError, InputError
from abc_rag.evaluation.ctrlbench import SCENES, evaluate_ctrlbench, write_scenes_ctrlbench
from abc_rag.evaluation.results import Results

X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def write(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    """A file of these rows (text as it stands), and a picture for every name that does not begin with "gone"."""
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("image"), str) and not row["image"].startswith("gone"):
            PIL.Image.new("RGB", (8, 8), "green").save(folder / row["image"])
    (folder / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return folder / name


def asked(image: str, *pairs: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"image": image, "pairs": [{"instruction": i, "phrase": p} for i, p in pairs], **more}


TWO = (asked("a.png", ("left", "a dog"), ("right", "a cat")), asked("b.png", ("left", "a fox"), ("right", "a dog")))
# "a dog" answers for both pictures, and is one candidate.
VECTORS = {
    "a dog": X, "a cat": Y, "a fox": Z,
    ("a", None): (1.0, 0.5, 0.1), ("a", "left"): X, ("a", "right"): Y,
    ("b", None): (0.1, 1.0, 0.5), ("b", "left"): (0.3, 0.9, 0.8), ("b", "right"): X,
    # Without a picture, "left" means a dog and "right" a cat: right for a, wrong for b.
    "left": X, "right": Y, "animal": Z, "?": Y,
}  # fmt: skip


def test_known_answers(tmp_path: Path) -> None:
    found = evaluate_ctrlbench(Given(VECTORS), write(tmp_path, *TWO))
    assert found.settings["counts"] == {"pictures": 2, "queries": 4, "candidates": 3}
    # With: all right but b/left, where the cat beats the fox. Alone: a is right about the dog, b says cat.
    assert found.metrics == {
        "r1": 0.75, "r5": 1.0, "r10": 1.0,
        "without_instruction_r1": 0.25, "without_instruction_r5": 1.0, "without_instruction_r10": 1.0,
        "without_instruction_ceiling": 0.5,
        "own_phrases_r1": 1.0, "own_phrases_without_instruction_r1": 0.5, "own_phrases_ceiling": 0.5,
        "instruction_alone_r1": 0.5, "instruction_alone_r5": 1.0, "instruction_alone_r10": 1.0,
        "own_phrases_instruction_alone_r1": 0.5, "own_phrases_chance": 0.5,
    }  # fmt: skip
    assert found.details["answered_by_instruction"] == [
        {"image": "a.png", "instruction": "left", "phrase": "a dog"},
        {"image": "a.png", "instruction": "right", "phrase": "a cat"},
    ]
    assert any("2 of 4 pairs are answered by the instruction alone" in note for note in found.notes)
    assert "instruction alone, no picture" in [row[0] for row in found.tables[0].rows]
    (mistake,) = found.mistakes
    assert (mistake.query, mistake.expected, mistake.found, mistake.rank) == ("left", "a fox", "a cat", 2)
    assert mistake.image == str(tmp_path / "b.png")
    assert [one["rank"] for one in found.details["queries"]] == [1, 1, 2, 1]
    assert [one["rank_without_instruction"] for one in found.details["queries"]] == [1, 2, 2, 3]
    assert found.details["queries"][2] == {
        "image": "b.png", "instruction": "left", "phrase": "a fox", "rank": 2, "rank_without_instruction": 2,
        "rank_of_instruction_alone": 3,
        "nearest_other": "a cat",
    }  # fmt: skip


def test_the_ceiling_counts_a_phrase_that_answers_several_instructions(tmp_path: Path) -> None:
    rows = [asked("a.png", ("left", "a dog"), ("animal", "a dog"), ("right", "a cat")), asked("b.png", ("?", "a fox"))]
    vectors = VECTORS | {("a", "animal"): X, ("b", "?"): Z}
    metrics = evaluate_ctrlbench(Given(vectors), write(tmp_path, *rows)).metrics
    assert metrics["without_instruction_ceiling"] == pytest.approx(3 / 4)  # two of a's three, and b's only one
    assert metrics["without_instruction_r1"] <= 3 / 4
    # A picture with one phrase leaves nothing to choose.
    assert metrics["own_phrases_ceiling"] == pytest.approx(2 / 3)
    assert metrics["own_phrases_chance"] == pytest.approx(1 / 2)


def test_one_phrase_a_picture_tests_no_instruction(tmp_path: Path) -> None:
    found = evaluate_ctrlbench(
        Given(VECTORS), write(tmp_path, asked("a.png", ("left", "a dog")), asked("b.png", ("left", "a fox")))
    )
    assert found.metrics["without_instruction_ceiling"] == 1.0
    assert found.as_dict()["metrics"]["own_phrases_r1"] is None
    assert any("says nothing about instructions" in note for note in found.notes)


def test_nobody_who_ignores_the_instruction_passes_the_ceiling(tmp_path: Path) -> None:
    blind = VECTORS | {(name, said): VECTORS[name, None] for name in "ab" for said in ("left", "right")}
    metrics = evaluate_ctrlbench(Given(blind), write(tmp_path, *TWO)).metrics
    assert metrics["r1"] == metrics["without_instruction_r1"] <= metrics["without_instruction_ceiling"]
    same = dict.fromkeys(VECTORS, X)
    metrics = evaluate_ctrlbench(Given(same), tmp_path / "data.jsonl").metrics
    assert metrics["r1"] == metrics["own_phrases_r1"] == 0.0  # ties are misses


def test_captions_do_for_phrases_and_rows_of_one_picture_are_joined(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "pairs": [{"instruction": "left", "caption": "a dog"}]},
        asked("a.png", ("right", " a cat\n")),
        TWO[1],
    ]
    found = evaluate_ctrlbench(Given(VECTORS), write(tmp_path, *rows))
    assert found.metrics["r1"] == 0.75
    assert found.settings["counts"]["pictures"] == 2


BAD_ROWS = [
    ("{not json", "not JSON"),
    ("[1]", "not a JSON object"),
    (asked("gone.png", ("left", "a dog")), "missing image"),
    ({"pairs": [{"instruction": "left", "phrase": "a dog"}]}, "missing image"),
    ({"image": 7, "pairs": [{"instruction": "left", "phrase": "a dog"}]}, "wrong type"),
    ({"image": "a.png", "caption": "a dog"}, "missing pairs"),
    ({"image": "a.png", "pairs": {}}, "pairs is not a list"),
    ({"image": "a.png", "pairs": []}, "empty pairs"),
    ({"image": "a.png", "pairs": ["left"]}, "pair is not a JSON object"),
    (asked("a.png", ("left", "a cat")), "instruction asked twice of a picture"),
    (asked("a.png", ("up", " ")), "empty phrase"),
    (asked("a.png", ("", "a dog")), "empty instruction"),
    ({"image": "a.png", "pairs": [{"instruction": "up", "phrase": None}]}, "missing phrase"),
    ({"image": "a.png", "pairs": [{"instruction": "up", "phrase": "x", "caption": "y"}]}, "mixed columns"),
    (asked("c.png", ("left", "a dog"), id=1), "duplicate id"),
    (asked("a\0.png".replace("a", "gone"), ("left", "a dog")), "missing image"),
]


@pytest.mark.parametrize(("row", "problem"), BAD_ROWS)
def test_a_bad_row_is_named_and_costs_only_itself(row: Any, problem: str, tmp_path: Path) -> None:
    data = write(tmp_path, {**TWO[0], "id": 1}, row, TWO[1])
    found = evaluate_ctrlbench(Given(VECTORS), data)
    assert found.bad["by_problem"] == {problem: 1}
    assert found.bad["rows"][0]["where"].startswith("data.jsonl:2")
    assert found.metrics["r1"] == 0.75
    with pytest.raises(DatasetError, match=r"the limit is 0.*data\.jsonl:2"):
        evaluate_ctrlbench(Given(VECTORS), data, max_bad=0)


def test_a_broken_picture_is_left_out_with_its_phrases(tmp_path: Path) -> None:
    found = evaluate_ctrlbench(Given(VECTORS, broken=["b"]), write(tmp_path, *TWO))
    assert found.settings["counts"] == {"pictures": 1, "queries": 2, "candidates": 2}
    assert found.metrics["r1"] == 1.0
    assert found.bad["by_problem"] == {"picture is broken": 1}
    with pytest.raises(DatasetError, match=r"no picture with an instruction could be embedded.*broken"):
        evaluate_ctrlbench(Given(VECTORS, broken=["a", "b"]), tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "it is empty"),
        (["", " "], "it is empty"),
        ([{"image": "a.png"}], r"1 missing pairs\).*data\.jsonl:1.*each must be"),
    ],
)
def test_a_file_without_a_usable_row_is_refused(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        evaluate_ctrlbench(Given(VECTORS), write(tmp_path, *rows))


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no such file.*JSON lines file, or 'scenes'"):
        evaluate_ctrlbench(Given(VECTORS), tmp_path / "nothing.jsonl")
    with pytest.raises(DatasetError, match="is a folder; give a JSON lines file"):
        evaluate_ctrlbench(Given(VECTORS), tmp_path)
    with pytest.raises(DatasetError, match="limit must be at least 1"):
        evaluate_ctrlbench(Given(VECTORS), write(tmp_path, *TWO), limit=0)


def test_a_limit_takes_the_first_pictures(tmp_path: Path) -> None:
    found = evaluate_ctrlbench(Given(VECTORS), write(tmp_path, *TWO), limit=1)
    assert found.settings["counts"]["pictures"] == 1
    assert found.settings["arguments"]["limit"] == 1


def test_a_second_run_with_the_folder_embeds_nothing(tmp_path: Path) -> None:
    data, out = write(tmp_path, *TWO), tmp_path / "out"
    first, second = Given(VECTORS), Given(VECTORS)
    figures = evaluate_ctrlbench(first, data, out=out).as_dict()
    assert evaluate_ctrlbench(second, data, out=out).as_dict() == figures
    assert (len(first.embedded), second.embedded) == (11, [])
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes() + b"\0")
    third = Given(VECTORS)
    evaluate_ctrlbench(third, data, out=out)
    assert ("a", "left") in third.embedded
    assert "a dog" not in third.embedded


# --- With a real model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(mini: Embedder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    data = write_scenes_ctrlbench(tmp_path_factory.mktemp("scenes"), scenes=30)
    data.write_text(json.dumps(asked("broken.png", ("left", "a dog"))) + "\n" + data.read_text())
    (data.parent / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return data, evaluate_ctrlbench(mini, data)


def test_abc_mini_is_steered(scenes: tuple[Path, Results]) -> None:
    metrics = scenes[1].metrics
    assert metrics["r1"] > 0.8
    assert metrics["without_instruction_r1"] <= metrics["without_instruction_ceiling"] < 0.5
    assert metrics["own_phrases_r1"] > 0.8 > 0.5 > metrics["own_phrases_without_instruction_r1"]
    assert scenes[1].settings["device"] == "cpu"
    assert scenes[1].model.startswith("abc-mini@")
    assert scenes[1].bad["by_problem"] == {"picture is broken": 1}


def test_scenes_on_the_spot_are_the_scenes_of_the_file(mini: Embedder, scenes: tuple[Path, Results]) -> None:
    found = evaluate_ctrlbench(mini, SCENES, limit=8)
    assert found.metrics == pytest.approx(evaluate_ctrlbench(mini, scenes[0], limit=9).metrics)
    assert found.settings["arguments"]["data"] == {"scenes": 8, "seed": 20264}


def test_scenes_are_written_where_they_can_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scenes must be between 1 and 200, not 201"):
        write_scenes_ctrlbench(tmp_path, scenes=201)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_scenes_ctrlbench(tmp_path / "file", scenes=1)


def test_the_command(scenes: tuple[Path, Results], tmp_path: Path, capsys: pytest.CaptureFixture[str],
                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["abc-rag", "evaluate", "ctrlbench", "..."])
    command = [
        "evaluate",
        "ctrlbench",
        str(scenes[0]),
        "--model",
        "abc-mini",
        "--out",
        str(tmp_path / "out"),
        "--limit",
        "5",
    ]
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--json"])
    assert end.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["settings"]["counts"]["pictures"] == 4
    assert printed == json.loads((tmp_path / "out" / "results.json").read_text())
    assert printed["settings"]["command"] == "abc-rag evaluate ctrlbench ..."
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page
    assert "data:image/jpeg;base64," in page
    with pytest.raises(SystemExit):
        cli.main(command)
    shown = capsys.readouterr().out
    assert "picture + instruction" in shown
    assert "not comparable" in " ".join(shown.split())  # folded at the width of the terminal
    assert "left out: 1 (1 picture is broken)" in shown
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--max-bad", "0"])
    assert end.value.code == 2
    assert "picture is broken" in capsys.readouterr().err
