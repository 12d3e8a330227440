"""``abc-rag bench``: arithmetic on known numbers, and that it runs. Nothing here depends on the machine's speed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from abc_rag import Image, Input, InstructedImage, Text, load_embedder
from abc_rag.bench.bench import Throughput, bench, estimate_seconds, matmul_rate
from abc_rag.bench.inputs import QUESTIONS, random_jpeg, random_passage
from abc_rag.bench.shapes import SHAPES, random_family, shape_config, write_random_checkpoint
from abc_rag.cli import main as cli
from abc_rag.cli.bench import duration_of, operations_of
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.errors import InputError
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.flops import count_flops
from abc_rag.models.qwen2_vl.network import Qwen2VLBackbone

PICTURE = PIL.Image.effect_noise((500, 300), 50).convert("RGB")
INPUTS: list[Input] = [Text("a house by the river"), Image(PICTURE), InstructedImage(PICTURE, "what is on the left?")]


@pytest.fixture(scope="module")
def family() -> ABCFamily:
    return random_family("tiny", attention="eager", min_tokens=16, max_tokens=64)


# --- Shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", INPUTS, ids=lambda item: type(item).__name__)
def testoperations_of_are_those_that_torch_counts(family: ABCFamily, item: Input) -> None:
    tokens, counted = family.count_flops(item)
    fresh = family.at(min_tokens=16, max_tokens=64)  # has not seen the picture
    prepared = fresh.prepare(item)
    network = fresh.network
    # By the padded way, as the other one rounds numbers of rows up.
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.set_instruct(isinstance(item, InstructedImage))
        features = network.backbone.image_features([p.opened for p in prepared.pictures]) if prepared.pictures else None
        network(torch.from_numpy(prepared.input_ids)[None], lengths=torch.tensor([prepared.tokens]), features=features)
    assert tokens == prepared.tokens
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(("tokens", "teraflop"), [(256, 5.13), (512, 10.39), (1024, 22.08)])
def testoperations_of_of_the_published_model(tokens: int, teraflop: float) -> None:
    found = count_flops(shape_config("7b"), tokens=tokens + 22, patches=4 * tokens)
    assert found / 1e12 == pytest.approx(teraflop, rel=0.005)


def test_the_large_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        sizes = {s: sum(p.numel() for p in Qwen2VLBackbone(shape_config(s)).parameters()) for s in ("2b", "7b")}
    # Without output layer, and with the patches' projection for one frame instead of two.
    assert sizes["7b"] == 8_291_375_616 - 152_064 * 3584 - 1280 * 588
    assert sizes["2b"] == 2_208_985_600 - 1280 * 588


@pytest.mark.parametrize("shape", ["tiny", "mini"])
def test_a_checkpoint_holds_the_weights_that_were_drawn(shape: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write_random_checkpoint(shape, folder, min_tokens=16, max_tokens=64, seed=3)
    written = load_embedder(folder, device="cpu")
    drawn = LocalEmbedder(lambda: random_family(shape, min_tokens=16, max_tokens=64, seed=3))
    np.testing.assert_allclose(written.embed(INPUTS), drawn.embed(INPUTS), atol=1e-6)
    assert written.fingerprint.model == f"random-{shape}"
    assert (written.fingerprint.min_tokens, written.fingerprint.max_tokens) == (16, 64)


def test_weights_follow_from_the_seed_and_the_adapter_does_something(family: ABCFamily) -> None:
    vectors = LocalEmbedder(lambda: family).embed(INPUTS)
    again = random_family("tiny", attention="eager", min_tokens=16, max_tokens=64)
    other = random_family("tiny", attention="eager", min_tokens=16, max_tokens=64, seed=1)
    np.testing.assert_allclose(LocalEmbedder(lambda: again).embed(INPUTS), vectors, atol=1e-6)
    assert np.abs(LocalEmbedder(lambda: other).embed(INPUTS) - vectors).max() > 0.01
    for name, parameter in again.network.named_parameters():
        if "lora_" in name:
            parameter.data.zero_()
    without = LocalEmbedder(lambda: again).embed(INPUTS)
    assert np.abs(without[2] - vectors[2]).max() > 1e-3
    np.testing.assert_allclose(without[:2], vectors[:2], atol=1e-6)


def test_half_precision_stays_finite() -> None:
    half = random_family("mini", dtype="bfloat16", min_tokens=16, max_tokens=64)
    assert half.network.backbone.dtype == torch.bfloat16
    vectors = LocalEmbedder(lambda: half).embed(INPUTS)
    full = LocalEmbedder(lambda: random_family("mini", min_tokens=16, max_tokens=64)).embed(INPUTS)
    assert vectors.shape == full.shape
    assert np.isfinite(vectors).all()


def test_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="shape must be one of tiny, mini, 2b, 7b, not '70b'"):
        random_family("70b")
    assert set(SHAPES) == {"tiny", "mini", "2b", "7b"}


# --- Inputs -----------------------------------------------------------------------------------------------


def test_words_are_one_token_each(family: ABCFamily) -> None:
    empty = family.prepare(Text("")).tokens
    passage = random_passage(random.Random(0), 200)
    # The first has no space before it.
    assert abs(family.prepare(Text(passage)).tokens - empty - 200) <= 10
    assert len(QUESTIONS) == len(set(QUESTIONS)) == 16


def test_pictures_differ_and_weigh_what_photographs_do() -> None:
    one, two = (random_jpeg(np.random.default_rng(seed)) for seed in range(2))
    assert one != two
    assert 0.1 < len(one) / (640 * 480) < 0.6


# --- Arithmetic -------------------------------------------------------------------------------------------


def test_shares_and_estimates() -> None:
    rate = Throughput("pictures", items=50, seconds=2.0, tokens=300, flops=5e12, limit=500e12)
    assert rate.per_second == 25
    assert rate.share == 0.25
    assert estimate_seconds(100_000, rate) == 4000


def test_units_that_a_person_would_use() -> None:
    assert duration_of(3.14) == "3.1 seconds"
    assert duration_of(600) == "10 minutes"
    assert duration_of(8100) == "2.25 hours"
    assert duration_of(86400 * 3) == "3 days"
    assert operations_of(485e9) == "485 GFLOP/s"
    assert operations_of(7.5e14) == "750 TFLOP/s"


def test_a_matrix_product_has_a_rate() -> None:
    assert matmul_rate("cpu", torch.float32, seconds=0.01) > 0


# --- The command ------------------------------------------------------------------------------------------


def test_nonsense_is_refused(family: ABCFamily) -> None:
    with pytest.raises(InputError, match="must be positive"):
        bench(LocalEmbedder(lambda: family), items=0)


def test_the_command_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--shape", "tiny", "--seconds", "0.1", "--min-tokens", "4", "--max-tokens", "9"]
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--device", "cpu", "--items", "1000", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not end.value.code
    names = [f"passages of {n} tokens" for n in (12, 100, 512)]
    assert [row["name"] for row in found["throughputs"]] == [
        *names,
        "pictures, from JPEG files",
        "pictures with a question",
    ]
    for row in found["throughputs"]:
        assert row["per_second"] == pytest.approx(row["items"] / row["seconds"])
        assert row["share"] == pytest.approx(row["per_second"] * row["flops"] / found["limit"])
    by_name = {row["name"]: row for row in found["throughputs"]}
    assert found["items"] == 1000
    assert found["picture_seconds"] == pytest.approx(1000 / by_name["pictures, from JPEG files"]["per_second"])
    assert found["passage_seconds"] == pytest.approx(1000 / by_name["passages of 100 tokens"]["per_second"])
    assert by_name["passages of 100 tokens"]["tokens"] == 100
    for one in found["latencies"]:
        assert 0 < one["p50_ms"] <= one["p99_ms"]
    assert found["machine"]["dtype"] == "float32"


def test_the_command_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "--model", "abc-mini", "--device", "cpu", "--seconds", "0.1"])
    said = capsys.readouterr().out
    assert not end.value.code
    assert "abc-mini@" in said
    assert "share of the limit" in said
    assert "100,000 pictures: about" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "huge"], "shape must be one of"),
        (["--shape", "tiny", "--model", "abc-mini"], "not both"),
        (["--shape", "tiny", "--dtype", "int8"], "--dtype takes"),
        (["--shape", "tiny", "--min-tokens", "9", "--max-tokens", "4"], "in order"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *arguments])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
