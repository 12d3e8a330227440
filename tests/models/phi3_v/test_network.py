"""Phi-3-vision against figures that the original research code computed (tests/fixtures/vlm2vec_phi3v/README.md)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from phi3_v_helpers import (
    ATTENTIONS,
    CASES,
    FIXTURE,
    GOLDENS,
    LIMITS,
    MODEL,
    RECORDS,
    RUNS,
    embedding,
    fill,
    ids_of,
    opened_of,
    run_padded,
    worst,
)
from torch import nn
from vlm2vec_helpers import TOLERANCE, unrolled

from abc_rag.errors import InputError, MissingExtraError
from abc_rag.models.phi3_v.config import Phi3VConfig
from abc_rag.models.phi3_v.network import Phi3VBackbone, crop
from abc_rag.models.phi3_v.packed import PackedPhi3V
from abc_rag.models.phi3_v.pictures import PhiPictures
from abc_rag.models.phi3_v.prompts import Phi3VPrompts
from abc_rag.models.phi3_v.weights import load_phi3_v
from abc_rag.models.placement import Placement


@pytest.mark.parametrize("way", RUNS)
def test_every_single_case_meets_its_goldens(any_backbone: Phi3VBackbone, prompts: Phi3VPrompts, way: str) -> None:
    assert len(CASES) == 25
    for name, case in CASES.items():
        with torch.no_grad():
            states, features = RUNS[way](any_backbone, prompts, [case])
        assert worst(embedding(states[0]), GOLDENS[f"{name}.embedding"]) < TOLERANCE, name
        assert worst(states[0], GOLDENS[f"{name}.pooled"]) < TOLERANCE, name
        assert (features is None) == (f"{name}.visual_mean" not in GOLDENS)
        if features is not None:
            assert worst(features.mean(dim=0), GOLDENS[f"{name}.visual_mean"]) < TOLERANCE, name


def test_prompts_are_the_published_token_ids(backbone: Phi3VBackbone, prompts: Phi3VPrompts) -> None:
    for name, case in CASES.items():
        expected = unrolled(case["input_ids"])
        assert ids_of(backbone, prompts, case).tolist() == expected, name
        assert len(expected) == case["n_tokens"]


def test_pictures_are_the_published_pixels(backbone: Phi3VBackbone) -> None:
    pictures = [case for case in CASES.values() if case["image"]]
    assert len(pictures) == 15
    for case in pictures:
        (opened,) = opened_of(case)
        assert list(opened.pixels.shape[:2]) == case["image_size_after_resize_and_pad"], case["id"]
        crops, stated = crop(opened, backbone.device), case["pixel_values"]
        assert len(crops) == opened.rows * opened.columns + 1 == stated["crops_used"]
        assert abs(float(crops.mean()) - stated["mean"]) < 1e-6, case["id"]
        assert abs(float(crops.std()) - stated["std"]) < 1e-6, case["id"]
        assert abs(float(crops[-1].mean()) - stated["global_mean"]) < 1e-6, case["id"]
        assert np.abs(crops[0, 0, 168, :8].numpy() - stated["first8"]).max() < 1e-6, case["id"]


@pytest.mark.parametrize("way", RUNS)
def test_batches_equal_single_results(any_backbone: Phi3VBackbone, prompts: Phi3VPrompts, way: str) -> None:
    for record in RECORDS["batched"]:
        with torch.no_grad():
            rows = embedding(RUNS[way](any_backbone, prompts, [CASES[name] for name in record["items"]])[0])
        singles = torch.stack([GOLDENS[f"{name}.embedding"] for name in record["items"]])
        assert worst(rows, singles) < TOLERANCE, record["id"]
        together = GOLDENS[f"{record['id']}.embedding"]
        if record["id"] == "b_over_1024":  # where the original's short text depends on the long one beside it
            assert 0.005 < worst(rows[0], together[0]) < 0.01
            rows, together = rows[1:], together[1:]
        assert worst(rows, together) < TOLERANCE, record["id"]


@pytest.mark.parametrize("way", RUNS)
def test_everything_in_one_batch_equals_single_results(
    backbone: Phi3VBackbone, prompts: Phi3VPrompts, way: str
) -> None:
    names = random.Random(way).sample([n for n in CASES if n[0] == "t" or n in ("c1_640", "i_wide", "i_mid_tag")], 13)
    with torch.no_grad():
        rows = embedding(RUNS[way](backbone, prompts, [CASES[name] for name in names])[0])
    assert worst(rows, torch.stack([GOLDENS[f"{name}.embedding"] for name in names])) < TOLERANCE


def test_padding_may_be_anything(backbone: Phi3VBackbone, prompts: Phi3VPrompts) -> None:
    cases = [CASES["t_dog"], CASES["c1_640"], CASES["t_long"]]
    with torch.no_grad():
        rows, _ = run_padded(backbone, prompts, cases, fill=backbone.image_token_id)
    expected = torch.stack([GOLDENS[f"{case['id']}.embedding"] for case in cases])
    assert worst(embedding(rows), expected) < TOLERANCE


@pytest.mark.parametrize("way", RUNS)
def test_half_precision_stays_close(prompts: Phi3VPrompts, way: str) -> None:
    half = load_phi3_v(MODEL, place=Placement(dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    with torch.no_grad():
        rows, _ = RUNS[way](half, prompts, [CASES["t_over_1024"], CASES["c1_640"]])
    expected = torch.stack([GOLDENS["t_over_1024.embedding"], GOLDENS["c1_640.embedding"]])
    assert float((embedding(rows.float()) * expected).sum(dim=-1).min()) > 0.999


@pytest.mark.parametrize("crops", [36, 3])
def test_many_crops_are_seen_some_at_a_time(backbone: Phi3VBackbone, crops: int) -> None:
    source = str(FIXTURE / "images" / "shapes_56x56.png")
    wide = str(FIXTURE / "images" / "wide_900x100.png")
    recipe = PhiPictures(crops)
    pictures = [recipe.open(one, limits=LIMITS) for one in ([source] if crops == 36 else [source, wide] * 6)]
    assert sum(one.rows * one.columns + 1 for one in pictures) > 32
    with torch.inference_mode():
        assert worst(PackedPhi3V(backbone).image_features(pictures), backbone.image_features(pictures)) < TOLERANCE


# --- Training -------------------------------------------------------------------------------------


def contrastive_loss(backbone: Phi3VBackbone, prompts: Phi3VPrompts, record: dict[str, Any]) -> torch.Tensor:
    q, t = (
        embedding(run_padded(backbone, prompts, [CASES[name] for name in record[side]])[0])
        for side in ("queries", "targets")
    )
    return nn.functional.cross_entropy(q @ t.T / record["temperature"], torch.arange(len(q)))


@pytest.mark.parametrize("how", ["plain", "recomputed"])
def test_the_training_loss_and_its_gradients_are_the_published_ones(prompts: Phi3VPrompts, how: str) -> None:
    record = RECORDS["loss"]
    backbone = load_phi3_v(MODEL).requires_grad_(True)
    if how == "recomputed":
        backbone.train().recompute_activations()
    loss = contrastive_loss(backbone, prompts, record)
    loss.backward()
    assert abs(loss.item() / record["loss"] - 1) < 1e-4
    gradients = {f"model.{name}": p.grad for name, p in backbone.named_parameters()}
    assert len(record["grad_norms"]) == 15
    for name, stated in record["grad_norms"].items():
        found = gradients[name]
        assert found is not None
        if stated < 1e-5:
            # The bias of keys moves all scores of a query alike: what is left is rounding.
            assert float(found.norm()) < 1e-5, name
        else:
            assert abs(float(found.norm()) / stated - 1) < 1e-3, name
    assert all(g is not None for g in gradients.values())


# --- The network ----------------------------------------------------------------------------------


def test_a_loaded_backbone_is_ready_to_embed(backbone: Phi3VBackbone) -> None:
    assert not backbone.training
    assert not any(p.requires_grad or p.is_meta for p in backbone.parameters())
    assert not any(name.endswith("lora_A") for name, _ in backbone.named_modules())
    assert (backbone.hidden_size, backbone.max_length, backbone.attention) == (128, 32768, "sdpa")
    assert len(backbone.vision_embed_tokens.tower.layers) == 2
    assert len(backbone.language_layers) == 3
    assert backbone.image_token_id == -1


def test_one_configuration_serves_backbones_that_attend_otherwise() -> None:
    config = Phi3VConfig.read(MODEL)
    with torch.device("meta"):
        made = [Phi3VBackbone(config, attention=name) for name in ATTENTIONS]
    assert [one.layers[0].self_attn.config._attn_implementation for one in made] == list(ATTENTIONS)


def test_attentions_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="attention must be one of"):
        load_phi3_v(MODEL, place=Placement("flash"))
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="flash-attn"):
            load_phi3_v(MODEL, place=Placement("flash_attention_2"))


def test_an_adapter_around_the_patches_is_used_by_both_ways(prompts: Phi3VPrompts) -> None:
    backbone = load_phi3_v(MODEL)
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["patch_embedding"]), backbone)
    fill(backbone.named_parameters())
    backbone.eval()
    with torch.no_grad():
        rows = [embedding(run(backbone, prompts, [CASES["c1_640"]])[0][0]) for run in RUNS.values()]
    assert worst(rows[0], rows[1]) < TOLERANCE
    assert worst(rows[0], GOLDENS["c1_640.embedding"]) > 1e-3
