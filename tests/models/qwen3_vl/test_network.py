"""Positions of image tokens, and what a checkpoint may lack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qwen3_vl_helpers import make_qwen3_vl
from safetensors.torch import load_file, save_file

from abc_rag.errors import CheckpointError
from abc_rag.models.qwen3_vl.network import GRID, grid_of, load_network, positions_of

IMAGE = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3_vl(tmp_path_factory.mktemp("qwen3_vl"))


def load(folder: Path) -> Any:
    return load_network(folder)


def test_positions_of_a_picture_are_those_of_a_grid() -> None:
    ids = np.array([1, 1, *[IMAGE] * 6, 1, IMAGE, 1])
    found = positions_of(ids, [(2, 3), (1, 1)], IMAGE)
    assert found.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
    ]
    assert positions_of(np.array([IMAGE, 1]), [(1, 1)], IMAGE).tolist() == [[0, 1]] * 3
    assert positions_of(np.array([1, 1]), [], IMAGE).tolist() == [[0, 1]] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_grid_is_exact_in_every_precision(dtype: torch.dtype) -> None:
    sides = [(1, 1), (127, 128), (3, 600), (1810, 2)]
    features = [torch.zeros(2, 5 + GRID, dtype=dtype) for _ in sides]
    for one, (rows, columns) in zip(features, sides, strict=True):
        one[:, -GRID:] = torch.tensor([*divmod(rows, 128), *divmod(columns, 128)], dtype=dtype)
    assert grid_of(features) == sides
    assert grid_of([]) == []


def test_every_tensor_is_accounted_for(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    name = next(name for name in tensors if name.endswith("deepstack_merger_list.1.linear_fc2.bias"))
    for changed, said in (
        ({n: t for n, t in tensors.items() if n != name}, "missing: visual.deepstack_merger_list.1.linear_fc2.bias"),
        (tensors | {"model.visual.more": torch.zeros(1)}, "1 tensor.s. left over: model.visual.more"),
        (tensors | {name: torch.zeros(3)}, "of another shape"),
    ):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=said):
            load(tmp_path)
    save_file(tensors | {"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert load(tmp_path).hidden_size == 32  # no logits are computed


@pytest.mark.parametrize(
    ("part", "changed", "said"),
    [
        (None, {"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'"),
        ("text_config", {"attention_bias": True}, "attention_bias"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("text_config", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("text_config", {"head_dim": 13}, "head_dim"),
        ("text_config", {"num_hidden_layers": 999}, "num_hidden_layers is 999, but there are only"),
        ("text_config", {"rope_parameters": {"mrope_section": [1, 2]}}, "mrope_section"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
        ("vision_config", {"out_hidden_size": 31}, "out_hidden_size"),
        ("vision_config", {"num_position_embeddings": 35}, "num_position_embeddings is 35; expected a square"),
        ("vision_config", {"deepstack_visual_indexes": [3]}, "deepstack_visual_indexes"),
        ("vision_config", {"num_heads": 5}, "num_heads"),
        ("vision_config", {"in_channels": 1}, "in_channels"),
    ],
)
def test_configurations_that_would_be_computed_otherwise(
    part: str | None, changed: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part]).update(changed)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(folder / "model.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path)
