"""Adapters that this package puts on by itself, against peft."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FIXTURE
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import nn

from abc_rag.errors import CheckpointError
from abc_rag.models.lora import OTHER_SETTINGS, SILENT_SETTINGS, lora_config, put_adapter
from abc_rag.models.lora_layers import LoraLayer
from abc_rag.models.lora_linear import LoraLinear
from abc_rag.models.qwen2_vl.network import backbone_name, load_backbone


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(torch.relu(self.first(x)))
        return y


def written(folder: Path, **changes: Any) -> Path:
    """An adapter on both layers of `Net`, as peft saves it."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": ["first", "second"], **changes}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.manual_seed(1)
    sizes = {"first": (6, 8), "second": (8, 4)}
    tensors = {}
    for name, (width_in, width_out) in sizes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(3, width_in)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(width_out, 3)
        if settings.get("use_dora"):
            tensors[f"base_model.model.{name}.lora_magnitude_vector"] = torch.rand(width_out) + 0.5
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("changes", "ours"),
    [({}, True), ({"use_rslora": True}, True), ({"use_dora": True}, False), ({"alpha_pattern": {"first": 9}}, False)],
    ids=["lora", "rslora", "dora", "a pattern"],
)
def test_a_merged_adapter_gives_the_weights_of_peft(
    changes: dict[str, Any], ours: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = written(tmp_path / "adapter", **changes)
    torch.manual_seed(0)
    net = Net().to(dtype)
    truth = PeftModel.from_pretrained(copy.deepcopy(net), str(folder), autocast_adapter_dtype=True).merge_and_unload()
    beside = copy.deepcopy(net)
    put_adapter(beside, folder, "own", lambda name: name)
    assert all(isinstance(layer, LoraLinear if ours else LoraLayer) for layer in (beside.first, beside.second))
    put_adapter(net, folder, "own", lambda name: name, merge=True)
    assert type(net.first) is nn.Linear
    for name, weight in net.named_parameters():
        assert torch.equal(weight, dict(truth.named_parameters())[name]), name


def test_an_adapter_beside_its_layer_computes_as_peft_does_and_can_be_switched_off(tmp_path: Path) -> None:
    folder = written(tmp_path / "adapter")
    net = Net()
    bare, x = copy.deepcopy(net), torch.randn(5, 6)
    truth = PeftModel.from_pretrained(copy.deepcopy(net), str(folder))
    put_adapter(net, folder, "own", lambda name: name)
    assert torch.equal(net(x), truth(x))
    assert not torch.allclose(net(x), bare(x))
    for layer in (net.first, net.second):
        layer.enable_adapters(False)  # type: ignore[operator]
    assert torch.equal(net(x), bare(x))
    assert {name.replace(".own", "") for name, _ in net.named_parameters()} == {
        *("first.base_layer.weight", "first.base_layer.bias", "second.base_layer.weight"),
        *(f"{layer}.lora_{matrix}.weight" for layer in ("first", "second") for matrix in "AB"),
    }


def test_the_fixtures_adapter_merges_to_the_weights_of_peft() -> None:
    ours, truth = load_backbone(FIXTURE / "base"), load_backbone(FIXTURE / "base")
    put_adapter(ours, FIXTURE / "instruct", "instruct", backbone_name, merge=True)
    config = lora_config(FIXTURE / "instruct", truth)
    from abc_rag.models.lora import load_adapter
    from abc_rag.models.lora_layers import LoraModel

    lora = LoraModel(truth, config, "instruct", low_cpu_mem_usage=True)
    load_adapter(truth, FIXTURE / "instruct", "instruct", backbone_name)
    lora.merge_and_unload()
    expected = dict(truth.named_parameters())
    found = dict(ours.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_targets_that_are_not_there_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "adapter", target_modules=["third"])
    with pytest.raises(CheckpointError, match="does not fit this base"):
        put_adapter(Net(), folder, "own", lambda name: name)


def test_every_setting_of_peft_is_read_known_to_be_silent_or_refused(tmp_path: Path) -> None:
    read = {
        *("r", "lora_alpha", "use_dora", "use_rslora", "fan_in_fan_out", "bias", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform"),
    }
    assert {one.name for one in fields(LoraConfig)} <= read | SILENT_SETTINGS | OTHER_SETTINGS
    folder = written(tmp_path / "adapter", target_parameters=["first"])
    with pytest.raises(CheckpointError, match="target_parameters"):
        put_adapter(Net(), folder, "own", lambda name: name)
