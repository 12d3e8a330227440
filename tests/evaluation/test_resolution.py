"""Quality and time at several numbers of image tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from embedders import Given

from abc_rag import Image, load_embedder
from abc_rag.cli import main as cli
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import DatasetError, InputError
from abc_rag.evaluation import resolution
from abc_rag.evaluation.ctrlbench import write_scenes_ctrlbench
from abc_rag.evaluation.resolution import evaluate_resolution, resolutions
from abc_rag.models.abc.family import ABCFamily

X, Y = (1.0, 0.0), (0.0, 1.0)
PHRASES: dict[Any, Any] = {"a dog": X, "a cat": Y, "left": X, "right": X}
TEXTS: dict[Any, Any] = {**PHRASES, ("a", None): (1.0, 0.9), ("a", "left"): X}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    PIL.Image.new("RGB", (8, 8), "green").save(tmp_path / "a.png")
    pairs = [{"instruction": "left", "phrase": "a dog"}, {"instruction": "right", "phrase": "a cat"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": "a.png", "pairs": pairs}) + "\n")
    return tmp_path / "data.jsonl"


def sharp(tokens: int) -> Given:
    """Sees what is on the right with 64 tokens and more."""
    return Given({**TEXTS, ("a", "right"): Y if tokens >= 64 else X}, model=f"at {tokens}")


def test_known_figures_at_every_resolution(data: Path) -> None:
    found = evaluate_resolution(sharp, data, tokens=[256, 32, 64, 32], timed=4, passes=3)
    assert {name: value for name, value in found.metrics.items() if not name.startswith("seconds")} == {
        "r1@32": 0.5, "own_phrases_r1@32": 0.5, "r1@64": 1.0, "own_phrases_r1@64": 1.0,
        "r1@256": 1.0, "own_phrases_r1@256": 1.0,
    }  # fmt: skip
    assert all(found.metrics[f"seconds@{tokens}"] > 0 for tokens in (32, 64, 256))
    (table,) = found.tables
    assert [row[0] for row in table.rows] == ["32", "64", "256"]
    assert table.columns[-1] == "time / 256"
    assert table.rows[-1][-1] == "1.00"
    assert any("one point of the best R@1: 64." in note for note in found.notes)
    assert [one["tokens"] for one in found.details["resolutions"]] == [32, 64, 256]
    assert all(len(one["seconds"]) == 3 for one in found.details["resolutions"])
    quality, times = found.plots
    assert quality.series["R@1"] == [50.0, 100.0, 100.0]
    assert times.unit == "ms"
    json.dumps(found.as_dict(), allow_nan=False)


def test_passes_alternate_and_are_of_the_same_pictures(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Watched(Given):
        def _embed(self, inputs: Any, **options: Any) -> Any:
            order.append(self.model)
            return super()._embed(inputs, **options)

    def load(tokens: int) -> Given:
        return Watched({**TEXTS, ("a", "right"): Y}, model=str(tokens))

    evaluate_resolution(load, data, tokens=[1, 2, 3], passes=3)
    assert "".join(order[-12:]) == "123" + "321" + "123" + "321"


def test_another_base_where_256_is_not_asked_for(data: Path) -> None:
    (table,) = evaluate_resolution(sharp, data, tokens=[32, 64], passes=1).tables
    assert table.columns[-1] == "time / 32"


def test_what_the_model_cannot_take_is_left_out_and_said(data: Path) -> None:
    class Narrow(Given):
        def _embed(self, inputs: Any, **options: Any) -> Any:
            if self.model == "at 1024":
                raise InputError("an input of 1034 tokens is longer than the model's 512")
            return super()._embed(inputs, **options)

    def load(tokens: int) -> Given:
        return Narrow(sharp(tokens).vectors, model=f"at {tokens}")

    found = evaluate_resolution(load, data, tokens=[64, 1024], passes=1)
    assert "r1@1024" not in found.metrics
    assert any(note.startswith("1024 tokens: left out") and "512" in note for note in found.notes)
    assert found.tables[0].rows[1][:3] == [
        "1024",
        pytest.approx(math.nan, nan_ok=True),
        pytest.approx(math.nan, nan_ok=True),
    ]
    json.dumps(found.as_dict(), allow_nan=False)
    with pytest.raises(InputError, match="no resolution can be used: 1024 tokens"):
        evaluate_resolution(load, data, tokens=[1024], passes=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "guessing"}, "task must be one of ctrlbench, retrieval, classification, vqa, not 'guessing'"),
        ({"tokens": []}, "positive numbers"),
        ({"tokens": [64, 0]}, "positive numbers"),
        ({"tokens": [True]}, "positive numbers"),
        ({"timed": 0}, "at least 1"),
        ({"passes": 0}, "at least 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, data: Path) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_resolution(sharp, data, **arguments)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_what_is_of_another_task_is_refused(name: str, data: Path) -> None:
    with pytest.raises(InputError, match=f"{name} are of the task"):
        evaluate_resolution(lambda tokens: FakeEmbedder(), data, **{name: data})  # type: ignore[arg-type]


def test_bad_data(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        evaluate_resolution(sharp, tmp_path / "gone.jsonl")
    with pytest.raises(DatasetError, match="no picture can be opened"):
        evaluate_resolution(lambda _: Given(TEXTS, broken=["a"]), data)


@pytest.mark.parametrize(
    ("task", "row", "figure"),
    [
        ("retrieval", {"image": "{}.png", "caption": "{}"}, "text_to_image_r1"),
        ("classification", {"image": "{}.png", "label": "{}"}, "top1"),
        ("vqa", {"image": "{}.png", "question": "what?", "answer": "{}"}, "hit1"),
    ],
)
def test_every_task(task: Any, row: dict[str, str], figure: str, tmp_path: Path) -> None:
    rows = []
    for name in ("red", "blue"):
        PIL.Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
        rows.append(json.dumps({key: value.format(name) for key, value in row.items()}))
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    found = evaluate_resolution(
        lambda _: FakeEmbedder(), tmp_path / "data.jsonl", task=task, tokens=[4, 256], passes=1, out=tmp_path / "out"
    )
    assert found.metrics[f"{figure}@4"] == found.metrics[f"{figure}@256"]
    assert (tmp_path / "out" / "vectors").is_dir()


# --- With a real model ------------------------------------------------------------------------------------


def test_resolutions_of_a_model_share_its_weights_and_equal_those_loaded(mini: Embedder, tmp_path: Path) -> None:
    assert isinstance(mini, LocalEmbedder)
    at = resolutions(mini)
    four = at(4)
    assert isinstance(four, LocalEmbedder)
    assert isinstance(four.family, ABCFamily)
    assert isinstance(mini.family, ABCFamily)
    assert four.family.network is mini.family.network
    assert (four.fingerprint.min_tokens, four.fingerprint.max_tokens) == (4, 4)
    picture = Image(PIL.Image.new("RGB", (90, 60), "red"))
    alone = load_embedder("abc-mini", device="cpu", min_tokens=4, max_tokens=4)
    assert abs(four.embed([picture]) - alone.embed([picture])).max() < 1e-6
    assert abs(four.embed([picture]) - mini.embed([picture])).max() > 1e-3
    assert four.fingerprint == alone.fingerprint
    with pytest.raises(InputError, match="resolution of a FakeEmbedder cannot be set"):
        resolutions(FakeEmbedder())(4)


def test_passes_do_not_measure_what_is_remembered(mini: Embedder) -> None:
    embedder = resolutions(mini)(4)
    assert isinstance(embedder, LocalEmbedder)
    seen = 0

    class Counting(ABCFamily):
        def see(self, opened: Any) -> Any:
            nonlocal seen
            seen += len(opened)
            return super().see(opened)

    embedder.family.__class__ = Counting  # a family of its own, whose network it shares
    inputs = [Image(PIL.Image.new("RGB", (60, 60), colour)) for colour in ("red", "blue")]
    for _ in range(3):
        with resolution._remembering_nothing(embedder):
            embedder.embed(inputs)
    assert seen == 6
    embedder.embed(inputs)
    embedder.embed(inputs)
    assert seen == 8  # and afterwards it remembers again


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_scenes_ctrlbench(tmp_path / "scenes", scenes=4)
    command = ["evaluate", "resolution", str(data), "--model", "abc-mini", "--tokens", "4,9", "--passes", "1"]
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--timed", "2", "--out", str(tmp_path / "out"), "--json"])
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["r1@9"] > found["metrics"]["r1@4"]
    assert [one["mean_image_tokens"] for one in found["details"]["resolutions"]] == [4.0, 9.0]
    assert found["settings"]["timed_pictures"] == 2
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 2
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", "resolution", str(data), "--tokens", "64;128"])
    assert end.value.code == 2
    assert "numbers separated by commas" in capsys.readouterr().err
