"""Phi-3-vision against figures that the original research code computed (tests/fixtures/vlm2vec_phi3v/README.md)."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from vlm2vec_helpers import FIXTURES, TOLERANCE, as_input, change_tensors, read_cases, read_goldens, unrolled

from abc_rag import Image, InstructedImage, InstructedText, Interleaved, Text, load_embedder
from abc_rag.embedding.engine.worker import _made, limits_as_json, recipe_as_json
from abc_rag.errors import CheckpointError, ImageError, InputError, MissingExtraError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.kernels.attention import Segments
from abc_rag.models.phi3_v.config import Phi3VConfig
from abc_rag.models.phi3_v.network import Phi3VBackbone, crop
from abc_rag.models.phi3_v.pictures import CroppedPicture, PhiPictures, fit_crops, possible_crops
from abc_rag.models.phi3_v.prompts import Phi3VPrompts, load_phi3_v_prompts
from abc_rag.models.phi3_v.weights import base_state_dict, build_phi3_v, load_phi3_v

FIXTURE = FIXTURES / "vlm2vec_phi3v"
MODEL = FIXTURE / "model"
ATTENTIONS = ("sdpa", "eager")
LIMITS = ImageLimits()
RECORDS = read_cases(FIXTURE)
CASES = RECORDS["single"]
GOLDENS = {name: torch.from_numpy(array) for name, array in read_goldens(FIXTURE).items()}
TAG = "<|image_1|>"
TOWER = "model.vision_embed_tokens.img_processor.vision_model."


@pytest.fixture(scope="module", params=ATTENTIONS)
def any_backbone(request: pytest.FixtureRequest) -> Phi3VBackbone:
    return load_phi3_v(MODEL, attention=request.param)


@pytest.fixture(scope="module")
def backbone() -> Phi3VBackbone:
    return load_phi3_v(MODEL)


@pytest.fixture(scope="module")
def prompts() -> Phi3VPrompts:
    return load_phi3_v_prompts(MODEL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the model to break."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def opened_of(backbone: Phi3VBackbone, case: dict[str, Any]) -> list[CroppedPicture]:
    if not case["image"]:
        return []
    return [backbone.recipe(case["num_crops"], None, None).open(str(FIXTURE / case["image"]), limits=LIMITS)]


def ids_of(backbone: Phi3VBackbone, prompts: Phi3VPrompts, case: dict[str, Any]) -> torch.Tensor:
    before, tag, after = case["text"].partition(TAG)
    tokens = [backbone.picture_tokens(one) for one in opened_of(backbone, case)]
    assert bool(tag) == bool(tokens)
    return torch.from_numpy(prompts([before, *tokens, after] if tokens else [before]))


def run_padded(backbone: Phi3VBackbone, prompts: Phi3VPrompts, cases: list[dict[str, Any]], fill: int = 7) -> Any:
    """(last states, features) of some cases by the way that training takes."""
    ids = [ids_of(backbone, prompts, case) for case in cases]
    pictures = [one for case in cases for one in opened_of(backbone, case)]
    lengths = torch.tensor([len(one) for one in ids])
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=fill)
    features = backbone.image_features(pictures) if pictures else None
    states = backbone.hidden_states(padded, lengths=lengths, features=features)
    return states[torch.arange(len(ids)), lengths - 1], features


def run_packed(backbone: Phi3VBackbone, prompts: Phi3VPrompts, cases: list[dict[str, Any]]) -> Any:
    """(last states, features) of some cases by the way that inference takes."""
    ids = [ids_of(backbone, prompts, case) for case in cases]
    pictures = [one for case in cases for one in opened_of(backbone, case)]
    with torch.inference_mode():
        features = backbone.packed_features(pictures) if pictures else None
        flat = torch.cat(ids)
        segments = Segments([len(one) for one in ids], backbone.device)
        at = (flat == backbone.image_token_id).nonzero().flatten()
        return backbone.packed_last_states(flat, segments, features=features, image_positions=at), features


RUNS: dict[str, Callable[..., Any]] = {"padded": run_padded, "packed": run_packed}


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max())


def embedding(states: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(states, dim=-1)


# --- The figures ----------------------------------------------------------------------------------


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
        (opened,) = opened_of(backbone, case)
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
    half = load_phi3_v(MODEL, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    with torch.no_grad():
        rows, _ = RUNS[way](half, prompts, [CASES["t_over_1024"], CASES["c1_640"]])
    expected = torch.stack([GOLDENS["t_over_1024.embedding"], GOLDENS["c1_640.embedding"]])
    assert float((embedding(rows.float()) * expected).sum(dim=-1).min()) > 0.999


@pytest.mark.parametrize("crops", [36, 3])
def test_many_crops_are_seen_some_at_a_time(backbone: Phi3VBackbone, crops: int) -> None:
    source = str(FIXTURE / "images" / "shapes_56x56.png")
    wide = str(FIXTURE / "images" / "wide_900x100.png")
    recipe = backbone.recipe(crops, None, None)
    pictures = [recipe.open(one, limits=LIMITS) for one in ([source] if crops == 36 else [source, wide] * 6)]
    assert sum(one.rows * one.columns + 1 for one in pictures) > 32
    with torch.inference_mode():
        assert worst(backbone.packed_features(pictures), backbone.image_features(pictures)) < TOLERANCE


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


# --- Prompts --------------------------------------------------------------------------------------


def test_every_piece_has_its_own_beginning(prompts: Phi3VPrompts) -> None:
    assert prompts([]).tolist() == prompts([""]).tolist() == [1]
    assert prompts([3]).tolist() == [1, -1, -1, -1, 1]
    assert prompts([2, 1]).tolist() == [1, -1, -1, 1, -1, 1]
    assert prompts(["a", 1, "", 1, "a"]).tolist() == [1, 321, -1, 1, -1, 1, 321]
    assert prompts(["A cat ", "and a dog"]).tolist() == prompts(["A cat and a dog"]).tolist()
    assert prompts(["a"]).dtype == np.int64


@pytest.mark.parametrize("token", ["<s>", "</s>", "<|image|>", "<|endoftext|>", "<|user|>", "<unk>", "<|image_1|>"])
def test_special_tokens_typed_by_a_user_are_plain_text(prompts: Phi3VPrompts, token: str) -> None:
    special = {-1, 0, 1, 2, *range(1000, 1024)}
    text = f"before {token}after"
    reader = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    for one in (prompts, copy.deepcopy(prompts), pickle.loads(pickle.dumps(prompts))):
        first, *rest = one([text]).tolist()
        assert first == 1
        assert not special & set(rest)
        assert reader.decode(rest, skip_special_tokens=False) == text


def test_half_a_character_is_refused(prompts: Phi3VPrompts) -> None:
    with pytest.raises(InputError, match="lone surrogate"):
        prompts([2, "a \ud83d b"])


def test_how_texts_begin_follows_the_files(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())

    def with_settings(**changes: Any) -> Phi3VPrompts:
        file.write_text(json.dumps({k: v for k, v in {**settings, **changes}.items() if v is not None}))
        return load_phi3_v_prompts(folder)

    assert with_settings(add_bos_token=False)([1, "a"]).tolist() == [-1, 321]
    assert with_settings(bos_token={"content": "<|user|>", "special": True})(["a"]).tolist() == [1010, 321]
    assert with_settings(bos_token=None)(["a"]).tolist() == [1, 321]
    with pytest.raises(CheckpointError, match="begins a text"):
        with_settings(bos_token="<no such token>")
    with pytest.raises(CheckpointError, match="add_eos_token"):
        with_settings(add_eos_token=True)
    file.unlink()
    assert load_phi3_v_prompts(folder)([""]).tolist() == [1]
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        load_phi3_v_prompts(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_phi3_v_prompts(folder)


# --- Pictures -------------------------------------------------------------------------------------


def noise(width: int, height: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 200, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(500, 300), (90, 89), (1000, 40)])
@pytest.mark.parametrize("crops", [1, 4, 16])
def test_a_standing_picture_is_a_lying_one_mirrored(size: tuple[int, int], crops: int) -> None:
    lying = PhiPictures(crops).open(noise(*size), limits=LIMITS)
    standing = PhiPictures(crops).open(noise(*size).transpose(PIL.Image.Transpose.TRANSPOSE), limits=LIMITS)
    assert (standing.rows, standing.columns) == (lying.columns, lying.rows)
    assert standing.pixels.flags.c_contiguous
    assert np.array_equal(standing.pixels, lying.pixels.transpose(1, 0, 2))
    assert lying.pixels.shape == (336 * lying.rows, 336 * lying.columns, 3)
    assert lying.rows * lying.columns <= crops
    assert lying.patches == (lying.rows * lying.columns + 1) * 576
    assert lying.nbytes == lying.pixels.size


def test_padding_is_white_and_in_equal_parts() -> None:
    opened = PhiPictures(4).open(noise(900, 101), limits=LIMITS)
    assert (opened.rows, opened.columns) == (1, 4)
    dark = (opened.pixels < 250).any(axis=(1, 2))
    height = int(1344 / (900 / 101))
    above = (336 - height) // 2
    assert dark.nonzero()[0].tolist() == list(range(above, above + height))
    assert (opened.pixels[~dark] == 255).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (200, 1), (1, 200), (3000, 15), (2, 399), (337, 336)])
def test_pictures_of_extreme_shapes_work(backbone: Phi3VBackbone, width: int, height: int) -> None:
    for crops in (1, 2, 4, 16):
        opened = backbone.recipe(crops, None, None).open(noise(width, height), limits=LIMITS)
        least, most = backbone.token_limits(backbone.recipe(crops, None, None))
        assert least <= backbone.picture_tokens(opened) <= most
    with torch.inference_mode():
        features = backbone.packed_features([opened])
    assert features.shape == (backbone.picture_tokens(opened), backbone.hidden_size)
    assert bool(features.isfinite().all())


def test_a_picture_of_which_nothing_would_be_left_is_refused() -> None:
    generous = ImageLimits(max_aspect_ratio=100_000)
    for size in ((5000, 1), (1, 5000)):
        with pytest.raises(InputError, match="too narrow"):
            PhiPictures(4).open(noise(*size), limits=generous)
        assert PhiPictures(16).open(noise(*size), limits=generous).rows in (1, 16)
        with pytest.raises(ImageError, match="max_aspect_ratio"):
            PhiPictures(4).open(noise(*size), limits=LIMITS)


@pytest.mark.parametrize("crops", [1, 2, 3, 4, 5, 7, 12, 16])
def test_all_shapes_that_are_possible_are_known(backbone: Phi3VBackbone, crops: int) -> None:
    found = set()
    for width in range(100, 2500, 3):
        columns, height = fit_crops(width, 100, crops=crops, side=336)
        found |= {(-(-height // 336), columns), (columns, -(-height // 336))}
    possible = list(possible_crops(crops))
    assert len(possible) == len(set(possible))
    assert found == set(possible)
    counts = [backbone.picture_tokens(CroppedPicture(np.empty(0), *shape)) for shape in possible]
    assert backbone.token_limits(backbone.recipe(crops, None, None)) == (min(counts), max(counts))


def test_the_resolution_is_a_number_of_crops(backbone: Phi3VBackbone) -> None:
    assert backbone.recipe(None, None, None) == PhiPictures(4, 336, 14)
    assert backbone.recipe(16, None, None).crops == 16
    assert backbone.token_limits(PhiPictures(1)) == (313, 313)
    for wrong in ("low", "4", True, 0, -1, 4.0):
        with pytest.raises(InputError, match="number of crops"):
            backbone.recipe(wrong, None, None)  # type: ignore[arg-type]
    for limits in ((1, None), (None, 1), (1, 1)):
        with pytest.raises(InputError, match="resolution=CROPS"):
            backbone.recipe(4, *limits)
    for much in (230, 10**12):
        with pytest.raises(InputError, match="32,768"):
            backbone.recipe(much, None, None)


def test_recipes_can_be_told_to_processes_that_need_no_torch() -> None:
    recipe = PhiPictures(16, 336, 14)
    made, limits = _made(json.dumps([recipe_as_json(recipe), limits_as_json(LIMITS)]))
    assert (made, limits) == (recipe, LIMITS)
    assert [field.name for field in dataclasses.fields(PhiPictures.opens)] == ["pixels", "rows", "columns", "patch"]
    program = "import sys, abc_rag.models.phi3_v.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- Checkpoints ----------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], stem: str = "model") -> None:
    change_tensors(folder / f"{stem}.safetensors", change)


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
    made = [build_phi3_v(config, attention=name, dtype=torch.float32, device="meta") for name in ATTENTIONS]
    assert [one.layers[0].self_attn.config._attn_implementation for one in made] == list(ATTENTIONS)


def test_attentions_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="attention must be one of"):
        load_phi3_v(MODEL, attention="flash")
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="flash-attn"):
            load_phi3_v(MODEL, attention="flash_attention_2")


# --- Configurations -------------------------------------------------------------------------------


def changed_config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads((MODEL / "config.json").read_text()), **changes}))
    return folder


def test_the_published_sizes_of_the_vision_tower_are_the_default(folder: Path) -> None:
    processor = json.loads((MODEL / "config.json").read_text())["img_processor"]
    (folder / "clip_dimensions.json").unlink()
    with pytest.raises(CheckpointError, match="image_dim_out is 64"):
        Phi3VConfig.read(folder)
    changed_config(folder, img_processor={**processor, "image_dim_out": 1024})
    vision: Any = Phi3VConfig.read(folder).vision
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1024, 24, 16)
    assert (vision.intermediate_size, vision.image_size, vision.patch_size) == (4096, 336, 14)
    assert (vision.hidden_act, vision.layer_norm_eps) == ("quick_gelu", 1e-5)
    made = build_phi3_v(Phi3VConfig.read(folder), attention="sdpa", dtype=torch.float32, device="meta")
    layer = 12_596_224
    # What all of CLIP ViT-L/14-336 has, less the last layer and the norm after it.
    assert sum(p.numel() for p in made.vision_embed_tokens.tower.parameters()) == 303_507_456 - layer - 2048
    assert made.vision_embed_tokens.img_projection[0].in_features == 4096
    with pytest.raises(CheckpointError, match="of another shape"):
        load_phi3_v(folder)


def test_config_json_may_have_the_sizes_of_the_vision_tower(folder: Path, prompts: Phi3VPrompts) -> None:
    sizes = json.loads((folder / "clip_dimensions.json").read_text())
    processor = json.loads((MODEL / "config.json").read_text())["img_processor"]
    (folder / "clip_dimensions.json").unlink()
    changed_config(folder, img_processor={**processor, **sizes, "model_name": "mine"})
    rows, _ = run_packed(load_phi3_v(folder), prompts, [CASES["c1_640"]])
    assert worst(embedding(rows[0]), GOLDENS["c1_640.embedding"]) < TOLERANCE
    changed_config(folder, img_processor={**processor, "model_name": "mine", "image_dim_out": 1024})
    with pytest.raises(CheckpointError, match="'mine' are not known"):
        load_phi3_v(folder)
    (folder / "clip_dimensions.json").write_text('{"depth": 3}')
    with pytest.raises(CheckpointError, match="depth is no size"):
        load_phi3_v(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "phi3"}, "expected 'phi3_v'"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"sliding_window": 512}, "sliding_window"),
        ({"embd_layer": {"hd_transform_order": "glb_sub"}}, "hd_transform_order"),
        ({"img_processor": {"layer_idx": -1}}, "layer_idx"),
        ({"img_processor": {"type_feature": "cls_patch"}}, "type_feature"),
        ({"rope_scaling": {"type": "yarn"}}, "yarn"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}}, "16 short and 16 long"),
        ({"rope_scaling": {"type": "su"}}, "short_factor"),
    ],
)
def test_configurations_that_would_be_computed_otherwise_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_phi3_v(changed_config(folder, **changes))


@pytest.mark.parametrize("sizes", [{"patch_size": 16}, {"image_size": 322}, {"num_hidden_layers": 1}])
def test_vision_towers_of_other_kinds_are_refused(folder: Path, sizes: dict[str, int]) -> None:
    file = folder / "clip_dimensions.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **sizes}))
    with pytest.raises(CheckpointError, match="even number of patches"):
        load_phi3_v(folder)


def test_without_scaling_there_is_one_set_of_frequencies(folder: Path) -> None:
    made = load_phi3_v(changed_config(folder, rope_scaling=None))
    cos, sin = made.rotary(torch.tensor([3, 3]), torch.tensor([4, 4000]))
    angles = 3 / 10000 ** (torch.arange(0, 32, 2) / 32)
    assert worst(cos, torch.cat([angles, angles]).cos().expand(2, -1)) < 1e-6
    assert worst(sin, torch.cat([angles, angles]).sin().expand(2, -1)) < 1e-6


# --- Adapters -------------------------------------------------------------------------------------

TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


class Whole(nn.Module):
    """What peft wraps: the modules by the names that published adapters know."""

    def __init__(self) -> None:
        super().__init__()
        self.model = load_phi3_v(MODEL)


def fill(parameters: Iterator[tuple[str, nn.Parameter]]) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in parameters:
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))


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


def test_an_adapter_around_the_patches_is_used_by_both_ways(prompts: Phi3VPrompts) -> None:
    backbone = load_phi3_v(MODEL)
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["patch_embedding"]), backbone)
    fill(backbone.named_parameters())
    backbone.eval()
    with torch.no_grad():
        rows = [embedding(run(backbone, prompts, [CASES["c1_640"]])[0][0]) for run in RUNS.values()]
    assert worst(rows[0], rows[1]) < TOLERANCE
    assert worst(rows[0], GOLDENS["c1_640.embedding"]) > 1e-3


# --- Operations -----------------------------------------------------------------------------------


def test_operations_are_those_that_torch_counts(prompts: Phi3VPrompts) -> None:
    backbone = load_phi3_v(MODEL, attention="eager")
    (picture,) = opened_of(backbone, CASES["i_wide"])
    ids = ids_of(backbone, prompts, CASES["t_caption"])
    with torch.no_grad(), FlopCounterMode(display=False) as text:
        backbone.packed_last_states(ids, Segments([len(ids)], backbone.device))
    assert backbone.flops(len(ids), []) == text.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as seen:
        backbone.image_features([picture])
    assert backbone.flops(len(ids), [picture]) == text.get_total_flops() + seen.get_total_flops()


# --- Behind the engine ------------------------------------------------------------------------------


@pytest.mark.parametrize("crops", [1, 4, 16])
def test_the_engine_meets_the_goldens(crops: int) -> None:
    chosen = [case for case in CASES.values() if case["num_crops"] == crops]
    embedder = load_embedder(MODEL, device="cpu", resolution=crops)
    items = [as_input(FIXTURE, case, TAG) for case in chosen]
    expected = torch.stack([GOLDENS[f"{case['id']}.embedding"] for case in chosen])
    for batch_size in (1, 5):
        vectors = torch.from_numpy(embedder.embed(items, batch_size=batch_size))
        assert worst(vectors, expected) < TOLERANCE
    assert (embedder.fingerprint.min_tokens, embedder.fingerprint.max_tokens) == {
        1: (313, 313), 4: (457, 781), 16: (1321, 2653),
    }[crops]  # fmt: skip


def test_typed_inputs_are_the_published_prompts() -> None:
    embedder = load_embedder(MODEL, device="cpu", resolution=4)
    scene = FIXTURE / "images" / "scene_640x480.png"
    items = {
        "t_dog": Text("A cat and a dog"),
        "t_caption": InstructedText("A cat and a dog.", "Find me an everyday image that matches the given caption:"),
        "i_640": Image(scene),
        "i_640_q": InstructedImage(scene, "What is in the image"),
    }
    vectors = torch.from_numpy(embedder.embed(list(items.values())))
    assert worst(vectors, torch.stack([GOLDENS[f"{name}.embedding"] for name in items])) < TOLERANCE


def test_two_pictures_in_one_input(backbone: Phi3VBackbone, prompts: Phi3VPrompts) -> None:
    embedder = load_embedder(MODEL, device="cpu", resolution=1)
    sources = [FIXTURE / "images" / name for name in ("scene_640x480.png", "shapes_56x56.png")]
    (found,) = embedder.embed([Interleaved([Image(sources[0]), Image(sources[1]), Text(" compare")])])
    pictures = [PhiPictures(1).open(str(source), limits=LIMITS) for source in sources]
    ids = torch.from_numpy(prompts([313, "", 313, " compare"]))
    with torch.inference_mode():
        features = backbone.image_features(pictures)
        states = backbone.hidden_states(ids[None], lengths=torch.tensor([len(ids)]), features=features)
    assert worst(torch.from_numpy(found), embedding(states[0, -1])) < TOLERANCE


def test_limits_in_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="resolution=CROPS"):
        load_embedder(MODEL, device="cpu", max_tokens=256).embed([Text("a")])
