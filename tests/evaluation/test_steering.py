"""Several models on one's own pairs: gains that can be counted by hand, and costs."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from embedders import Given

from abc_rag.cli import main as cli
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import CheckpointError, DatasetError, InputError
from abc_rag.evaluation.steering import evaluate_steering

X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
PHRASES = {"a dog": X, "a cat": Y, "a fox": Z, "left": X, "right": Y, "alone": Z}
# One follows every instruction; one sees a dog in a, and a fox in b, whatever it is asked.
FOLLOWS = {
    **PHRASES,
    ("a", None): X, ("a", "left"): X, ("a", "right"): Y, ("a", "alone"): Z,
    ("b", None): Z, ("b", "left"): Z, ("b", "right"): X,
}  # fmt: skip
DEAF = {**PHRASES, **{key: X if key[0] == "a" else Z for key in FOLLOWS if isinstance(key, tuple)}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in "ab":
        PIL.Image.new("RGB", (8, 8), "green").save(tmp_path / f"{name}.png")
    rows: list[dict[str, Any]] = [
        {
            "image": "a.png",
            "pairs": [
                {"instruction": "left", "phrase": "a dog", "aspect": "side"},
                {"instruction": "right", "phrase": "a cat", "aspect": "side"},
                {"instruction": "alone", "phrase": "a fox"},
            ],
        },
        {
            "image": "b.png",
            "pairs": [{"instruction": "left", "phrase": "a fox"}, {"instruction": "right", "phrase": "a dog"}],
        },
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def refuse() -> Embedder:
    raise CheckpointError("gone: not found; fetch it again")


def test_gains_over_the_ceiling_by_aspect(data: Path) -> None:
    found = evaluate_steering(
        {"follows": lambda: Given(FOLLOWS), "deaf": lambda: Given(DEAF, model="deaf"), "gone": refuse}, data
    )
    # One answer per picture is right for one of a's three pairs and one of b's two.
    for name, right in (("follows", 1.0), ("deaf", 0.4)):
        assert found.metrics[f"{name}: r1"] == pytest.approx(right)
        assert found.metrics[f"{name}: without_instruction_ceiling"] == pytest.approx(0.4)
        assert found.metrics[f"{name}: gain"] == pytest.approx(right - 0.4)
        for what in ("picture", "known_picture", "query"):
            assert found.metrics[f"{name}: seconds_{what}"] > 0
    # b's pairs name no aspect: their instructions are asked of two pictures each; a's "alone" of one.
    assert found.details["by_aspect"]["follows"] == pytest.approx(
        {"side": 0.6, "left": 0.6, "right": 0.6, "others": 0.6}
    )
    assert found.details["by_aspect"]["deaf"] == pytest.approx(
        {"side": 0.1, "left": 0.6, "right": -0.4, "others": -0.4}
    )
    assert list(found.details["by_aspect"]["deaf"])[-1] == "others"
    first, aspects = found.tables
    assert [row[0] for row in first.rows] == ["follows", "deaf"]
    assert aspects.rows[0] == ["side", 2, pytest.approx(60), pytest.approx(10)]
    assert found.details["refused"] == {"gone": "gone: not found; fetch it again"}
    assert any("gone could not be used" in note for note in found.notes)


def test_what_cannot_be_compared(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model is named"):
        evaluate_steering({}, data)
    with pytest.raises(InputError, match="no model can be used: gone: gone: not found"):
        evaluate_steering({"gone": refuse}, data)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DatasetError):
        evaluate_steering({"deaf": lambda: Given(DEAF)}, tmp_path / "empty.jsonl")


def test_the_command_takes_models_one_after_the_other(data: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    asked = ["evaluate", "steering", str(data), "--models", "abc-mini", "nowhere", "--device", "cpu", "--json"]
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        cli.main([*asked, "--out", str(tmp_path / "results")])
    assert not ended.value.code
    told = json.loads(out.getvalue())
    assert "abc-mini: gain" in told["metrics"]
    assert "neither" in told["details"]["refused"]["nowhere"]
    assert (tmp_path / "results" / "report.html").is_file()
    assert json.loads((tmp_path / "results" / "results.json").read_text())["benchmark"] == "steering"
