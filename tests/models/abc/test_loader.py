"""ABC's checkpoints: every tensor accounted for, and every setting checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from abc_helpers import SQUARE, copied, worst
from helpers import FIXTURE, TOLERANCE, as_input
from safetensors.torch import load_file, save_file

from abc_rag import ABCCheckpoint, Text, load_embedder
from abc_rag.errors import CheckpointError


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("base/model.safetensors", "model.layers.1.self_attn.v_proj.bias"),
        ("base/model.safetensors", "visual.patch_embed.proj.weight"),
        ("pretrain/adapter_model.safetensors", "base_model.model.mlp_head.linear_layer2.weight"),
        ("pretrain/adapter_model.safetensors", "base_model.model.temperature.temp"),
        ("pretrain/adapter_model.safetensors", "base_model.model.visual.blocks.0.mlp.fc2.lora_B.weight"),
        ("instruct/adapter_model.safetensors", "base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"),
    ],
)
@pytest.mark.parametrize("fault", ["missing", "left over", "of another shape"])
def test_every_tensor_is_accounted_for(file: str, tensor: str, fault: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    tensors = load_file(folder / file)
    value = tensors[tensor]
    named = tensor
    if fault == "missing":
        del tensors[tensor]
        named = tensor.split(".")[-2]
    elif fault == "left over":
        named = tensor.replace("weight", "extra").replace("bias", "extra").replace("temp", "extra")
        tensors[named] = value.clone()
    else:
        tensors[tensor] = torch.zeros(*(value.shape or (1,)), 2)
    save_file(tensors, folder / file)
    with pytest.raises(CheckpointError, match=fault) as caught:
        load_embedder(folder, device="cpu").embed([Text("a")])
    assert named in str(caught.value)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "base" / "model.safetensors").unlink()
    (folder / "base" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match="pickle"):
        load_embedder(folder, device="cpu").embed([Text("a")])


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    file = folder / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_embedder(folder, device="cpu").embed([Text("a")])


def test_the_newer_tensor_names_load_too(tmp_path: Path, cases: Any, goldens: Any) -> None:
    folder = copied(tmp_path)
    file = folder / "base" / "model.safetensors"
    renamed = {
        n.replace("visual.", "model.visual.", 1)
        if n.startswith("visual.")
        else n.replace("model.", "model.language_model.", 1): t
        for n, t in load_file(file).items()
    }
    save_file(renamed, file)
    chosen = [c for c in cases if c["id"] in SQUARE]
    assert max(worst(load_embedder(folder, device="cpu"), chosen, goldens).values()) < TOLERANCE


def test_shards_are_read(tmp_path: Path, cases: Any, goldens: Any) -> None:
    import json

    folder = copied(tmp_path)
    file = folder / "base" / "model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({n: tensors[n] for n in members}, folder / "base" / shard)
    file.unlink()
    index = {"weight_map": {n: shard for shard, members in shards.items() for n in members}}
    (folder / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    chosen = [c for c in cases if c["id"] in SQUARE]
    assert max(worst(load_embedder(folder, device="cpu"), chosen, goldens).values()) < TOLERANCE
    (folder / "base" / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors"):
        load_embedder(folder, device="cpu").embed([Text("a")])


def test_three_folders_make_a_checkpoint(cases: Any, goldens: Any) -> None:
    parts = ABCCheckpoint(base=FIXTURE / "base", pretrain=FIXTURE / "pretrain", instruct=FIXTURE / "instruct")
    chosen = [c for c in cases if c["id"] in SQUARE]
    assert max(worst(load_embedder(parts, device="cpu"), chosen, goldens).values()) < TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(dtype: str, cases: Any, goldens: Any) -> None:
    embedder = load_embedder(FIXTURE, device="cpu", dtype=dtype)
    chosen = [c for c in cases if c["id"] in ("t_question", "t_bang2", *SQUARE)]
    vectors = embedder.embed([as_input(c) for c in chosen])
    for vector, case in zip(vectors, chosen, strict=True):
        golden = goldens[f"{case['id']}.embedding"].numpy()
        assert float(vector @ golden) > 0.9995
        assert np.abs(vector - golden).max() < 1e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"min_tokens": "9"}', "min_tokens is '9'; expected a whole number"),
        ('{"head_hidden": 0}', "head_hidden is 0; expected a whole number"),
        ('{"name": 3}', "name is 3; expected a text"),
        ('{"min_tokens": 10000000000}', "min_tokens is 10000000000"),
        ('{"min_tokens": 9, "max_tokens": 8}', "expected at most max_tokens"),
        ('{"head_hidden": 16000000}', "head_hidden is 16000000"),
        ('{"tokens": 9}', "tokens is not a setting"),
        ("[]", "expected a JSON object"),
        ("{", "not readable as JSON"),
    ],
)
def test_malformed_settings_are_named(settings: str, message: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "abc.json").write_text(settings)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_embedder(folder, device="cpu").embed([Text("a")])
    assert "abc.json" in str(caught.value) or "pretrain: head_hidden" in str(caught.value)


def test_a_checkpoints_own_limits_are_its_defaults(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "abc.json").write_text('{"name": "small", "min_tokens": 4, "max_tokens": 16}')
    assert str(load_embedder(folder, device="cpu").fingerprint).startswith("small@")
    for given, expected in (((None, None), (4, 16)), ((32, None), (32, 32)), ((None, 2), (2, 2)), ((8, 9), (8, 9))):
        embedder = load_embedder(folder, device="cpu", min_tokens=given[0], max_tokens=given[1])
        assert (embedder.fingerprint.min_tokens, embedder.fingerprint.max_tokens) == expected
