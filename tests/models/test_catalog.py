"""The list of published models: complete, true of what can be seen here, and without a network."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from gemma_helpers import standin
from models_cache import into_cache

from abc_rag import load_embedder
from abc_rag.models.catalog import MODELS, known_model
from abc_rag.models.hub import cached
from abc_rag.models.loader import find_checkpoint, known_names


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_every_name_that_needs_no_prefix_is_listed_once() -> None:
    assert sorted(model.name for model in MODELS) == sorted(known_names())
    for model in MODELS:
        assert find_checkpoint(model.name)
        assert model.memory("cpu") > model.memory("cuda") > 10**9
        assert model.download == 0 or model.download >= 2 * model.parameters


def test_figures_of_the_model_in_this_package() -> None:
    mini = known_model("abc-mini")
    assert mini.here
    embedder = load_embedder("abc-mini", device="cpu")
    assert embedder.dim == mini.dim
    network = embedder.family.network  # type: ignore[attr-defined]
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(mini.parameters, rel=0.05)


def test_parameters_are_those_of_the_published_sizes() -> None:
    from transformers import EmbeddingGemma2Config, EmbeddingGemma2Model

    with torch.device("meta"):
        published = EmbeddingGemma2Config(text_config={}, vision_config={"model_type": "gemma4_vision"})
        read = sum(p.numel() for p in EmbeddingGemma2Model(published).parameters())
    assert read == pytest.approx(known_model("google/embeddinggemma-2").parameters, rel=0.005)


def test_what_is_here_is_what_has_all_its_weights(cache: Path) -> None:
    gemma, lora = known_model("google/embeddinggemma-2"), known_model("TIGER-Lab/VLM2Vec-LoRA")
    assert not gemma.here
    assert cached(gemma.name) is None
    snapshot = into_cache(cache, gemma.name, standin())
    assert gemma.here
    assert cached(gemma.name) == snapshot
    weights = snapshot / "model.safetensors"
    weights.rename(snapshot / "model-00001-of-00002.safetensors")
    index = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert not gemma.here  # one file of two was fetched
    adapter = into_cache(cache, lora.name, standin())
    (adapter / "model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(b"")
    assert not lora.here  # its base is missing
    into_cache(cache, "microsoft/Phi-3.5-vision-instruct", standin())
    assert lora.here
