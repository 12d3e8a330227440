"""VLM2Vec on Qwen2-VL against figures of the original code, its prompts, and its checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from vlm2vec_helpers import QWEN, TOLERANCE, as_input, change_tensors, read_cases, read_goldens, unrolled

from abc_rag import Image, Input, InstructedImage, InstructedText, Interleaved, Text, load_embedder
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.load import local_revision, open_embedder
from abc_rag.embedding.options import EmbedderOptions
from abc_rag.errors import CheckpointError, InputError, MissingExtraError
from abc_rag.models.loader import find_checkpoint
from abc_rag.models.vlm2vec.family import VLM2VecFamily
from abc_rag.models.vlm2vec.loader import LOADER
from abc_rag.models.vlm2vec.prompts import TASK_INSTRUCTIONS
from abc_rag.models.vlm2vec.qwen2_vl import load_vlm2vec_qwen2_vl

TAG = "<|image_pad|>"
CASES = read_cases(QWEN)
GOLDENS = read_goldens(QWEN)
SHAPES = QWEN / "images" / "shapes_56x56.png"
GRAY = QWEN / "images" / "gray_300x200.png"


def family_of(embedder: Embedder) -> VLM2VecFamily:
    assert isinstance(embedder, LocalEmbedder)
    assert isinstance(embedder.family, VLM2VecFamily)
    return embedder.family


def opened(resolution: str | None = None, adapters: Any = "merged", **settings: Any) -> Embedder:
    options = EmbedderOptions(device="cpu", resolution=resolution, **settings)
    return open_embedder(QWEN, options, adapters=adapters)


@pytest.fixture(scope="module")
def embedders() -> dict[str | None, Embedder]:
    return {resolution: opened(resolution) for resolution in (None, "low", "mid", "high")}


@pytest.fixture(scope="module")
def beside() -> dict[str | None, Embedder]:
    return {resolution: opened(resolution, "beside") for resolution in (None, "low", "mid", "high")}


@pytest.fixture(scope="module")
def embedder(embedders: dict[str | None, Embedder]) -> Embedder:
    return embedders[None]


def of_case(name: str) -> Input:
    return as_input(QWEN, CASES["single"][name], TAG)


# --- Figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CASES["single"]))
def test_a_single_meets_its_golden(name: str, embedders: dict[str | None, Embedder]) -> None:
    case = CASES["single"][name]
    embedder = embedders[case["image_resolution"]]
    found = embedder.embed([of_case(name)])[0]
    assert np.abs(found - GOLDENS[f"{name}.embedding"]).max() < TOLERANCE
    family = family_of(embedder)
    prepared = family.prepare(of_case(name))
    assert prepared.input_ids.tolist() == unrolled(case["input_ids"])
    if case["image"] is not None:
        (picture,) = prepared.pictures
        assert [[1, picture.opened.rows, picture.opened.columns]] == case["image_grid_thw"]
        seen = family.see([picture.opened])[0]
        assert np.abs(seen.mean(dim=0).numpy() - GOLDENS[f"{name}.visual_mean"]).max() < TOLERANCE


@pytest.mark.parametrize("name", list(CASES["single"]))
def test_a_single_meets_its_golden_with_the_adapter_beside(name: str, beside: dict[str | None, Embedder]) -> None:
    found = beside[CASES["single"][name]["image_resolution"]].embed([of_case(name)])[0]
    assert np.abs(found - GOLDENS[f"{name}.embedding"]).max() < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_meet_their_goldens_with_gradients_too(attention: str) -> None:
    family = family_of(opened(attention=attention))
    checked = 0
    for name, case in CASES["single"].items():
        if case["image_resolution"] is not None or name == "i_large":
            continue
        prepared = family.prepare(of_case(name))
        pictures = [picture.opened for picture in prepared.pictures]
        ids, lengths = torch.from_numpy(prepared.input_ids)[None], torch.tensor([prepared.tokens])
        features = family.backbone.image_features(pictures) if pictures else None
        states = family.backbone.hidden_states(ids, lengths=lengths, features=features)
        pooled = GOLDENS[f"{name}.pooled"]
        assert np.abs(states[0, -1].detach().numpy() - pooled).max() < 10 * TOLERANCE * max(1, np.abs(pooled).max())
        row = family.network(ids, lengths=lengths, features=features)[0].detach()
        assert np.abs(row.numpy() - GOLDENS[f"{name}.embedding"]).max() < TOLERANCE
        engine = family.forward([prepared])[0].numpy()
        assert np.abs(engine - GOLDENS[f"{name}.embedding"]).max() < TOLERANCE
        checked += 1
    assert checked >= 19


def test_batches_equal_singles(embedder: Embedder) -> None:
    names = [name for name, case in CASES["single"].items() if case["image_resolution"] is None]
    found = embedder.embed([of_case(name) for name in names])
    for name, row in zip(names, found, strict=True):
        assert np.abs(row - GOLDENS[f"{name}.embedding"]).max() < TOLERANCE, name
    family = family_of(embedder)
    for batch in CASES["batched"]:
        if any(CASES["single"][name]["image_resolution"] for name in batch["items"]):
            continue
        rows = family.forward([family.prepare(of_case(name)) for name in batch["items"]]).numpy()
        assert np.abs(rows - GOLDENS[f"{batch['id']}.embedding"]).max() < TOLERANCE, batch["id"]


def test_a_padded_batch_equals_its_singles(embedder: Embedder) -> None:
    family = family_of(embedder)
    names = ["i_640_q", "t_dog", "t_one", "i_56"]
    prepared = [family.prepare(of_case(name)) for name in names]
    ids = torch.full((len(names), max(one.tokens for one in prepared)), 7)
    for row, one in zip(ids, prepared, strict=True):
        row[: one.tokens] = torch.from_numpy(one.input_ids)
    features = family.backbone.image_features([p.opened for one in prepared for p in one.pictures])
    with torch.no_grad():
        rows = family.network(ids, lengths=torch.tensor([one.tokens for one in prepared]), features=features)
    for name, row in zip(names, rows.numpy(), strict=True):
        assert np.abs(row - GOLDENS[f"{name}.embedding"]).max() < TOLERANCE, name


def test_other_precisions_are_near(embedder: Embedder) -> None:
    items = [of_case(name) for name in ("t_caption", "i_gray", "i_640_q")]
    exact = embedder.embed(items)
    for settings, least in (({"dtype": "bfloat16"}, 0.999), ({"weights": "int8"}, 0.999), ({"weights": "int4"}, 0.95)):
        other = opened(**settings)
        cosines = (other.embed(items) * exact).sum(axis=1)
        assert least < cosines.min() < 1 - 1e-7, settings
        assert (other.fingerprint == embedder.fingerprint) == ("dtype" in settings)


# --- Prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "prompt"),
    [
        (Image(SHAPES), " Represent the given image."),
        (InstructedImage(SHAPES, "What is it?"), " Represent the given image with the following question: What is it?"),
        (InstructedImage(SHAPES, ""), " Represent the given image with the following question: "),
        (InstructedImage(SHAPES, TASK_INSTRUCTIONS["classification"]), " Represent the given image for classification"),
        (
            InstructedImage(SHAPES, f'{TASK_INSTRUCTIONS["grounding"]} "car"'),
            ' Select the portion of the image that isolates the object labeled as "car"',
        ),
        (
            InstructedImage(SHAPES, "represent the given image for classification"),
            " Represent the given image with the following question: represent the given image for classification",
        ),
    ],
)
def test_a_picture_stands_before_what_is_asked_of_it(item: Input, prompt: str, embedder: Embedder) -> None:
    written = Interleaved([Image(SHAPES), Text(prompt)])
    family = family_of(embedder)
    assert family.prepare(item).input_ids.tolist() == family.prepare(written).input_ids.tolist()
    assert np.array_equal(embedder.embed([item]), embedder.embed([written]))


def test_published_tasks_are_told_in_the_published_words() -> None:
    texts = [case["text"].replace(TAG, "").strip() for case in CASES["single"].values()]
    for name in ("vqa", "classification", "image", "text_to_image", "picture_to_caption"):
        assert any(text.startswith(TASK_INSTRUCTIONS[name]) for text in texts), name
    assert {"image_to_text", "grounding"} <= set(TASK_INSTRUCTIONS)
    with pytest.raises(TypeError):
        TASK_INSTRUCTIONS["mine"] = "words"  # type: ignore[index]


def test_an_instruction_stands_before_a_text(embedder: Embedder) -> None:
    asked = InstructedText("A cat and a dog.", TASK_INSTRUCTIONS["text_to_image"])
    found = embedder.embed([asked])[0]
    assert np.abs(found - GOLDENS["t_caption.embedding"]).max() < TOLERANCE


def test_parts_are_read_in_order(embedder: Embedder) -> None:
    family = family_of(embedder)
    pad = family.backbone.image_token_id
    item = Interleaved([Image(SHAPES), Text(" and "), Text("then"), Image(GRAY), Image(SHAPES)])
    prepared = family.prepare(item)
    tokens = [picture.tokens for picture in prepared.pictures]
    assert tokens == [4, 77, 4]
    words = family.prepare(Text(" and then")).input_ids.tolist()
    assert prepared.input_ids.tolist() == [pad] * 4 + words + [pad] * 81
    one, other = (Interleaved([Image(a), Text(" or "), Image(b)]) for a, b in ((SHAPES, GRAY), (GRAY, SHAPES)))
    rows = embedder.embed([one, other, one])
    assert np.abs(rows[0] - rows[1]).max() > 0.01
    assert np.abs(rows[0] - rows[2]).max() < TOLERANCE


def test_what_a_user_types_stays_text(embedder: Embedder) -> None:
    family = family_of(embedder)
    for typed in ("<|image_pad|>", "<|endoftext|>", "<|vision_start|><|image_pad|><|vision_end|>"):
        ids = family.prepare(Text(f"see {typed} here")).input_ids
        assert ids.max() < 1000
        with_picture = family.prepare(InstructedImage(SHAPES, typed)).input_ids
        assert (with_picture >= 1000).sum() == 4


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Text(""), "input 0: an empty text has no tokens"),
        (Text("\ud800"), "half a character"),
        (Text("word " * 40000), "input 0: an input of .* tokens is longer than the model's 32768; split the text"),
    ],
)
def test_what_cannot_be_read_is_refused(item: Input, message: str, embedder: Embedder) -> None:
    with pytest.raises(InputError, match=message):
        embedder.embed([item])


# --- Resolution -------------------------------------------------------------------------------------------


def test_pictures_keep_their_size_within_the_checkpoints_limits(embedder: Embedder) -> None:
    assert (embedder.fingerprint.min_tokens, embedder.fingerprint.max_tokens) == (4, 16384)
    family = family_of(embedder)
    picture = PIL.Image.new("RGB", (28 * 40, 28 * 30), (10, 200, 30))
    assert family.prepare(Image(picture)).pictures[0].tokens == 1200
    small = family_of(opened(max_tokens=100)).prepare(Image(picture)).pictures[0].tokens
    assert 80 <= small <= 100
    assert family.at(min_tokens=9, max_tokens=16).prepare(Image(picture)).pictures[0].tokens <= 16


def test_a_square_is_another_fingerprint(embedders: dict[str | None, Embedder]) -> None:
    assert len({embedder.fingerprint for embedder in embedders.values()}) == 4
    assert embedders["high"].fingerprint.revision.endswith("+high")
    assert local_revision(QWEN, resolution="high") == embedders["high"].fingerprint.revision
    # Another number of image tokens keeps the square, and says so.
    fewer = family_of(embedders["low"]).at(min_tokens=4, max_tokens=16)
    same = family_of(opened("low", max_tokens=16))
    assert fewer.facts == same.facts
    picture = PIL.Image.new("RGBA", (30, 500), (10, 200, 30, 128))
    assert family_of(embedders["mid"]).prepare(Image(picture)).pictures[0].tokens == 576


@pytest.mark.parametrize("resolution", ["huge", 4, "", "HIGH"])
def test_an_unknown_resolution_is_refused(resolution: Any) -> None:
    with pytest.raises(InputError, match="resolution must be one of 'low', 'mid', 'high', not "):
        opened(resolution).embed([Text("x")])


@pytest.mark.parametrize("resolution", [["low"], True, 1.5, b"low"])
def test_what_is_no_resolution_is_refused_at_once(resolution: Any) -> None:
    with pytest.raises(InputError, match="resolution must be a name or a number, not "):
        load_embedder(QWEN, resolution=resolution)


# --- Checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(QWEN, folder, ignore=shutil.ignore_patterns("images", "*.json.bak", "goldens*"))
    return folder


def embeds_as(model: str | Path, golden: str = "t_caption") -> bool:
    found = load_embedder(model, device="cpu").embed([of_case(golden)])[0]
    return bool(np.abs(found - GOLDENS[f"{golden}.embedding"]).max() < TOLERANCE)


def test_an_adapters_folder_finds_its_base(copy: Path) -> None:
    config = copy / "adapter" / "adapter_config.json"
    for base in ("../base", str(copy / "base")):
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": base}))
        assert embeds_as(copy / "adapter")
        assert embeds_as(f"vlm2vec:{copy / 'adapter'}")
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "../elsewhere"}))
    with pytest.raises(CheckpointError, match=r"the adapter's base is '\.\./elsewhere', which is not here"):
        load_embedder(f"vlm2vec:{copy / 'adapter'}", device="cpu").embed([Text("x")])
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="the adapter names no base"):
        load_embedder(f"vlm2vec:{copy / 'adapter'}", device="cpu").embed([Text("x")])


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"base_model_name_or_path": "meta-llama/Llama-3.1-70B"}, True),
        ({"base_model_name_or_path": "Qwen/Qwen2-VL-7B-Instruct"}, False),
        ({"base_model_name_or_path": "Qwen/Qwen2-VL-7B-Instruct", "task_type": "CAUSAL_LM"}, True),
        ({"base_model_name_or_path": "../elsewhere"}, True),
        ({"base_model_name_or_path": None}, True),
    ],
)
def test_an_adapter_that_could_be_anybodys_has_to_be_named(changed: dict[str, Any], refused: bool, copy: Path) -> None:
    """Nothing is fetched for it before."""
    config = copy / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
    if not refused:
        assert LOADER.refusal(copy / "adapter") is None
        return
    with pytest.raises(InputError, match=r"which could be any model's; if it is VLM2Vec's, write 'vlm2vec:.*adapter'"):
        load_embedder(copy / "adapter")
    load_embedder(f"vlm2vec:{copy / 'adapter'}")


def test_merged_weights_have_to_be_named(copy: Path) -> None:
    backbone, _ = load_vlm2vec_qwen2_vl(copy / "base", copy / "adapter")
    base = load_file(copy / "base" / "model.safetensors")
    state = backbone.model.language_model.state_dict()
    merged = {
        name: state[name.removeprefix("model.")] if name.startswith("model.") else value for name, value in base.items()
    }
    save_file({name: value.contiguous().clone() for name, value in merged.items()}, copy / "base" / "model.safetensors")
    with pytest.raises(InputError, match=r"vlm2vec: is a Qwen2-VL, which could be .*write 'vlm2vec:.*base'"):
        load_embedder(copy / "base")
    assert embeds_as(f"vlm2vec:{copy / 'base'}")


def test_magnitudes_are_read_under_newer_names_too(copy: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("lora_magnitude_vector")]:
            tensors[f"{name}.weight"] = tensors.pop(name)

    change_tensors(copy / "adapter" / "adapter_model.safetensors", rename)
    assert embeds_as(copy)


def as_torch_saves(folder: Path, change: Callable[[dict[str, Any]], object] = dict) -> Path:
    """The adapter as most published ones are: a file of torch.save."""
    file = folder / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    change(state)
    torch.save(state, file.with_suffix(".bin"))
    file.unlink()
    return file.with_suffix(".bin")


def test_an_adapter_that_torch_saved_is_read_without_unpickling(copy: Path) -> None:
    before = find_checkpoint(copy).local_revision("full")
    as_torch_saves(copy)
    assert embeds_as(copy)
    revision = find_checkpoint(copy).local_revision("full")
    assert revision != before
    as_torch_saves_again = load_file(QWEN / "adapter" / "adapter_model.safetensors")
    as_torch_saves_again[MAGNITUDE] *= 2
    torch.save(as_torch_saves_again, copy / "adapter" / "adapter_model.bin")
    assert find_checkpoint(copy).local_revision("full") not in (revision, before)


def test_every_tensor_of_such_a_file_is_accounted_for_too(copy: Path) -> None:
    as_torch_saves(copy, lambda state: state.pop(MAGNITUDE))
    with pytest.raises(CheckpointError, match=r"1 tensor\(s\) missing: .*q_proj.lora_magnitude_vector"):
        load_embedder(copy, device="cpu").embed([Text("x")])


Change = Callable[[dict[str, torch.Tensor]], object]
MAGNITUDE = "base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter/adapter_model", lambda t: t.pop(MAGNITUDE), r"1 tensor\(s\) missing: .*q_proj.lora_magnitude_vector"),
        (
            "adapter/adapter_model",
            lambda t: t.update({MAGNITUDE: t[MAGNITUDE][:-1]}),
            r"of another shape: .*lora_magnitude_vector is \(127,\), expected \(128,\)",
        ),
        ("adapter/adapter_model", lambda t: t.update(more=torch.ones(1)), r"1 tensor\(s\) left over: more"),
        ("base/model", lambda t: t.pop("model.norm.weight"), r"missing: .*norm.weight"),
        ("base/model", lambda t: t.update(more=torch.ones(1)), "left over: more"),
    ],
)
def test_every_tensor_is_accounted_for(file: str, change: Change, message: str, copy: Path) -> None:
    change_tensors(copy / f"{file}.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        load_embedder(copy, device="cpu").embed([Text("x")])


def test_an_adapter_of_other_layers_is_refused(copy: Path) -> None:
    config = copy / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": ["nowhere"]}))
    with pytest.raises(CheckpointError, match="does not fit this base"):
        load_embedder(copy, device="cpu").embed([Text("x")])


def test_abcs_adapters_are_not_taken_for_ours() -> None:
    abc = QWEN.parent / "abc"
    assert "MLP head, which is ABC's" in str(LOADER.refusal(abc / "pretrain"))
    assert "says it is ABC's" in str(LOADER.refusal(abc / "instruct"))
    with pytest.raises(InputError, match="is no checkpoint of a known family"):
        load_embedder(abc / "pretrain")


def test_what_is_no_checkpoint_is_no_exception(tmp_path: Path) -> None:
    """What is wrong with its files is said when it is loaded."""
    (tmp_path / "adapter_config.json").write_text("[]")
    (tmp_path / "adapter_model.safetensors").write_bytes((1).to_bytes(8, "little") + b"5")
    assert "could be any model's" in str(LOADER.refusal(tmp_path))
    phi = tmp_path / "phi"
    shutil.copytree(QWEN.parent / "vlm2vec_phi3v" / "model", phi)
    (phi / "base").mkdir()  # somebody's own
    assert load_embedder(phi, device="cpu", resolution=1).embed([Text("x")]).shape == (1, 128)


def test_a_kind_of_attention_that_is_not_installed_is_named() -> None:
    with pytest.raises(MissingExtraError, match="pip install flash-attn"):
        opened(attention="flash_attention_2").embed([Text("x")])


def test_a_base_of_another_kind_is_refused(copy: Path) -> None:
    config = copy / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "llava"}))
    with pytest.raises(InputError, match="model_type is 'llava'; VLM2Vec models are read on 'qwen2_vl' and 'phi3_v'"):
        load_embedder(copy)


def test_the_fingerprint_follows_the_files(copy: Path, embedder: Embedder) -> None:
    before = load_embedder(copy, device="cpu").fingerprint
    assert before.revision == embedder.fingerprint.revision
    assert find_checkpoint(copy).local_revision("full") == before.revision
    change_tensors(copy / "adapter" / "adapter_model.safetensors", lambda t: t.update({MAGNITUDE: t[MAGNITUDE] * 2}))
    assert load_embedder(copy, device="cpu").fingerprint.revision != before.revision


@pytest.mark.parametrize("model", LOADER.models)
def test_published_models_are_looked_for_on_the_hub_on_first_use_only(model: str) -> None:
    """Without a network, that is an error that says so."""
    embedder = load_embedder(model, device="cpu")
    assert find_checkpoint(model).local_revision("full") is None
    with pytest.raises(CheckpointError, match=f"{model} could not be fetched from the hub"):
        embedder.embed([Text("x")])


@pytest.mark.parametrize("name", ["nothing", "/no/such/folder", "a/b/c", ""])
def test_a_prefix_needs_a_folder_or_a_hub_id(name: str) -> None:
    with pytest.raises(InputError, match="is neither a folder nor a hub id"):
        load_embedder(f"vlm2vec:{name}")
