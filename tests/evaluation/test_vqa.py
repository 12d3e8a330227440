"""Visual questions as retrieval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from embedders import Given

from abc_rag.cli import main as cli
from abc_rag.errors import DatasetError, InputError
from abc_rag.evaluation.vqa import evaluate_vqa
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import Placed, Scene

X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
VECTORS: dict[Any, Any] = {
    "red": X, "blue": Y, "two": Z,
    ("a", None): (1.0, 0.5, 0.2), ("a", "which colour?"): X, ("a", "how many?"): Z,
    ("b", None): (1.0, 0.5, 0.2), ("b", "which colour?"): (0.8, 0.6, 0.0),
}  # fmt: skip
OWN = (
    {"image": "a.png", "question": "which colour?", "answer": "red", "candidates": ["blue", "red"]},
    {"image": "a.png", "question": "how many?", "answer": "two", "candidates": ["red", "blue"]},
    {"image": "b.png", "question": "which colour?", "answer": "blue", "candidates": ["blue", "red", "red"]},
)
SHARED = tuple({name: value for name, value in row.items() if name != "candidates"} for row in OWN)


def write(folder: Path, *rows: Any) -> Path:
    for name in "ab":
        PIL.Image.new("RGB", (8, 8), "green").save(folder / f"{name}.png")
    (folder / "data.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return folder / "data.jsonl"


def test_known_answers_among_own_candidates(tmp_path: Path) -> None:
    found = evaluate_vqa(Given(VECTORS), write(tmp_path, *OWN))
    assert found.metrics == {
        "hit1": pytest.approx(2 / 3), "hit5": 1.0,
        "without_question_hit1": pytest.approx(1 / 3), "without_question_hit5": 1.0,
        "chance_hit1": pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3), "chance_hit5": 1.0,
    }  # fmt: skip
    assert [one["candidates"] for one in found.details["questions"]] == [2, 3, 2]  # the answer always is one
    assert [one["rank_without_question"] for one in found.details["questions"]] == [1, 3, 2]
    (mistake,) = found.mistakes
    assert (mistake.query, mistake.expected, mistake.found) == ("which colour?", "blue", "red")
    assert str(mistake.image).endswith("b.png")


def test_known_answers_among_all(tmp_path: Path) -> None:
    found = evaluate_vqa(Given(VECTORS), write(tmp_path, *SHARED))
    assert found.metrics["hit1"] == pytest.approx(2 / 3)
    assert found.metrics["chance_hit1"] == pytest.approx(1 / 3)
    assert found.settings["counts"] == {"questions": 3, "candidates": 3}


def test_the_instruction_is_what_the_template_makes_of_the_question(tmp_path: Path) -> None:
    data = write(tmp_path, *OWN[:1], {**OWN[0], "image": "b.png"})
    asked = {(name, "Answer: which colour?"): X for name in "ab"}
    found = evaluate_vqa(Given(VECTORS | asked), data, instruction_template="Answer: {question}")
    assert found.metrics["hit1"] == 1.0
    with pytest.raises(InputError, match=r"must have \{question\} in it"):
        evaluate_vqa(Given(VECTORS), data, instruction_template="Answer")


def test_questions_are_rewritten_where_that_is_asked_for(tmp_path: Path) -> None:
    question = "could you please tell me which colour the background has? Thanks!"
    data = write(tmp_path, {**OWN[0], "question": question})
    embedder = Given({**VECTORS, ("a", question): X})
    evaluate_vqa(embedder, data)
    assert ("a", question) in embedder.embedded
    with pytest.raises(KeyError) as error:  # the rewritten one, of which the test knows no vector
        evaluate_vqa(Given(VECTORS), data, rewrite=True)
    assert "please" not in error.value.args[0][1]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**OWN[0], "image": "gone.png"}, "missing image"),
        ({**OWN[0], "question": " "}, "empty question"),
        ({**OWN[0], "answer": None}, "missing answer"),
        ({**OWN[0], "candidates": ["red", "red"]}, "no wrong candidate"),
        ({**OWN[0], "candidates": []}, "no wrong candidate"),
        ({**OWN[0], "candidates": "red, blue"}, "candidates is not a list"),
        ({**OWN[0], "candidates": ["", "red"]}, "empty candidates"),
        (SHARED[0], "mixed columns"),
        ({**OWN[0], "id": 4}, "duplicate id"),
    ],
)
def test_a_bad_row_is_named_and_costs_only_itself(row: Any, problem: str, tmp_path: Path) -> None:
    found = evaluate_vqa(Given(VECTORS), write(tmp_path, {**OWN[0], "id": 4}, row, OWN[2]))
    assert found.bad["by_problem"] == {problem: 1}
    assert found.bad["rows"][0]["where"] == "data.jsonl:2"
    assert found.settings["counts"]["questions"] == 2


def test_columns_are_mixed_the_other_way_round_too(tmp_path: Path) -> None:
    found = evaluate_vqa(Given(VECTORS), write(tmp_path, SHARED[0], OWN[1], SHARED[2]))
    assert found.bad["by_problem"] == {"mixed columns": 1}


def test_broken_pictures(tmp_path: Path) -> None:
    found = evaluate_vqa(Given(VECTORS, broken=["b"]), write(tmp_path, *OWN))
    assert found.metrics["hit1"] == 1.0
    assert found.bad["count"] == 1
    with pytest.raises(DatasetError, match="no picture with a question could be embedded"):
        evaluate_vqa(Given(VECTORS, broken="ab"), tmp_path / "data.jsonl")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    render(Scene((Placed("dog", "big", "left"), Placed("cat", "big", "right")), "red"), 84).save(tmp_path / "scene.png")
    rows = [
        {"image": "scene.png", "question": "what is on the left?", "answer": "a dog"},
        {"image": "scene.png", "question": "what is on the right?", "answer": "a cat"},
    ]
    data = write(tmp_path, *rows)
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", "vqa", str(data), "--model", "abc-mini", "--json", "--rewrite"])
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["hit1"] == 1.0
    assert found["settings"]["arguments"]["rewrite"] is True
