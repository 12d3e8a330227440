"""VLM2Vec's training: the original's loss and gradients, what is planned and read, whole runs, two processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from abc_rag import Image, Input, Text, load_embedder
from abc_rag.cli.main import main
from abc_rag.errors import DatasetError, InputError
from abc_rag.models.lora import load_adapter
from abc_rag.models.qwen2_vl.network import backbone_name
from abc_rag.training.config import VLM2VecConfig, read_config
from abc_rag.training.data.mmeb import MMEBRows, PairRow, Side, open_mmeb_rows
from abc_rag.training.losses import loss_gradients
from abc_rag.training.running.loop import run
from abc_rag.training.shares import Share
from abc_rag.training.vlm2vec import VLM2VecTraining, plan_rows, train_vlm2vec

FIXTURE = Path(__file__).parents[1] / "fixtures" / "vlm2vec_qwen2vl"
PHI = Path(__file__).parents[1] / "fixtures" / "vlm2vec_phi3v"
CASES = json.loads((FIXTURE / "cases.json").read_text())
SINGLE = {case["id"]: case for case in CASES["single"]}
SMALL: dict[str, Any] = {
    "base": str(FIXTURE / "base"), "rows": 4, "steps": 3, "bf16": False, "base_dtype": "float32", "checkpoint_every": 1,
    "threads": 1, "workers": 2, "tensorboard": False, "lr": 5e-3, "max_tokens": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For networks as small as these: threads that wait for one another on a busy machine cost far more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the datasets library that is this test's alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def raw(qry: str, qry_image: str, pos: str, pos_image: str, neg: Any = "", neg_image: Any = "") -> dict[str, Any]:
    return {
        "qry": qry, "qry_image_path": qry_image, "pos_text": pos, "pos_image_path": pos_image,
        "neg_text": neg, "neg_image_path": neg_image,
    }  # fmt: skip


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


FIND = "Find me an everyday image that matches the given caption:"
LABEL = "<|image_1|> Represent the given image for classification"
WHOLE = "<|image_1|> Represent the given image."
QUESTIONS = [
    raw(f"{LABEL}\n", "shapes_224x224.png", "shapes", "", "a tiger"),
    raw(f"{LABEL}\n", "gray_300x200.png", "gray", "", "shapes"),
    raw(f"{LABEL}\n", "wide_900x100.png", "wide", ""),
    raw(f"{LABEL}\n", "shapes_56x56.png", "shapes", "", "", "rgba_200x150.png"),
]
CAPTIONS = [
    raw(f"{FIND} a scene", "", WHOLE, "scene_640x480.png", ["", "a dog"], ["rgba_200x150.png", ""]),
    raw(f"{FIND} a palette", "", WHOLE, "palette_160x160.png", [], []),
    raw(WHOLE, "shapes_56x56.png", WHOLE, "shapes_224x224.png", [], []),
    raw(f"{FIND} a dog", "", "A cat and a dog", "", [], []),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subsets, one in parquet and one in JSON lines, and their pictures."""
    root = tmp_path_factory.mktemp("mmeb")
    shutil.copytree(FIXTURE / "images", root / "images")
    (root / "Labels").mkdir()
    for split, rows in (("original", QUESTIONS), ("diverse_instruction", QUESTIONS[:1])):
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        datasets.Dataset.from_dict(columns).to_parquet(root / "Labels" / f"{split}-00000-of-00001.parquet")
    write_lines(root / "Captions.jsonl", CAPTIONS)
    return root


def settings(data: Path, out: Path, **changed: Any) -> dict[str, Any]:
    return {**SMALL, "data": str(data), "images": str(data / "images"), "out": str(out), **changed}


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def gradients(objective: VLM2VecTraining) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in objective.model.named_parameters() if p.grad is not None}


def step(objective: VLM2VecTraining, share: Share) -> dict[str, float]:
    return objective.backward(Accelerator(), objective.model, share, 0)


def share(objective: VLM2VecTraining, rows: Sequence[PairRow]) -> Share:
    return objective.share(rows, plan_rows(rows))


def all_rows(source: MMEBRows) -> list[PairRow]:
    return [source.row(n) for n in range(len(source))]


# --- The original's figures -------------------------------------------------------------------------------


def published(tmp_path: Path, **changed: Any) -> tuple[VLM2VecTraining, list[PairRow]]:
    """The fixture's adapter, not merged, and the queries and targets of its loss as rows of a data set."""
    loss = CASES["loss_pillow12"]

    def side(name: str) -> tuple[str, str]:
        text, image = SINGLE[name]["text"], SINGLE[name]["image"]
        return text.replace("<|image_pad|>", "<|image_1|>"), image or ""

    pairs = zip(loss["queries"], loss["targets"], strict=True)
    write_lines(tmp_path / "rows.jsonl", [raw(*side(query), *side(target)) for query, target in pairs])
    config = VLM2VecConfig(
        **{**SMALL, "data": str(tmp_path / "rows.jsonl"), "images": str(FIXTURE), "out": str(tmp_path / "out"),
           "rows": 3, "dropout": 0.0, "max_tokens": None, **changed}
    )  # fmt: skip
    objective = VLM2VecTraining(config)
    backbone = objective.model.network.backbone
    load_adapter(backbone.model, FIXTURE / "adapter", "vlm2vec", backbone_name)
    return objective, all_rows(open_mmeb_rows(config.data, images=FIXTURE))


def own_name(name: str) -> str:
    """The parameter that a gradient of the fixture belongs to."""
    name = name.replace("base_model.model.model.", "network.backbone.model.language_model.")
    name = name.replace(".default", ".vlm2vec")
    return name + ".weight" if "magnitude" in name else name


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_step_gives_the_originals_loss_and_gradients(chunk: int | None, tmp_path: Path) -> None:
    expected = CASES["loss_pillow12"]
    objective, rows = published(tmp_path, chunk=chunk)
    values = step(objective, share(objective, rows))
    assert values["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert values["temperature"] == pytest.approx(expected["temperature"])
    assert values["candidates"] == 3
    found = gradients(objective)
    assert len(found) == expected["trainable_tensors"]
    total = math.sqrt(sum(float(g.square().sum()) for g in found.values()))
    assert total == pytest.approx(expected["grad_norm_total"], rel=1e-3)
    for name, norm in expected["grad_norms"].items():
        assert float(found[own_name(name)].norm()) == pytest.approx(norm, rel=1e-3), name


@pytest.mark.parametrize(("subset", "saving"), [("Captions", False), (None, True)])
def test_chunks_have_the_gradients_of_one_pass(subset: str | None, saving: bool, data: Path, tmp_path: Path) -> None:
    found = []
    for chunk in (None, 3, 1):
        # All linear layers of the vision tower as well, whose pictures some chunks share and others lack.
        config = settings(
            data, tmp_path, rows=4, chunk=chunk, dropout=0.0, targets="q_proj,v_proj,down_proj,qkv,fc1", subsets=subset,
            gradient_checkpointing=saving and chunk == 1,
        )  # fmt: skip
        objective = VLM2VecTraining(VLM2VecConfig(**config))
        for name, parameter in objective.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(len(name)))
        values = step(objective, share(objective, all_rows(objective.source)))
        found.append((values["loss"], gradients(objective)))
    (loss, whole), *others = found
    assert any("visual" in name for name in whole)
    total = math.sqrt(sum(float(g.square().sum()) for g in whole.values()))
    for other, parts in others:
        assert other == pytest.approx(loss, rel=1e-5)
        assert parts.keys() == whole.keys()
        apart = math.sqrt(sum(float((parts[n] - whole[n]).square().sum()) for n in whole))
        assert apart / total < 1e-5


def test_only_the_adapter_has_gradients(data: Path, tmp_path: Path) -> None:
    objective = VLM2VecTraining(VLM2VecConfig(**settings(data, tmp_path)))
    step(objective, objective.batch(0))
    assert all(".vlm2vec." in name for name in gradients(objective))
    assert all(p.dtype == torch.float32 for p in objective.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_step_on_phi_gives_the_originals_loss_and_gradients(chunk: int | None, tmp_path: Path) -> None:
    """Its figures are of full fine-tuning; an adapter that has just begun changes nothing."""
    cases = json.loads((PHI / "cases.json").read_text())
    single, expected = {case["id"]: case for case in cases["single"]}, cases["loss"]

    def side(name: str) -> tuple[str, str]:
        return single[name]["text"], single[name]["image"] or ""

    pairs = zip(expected["queries"], expected["targets"], strict=True)
    file = write_lines(tmp_path / "rows.jsonl", [raw(*side(query), *side(target)) for query, target in pairs])
    changed = {"base": str(PHI / "model"), "max_tokens": None, "chunk": chunk, "dora": False, "dropout": 0.0, "rows": 3}
    config = VLM2VecConfig(**{**settings(PHI, tmp_path / "out"), **changed, "data": str(file), "images": str(PHI)})
    objective = VLM2VecTraining(config)
    objective.model.requires_grad_(True)
    values = step(objective, share(objective, all_rows(objective.source)))
    assert values["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    named = objective.model.network.backbone.published_name
    found = {
        named(name.removeprefix("network.backbone.").replace(".base_layer.", ".")): gradient
        for name, gradient in gradients(objective).items()
    }
    assert len(expected["grad_norms"]) >= 15
    for name, norm in expected["grad_norms"].items():
        # That of a bias of keys is zero but for rounding, here and there.
        assert float(found[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-6), name


def test_an_adapter_of_phi_can_be_used(data: Path, tmp_path: Path) -> None:
    changed = {
        "base": str(PHI / "model"),
        "max_tokens": None,
        "resolution": 1,
        "steps": 1,
        "gradient_checkpointing": True,
    }
    train_vlm2vec(VLM2VecConfig(**settings(data, tmp_path / "out", **changed)))
    items: list[Input] = [Text("A cat and a dog"), Image(FIXTURE / "images" / "gray_300x200.png")]
    base, trained = (
        load_embedder(folder, device="cpu", resolution=1).embed(items) for folder in (PHI / "model", tmp_path / "out")
    )
    assert np.abs(base - trained).max() > 1e-3


# --- What is planned --------------------------------------------------------------------------------------


def test_equal_targets_are_one_candidate_and_negatives_are_further_ones() -> None:
    dog, cat, tiger = Side("dog"), Side("cat"), Side("tiger")
    rows = [
        PairRow("0", Side("which?"), dog, (tiger, cat)),
        PairRow("1", Side("what is it?"), dog),
        PairRow("2", Side("which?"), cat, (tiger,)),
    ]
    plan = plan_rows(rows)
    assert plan.candidates == [Text("dog"), Text("cat"), Text("tiger")]
    assert plan.targets.tolist() == [0, 0, 1]
    assert plan.candidate_rows == [0, 2, 0]
    # A cat answers the first row's query too, in another row: no wrong answer, and no right one.
    assert plan.excluded.tolist() == [[False, True, False], [False, False, False], [True, False, False]]


@pytest.mark.parametrize("negatives", [0, 1, 5])
def test_negatives_enter_the_loss_as_further_candidates(negatives: int) -> None:
    """All candidates alike but the right one, which is the query: log(1 + (n - 1) * exp(-1 / temperature))."""
    rows = [PairRow("0", Side("q"), Side("right"), tuple(Side(f"wrong {n}") for n in range(negatives)))]
    plan = plan_rows(rows)
    vectors = torch.tensor([[1.0, 0.0] if one == Text("right") else [0.0, 1.0] for one in plan.candidates])
    found = loss_gradients(
        torch.tensor([[1.0, 0.0]]), vectors, torch.from_numpy(plan.targets), torch.tensor(0.5), smoothing=0.0,
        excluded=torch.from_numpy(plan.excluded),
    )  # fmt: skip
    assert found.loss == pytest.approx(math.log(1 + negatives * math.exp(-2)), abs=1e-6)


def test_a_step_counts_negatives_and_says_what_they_cost(tmp_path: Path) -> None:
    objective, rows = published(tmp_path)
    hard = [PairRow(row.id, row.query, row.target, (Side("A cat and a tiger, and a dog"),)) for row in rows]
    without, with_one = (step(objective, share(objective, batch)) for batch in (rows, hard))
    assert (without["candidates"], with_one["candidates"]) == (3, 4)
    assert with_one["loss"] > without["loss"]
    objective.model.eval()
    with torch.no_grad():
        (chunk,) = share(objective, hard).chunks
        queries, candidates, t = objective.model(chunk.pictures, chunk.queries, chunk.candidates)
        scores = (queries @ candidates.T / t)[torch.tensor(chunk.query_rows).argsort()]
        expected = torch.nn.functional.cross_entropy(scores[:, torch.tensor(chunk.candidate_rows).argsort()],
                                                     torch.arange(3))  # fmt: skip
    assert with_one["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_an_input_that_cannot_be_used_costs_its_row_alone(tmp_path: Path) -> None:
    objective, rows = published(tmp_path, chunk=1)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = Side("<|image_1|> Represent the given image.", str(tmp_path / "broken.png"))
    lost = [PairRow("query", broken, rows[0].target), PairRow("target", rows[0].query, broken)]
    values = step(objective, share(objective, [*rows, *lost]))
    other, _ = published(tmp_path)
    expected = step(other, share(other, rows))
    assert values["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert objective.source.bad.by_problem == {"picture is broken": 2}
    found = gradients(objective)
    for name, gradient in gradients(other).items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-4, name
    with pytest.raises(DatasetError, match="none of a batch's 2 rows can be used"):
        step(objective, share(objective, lost))


# --- What is read -----------------------------------------------------------------------------------------


def test_subsets_are_read_from_parquet_and_json_lines(data: Path) -> None:
    source = open_mmeb_rows(data, images=data / "images")
    rows = all_rows(source)
    assert [row.id for row in rows] == [f"Captions/Captions.jsonl:{n}" for n in (1, 2, 3, 4)] + [
        f"Labels/original-00000-of-00001.parquet[{n}]" for n in range(4)
    ]
    assert source.describe()["subsets"] == {"Captions": 4, "Labels": 4}
    first, label = rows[0], rows[4]
    assert first.query == Side(f"{FIND} a scene")
    assert first.target == Side(WHOLE, str(data / "images/scene_640x480.png"))
    assert first.negatives == (Side("", str(data / "images/rgba_200x150.png")), Side("a dog"))
    # Line breaks and spaces stay as they are.
    before, after = label.query.as_input().parts  # type: ignore[union-attr]
    assert (before, after) == (Image(label.query.image), Text(" Represent the given image for classification\n"))
    assert len(open_mmeb_rows(data, images=data / "images", subsets=["Labels"], per_subset=3)) == 3
    assert len(open_mmeb_rows(data / "Labels", images=data / "images")) == 4
    assert len(open_mmeb_rows(data, images=data / "images", subsets=["Labels"], split="diverse")) == 1


def test_bad_rows_are_named_counted_and_left_out(data: Path, tmp_path: Path) -> None:
    good = CAPTIONS[3]
    lines = [
        good,
        "{",
        {"qry": "a", "pos_text": "b"},
        raw(WHOLE, "none.png", "a", ""),
        raw("a", "", WHOLE, "../outside.png"),
        raw("a", "", WHOLE, ""),
        raw(" ", "", "a", ""),
        raw("a question", "shapes_56x56.png", "a", ""),
        raw(f"{WHOLE} {WHOLE}", "shapes_56x56.png", "a", ""),
        raw("a", "", "b", "", ["c"], ["", ""]),
        {**good, "pos_text": 7},
        {**good, "qry": "\ud800"},
        raw("a", "", "b", "", ["b", "c", WHOLE]),  # usable, with one negative of three
    ]
    file = write_lines(tmp_path / "rows.jsonl", lines)
    source = open_mmeb_rows(file, images=data / "images")
    assert [row.id for row in all_rows(source)] == ["rows/rows.jsonl:1", "rows/rows.jsonl:13"]
    assert source.row(1).negatives == (Side("c"),)
    assert source.bad.by_problem == {
        "not JSON": 1, "missing column": 1, "missing image": 1, "outside the folder": 1, "neither text nor picture": 1,
        "no picture for its placeholder": 2, "no place for a picture": 1, "several places for a picture": 1,
        "wrong type": 2, "not text": 1, "negative is the positive": 1,
    }  # fmt: skip
    with pytest.raises(DatasetError, match=r"2 unusable rows .*; the limit is 1"):
        open_mmeb_rows(file, images=data / "images", max_bad=1)


def test_data_that_are_not_there_are_named(data: Path, tmp_path: Path) -> None:
    images = data / "images"
    with pytest.raises(DatasetError, match="no such file or folder"):
        open_mmeb_rows(tmp_path / "none", images=images)
    with pytest.raises(DatasetError, match=r"no \.parquet or \.jsonl files"):
        open_mmeb_rows(images, images=images)
    with pytest.raises(DatasetError, match=r"no subset 'Dogs'; it has Captions, Labels"):
        open_mmeb_rows(data, images=images, subsets=["Dogs"])
    with pytest.raises(DatasetError, match=r"has diverse_instruction, original but no third; choose one"):
        open_mmeb_rows(data, images=images, split="third")
    datasets.Dataset.from_dict({"qry": ["a"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="has no column qry_image_path, pos_text, pos_image_path"):
        open_mmeb_rows(tmp_path / "a.parquet", images=images)
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    with pytest.raises(DatasetError, match=r"b\.parquet: cannot be read as parquet"):
        open_mmeb_rows(tmp_path / "b.parquet", images=images)
    with pytest.raises(DatasetError, match=r"no row can be used \(1 unusable row \(1 missing image\)"):
        open_mmeb_rows(write_lines(tmp_path / "c.jsonl", [QUESTIONS[0]]))
    file = write_lines(tmp_path / "d.jsonl", [CAPTIONS[3]])
    source = open_mmeb_rows(file, images=images)
    write_lines(file, [CAPTIONS[3], CAPTIONS[3]])
    with pytest.raises(DatasetError, match="has changed"):
        source.row(0)


# --- Whole runs -------------------------------------------------------------------------------------------


def arguments(config: dict[str, Any]) -> list[str]:
    return [part for name, value in config.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def in_memory(objective: VLM2VecTraining, items: list[Input]) -> np.ndarray:
    objective.model.eval()
    prepared = [objective.family.prepare(item) for item in items]
    opened = [picture.opened for one in prepared for picture in one.pictures]
    numbers = iter(range(len(opened)))
    sequences = [(tuple(next(numbers) for _ in one.pictures), one.input_ids) for one in prepared]
    with torch.no_grad():
        return objective.model(opened, sequences, [])[0].numpy()


@pytest.mark.parametrize("dora", [True, False])
def test_the_command_trains_what_can_be_loaded(dora: bool, data: Path, tmp_path: Path) -> None:
    config = settings(data, tmp_path / "one", dora=dora)
    taken = {name: config.pop(name) for name in ("data", "images", "out", "base", "rows", "steps")}
    options = [part for name, value in taken.items() for part in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as done:
        main(["train", "vlm2vec", *options, "--chunk", "2", "--resolution", "low", *arguments(config)])
    assert not done.value.code
    out = tmp_path / "one"
    assert [row["step"] for row in metrics(out)] == [1, 2, 3]
    card = (out / "README.md").read_text()
    assert ("DoRA on" in card) == dora
    assert "load_embedder(\"vlm2vec:THIS REPOSITORY\", resolution='low', max_tokens=16)" in card
    assert str(FIXTURE) not in card
    names = set(load_file(out / "adapter_model.safetensors"))
    expected = set(load_file(FIXTURE / "adapter" / "adapter_model.safetensors"))
    assert names == {name for name in expected if dora or "magnitude" not in name}

    # The same again, keeping the network.
    made: list[VLM2VecTraining] = []
    again = VLM2VecConfig(**settings(data, tmp_path / "two", dora=dora, chunk=2, resolution="low"))

    def make() -> VLM2VecTraining:
        made.append(VLM2VecTraining(again))
        return made[0]

    run(make, again)
    picture = Image(str(data / "images" / "scene_640x480.png"))
    items = [Text("A cat and a dog"), picture, Text(f"{FIND} a rather long caption of a scene with a dog.")]
    vectors = load_embedder(out, device="cpu", resolution="low", max_tokens=16).embed(items)
    assert np.abs(vectors - in_memory(made[0], items)).max() < 1e-5
    base = load_embedder(f"vlm2vec:{FIXTURE / 'base'}", device="cpu", resolution="low", max_tokens=16)
    assert np.abs(vectors - base.embed(items)).max() > 1e-3


class Interrupted(VLM2VecTraining):
    """Stops before its third step, as a run does that is killed there."""

    def backward(self, accelerator: Accelerator, model: torch.nn.Module, batch: Share, step: int) -> dict[str, float]:
        if step == 2:
            raise KeyboardInterrupt
        return super().backward(accelerator, model, batch, step)


def test_an_interrupted_run_ends_in_the_same_weights(data: Path, tmp_path: Path) -> None:
    whole, cut = (VLM2VecConfig(**settings(data, tmp_path / name, steps=4)) for name in ("whole", "cut"))
    train_vlm2vec(whole)
    with pytest.raises(KeyboardInterrupt):
        run(lambda: Interrupted(cut), cut)
    assert not (tmp_path / "cut" / "adapter_model.safetensors").exists()
    assert (tmp_path / "cut" / "checkpoints" / "step-0000002").is_dir()
    train_vlm2vec(cut)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [r["loss"] for r in metrics(tmp_path / "whole")] == [r["loss"] for r in metrics(tmp_path / "cut")]
    with pytest.raises(InputError, match=r"temperature was 0\.02 and is 0\.05"):
        train_vlm2vec(VLM2VecConfig(**settings(data, tmp_path / "cut", steps=4, temperature=0.05)))


@pytest.mark.parametrize("rows", [5, 2])
def test_two_processes_learn_what_one_does(rows: int, data: Path, tmp_path: Path) -> None:
    """Also in the vision tower, in chunks of one row; of two rows one has no picture, and with it one process none."""
    config = settings(data, tmp_path / "one", rows=rows, steps=2, chunk=1, dropout=0.0, targets="v_proj,qkv", lr=1e-3)
    if rows == 2:
        config["data"] = str(write_lines(tmp_path / "rows.jsonl", [CAPTIONS[3], CAPTIONS[2]]))
    train_vlm2vec(VLM2VecConfig(**config))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "abc_rag.cli", "train", "vlm2vec", *arguments({**config, "out": str(tmp_path / "two")})]
    environment = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "c"),
    }  # fmt: skip
    done = subprocess.run(
        [*launch, *command], capture_output=True, text=True, timeout=900, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-4)
    assert two[1]["loss"] == pytest.approx(one[1]["loss"], rel=1e-3)


def test_a_run_in_bfloat16_ends_with_finite_weights(data: Path, tmp_path: Path) -> None:
    config = settings(data, tmp_path / "run", steps=1, bf16=True, base_dtype="bfloat16", save_dtype="bfloat16")
    out = train_vlm2vec(VLM2VecConfig(**config))
    tensors = load_file(out / "adapter_model.safetensors")
    assert all(t.dtype == torch.bfloat16 and bool(torch.isfinite(t).all()) for t in tensors.values())


def test_settings_are_the_published_ones_and_unusable_ones_are_named(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: MMEB-train\nresolution: high\nrows: 64\n")
    config = read_config(VLM2VecConfig, file, {"out": "runs/x"}, ["resolution=4"])
    assert (config.resolution, config.rows, config.rank, config.alpha, config.dropout) == (4, 64, 8, 64, 0.1)
    assert (config.dora, config.init, config.temperature, config.lr, config.steps) == (
        True, "gaussian", 0.02, 2e-5, 2000,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"min_tokens \(9\) is larger than max_tokens \(4\)"):
        read_config(VLM2VecConfig, file, {"out": "o"}, ["min_tokens=9", "max_tokens=4"])
    for changed, message in (
        ({"resolution": "huge"}, "resolution must be one of"),
        ({"targets": "c_attn"}, "no layers named c_attn"),
        ({"targets": " , "}, "targets is empty"),
        ({"rows": 9}, "8 usable rows, fewer than one batch of 9 rows; set rows=8 or less"),
    ):
        with pytest.raises(InputError, match=message):
            train_vlm2vec(VLM2VecConfig(**settings(data, tmp_path / "run", **changed)))
