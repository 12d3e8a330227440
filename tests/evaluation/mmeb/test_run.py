"""MMEB's own format, known answers, and a small MMEB of scenes that abc-mini answers."""

from __future__ import annotations

import json
import random
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abc_rag.cli.main import main
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import DatasetError, InputError
from abc_rag.evaluation.mmeb import tasks
from abc_rag.evaluation.mmeb.data import dataset_files, download_mmeb, image_folder
from abc_rag.evaluation.mmeb.run import evaluate_mmeb
from abc_rag.evaluation.mmeb.tasks import DATASETS, GROUPS, PROMPTS
from abc_rag.evaluation.report import write_report
from abc_rag.scenes.captions import captions
from abc_rag.scenes.drawing import render
from abc_rag.scenes.questions import questions
from abc_rag.scenes.world import held_out_scenes, phrase, phrases
from abc_rag.types import Fingerprint, Image, Input, InstructedImage, Text, Vectors

MARK = "<|image_1|>\n"
Candidate = tuple[str, str]


def row(text: str, image: str, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """A row as the hub has it: the right candidate first."""
    return {
        "qry_text": text,
        "qry_img_path": image,
        "tgt_text": [text for text, _ in candidates],
        "tgt_img_path": [image for _, image in candidates],
    }


def texts(*candidates: str) -> list[Candidate]:
    return [(text, "") for text in candidates]


def pictures(*images: str, text: str = MARK + "Represent the given image.\n") -> list[Candidate]:
    return [(text, image) for image in images]


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    strings = pa.list_(pa.string())
    schema = pa.schema([("qry_text", pa.string()), ("qry_img_path", pa.string()), ("tgt_text", strings),
                        ("tgt_img_path", strings)])  # fmt: skip
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)


def put(root: Path, dataset: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Where the hub has it."""
    write(root / dataset / "test-00000-of-00001.parquet", rows)


def draw(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        file = root / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), (number * 20 % 256, 100, 50)).save(file)


class Known(Embedder):
    """Vectors by hand. Keys: a text, ``name.png``, or ``name.png|instruction``; the last part of a path counts."""

    dim = 2
    fingerprint = Fingerprint("known", "1", 1, 1)

    def __init__(self, vectors: Mapping[str, Sequence[float]]) -> None:
        self.vectors = vectors
        self.asked: list[str] = []
        self.used_as: dict[str, str] = {}

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        rows = []
        for item in inputs:
            key = item.text if isinstance(item, Text) else Path(str(item.source)).name
            key += f"|{item.instruction}" if isinstance(item, InstructedImage) else ""
            self.asked.append(key)
            self.used_as[key] = item.role
            rows.append(self.vectors[key])
        array = np.array(rows, dtype=np.float32)
        return array / np.linalg.norm(array, axis=1, keepdims=True)


# --- What MMEB is -------------------------------------------------------------------------------------------


def test_there_are_36_data_sets_in_four_meta_tasks_20_of_them_in_distribution() -> None:
    assert len(DATASETS) == len(set(DATASETS)) == 36
    assert {group: len(names) for group, names in GROUPS.items()} == {
        "classification": 10, "vqa": 10, "retrieval": 12, "grounding": 4, "ind": 20, "ood": 16, "overall": 36,
    }  # fmt: skip
    assert set(GROUPS["ind"]) | set(GROUPS["ood"]) == set(DATASETS)


def test_published_means_fit_one_another() -> None:
    """The overall mean follows from the meta-tasks' and from IND and OOD, up to rounding: a slip would show."""
    for one in tasks.PUBLISHED:
        if one.scores[6] is None:
            assert one.note
            continue
        *of_tasks, ind, ood, overall = (score or 0.0 for score in one.scores)
        if one.scores[4] is not None:
            assert (20 * ind + 16 * ood) / 36 == pytest.approx(overall, abs=0.1), one
        by_tasks = np.dot(of_tasks, [10, 10, 12, 4]) / 36
        assert by_tasks == pytest.approx(overall, abs=0.1) or "as printed" in one.note, one


@pytest.mark.parametrize(
    ("names", "count"), [(["ImageNet-1K"], 1), (["vqa"], 10), (["IND", "ImageNet-1K"], 20), (["overall"], 36)]
)
def test_groups_and_names_are_chosen(names: list[str], count: int) -> None:
    chosen = tasks.chosen_datasets(names)
    assert len(chosen) == count
    assert chosen == [name for name in DATASETS if name in chosen]


def test_an_unknown_data_set_is_refused_with_the_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data set 'CIFAR-100'; choose among classification.*ImageNet-1K"):
        evaluate_mmeb(FakeEmbedder(), tmp_path, datasets=["CIFAR-100"])


# --- Prompts ------------------------------------------------------------------------------------------------

PATH = Path("a.png")
QUESTION = "Represent the given image with the following question: What is left?"


@pytest.mark.parametrize(
    ("prompts", "dataset", "text", "image", "expected"),
    [
        ("mmeb", "OK-VQA", MARK + QUESTION + "\n", PATH, InstructedImage(PATH, QUESTION)),
        ("mmeb", "MSCOCO_t2i", "Find it: a dog ", None, Text("Find it: a dog")),
        ("mmeb", "NIGHTS", MARK, PATH, Image(PATH)),
        ("mmeb", "ImageNet-1K", MARK + "Represent the given image for classification", PATH,
         InstructedImage(PATH, "Represent the given image for classification")),
        ("abc", "ImageNet-1K", MARK + "Represent the given image for classification", PATH, Image(PATH)),
        ("abc", "N24News", MARK + "Represent the news: Caption.", PATH,
         InstructedImage(PATH, "Represent the news: Caption.")),
        ("abc", "OK-VQA", MARK + QUESTION + "\n", PATH, InstructedImage(PATH, QUESTION + "\n")),
        ("abc", "CIRR", MARK + "Find another: red", PATH, InstructedImage(PATH, "Find another: red")),
    ],
)  # fmt: skip
def test_queries(prompts: str, dataset: str, text: str, image: Path | None, expected: Input) -> None:
    assert PROMPTS[prompts].query(dataset, text, image) == expected


@pytest.mark.parametrize(
    ("prompts", "dataset", "text", "image", "expected"),
    [
        ("mmeb", "ImageNet-1K", "tabby cat", None, Text("tabby cat")),
        ("mmeb", "CIRR", MARK + "Represent the given image.\n", PATH,
         InstructedImage(PATH, "Represent the given image.")),
        ("abc", "ImageNet-1K", "tabby cat", None, Text("A photo of tabby cat.")),
        ("abc", "OK-VQA", "chihuahua", None, Text("The answer is chihuahua.")),
        ("abc", "MSCOCO_i2t", "a dog runs", None, Text("a dog runs")),
        ("abc", "CIRR", MARK + "Represent the given image.\n", PATH, Image(PATH)),
        ("abc", "EDIS", MARK + "Represent the given image with related text information: News.", PATH,
         InstructedImage(PATH, "Represent the given image with related text information: News.")),
    ],
)  # fmt: skip
def test_candidates(prompts: str, dataset: str, text: str, image: Path | None, expected: Input) -> None:
    assert PROMPTS[prompts].candidate(dataset, text, image) == expected


def test_a_family_may_bring_its_own_prompts(tmp_path: Path) -> None:
    class Raw:
        name = "raw"

        def query(self, dataset: str, text: str, image: Path | None) -> Input:
            return Text(f"Q {dataset} {text} {image.name if image else None}")

        def candidate(self, dataset: str, text: str, image: Path | None) -> Input:
            return Text(f"C {text}")

    draw(tmp_path, "a.png")
    put(tmp_path, "VOC2007", [row(MARK + "What?", "a.png", texts("cat", "dog"))])
    known = Known({f"Q VOC2007 {MARK}What? a.png": (1, 0), "C cat": (1, 0.1), "C dog": (0, 1)})
    results = evaluate_mmeb(known, tmp_path, prompts=Raw())
    assert results.metrics["hit@1"] == 1
    assert results.settings["arguments"]["prompts"] == "raw"
    roles = {key.partition(" ")[0]: role for key, role in known.used_as.items()}
    assert roles == {"Q": "query", "C": "document"}
    with pytest.raises(InputError, match="prompts must be one of auto, mmeb, abc, vlm2vec, not 'raw'"):
        evaluate_mmeb(known, tmp_path, prompts="raw")  # type: ignore[arg-type]


# --- hit@1 --------------------------------------------------------------------------------------------------


def test_hits_misses_ties_and_copies_of_the_right_candidate(tmp_path: Path) -> None:
    put(tmp_path, "MSCOCO_i2t", [
        row("hit", "", texts("east", "north", "south")),
        row("miss", "", texts("north", "east", "south")),
        row("tie", "", texts("east", "also east")),
        row("copy", "", texts("east", "east", "north", "east")),
    ])  # fmt: skip
    east, north = (1.0, 0.0), (0.0, 1.0)
    known = Known({"hit": (1, 0.2), "miss": (1, 0.2), "tie": east, "copy": east, "east": east, "also east": east,
                   "north": north, "south": (0.0, -1.0)})  # fmt: skip
    results = evaluate_mmeb(known, tmp_path)
    assert results.metrics["hit@1/MSCOCO_i2t"] == 0.5
    (details,) = results.details["datasets"]
    assert details["ranks"] == [1, 2, 2, 1]
    assert details["ties"] == 1
    assert details["where"] == [f"MSCOCO_i2t[{number}]" for number in range(4)]
    # Each distinct input was embedded once, however many lists it stands in.
    assert sorted(known.asked) == sorted(known.vectors)


def test_a_model_that_maps_everything_to_one_vector_scores_nothing(tmp_path: Path) -> None:
    put(tmp_path, "OVEN", [row(f"query {i}", "", texts("a", "b", "c")) for i in range(70)])
    same = (0.6, 0.8)
    known = Known({"a": same, "b": same, "c": same, **{f"query {i}": same for i in range(70)}})
    results = evaluate_mmeb(known, tmp_path)
    assert results.metrics["hit@1"] == 0
    assert results.details["datasets"][0]["ties"] == 70


def test_each_query_chooses_from_its_own_list(tmp_path: Path) -> None:
    put(tmp_path, "WebQA", [row("q", "", texts("near", "far")), row("q", "", texts("near", "nearest")),
                            row("q", "", texts("far", "farthest"))])  # fmt: skip
    known = Known({"q": (1, 0), "nearest": (1, 0), "near": (1, 0.5), "far": (0.1, 1), "farthest": (-1, 0)})
    assert evaluate_mmeb(known, tmp_path).metrics["hit@1/WebQA"] == pytest.approx(2 / 3)


def test_candidates_are_told_apart_by_text_and_picture(tmp_path: Path) -> None:
    draw(tmp_path, "EDIS/a.png", "EDIS/b.png")
    put(tmp_path, "EDIS", [
        row("first", "", [(MARK + "one", "EDIS/a.png"), (MARK + "two", "EDIS/a.png"), (MARK + "one", "EDIS/b.png")])
    ])  # fmt: skip
    known = Known({"first": (1, 0), "a.png|one": (1, 0), "a.png|two": (0, 1), "b.png|one": (0, -1)})
    assert evaluate_mmeb(known, tmp_path).metrics["hit@1"] == 1
    assert len(known.asked) == 4


def right(dataset: str) -> dict[str, Any]:
    return row("q", "", texts("right", "wrong"))


def wrong(dataset: str) -> dict[str, Any]:
    return row("q", "", texts("wrong", "right"))


def test_means_weigh_data_sets_alike_and_say_over_how_many(tmp_path: Path) -> None:
    for dataset, rows in {
        "ImageNet-1K": [right, wrong],  # classification, IND: 0.5
        "N24News": [wrong],  # classification, IND: 0
        "Place365": [right] * 5,  # classification, OOD: 1
        "GQA": [right, right, wrong, wrong, wrong],  # VQA, OOD: 0.4
    }.items():
        put(tmp_path, dataset, [make(dataset) for make in rows])
    known = Known({"q": (1, 0), "right": (1, 0), "wrong": (0, 1)})
    results = evaluate_mmeb(known, tmp_path)
    assert results.metrics == pytest.approx({
        "hit@1": (0.5 + 0 + 1 + 0.4) / 4,
        "hit@1/classification": 0.5,
        "hit@1/vqa": 0.4,
        "hit@1/ind": 0.25,
        "hit@1/ood": 0.7,
        "hit@1/ImageNet-1K": 0.5,
        "hit@1/N24News": 0.0,
        "hit@1/Place365": 1.0,
        "hit@1/GQA": 0.4,
        "hit@1/classification without N24News": 0.75,
    })  # fmt: skip
    table = results.tables[1]
    assert table.columns[1:] == ["Class.", "VQA", "Retr.", "Ground.", "IND", "OOD", "All"]
    assert table.rows[0][1:4] == [50.0, 40.0, pytest.approx(float("nan"), nan_ok=True)]
    assert table.rows[1][1:] == [3, 1, 0, 0, 2, 2, 4]
    assert table.rows[2][1:] == [10, 10, 12, 4, 20, 16, 36]
    names = [line[0] for line in table.rows[3:]]
    assert {"UniIR (CLIP_SF) [1]", "ABC (Qwen2-VL-7B) [3]"} <= set(names)
    assert {"[1] arXiv 2410.05160, Table 2", "[3] arXiv 2503.00329"} <= set(results.notes)
    assert len(results.details["missing"]) == 32
    assert any("they compare with published ones only if all were" in note for note in results.notes)


def test_limit_takes_the_first_queries(tmp_path: Path) -> None:
    put(tmp_path, "GQA", [right("GQA"), wrong("GQA"), wrong("GQA")])
    known = Known({"q": (1, 0), "right": (1, 0), "wrong": (0, 1)})
    assert evaluate_mmeb(known, tmp_path, limit=1).metrics["hit@1"] == 1
    assert evaluate_mmeb(known, tmp_path, limit=2).metrics["hit@1"] == 0.5
    with pytest.raises(InputError, match="limit must be positive"):
        evaluate_mmeb(known, tmp_path, limit=0)


def test_the_right_candidate_among_the_wrong_ones_is_named_and_does_not_count(tmp_path: Path) -> None:
    known = Known({"q": (1, 0), "right": (1, 0), "wrong": (0, 1)})
    put(tmp_path, "GQA", [right("GQA"), row("q", "", texts("right", "wrong", "right"))])
    results = evaluate_mmeb(known, tmp_path)
    assert results.metrics["hit@1"] == 1
    (note,) = (n for n in results.notes if "among the wrong ones too" in n)
    assert "GQA 1 (first: " in note


# --- Layouts ------------------------------------------------------------------------------------------------

ROWS = [right("GQA"), wrong("GQA"), right("GQA")]


def as_jsonl(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in ROWS))


def save_to_disk(folder: Path, *, with_splits: bool) -> None:
    import datasets

    made = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict({"test": made}) if with_splits else made).save_to_disk(folder)


LAYOUTS = {
    "hub": lambda root: put(root, "GQA", ROWS),
    "parquet branch": lambda root: write(root / "GQA" / "test" / "0000.parquet", ROWS),
    "two files": lambda root: [write(root / "GQA" / f"test-0000{i}-of-00002.parquet", ROWS[i::2]) for i in range(2)],
    "one file": lambda root: write(root / "GQA.parquet", ROWS),
    "saved with splits": lambda root: save_to_disk(root / "GQA", with_splits=True),
    "saved": lambda root: save_to_disk(root / "GQA", with_splits=False),
    "JSON lines": lambda root: as_jsonl(root / "GQA" / "test.jsonl"),
    "one file of JSON lines": lambda root: as_jsonl(root / "GQA.jsonl"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    known = Known({"q": (1, 0), "right": (1, 0), "wrong": (0, 1)})
    results = evaluate_mmeb(known, tmp_path, datasets=["GQA"])
    assert results.metrics["hit@1/GQA"] == pytest.approx(2 / 3)
    recorded = [value for name, value in results.settings["arguments"].items() if name.startswith("file ")]
    assert len(recorded) == (2 if layout == "two files" else 1)
    assert all(len(one["sha256"]) == 64 for one in recorded)


def test_pictures_are_looked_for_where_they_are_unpacked(tmp_path: Path) -> None:
    assert image_folder(tmp_path, None) == tmp_path
    (tmp_path / "eval_images").mkdir()
    assert image_folder(tmp_path, None) == tmp_path / "eval_images"
    (tmp_path / "images").mkdir()
    assert image_folder(tmp_path, None) == tmp_path / "images"
    assert image_folder(tmp_path, tmp_path) == tmp_path
    with pytest.raises(InputError, match=r"no such folder; unpack MMEB's images\.zip"):
        image_folder(tmp_path, tmp_path / "nowhere")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder; download MMEB .*--download"):
        evaluate_mmeb(FakeEmbedder(), tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no files of any data set of MMEB"):
        evaluate_mmeb(FakeEmbedder(), tmp_path)
    put(tmp_path, "GQA", ROWS)
    with pytest.raises(
        InputError, match=r"holds no files of VOC2007 .*VOC2007/test-00000-of-00001.parquet.*--download"
    ):
        evaluate_mmeb(FakeEmbedder(), tmp_path, datasets=["GQA", "VOC2007"])
    # A group takes what is there.
    assert "hit@1/GQA" in evaluate_mmeb(FakeEmbedder(), tmp_path, datasets=["vqa"]).metrics
    assert dataset_files(tmp_path, "VOC2007") == []


# --- Bad rows -----------------------------------------------------------------------------------------------


def test_bad_rows_are_named_counted_and_left_out(tmp_path: Path) -> None:
    draw(tmp_path, "A/a.png", "A/b.png")
    (tmp_path / "images/A/broken.png").write_bytes(b"no picture")
    good = row(MARK + "which?", "A/a.png", texts("right", "wrong"))
    rows: list[dict[str, Any]] = [
        good,
        good | {"qry_img_path": "A/gone.png"},
        good | {"tgt_text": [], "tgt_img_path": []},
        good | {"tgt_img_path": [""]},
        good | {"qry_text": " ", "qry_img_path": ""},
        good | {"qry_img_path": ""},
        good | {"qry_img_path": "../secret.png"},
        good | {"qry_img_path": "/etc/passwd"},
        good | {"qry_img_path": None, "qry_text": "right?"},
        good | {"tgt_text": ["right", "right"]},
        good | {"qry_img_path": "A/broken.png"},
    ]
    put(tmp_path, "OK-VQA", rows)
    embedder = Careful({"a.png|which?": (1, 0), "right": (1, 0), "wrong": (0, 1), "right?": (1, 0)})
    results = evaluate_mmeb(embedder, tmp_path)
    assert results.details["datasets"][0]["queries"] == 2
    assert results.metrics["hit@1"] == 1
    assert results.bad["by_problem"] == {
        "picture outside the image folder": 2,
        "missing image": 1,
        "no candidates": 1,
        "candidates of two lengths": 1,
        "neither text nor picture": 1,
        "no picture for its placeholder": 1,
        "no wrong candidate": 1,
        "picture is broken": 1,
    }
    where = {bad["where"]: bad for bad in results.bad["rows"]}
    assert where["OK-VQA[1]"]["detail"] == "query: A/gone.png"
    assert where["OK-VQA[3]"]["detail"] == "2 texts, 1 pictures"
    with pytest.raises(DatasetError, match=r"the limit is 2.*OK-VQA\[1\]: missing image"):
        evaluate_mmeb(embedder, tmp_path, max_bad=2)


class Careful(Known):
    """Opens pictures, as a real embedder does."""

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        from abc_rag.images.open import open_image

        for item in inputs:
            if not isinstance(item, Text):
                open_image(item.source)
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


def test_a_lost_candidate_is_counted_once_and_costs_no_rows(tmp_path: Path) -> None:
    draw(tmp_path, "N/a.png", "N/b.png")
    (tmp_path / "images/N/broken.png").write_bytes(b"no picture")
    listed = pictures("N/a.png", "N/gone.png", "N/broken.png", "N/b.png")
    put(tmp_path, "VisDial", [row(f"q{number}", "", listed) for number in range(3)])
    say = "|Represent the given image."
    known = Careful({"q0": (1, 0), "q1": (1, 0), "q2": (0, 1), f"a.png{say}": (1, 0), f"b.png{say}": (0, 1)})
    results = evaluate_mmeb(known, tmp_path)
    assert results.metrics["hit@1"] == pytest.approx(2 / 3)
    assert results.bad["by_problem"] == {"missing image": 1, "picture is broken": 1}
    assert any("which makes them easier: VisDial 6" in note for note in results.notes)


def test_the_wrong_image_folder_is_named(tmp_path: Path) -> None:
    put(tmp_path, "VOC2007", [row(MARK + "What?", f"VOC2007/{i}.jpg", texts("a", "b")) for i in range(30)])
    with pytest.raises(DatasetError, match=r"none of the first 20 pictures exists, such as VOC2007/19.jpg.*--images"):
        evaluate_mmeb(FakeEmbedder(), tmp_path)
    with pytest.raises(DatasetError, match=r"VOC2007: 3 unusable rows \(3 missing image\).*--images"):
        evaluate_mmeb(FakeEmbedder(), tmp_path, limit=3)


def test_files_that_are_something_else_are_named(tmp_path: Path) -> None:
    file = tmp_path / "GQA" / "test-00000-of-00001.parquet"
    file.parent.mkdir()
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(DatasetError, match=r"test-00000-of-00001.parquet: cannot be read .*; fetch it again"):
        evaluate_mmeb(FakeEmbedder(), tmp_path)
    pq.write_table(pa.table({"qry_text": ["a"]}), file)
    with pytest.raises(DatasetError, match="has no column qry_img_path, tgt_text, tgt_img_path; MMEB's files have"):
        evaluate_mmeb(FakeEmbedder(), tmp_path)
    put(tmp_path, "GQA", [])
    with pytest.raises(DatasetError, match="GQA: no rows"):
        evaluate_mmeb(FakeEmbedder(), tmp_path)


def test_json_lines_of_other_shapes_are_bad_rows(tmp_path: Path) -> None:
    lines = [ROWS[0], {"qry_text": "q"}, ROWS[0] | {"tgt_text": "right"}, ROWS[0] | {"qry_text": 7}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "no json\n"
    (tmp_path / "GQA.jsonl").write_text(text)
    results = evaluate_mmeb(Known({"q": (1, 0), "right": (1, 0), "wrong": (0, 1)}), tmp_path)
    assert results.bad["by_problem"] == {
        "missing column": 1, "wrong type": 2, "not JSON": 1,
    }  # fmt: skip
    assert results.bad["rows"][0]["where"] == "GQA/GQA.jsonl:2"


# --- Resuming -----------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_with_the_next_data_set(tmp_path: Path) -> None:
    put(tmp_path, "VOC2007", [row("q", "", texts("right", "wrong"))])
    put(tmp_path, "GQA", [row("late", "", texts("right", "unknown"))])
    vectors = {"q": (1, 0), "right": (1, 0), "wrong": (0, 1), "late": (1, 0)}
    stopped = Known(vectors)
    with pytest.raises(KeyError):
        evaluate_mmeb(stopped, tmp_path, out=tmp_path / "out")
    again = Known(vectors | {"unknown": (0, 1)})
    results = evaluate_mmeb(again, tmp_path, out=tmp_path / "out")
    assert results.metrics["hit@1"] == 1
    assert {"q", "wrong"} & set(again.asked) == set()
    assert "unknown" in again.asked
    whole = Known(again.vectors)
    evaluate_mmeb(whole, tmp_path, out=tmp_path / "out")
    assert whole.asked == []


# --- A small MMEB of scenes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes_mmeb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five data sets in the hub's format, of scenes that abc-mini has not seen."""
    root = tmp_path_factory.mktemp("mmeb")
    rng = random.Random(7)
    scenes = held_out_scenes(24, seed=11)
    everything = phrases()
    names = [f"Scenes/{number}.png" for number in range(len(scenes))]
    (root / "images" / "Scenes").mkdir(parents=True)
    for name, scene in zip(names, scenes, strict=True):
        render(scene, size=168).save(root / "images" / name)

    def listed(answer: str) -> list[Candidate]:
        return texts(answer, *(one for one in everything if one != answer))

    asked = [(name, rng.choice(questions(scene, rng))) for name, scene in zip(names, scenes, strict=True)]
    put(root, "OK-VQA", [row(MARK + q.instruction + "\n", name, listed(q.answer)) for name, q in asked])
    told = [captions(scene, rng) for scene in scenes]
    put(root, "MSCOCO_t2i", [row(caption, "", pictures(name, *(n for n in names if n != name), text=MARK))
                             for caption, name in zip(told, names, strict=True)])  # fmt: skip
    put(root, "MSCOCO_i2t", [row(MARK, name, texts(caption, *(t for t in told if t != caption)))
                             for caption, name in zip(told, names, strict=True)])  # fmt: skip
    first = [phrase(scene.objects[0].kind) for scene in scenes]
    put(root, "VOC2007", [row(MARK, name, texts(right, *{p for p in first if p not in _in(scene)}))
                          for name, scene, right in zip(names, scenes, first, strict=True)])  # fmt: skip
    return root


def _in(scene: Any) -> set[str]:
    return {phrase(placed.kind) for placed in scene.objects}


def test_abc_mini_answers_the_small_mmeb(scenes_mmeb: Path, mini: Embedder, tmp_path: Path) -> None:
    results = evaluate_mmeb(mini, scenes_mmeb, out=tmp_path)
    assert results.bad["count"] == 0
    assert results.metrics["hit@1/OK-VQA"] >= 0.8
    assert results.metrics["hit@1/MSCOCO_t2i"] >= 0.8
    assert results.metrics["hit@1/MSCOCO_i2t"] >= 0.8
    assert results.metrics["hit@1/VOC2007"] >= 0.7
    # The same pictures without the instruction: the questions are what makes the difference.
    assert results.settings["model"]["model"] == "abc-mini"
    page = write_report(results, tmp_path)[1].read_text(encoding="utf-8")
    assert "VLM2Vec" in page


def test_mistakes_show_the_pictures_and_come_from_every_data_set(scenes_mmeb: Path) -> None:
    results = evaluate_mmeb(FakeEmbedder(), scenes_mmeb)
    assert {mistake.query.split(":")[0] for mistake in results.mistakes} == {
        "OK-VQA", "MSCOCO_t2i", "MSCOCO_i2t", "VOC2007",
    }  # fmt: skip
    asked = next(one for one in results.mistakes if one.query.startswith("MSCOCO_t2i"))
    assert asked.image is None
    assert Path(str(asked.expected_image)).is_file()
    assert Path(str(asked.found_image)).is_file()
    assert asked.score is not None
    assert asked.expected_score is not None
    assert asked.score > asked.expected_score
    assert asked.rank is not None
    assert asked.rank > 1


def test_the_command(scenes_mmeb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "mmeb", str(scenes_mmeb), "--model", "abc-mini", "--device", "cpu", "--limit", "6"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--datasets", "VOC2007,MSCOCO_i2t", "--out", str(tmp_path)])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "VOC2007" in shown
    assert "2410.05160" in shown
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["settings"]["arguments"]["limit"] == 6
    assert (tmp_path / "report.html").is_file()
    with pytest.raises(SystemExit) as end:
        main([*command, "--datasets", "classification", "--prompts", "abc", "--json"])
    assert end.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["settings"]["arguments"]["datasets"] == ["VOC2007"]
    assert printed["settings"]["arguments"]["prompts"] == "abc"
    with pytest.raises(SystemExit) as end:
        main([*command, "--datasets", "nonsense"])
    assert end.value.code == 2
    assert "MMEB has no data set 'nonsense'" in capsys.readouterr().err


# --- Fetching -----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A hub on loopback: its address, its files, and the files that were fetched."""
    files: dict[str, bytes] = {}
    fetched: list[str] = []
    commit = "1" * 40

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(send=False)

        def do_GET(self) -> None:
            self.answer(send=True)

        def answer(self, *, send: bool) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/datasets/TIGER-Lab/MMEB-eval/revision/"):
                body = json.dumps(
                    {"id": "TIGER-Lab/MMEB-eval", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
                ).encode()
            elif path.startswith("/api/datasets/TIGER-Lab/MMEB-eval/tree/"):
                body = json.dumps(
                    [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
                ).encode()
            else:
                name = path.partition(f"/resolve/{commit}/")[2]
                if name not in files:
                    self.send_error(404)
                    return
                body = files[name]
                if send:
                    fetched.append(name)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{len(body):040d}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if send:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files, fetched
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_asked_for_is_fetched_and_unpacked_once(
    hub: tuple[str, dict[str, bytes], list[str]], scenes_mmeb: Path, tmp_path: Path
) -> None:
    url, files, fetched = hub
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for picture in (scenes_mmeb / "images" / "Scenes").iterdir():
            opened.write(picture, f"Scenes/{picture.name}")
    files["images.zip"] = archive.read_bytes()
    for name in ("VOC2007", "OK-VQA"):
        files[f"{name}/test-00000-of-00001.parquet"] = (scenes_mmeb / name / "test-00000-of-00001.parquet").read_bytes()
    root = tmp_path / "mmeb"
    download_mmeb(root, ["VOC2007"], endpoint=url)
    assert sorted(fetched) == ["VOC2007/test-00000-of-00001.parquet", "images.zip"]
    assert (root / "images" / "Scenes" / "0.png").is_file()
    assert evaluate_mmeb(FakeEmbedder(), root).details["datasets"][0]["queries"] == 24
    (root / "images.zip").unlink()
    download_mmeb(root, ["VOC2007", "OK-VQA"], endpoint=url)
    assert fetched.count("images.zip") == 1
    assert (root / "OK-VQA" / "test-00000-of-00001.parquet").is_file()


def test_a_hub_out_of_reach_and_a_broken_archive_are_said(
    hub: tuple[str, dict[str, bytes], list[str]], tmp_path: Path
) -> None:
    url, files, _ = hub
    files["images.zip"] = b"no archive"
    with pytest.raises(DatasetError, match=r"images.zip: cannot be unpacked .*delete it and fetch it again"):
        download_mmeb(tmp_path / "one", ["VOC2007"], endpoint=url)
    assert not (tmp_path / "one" / "images").exists()
    with pytest.raises(DatasetError, match="TIGER-Lab/MMEB-eval: cannot be fetched"):
        download_mmeb(tmp_path / "two", ["VOC2007"], endpoint="http://127.0.0.1:9")
