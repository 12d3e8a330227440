"""Zero-shot classification."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from embedders import Given

from abc_rag.cli import main as cli
from abc_rag.errors import DatasetError, InputError
from abc_rag.evaluation.classification import evaluate_classification
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import KINDS, Placed, Scene

X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
VECTORS: dict[Any, Any] = {
    **{f"a photo of a {label}": vector for label, vector in (("cat", X), ("dog", Y), ("fox", Z))},
    ("c1", None): X, ("c2", None): (0.6, 0.8, 0.0), ("d1", None): Y, ("f1", None): (0.1, 0.2, 0.9),
}  # fmt: skip
LABELS = {"c1": "cat", "c2": "cat", "d1": "dog", "f1": "fox"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = []
    for name, label in LABELS.items():
        PIL.Image.new("RGB", (8, 8), "green").save(tmp_path / f"{name}.png")
        rows.append({"image": f"{name}.png", "label": label})
    return lines(tmp_path, *rows)


def lines(folder: Path, *rows: Any) -> Path:
    (folder / "data.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return folder / "data.jsonl"


def test_known_answers(data: Path) -> None:
    found = evaluate_classification(Given(VECTORS), data)
    assert found.metrics == {
        "top1": 0.75, "mean_over_labels": pytest.approx((0.5 + 1 + 1) / 3), "chance": pytest.approx(1 / 3),
    }  # fmt: skip
    assert found.settings["counts"] == {"pictures": 4, "labels": 3}
    assert list(found.details["per_label"]) == ["cat", "dog", "fox"]  # the worst first
    assert found.details["per_label"]["cat"] == {"pictures": 2, "accuracy": 0.5, "taken_for": {"dog": 1}}
    assert [list(row) for row in found.tables[-1].rows] == [["cat", "dog", 1, 50.0]]
    (mistake,) = found.mistakes
    assert (mistake.expected, mistake.found, mistake.rank) == ("cat", "dog", 2)
    assert (mistake.score, mistake.expected_score) == (pytest.approx(0.8), pytest.approx(0.6))
    assert found.details["pictures"][1] == {"image": "c2.png", "label": "cat", "rank": 2, "nearest_other": "dog"}


def test_templates_are_averaged_as_unit_vectors(data: Path) -> None:
    said = {f"a {label}": vector for label, vector in (("cat", (4.0, 3.0, 0.0)), ("dog", Y), ("fox", Z))}
    templates = ["a photo of a {}", "a {}"]
    found = evaluate_classification(Given(VECTORS | said), data, templates=templates)
    # A cat is now the mean of (1, 0, 0) and (0.8, 0.6, 0), scaled: nearer to c2 than a dog is.
    assert found.metrics["top1"] == 1.0
    assert found.settings["arguments"]["templates"] == templates
    (c2,) = [one for one in found.details["pictures"] if one["image"] == "c2.png"]
    assert c2["rank"] == 1


def test_the_scores_of_averaged_labels(data: Path) -> None:
    said = {f"a {label}": vector for label, vector in (("cat", Y), ("dog", X), ("fox", Z))}
    found = evaluate_classification(Given(VECTORS | said), data, templates=["a photo of a {}", "a {}"])
    mistake = next(one for one in found.mistakes if str(one.image).endswith("c1.png"))
    # Cat and dog have become one vector: a tie, and so a miss.
    assert mistake.expected_score == pytest.approx(math.sqrt(0.5))
    assert mistake.score == pytest.approx(math.sqrt(0.5))
    assert found.metrics["top1"] == 0.25


def test_an_instruction_is_asked_of_every_picture(data: Path) -> None:
    vectors = VECTORS | {(name, "the animal"): vector for name, vector in (("c1", X), ("c2", X), ("d1", Y), ("f1", Z))}
    assert evaluate_classification(Given(vectors), data, instruction="the animal").metrics["top1"] == 1.0


def test_top_5_where_it_says_something(data: Path, tmp_path: Path) -> None:
    more = {f"a photo of a {label}": (0.1, 0.1, 0.1) for label in "pqr"}
    (tmp_path / "labels.json").write_text(json.dumps(["cat", "dog", "fox", *"pqr"]))
    found = evaluate_classification(Given(VECTORS | more), data, labels=tmp_path / "labels.json")
    assert found.metrics["top5"] == 1.0
    assert found.settings["counts"]["labels"] == 6
    assert len(found.settings["arguments"]["labels"]["sha256"]) == 64


@pytest.mark.parametrize(
    "content", ["cat\n\n dog \nfox\n", '["cat", "dog", "fox"]', '{"cat": "cat", "dog": "dog", "fox": "fox"}']
)
def test_files_of_labels(content: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text(content)
    found = evaluate_classification(Given(VECTORS), data, labels=tmp_path / "labels")
    assert found.metrics["top1"] == 0.75
    assert found.details["labels"] == {"cat": "cat", "dog": "dog", "fox": "fox"}


def test_labels_in_other_words(tmp_path: Path, data: Path) -> None:
    lines(tmp_path, {"image": "c1.png", "label": "n01"}, {"image": "d1.png", "label": "n02"})
    (tmp_path / "labels.json").write_text('{"n01": "cat", "n02": "dog", "n03": "fox"}')
    found = evaluate_classification(Given(VECTORS), data, labels=tmp_path / "labels.json")
    assert found.metrics["top1"] == 1.0
    assert set(found.details["per_label"]) == {"n01", "n02"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no labels"),
        ("cat\ncat\ndog", r"a label occurs twice \(cat\)"),
        ("[", "begins like JSON but is not"),
        ('{"cat": 3}', "words for a label is int, not text"),
        ('["cat", ""]', "1 label; give two or more"),
        ("cat", "1 label; give two or more"),
        ("\xff", "cannot be read"),
    ],
)
def test_bad_files_of_labels(content: str, message: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(content.encode("latin-1"))
    with pytest.raises(DatasetError, match=message):
        evaluate_classification(Given(VECTORS), data, labels=tmp_path / "labels")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"image": "gone.png", "label": "cat"}, "missing image"),
        ({"image": "d1.png"}, "missing label"),
        ({"image": "d1.png", "label": 3}, "wrong type"),
        ({"image": "d1.png", "label": ""}, "empty label"),
        ({"image": "c1.png", "label": "cat"}, "duplicate image"),
        ({"image": "c1.png", "label": "dog"}, "two labels for an image"),
        ({"image": "d1.png", "label": "whale"}, "unknown label"),
    ],
)
def test_a_bad_row_is_named_and_costs_only_itself(row: Any, problem: str, data: Path, tmp_path: Path) -> None:
    lines(tmp_path, {"image": "c1.png", "label": "cat"}, row, {"image": "f1.png", "label": "fox"})
    (tmp_path / "labels").write_text("cat\ndog\nfox")
    found = evaluate_classification(Given(VECTORS), data, labels=tmp_path / "labels")
    assert found.bad["by_problem"] == {problem: 1}
    assert found.settings["counts"]["pictures"] == 2


def test_bad_arguments(data: Path, tmp_path: Path) -> None:
    for templates in ([], "a photo of a {}", ["a photo"]):
        with pytest.raises(InputError, match=r"templates must be a list of texts with \{\}"):
            evaluate_classification(Given(VECTORS), data, templates=templates)
    with pytest.raises(DatasetError, match="no such file or folder"):
        evaluate_classification(Given(VECTORS), tmp_path / "gone")
    with pytest.raises(DatasetError, match="no picture with a known label could be embedded"):
        evaluate_classification(Given(VECTORS, broken=list(LABELS)), data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"LABEL/PICTURE\.jpg"):
        evaluate_classification(Given(VECTORS), tmp_path / "empty")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    for kind in KINDS[:4]:
        (folder / kind).mkdir()
        for number, colour in enumerate(("red", "blue")):
            render(Scene((Placed(kind, "big", "middle"),), colour), 84).save(folder / kind / f"{number}.png")
        (folder / kind / "notes.txt").write_text("no picture")
    (folder / ".hidden").mkdir()
    return folder


def test_a_folder_for_each_label(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", "classification", str(folders), "-m", "abc-mini", "-t", "a {}", "--json"])
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["top1"] == 1.0
    assert found["settings"]["counts"] == {"pictures": 8, "labels": 4}
    assert found["settings"]["arguments"]["templates"] == ["a {}"]
    assert len(found["settings"]["pictures_sha256"]) == 64


def test_a_limit_takes_pictures_of_all_labels(folders: Path) -> None:
    texts = {f"a photo of a {kind}": X for kind in KINDS[:4]}
    vectors = texts | {(str(number), None): Y for number in range(2)}
    taken = [
        [one["image"] for one in evaluate_classification(Given(vectors), folders, limit=4).details["pictures"]]
        for _ in range(2)
    ]
    assert taken[0] == taken[1]
    assert len(taken[0]) == 4
    assert len({name.split("/")[0] for name in taken[0]}) > 1
