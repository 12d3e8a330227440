"""Checkpoints of strangers: whatever their settings say, loading ends in a model or in an error that names the file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import FIXTURE
from safetensors.torch import load_file, save_file
from vlm2vec_helpers import FIXTURES

from abc_rag import Text, load_embedder
from abc_rag.errors import CheckpointError

WORKER = Path(__file__).parents[1] / "hostile_worker.py"
CASES = (
    "abc/base/config.json",
    "abc/instruct/adapter_config.json",
    "mini/base/config.json",
    "mini/abc.json",
    "qwen/base/config.json",
    "qwen/base/preprocessor_config.json",
    "qwen/adapter/adapter_config.json",
    "phi/model/config.json",
    "phi/model/clip_dimensions.json",
    "phi/model/tokenizer_config.json",
)


@pytest.mark.parametrize("case", CASES)
def test_every_changed_value_is_used_or_refused(case: str) -> None:
    """Within a limit of memory, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(WORKER), case],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TRANSFORMERS_VERBOSITY": "error"},
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    assert json.loads(done.stdout.splitlines()[-1]) == []


def embed(folder: Path) -> None:
    load_embedder(folder, device="cpu").embed([Text("a")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of ABC's fixture to break."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "checkpoint"))


@pytest.mark.parametrize("where", ["../outside.safetensors", "{place}/outside.safetensors", "..", "", "a\0b", 3, ["x"]])
def test_an_index_names_files_beside_it_only(folder: Path, tmp_path: Path, where: object) -> None:
    weights = folder / "base" / "model.safetensors"
    names = list(load_file(weights))
    weights.rename(tmp_path / "outside.safetensors")
    named = where.format(place=tmp_path) if isinstance(where, str) else where
    index = weights.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, named)}))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        embed(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path, name: str) -> None:
    file = folder / "base" / name
    file.rename(tmp_path / "outside")
    file.symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        embed(folder)


def test_links_within_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--organisation--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    for file in (FIXTURES / "vlm2vec_phi3v" / "model").iterdir():
        blob = repository / "blobs" / file.name
        for place in (blob, snapshot / file.name):
            place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    embed(snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(Path("..", "..", "..", "config.json"))
    shutil.copy(FIXTURES / "vlm2vec_phi3v" / "model" / "config.json", tmp_path / "config.json")
    with pytest.raises(CheckpointError):
        load_embedder(f"vlm2vec:{snapshot}", device="cpu").embed([Text("a")])


def test_a_file_that_is_a_pipe_is_refused(folder: Path) -> None:
    config = folder / "base" / "config.json"
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(CheckpointError, match="not a file"):
        embed(folder)


def test_tensors_of_whole_numbers_are_refused(folder: Path) -> None:
    weights = folder / "base" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] = torch.ones(128, dtype=torch.int8)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not of floating-point numbers: model\.norm\.weight"):
        embed(folder)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(a+)+$", "does not fit this base|target_modules"),
        (r"(.*)*\1", "a pattern that can be matched"),
        ("(" * 50 + "a" + ")" * 50, "nested more than"),
        ("(((((((.*)*.)*.)*.)*.)*.)*.)*x", "target_modules|does not fit"),
        ("all", "target_modules"),
    ],
)
def test_the_pattern_of_an_adapter_cannot_hang(folder: Path, pattern: str, said: str) -> None:
    file = folder / "instruct" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "target_modules": pattern}))
    with pytest.raises(CheckpointError, match=said):
        embed(folder)


def test_a_pattern_names_the_same_layers_as_a_list(folder: Path) -> None:
    file = folder / "instruct" / "adapter_config.json"
    listed = json.loads(file.read_text())
    before = load_embedder(folder, device="cpu").embed([Text("a")])
    pattern = rf"^(?!.*visual).*\.({'|'.join(name.replace('.', r'[.]') for name in listed['target_modules'])})"
    file.write_text(json.dumps({**listed, "target_modules": pattern}))
    after = load_embedder(folder, device="cpu").embed([Text("a")])
    assert (before == after).all()
