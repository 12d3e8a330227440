"""What ``"auto"`` takes, by memory and device; it fetches nothing that nobody asked for."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from gemma_helpers import standin
from models_cache import into_cache

from abc_rag import Text, load_embedder
from abc_rag.embedding.choose import choose_model
from abc_rag.embedding.load import local_revision
from abc_rag.embedding.options import model_as_json
from abc_rag.errors import CheckpointError, InputError

CPU, GPU, GEMMA = torch.device("cpu"), torch.device("cuda", 0), "google/embeddinggemma-2"
GB = 10**9


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("device", "free", "model", "said"),
    [
        (GPU, 24 * GB, "abc", "cuda:0 has 24.0 GB free, and it needs 16.6 GB"),
        (GPU, 12 * GB, GEMMA, "not abc, which needs 16.6 GB, and cuda:0 has 12.0 GB free"),
        (CPU, 64 * GB, GEMMA, "not abc, which wants a CUDA GPU, and this is cpu"),
        (CPU, 2 * GB, "abc-mini", "which needs 2.8 GB, and cpu has 2.0 GB free"),
    ],
)
def test_the_best_that_fits(device: torch.device, free: int, model: str, said: str) -> None:
    choice = choose_model(device, download=True, free=free)
    assert choice.model == model
    assert said in choice.reason
    assert str(choice).startswith(f"auto: {model}")
    assert ("fetches" in str(choice)) == (model != "abc-mini")


def test_without_leave_to_fetch_it_takes_what_is_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="abc_rag"):
        embedder = load_embedder("auto", device="cpu")
    assert embedder.fingerprint.model == "abc-mini"
    choice = embedder.choice  # type: ignore[attr-defined]
    assert choice.model == "abc-mini"
    assert "its answers mean nothing on photographs" in choice.reason
    assert "download=True fetches it (1.5 GB)" in choice.reason
    assert [record.getMessage() for record in caplog.records] == [str(choice)]
    vector = embedder.embed([Text("a pig")])
    again = pickle.loads(pickle.dumps(embedder))
    assert again.choice == choice
    assert np.allclose(again.embed([Text("a pig")]), vector, atol=1e-6)
    assert copy.copy(embedder).choice == choice  # type: ignore[attr-defined]
    assert load_embedder("abc-mini").choice is None  # type: ignore[attr-defined]


def test_what_is_in_the_cache_is_taken_as_it_is(cache: Path) -> None:
    into_cache(cache, GEMMA, standin())
    embedder = load_embedder("auto", device="cpu", max_tokens=70)
    assert embedder.choice.here  # type: ignore[attr-defined]
    assert embedder.fingerprint.model == GEMMA
    assert embedder.fingerprint.revision == "0" * 12  # that of the cache: no hub was asked
    assert embedder.embed([Text("a pig")]).shape == (1, 40)
    with pytest.raises(CheckpointError):  # named, it is looked for on the hub, and there is no network
        _ = load_embedder("Qwen/Qwen3-VL-Embedding-2B", device="cpu").dim


def test_the_name_is_a_name_everywhere() -> None:
    assert model_as_json("auto") == "auto"
    assert local_revision("auto", device="cpu") == local_revision("abc-mini")
    with pytest.raises(InputError, match="'auto' nor a folder"):
        load_embedder("nowhere")
