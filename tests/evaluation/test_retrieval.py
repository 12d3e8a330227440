"""Image-text retrieval: known answers, four formats, and what is wrong with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from embedders import Given

from abc_rag.cli import main as cli
from abc_rag.errors import DatasetError
from abc_rag.evaluation.captions import read_captioned
from abc_rag.evaluation.retrieval import evaluate_retrieval
from abc_rag.training.data.rows import BadRows

X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
# Picture a is nearest to its second caption; b's caption is nearer to c than to b; c is right both ways.
VECTORS: dict[Any, Any] = {
    ("a", None): X, ("b", None): (0.2, 1.0, 0.1), ("c", None): (0.0, 0.75, 0.85),
    "a dog": (0.5, 0.5, 0.5), "a brown dog": X, "a cat": (0.0, 0.8, 0.6), "a fox": (0.0, 0.6, 0.8),
}  # fmt: skip
CAPTIONS = {"a": ["a dog", "a brown dog"], "b": ["a cat"], "c": ["a fox"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        PIL.Image.new("RGB", (8, 8), "green").save(tmp_path / f"{name}.png")
    return tmp_path


def jsonl(folder: Path, *rows: Any) -> Path:
    (folder / "data.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return folder / "data.jsonl"


def listed(folder: Path) -> Path:
    return jsonl(folder, *({"image": f"{name}.png", "captions": said} for name, said in CAPTIONS.items()))


def single(folder: Path) -> Path:
    rows = [{"image": f"{name}.png", "caption": one} for name, said in CAPTIONS.items() for one in said]
    return jsonl(folder, *rows)


def mscoco(folder: Path, **more: Any) -> Path:
    whole = {
        "info": {},
        "images": [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate(CAPTIONS)],
        "annotations": [
            {"id": 10 * number + place, "image_id": number, "caption": one}
            for number, said in enumerate(CAPTIONS.values())
            for place, one in enumerate(said)
        ],
    }
    for name, rows in more.items():
        whole[name] += rows  # type: ignore[operator]
    (folder / "captions.json").write_text(json.dumps(whole, indent=1))
    return folder / "captions.json"


def karpathy(folder: Path, **more: Any) -> Path:
    (folder / "val2014").mkdir(exist_ok=True)
    (folder / "c.png").rename(folder / "val2014" / "c.png")
    pictures = [
        {"filename": f"{name}.png", "filepath": "val2014", "split": "test", "sentences": [{"raw": one} for one in said]}
        for name, said in CAPTIONS.items()
    ]
    pictures.append({"filename": "no.png", "split": "train", "sentences": []})
    (folder / "dataset.json").write_text(json.dumps({"images": pictures, "dataset": "coco", **more}))
    return folder / "dataset.json"


@pytest.mark.parametrize(
    ("make", "kind"), [(listed, "jsonl"), (single, "jsonl"), (mscoco, "mscoco"), (karpathy, "karpathy")]
)
def test_known_answers_in_every_format(make: Any, kind: str, folder: Path) -> None:
    found = evaluate_retrieval(Given(VECTORS), make(folder))
    assert found.settings["format"] == kind
    assert found.settings["counts"] == {"pictures": 3, "captions": 4, "distinct_captions": 4}
    assert found.metrics == {
        "image_to_text_r1": pytest.approx(1.0), "image_to_text_r5": 1.0, "image_to_text_r10": 1.0,
        "text_to_image_r1": pytest.approx(0.5), "text_to_image_r5": 1.0, "text_to_image_r10": 1.0,
    }  # fmt: skip
    # "a dog" is nearer to c than to a, "a cat" nearer to c than to b.
    assert [(one.query, one.expected[-5:], one.found[-5:]) for one in found.mistakes] == [
        ("a dog", "a.png", "c.png"),
        ("a cat", "b.png", "c.png"),
    ]
    assert str(found.mistakes[0].found_image).endswith("c.png")
    assert [one["rank"] for one in found.details["captions"]] == [3, 1, 2, 1]


def test_a_caption_of_two_pictures_is_one_candidate_and_right_for_both(folder: Path) -> None:
    rows = [{"image": "a.png", "captions": ["a dog"]}, {"image": "c.png", "captions": ["a dog", "a fox"]}]
    found = evaluate_retrieval(Given(VECTORS), jsonl(folder, *rows))
    assert found.settings["counts"] == {"pictures": 2, "captions": 3, "distinct_captions": 2}
    assert found.metrics["text_to_image_r1"] == 1.0
    assert found.metrics["image_to_text_r1"] == 1.0
    assert any("word for word: 1." in note for note in found.notes)


@pytest.mark.parametrize("kind", ["jsonl", "karpathy"])
def test_an_unusable_caption_costs_the_others_nothing(kind: str, folder: Path) -> None:
    said = ["a cat", " ", 3]
    if kind == "jsonl":
        data = jsonl(folder, {"image": "b.png", "captions": said}, {"image": "c.png", "captions": ["a fox"]})
    else:
        pictures = [{"filename": "b.png", "split": "test", "sentences": [{"raw": one} for one in said]},
                    {"filename": "c.png", "split": "test", "sentences": [{"raw": "a fox"}]}]  # fmt: skip
        data = folder / "karpathy.json"
        data.write_text(json.dumps({"images": pictures}))
    found = evaluate_retrieval(Given(VECTORS), data)
    assert found.settings["counts"] == {"pictures": 2, "captions": 2, "distinct_captions": 2}
    assert found.bad["count"] == 2
    assert sorted(problem.split()[0] for problem in found.bad["by_problem"]) == ["empty", "wrong"]


def test_pictures_elsewhere_captions_limit_and_split(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = listed(tmp_path_factory.mktemp("annotations"))
    with pytest.raises(DatasetError, match="3 missing image"):
        evaluate_retrieval(Given(VECTORS), data)
    found = evaluate_retrieval(Given(VECTORS), data, images=folder, captions=1, limit=2)
    assert found.settings["counts"] == {"pictures": 2, "captions": 2, "distinct_captions": 2}
    with pytest.raises(DatasetError, match="no such folder"):
        evaluate_retrieval(Given(VECTORS), data, images=listed(folder))
    with pytest.raises(DatasetError, match=r"has no splits \(format: jsonl\)"):
        evaluate_retrieval(Given(VECTORS), data, images=folder, split="test")
    with pytest.raises(DatasetError, match=r"no split 'val'; it has test \(3\), train \(1\)"):
        evaluate_retrieval(Given(VECTORS), karpathy(folder), split="val")
    with pytest.raises(DatasetError, match="captions must be at least 1"):
        evaluate_retrieval(Given(VECTORS), data, images=folder, captions=0)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"image": "gone.png", "captions": ["a dog"]}, "missing image"),
        ({"image": "b.png", "captions": [" "]}, "empty captions"),
        ({"image": "b.png", "captions": []}, "empty captions"),
        ({"image": "b.png", "captions": "a cat"}, "captions is not a list"),
        ({"image": "b.png", "captions": [3]}, "wrong type"),
        ({"image": "b.png", "caption": "a cat"}, "mixed columns"),
        ({"image": "b.png", "captions": ["a cat"], "caption": "a cat"}, "mixed columns"),
        ({"image": "b.png", "captions": ["a cat"], "id": "x"}, "duplicate id"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_row_is_named_and_costs_only_itself(row: Any, problem: str, folder: Path) -> None:
    rows = [{"image": "a.png", "captions": ["a dog"], "id": "x"}, row, {"image": "c.png", "captions": ["a fox"]}]
    found = evaluate_retrieval(Given(VECTORS), jsonl(folder, *rows))
    assert found.bad["by_problem"] == {problem: 1}
    assert found.bad["rows"][0]["where"].startswith("data.jsonl:2")
    assert found.settings["counts"]["pictures"] == 2


def test_bad_rows_of_mscoco(folder: Path) -> None:
    data = mscoco(
        folder,
        images=[{"id": 0, "file_name": "a.png"}, {"id": 9, "file_name": "gone.png"}, {"file_name": "b.png"}, 3],
        annotations=[{"image_id": 99, "caption": "x"}, {"image_id": 0, "caption": ""}, {"image_id": 0}],
    )
    found = evaluate_retrieval(Given(VECTORS), data)
    assert found.bad["by_problem"] == {
        "duplicate id": 1, "missing image": 1, "no id": 1, "not a JSON object": 1,
        "caption of no picture": 1, "empty caption": 1, "missing caption": 1,
    }  # fmt: skip
    assert found.metrics["image_to_text_r1"] == 1.0
    whole = json.loads(data.read_text()) | {"annotations": []}
    data.write_text(json.dumps(whole))
    with pytest.raises(DatasetError, match="3 picture without a caption"):
        evaluate_retrieval(Given(VECTORS), data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("[]", "of no known format \\(no object\\)"),
        ('{"images": 3}', "of no known format \\(an object with images\\)"),
        ('{"images": []}', "of no known format"),
        ("id,caption\n1,2", "of no known format.*JSON lines.*MSCOCO.*Karpathy"),
        ("\xff\xfe", "of no known format"),
    ],
)
def test_another_format_is_refused_by_name(content: str, message: str, folder: Path) -> None:
    (folder / "data.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DatasetError, match=message):
        evaluate_retrieval(Given(VECTORS), folder / "data.json")


@pytest.mark.parametrize("kind", ["mscoco", "karpathy"])
def test_a_repeated_id_is_named_in_published_formats(kind: str, folder: Path) -> None:
    if kind == "mscoco":
        file = mscoco(folder, annotations=[{"id": 0, "image_id": 1, "caption": "again"}])
    else:
        file = karpathy(folder)
        whole = json.loads(file.read_text())
        whole["images"] = [{**one, "imgid": 5} for one in whole["images"][:2]]
        file.write_text(json.dumps(whole))
    bad = BadRows("data")
    read_captioned(file, bad)
    assert bad.by_problem == {"duplicate id": 1}


def test_an_empty_file_and_a_folder_are_refused_once(folder: Path) -> None:
    (folder / "empty.json").write_text(" \n")
    with pytest.raises(DatasetError) as caught:
        evaluate_retrieval(Given({}), folder / "empty.json")
    assert str(caught.value).count("it must be") == 1
    assert "is empty" in str(caught.value)
    with pytest.raises(DatasetError, match="is a folder; give annotations"):
        evaluate_retrieval(Given({}), folder)


def test_broken_pictures(folder: Path) -> None:
    found = evaluate_retrieval(Given(VECTORS, broken=["b"]), listed(folder))
    assert found.settings["counts"] == {"pictures": 2, "captions": 3, "distinct_captions": 3}
    assert found.bad["by_problem"] == {"picture is broken": 1}
    with pytest.raises(DatasetError, match="no picture with a caption could be embedded"):
        evaluate_retrieval(Given(VECTORS, broken="abc"), listed(folder))


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "retrieval", str(mscoco(folder)), "--images", str(folder), "--captions", "1"]
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--model", "abc-mini", "--out", str(tmp_path / "out")])
    assert end.value.code == 0
    assert "picture -> caption" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["settings"]["arguments"]["captions"] == 1
    assert len(found["settings"]["arguments"]["data"]["sha256"]) == 64
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
