"""Every precision against float32, with the bars that the README states; `benchmarks.precision` prints the figures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers import FIXTURE, as_input
from safetensors.torch import load_file, save_file

from abc_rag import ChromaStore, Image, InstructedImage, Record, Text, load_embedder
from abc_rag.adapters.chroma import ABCEmbeddingFunction
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.load import local_revision
from abc_rag.errors import ABCRagError, FingerprintMismatchError, InputError
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.abc.network import ABCNetwork
from abc_rag.types import Vectors

pytest.importorskip("bitsandbytes", reason="tests of the extra 'quantized'")
from abc_rag.models.quantize import QuantizedLinear, quantize_linears

# Worst cosine and worst coordinate of any single input of the fixture, whose weights are random.
BARS = {
    ("bfloat16", "full"): (0.9990, 0.015),
    ("float16", "full"): (0.9999, 0.002),
    ("float32", "int8"): (0.9993, 0.010),
    ("bfloat16", "int8"): (0.9985, 0.015),
    ("float16", "int8"): (0.9993, 0.012),
    ("float32", "int4"): (0.9300, 0.130),
    ("bfloat16", "int4"): (0.9300, 0.130),
    ("float16", "int4"): (0.9300, 0.130),
}
PICTURE = FIXTURE / "images" / "shapes_224x224.png"


def load(weights: str, dtype: str = "float32", model: Any = FIXTURE) -> Embedder:
    return load_embedder(model, device="cpu", dtype=dtype, weights=weights)  # type: ignore[arg-type]


def network_of(embedder: Embedder) -> ABCNetwork:
    return cast(ABCFamily, cast(LocalEmbedder, embedder).family).network


def weight_bytes(embedder: Embedder) -> int:
    network = network_of(embedder)
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


@pytest.fixture(scope="module")
def chosen(cases: Any) -> list[Any]:
    """Texts, pictures and instructions; one picture only, for the time it takes."""
    return [case for case in cases if case["image"] in (None, "images/shapes_224x224.png")]


@pytest.fixture(scope="module")
def inputs(chosen: Any) -> list[Any]:
    assert {case["kind"] for case in chosen} == {"text", "image", "image+instruction"}
    return [as_input(case) for case in chosen]


@pytest.fixture(scope="module")
def exact(chosen: Any, goldens: Any) -> Vectors:
    return np.stack([goldens[f"{case['id']}.embedding"].numpy() for case in chosen])


@pytest.fixture(scope="module", params=["int8", "int4"])
def rounded(request: pytest.FixtureRequest) -> Embedder:
    return load(request.param)


# --- Accuracy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "weights"), BARS)
def test_each_precision_stays_within_its_bar(dtype: str, weights: str, inputs: list[Any], exact: Vectors) -> None:
    vectors = load(weights, dtype).embed(inputs)
    cosine, coordinate = BARS[dtype, weights]
    assert (vectors * exact).sum(axis=1).min() > cosine
    assert np.abs(vectors - exact).max() < coordinate


def test_fewer_bits_are_further_away(inputs: list[Any], exact: Vectors) -> None:
    far = [float(np.abs(load(weights).embed(inputs) - exact).max()) for weights in ("full", "int8", "int4")]
    assert far[0] * 10 < far[1]
    assert far[1] * 3 < far[2]


def test_results_do_not_depend_on_the_batch(rounded: Embedder, inputs: list[Any]) -> None:
    alone = rounded.embed(inputs, batch_size=1)
    assert np.abs(rounded.embed(inputs, batch_size=7) - alone).max() < 1e-5
    backwards = rounded.embed(inputs[::-1], batch_size="auto")[::-1]
    assert np.abs(backwards - alone).max() < 1e-5


def test_the_instruct_adapter_works_on_rounded_layers(rounded: Embedder) -> None:
    asked = InstructedImage(PICTURE, "what is on the left?")
    network = network_of(rounded)
    with_adapter = rounded.embed([asked])[0]
    layers = [m for m in network.backbone.modules() if hasattr(m, "base_layer")]
    assert layers
    assert all(isinstance(m.base_layer, QuantizedLinear) for m in layers)
    scales = [dict(m.scaling) for m in layers]  # type: ignore[arg-type]
    try:
        for layer in layers:
            layer.scaling["instruct"] = 0.0  # type: ignore[index]
        without = rounded.embed([asked])[0]
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling.update(scale)  # type: ignore[union-attr]
    assert np.abs(with_adapter - without).max() > 0.05
    full = load("full").embed([asked])[0]
    assert float(with_adapter @ full) > float(without @ full)
    # Switched off again for what has no instruction.
    assert np.array_equal(rounded.embed([asked, Image(PICTURE)], batch_size=1)[1], rounded.embed([Image(PICTURE)])[0])


def test_a_model_that_exceeds_float16_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "loud"
    shutil.copytree(FIXTURE, folder, ignore=shutil.ignore_patterns("images", "goldens*", "loss*"))
    file = folder / "base" / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("mlp.down_proj.weight"):
            tensors[name] = tensors[name] * 1e6
    save_file(tensors, file)
    assert load("full", "bfloat16", folder).embed([Text("a")]).shape == (1, 128)
    with pytest.raises(ABCRagError, match="use 'bfloat16' or 'float32'"):
        load("full", "float16", folder).embed([Text("a")])


# --- Memory -----------------------------------------------------------------------------------------------


def test_memory_is_saved() -> None:
    full, eight, four = (load(weights) for weights in ("full", "int8", "int4"))
    layers = network_of(full).backbone.language_model.layers
    linear = sum(m.weight.nbytes for n, m in layers.named_modules() if type(m) is torch.nn.Linear and "lora_" not in n)
    saved = [weight_bytes(full) - weight_bytes(one) for one in (eight, four)]
    # A float32 weight becomes 1 or 1/2 byte and a 64th of a float32 scale; 1 KiB of levels is shared by all layers.
    assert saved == [linear - linear * 17 // 64 - 1024, linear - linear * 9 // 64]
    assert not any(type(m) is torch.nn.Linear for n, m in _layers(eight).named_modules() if "lora_" not in n)


def test_what_else_there_is_stays_in_full_precision(rounded: Embedder) -> None:
    network, full = network_of(rounded), network_of(load("full"))
    for part in ("head", "temperature", "backbone.visual", "backbone.language_model.embed_tokens"):
        ours, theirs = (dict(one.get_submodule(part).named_parameters()) for one in (network, full))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    mine = {n: p for n, p in network.named_parameters() if "lora_" in n or "norm" in n}
    theirs = dict(full.named_parameters())
    assert mine
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def _layers(embedder: Embedder) -> torch.nn.Module:
    layers: torch.nn.Module = network_of(embedder).backbone.language_model.layers
    return layers


# --- One layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "most"), [("int8", 1 / 127), ("int4", 0.16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_is_off_by_half_a_step_at_most(weights: Any, most: float, dtype: torch.dtype) -> None:
    linear = torch.nn.Linear(128, 96, dtype=dtype)
    layer = QuantizedLinear(linear, weights, torch.device("cpu"))
    blocks = linear.weight.detach().float().view(-1, 64)
    off = (layer.dequantized(torch.float32).view(-1, 64) - blocks).abs() / blocks.abs().amax(dim=1, keepdim=True)
    assert off.max() < most
    x = torch.randn(3, 5, 128, dtype=dtype)
    expected = torch.nn.functional.linear(x, layer.dequantized(dtype), linear.bias)
    assert layer(x).dtype == dtype
    assert torch.equal(layer(x), expected)


def test_layers_of_another_width_stay_as_they_are() -> None:
    odd, even = torch.nn.Linear(60, 64), torch.nn.Linear(64, 60)
    root = torch.nn.Sequential(odd, even)
    quantize_linears(root, "int8", "cpu")
    assert root[0] is odd
    assert isinstance(root[1], QuantizedLinear)
    with pytest.raises(InputError, match="multiple of 64 wide"):
        quantize_linears(torch.nn.Sequential(odd), "int4", "cpu")


# --- What it is called, and what is refused ---------------------------------------------------------------


def test_the_fingerprint_says_so_and_a_store_does_not_mix_them(tmp_path: Path) -> None:
    full, eight, four = (load(weights).fingerprint for weights in ("full", "int8", "int4"))
    assert (eight.revision, four.revision) == (f"{full.revision}+int8", f"{full.revision}+int4")
    assert local_revision(FIXTURE, weights="int8") == eight.revision
    assert load("full", "bfloat16").fingerprint == full
    with ChromaStore(tmp_path / "store", fingerprint=full) as store:
        store.add([Record("1", "text", "a")], load("full").embed([Text("a")]))
    with pytest.raises(FingerprintMismatchError):
        ChromaStore(tmp_path / "store", fingerprint=eight)


def test_settings_of_chromas_function_hold_the_weights() -> None:
    function = ABCEmbeddingFunction("abc-mini", device="cpu", weights="int8")
    again = ABCEmbeddingFunction.build_from_config(function.get_config())
    assert again.get_config() == function.get_config()
    assert again.get_config()["weights"] == "int8"
    assert repr(again) == "ABCEmbeddingFunction(model='abc-mini', device='cpu', weights='int8')"
    assert np.array_equal(again(["a pig"])[0], load("int8", model="abc-mini").embed([Text("a pig")])[0])


def test_settings_that_an_older_version_stored_mean_full_weights() -> None:
    full = ABCEmbeddingFunction("abc-mini", device="cpu")
    older = {name: value for name, value in full.get_config().items() if name != "weights"}
    assert ABCEmbeddingFunction.build_from_config(older).get_config() == full.get_config()
    full.validate_config_update(older, full.get_config())
    other = ABCEmbeddingFunction("abc-mini", device="cpu", weights="int4")
    with pytest.raises(InputError, match=r"\(weights: 'full' before, 'int4' now\)"):
        full.validate_config_update(older, other.get_config())


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(InputError, match="weights must be one of full, int8, int4, not 'int2'"):
        load("int2")


def test_a_device_without_kernels_is_refused() -> None:
    with pytest.raises(InputError, match="weights='int8' runs on cpu and cuda, not on 'meta'"):
        load_embedder(FIXTURE, device="meta", weights="int8").embed([Text("a")])


def test_without_the_extra_the_command_that_installs_it_is_named_and_full_weights_work() -> None:
    program = f"""
import sys
sys.modules["bitsandbytes"] = None  # the import system's own way to say that there is no such module
from abc_rag import Text, load_embedder
from abc_rag.errors import MissingExtraError
assert load_embedder({str(FIXTURE)!r}, device="cpu").embed([Text("a")]).shape == (1, 128)
try:
    load_embedder({str(FIXTURE)!r}, device="cpu", weights="int4")
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'abc-rag[quantized]'" in done.stdout
