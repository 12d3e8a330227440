"""Reading a checkpoint: every tensor is accounted for, and every value of its configuration is checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_helpers import make_gemma, standin
from safetensors.torch import load_file, save_file

from abc_rag.errors import CheckpointError
from abc_rag.models.embedding_gemma.network import load_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(standin(), tmp_path / "model"))


def test_the_audio_tower_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    assert any(name.startswith("audio_tower.") for name in load_file(folder / "model.safetensors"))
    names = set(load_network(folder).state_dict())
    assert not any("audio" in name for name in names)
    deaf = load_network(make_gemma(tmp_path / "deaf", hears=False))
    assert set(deaf.state_dict()) == names


def test_tensors_that_do_not_fit(folder: Path) -> None:
    file = folder / "model.safetensors"
    stored = load_file(file)
    for change, said in (
        (lambda found: found.pop("language_model.layers.1.layer_scalar"), "1 tensor.s. missing: .*layer_scalar"),
        (lambda found: found.update(extra=torch.zeros(1)), "left over: extra"),
        (lambda found: found.update({"language_model.norm.weight": torch.zeros(3)}), "of another shape"),
    ):
        found = dict(stored)
        change(found)
        save_file(found, file)
        with pytest.raises(CheckpointError, match=said):
            load_network(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(model_type="gemma4"), "model_type"),
        (lambda c: c.update(vision_config=None), "st:FOLDER"),
        (lambda c: c.update(image_token_id=10**9), "image_token_id"),
        (lambda c: c["text_config"].update(num_hidden_layers=900), "layer_types"),
        (lambda c: c["text_config"].update(layer_types=["full_attention"]), "layer_types"),
        (lambda c: c["text_config"].update(attention_bias=True), "attention_bias"),
        (lambda c: c["text_config"].update(num_key_value_heads=3), "num_key_value_heads"),
        (lambda c: c["text_config"].update(per_layer_config={"9": {}}), "per_layer_config"),
        (lambda c: c["text_config"].update(per_layer_config={"1": {"head_dim": 7}}), "head_dim"),
        (lambda c: c["text_config"].update(rope_parameters={"full_attention": {"rope_type": "yarn"}}), "rope_type"),
        (lambda c: c["vision_config"].update(use_clipped_linears=True), "use_clipped_linears"),
        (lambda c: c["vision_config"].update(standardize=True), "standardize"),
        (lambda c: c["vision_config"].update(model_type="siglip"), "model_type"),
        (lambda c: c["vision_config"].update(num_hidden_layers=800), "only .* tensors"),
        (lambda c: c["vision_config"].update(head_dim=6), "four divides"),
    ],
)
def test_values_that_would_be_computed_otherwise(folder: Path, change: Callable[[Any], None], said: str) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        load_network(folder)


def test_layers_are_numbered_as_transformers_writes_them(folder: Path) -> None:
    # With ten layers and more, "05".
    file = folder / "config.json"
    config = json.loads(file.read_text())
    own = config["text_config"]["per_layer_config"]
    assert set(own) == {"1", "3"}
    config["text_config"]["per_layer_config"] = {f"0{name}": value for name, value in own.items()}
    file.write_text(json.dumps(config))
    load_network(folder)
