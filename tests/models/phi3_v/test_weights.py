"""Reading and writing Phi-3-vision's weights, and adapters for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from phi3_v_helpers import (
    CASES,
    FIXTURE,
    GOLDENS,
    MODEL,
    RUNS,
    TOWER,
    embedding,
    fill,
    rewrite,
    run_packed,
    run_padded,
    worst,
)
from safetensors.torch import load_file, save_file
from torch import nn
from vlm2vec_helpers import TOLERANCE

from abc_rag.errors import CheckpointError
from abc_rag.models.phi3_v.network import Phi3VBackbone
from abc_rag.models.phi3_v.prompts import Phi3VPrompts
from abc_rag.models.phi3_v.weights import base_state_dict, load_phi3_v


def test_the_fixture_has_the_published_names() -> None:
    stated = json.loads((FIXTURE / "keys.json").read_text())["model/model.safetensors"]
    held = base_state_dict(load_phi3_v(MODEL), MODEL)
    assert {name: list(tensor.shape) for name, tensor in held.items()} == stated


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.mlp.gate_up_proj.weight",
        "model.embed_tokens.weight",
        "model.vision_embed_tokens.glb_GN",
        f"{TOWER}embeddings.class_embedding",
        f"{TOWER}encoder.layers.2.mlp.fc1.bias",  # of the layer that is not kept
        f"{TOWER}post_layernorm.weight",
    ],
)
def test_missing_and_misshapen_tensors_are_named(folder: Path, name: str) -> None:
    tensor = load_file(folder / "model.safetensors")[name]
    rewrite(folder, lambda tensors: tensors.update({name: torch.cat([tensor, tensor], dim=-1)}))
    with pytest.raises(CheckpointError, match=f"of another shape: {name}"):
        load_phi3_v(folder)
    rewrite(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        load_phi3_v(folder)


@pytest.mark.parametrize("name", ["model.layers.3.input_layernorm.weight", "model.norm.bias", "norm.weight"])
def test_tensors_that_are_left_over_are_named(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(128)}))
    with pytest.raises(CheckpointError, match=f"left over: {name}"):
        load_phi3_v(folder)


def test_what_nobody_needs_may_be_there_or_not(folder: Path, prompts: Phi3VPrompts) -> None:
    first, second = "model.embed_tokens.weight", "model.vision_embed_tokens.wte.weight"

    def shared(tensors: dict[str, torch.Tensor]) -> None:
        tensors[second] = tensors[first].clone()
        tensors[f"{TOWER}embeddings.position_ids"] = torch.arange(577)[None]

    def second_only(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[first], tensors["lm_head.weight"]

    for change in (shared, second_only):
        rewrite(folder, change)
        rows, _ = run_packed(load_phi3_v(folder), prompts, [CASES["t_dog"]])
        assert worst(embedding(rows[0]), GOLDENS["t_dog.embedding"]) < TOLERANCE
    rewrite(folder, lambda tensors: tensors.pop(second))
    with pytest.raises(CheckpointError, match=f"missing: {first}"):
        load_phi3_v(folder)


def test_tensors_can_be_written_and_read_again(folder: Path, backbone: Phi3VBackbone, prompts: Phi3VPrompts) -> None:
    changed = load_phi3_v(MODEL)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
    save_file(base_state_dict(changed, MODEL), folder / "model.safetensors")
    again = load_phi3_v(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), changed.parameters(), strict=True))
    kept = load_file(folder / "model.safetensors")
    assert torch.equal(kept["lm_head.weight"], load_file(MODEL / "model.safetensors")["lm_head.weight"])


# --- Adapters -------------------------------------------------------------------------------------

TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


class Whole(nn.Module):
    """What peft wraps: the modules by the names that published adapters know."""

    def __init__(self) -> None:
        super().__init__()
        self.model = load_phi3_v(MODEL)


def write_adapter(folder: Path, *, dora: bool, unused: bool, targets: Any = TARGETS) -> nn.Module:
    """An adapter by peft; ``unused``: also on the layer that the backbone does not keep."""
    config = LoraConfig(r=4, lora_alpha=12, target_modules=targets, use_dora=dora, lora_dropout=0.1)
    made: Any = get_peft_model(Whole(), config)
    fill(made.named_parameters())
    made.save_pretrained(str(folder))

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if f"{TOWER}encoder.layers.1." in name]:
            tensors[name.replace("encoder.layers.1.", "encoder.layers.2.")] = tensors[name].clone()

    if unused:
        rewrite(folder, add, "adapter_model")
    backbone: nn.Module = made.eval().base_model.model.model
    return backbone


@pytest.mark.parametrize("unused", [True, False])
@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_adapter_is_what_peft_computes(
    tmp_path: Path, prompts: Phi3VPrompts, dora: bool, unused: bool
) -> None:
    reference = write_adapter(tmp_path, dora=dora, unused=unused)
    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight" in names
    assert f"base_model.model.{TOWER}encoder.layers.0.mlp.fc1.lora_B.weight" in names
    merged = load_phi3_v(MODEL, tmp_path)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert len(merged.vision_embed_tokens.tower.layers) == 2
    cases = [CASES["t_caption"], CASES["c1_640"]]
    with torch.no_grad():
        expected = embedding(run_padded(reference, prompts, cases)[0])  # type: ignore[arg-type]
        plain = torch.stack([GOLDENS[f"{case['id']}.embedding"] for case in cases])
        assert worst(expected, plain) > 0.02
        for run in RUNS.values():
            assert worst(embedding(run(merged, prompts, cases)[0]), expected) < TOLERANCE
        # Before it is merged, too.
        assert worst(embedding(run_packed(reference, prompts, cases)[0]), expected) < TOLERANCE  # type: ignore[arg-type]


@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_adapter_is_the_formula(tmp_path: Path, dora: bool) -> None:
    write_adapter(tmp_path, dora=dora, unused=True)
    adapter, base = load_file(tmp_path / "adapter_model.safetensors"), load_file(MODEL / "model.safetensors")
    merged, changed = base_state_dict(load_phi3_v(MODEL, tmp_path)), 0
    for name, found in merged.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        expected = base[name]
        if f"{key}.lora_A.weight" in adapter:
            changed += 1
            expected = expected + 3.0 * adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
            if dora:
                length = expected.norm(dim=1, keepdim=True)
                expected = adapter[f"{key}.lora_magnitude_vector"][:, None] * expected / length
        assert worst(found, expected) < TOLERANCE, name
    assert changed == 3 * 4 + 2 * 5


def test_an_adapter_may_be_one_that_torch_saved(tmp_path: Path) -> None:
    write_adapter(tmp_path, dora=True, unused=True)
    expected = base_state_dict(load_phi3_v(MODEL, tmp_path))
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    found = base_state_dict(load_phi3_v(MODEL, tmp_path))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_adapter_may_name_its_layers_in_full(tmp_path: Path) -> None:
    write_adapter(tmp_path, dora=False, unused=False, targets=r"model\.layers\.[01]\.mlp\.down_proj")
    merged, base = base_state_dict(load_phi3_v(MODEL, tmp_path)), base_state_dict(load_phi3_v(MODEL))
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight",
        f"base_model.model.{TOWER}encoder.layers.2.self_attn.k_proj.lora_A.weight",
    ],
)
def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    write_adapter(tmp_path, dora=False, unused=True)
    tensor = load_file(tmp_path / "adapter_model.safetensors")[name]
    short = name.removeprefix("base_model.model.")
    for what, change in (
        ("of another shape", lambda tensors: tensors.update({name: torch.cat([tensor, tensor])})),
        ("missing", lambda tensors: tensors.pop(name)),
        ("left over", lambda tensors: tensors.update({name: tensor, f"{name}.more": tensor.clone()})),
    ):
        rewrite(tmp_path, change, "adapter_model")
        with pytest.raises(CheckpointError, match=f"{what}: .*{short}"):
            load_phi3_v(MODEL, tmp_path)


def test_adapters_of_other_models_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, dora=False, unused=False)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "target_modules": ["gate_proj"]}))
    with pytest.raises(CheckpointError, match="does not fit this base"):
        load_phi3_v(MODEL, tmp_path)
    file.write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match="expected 'LORA'"):
        load_phi3_v(MODEL, tmp_path)
