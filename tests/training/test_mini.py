"""How abc-mini is made: its data, its tokenizer, and all three stages at the smallest size."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from abc_rag import Image, InstructedImage, Text, load_embedder
from abc_rag.errors import InputError
from abc_rag.scenes.drawing import render
from abc_rag.scenes.words import SPECIAL_TOKENS, mention, train_tokenizer
from abc_rag.scenes.world import phrases, random_scene
from abc_rag.training.data.scenes import SceneCaptions, ScenePairs, base_batch
from abc_rag.training.mini import MiniConfig, train_mini

# Small, and in float32, as bfloat16 is slow on CPUs that do not know it.
TINY = MiniConfig(
    text_depth=1,
    text_hidden=128,
    vision_width=64,
    vision_depth=1,
    pictures=6,
    base_steps=3,
    pretrain_steps=2,
    instruct_steps=2,
    vocab_size=512,
    head_hidden=64,
    lora_rank=4,
    bf16=False,
)


def test_base_batches_are_the_same_for_the_same_seed_and_hold_right_answers() -> None:
    one, two = (base_batch(random.Random(3), pictures=6, per_picture=4, negatives=2, singles=0.5) for _ in range(2))
    assert one.asked == two.asked
    assert one.captions == two.captions
    assert all((a.pixels == b.pixels).all() for a, b in zip(one.pictures, two.pictures, strict=True))
    assert len(one.candidates) == len(phrases())
    assert len(one.asked) == 6 * 4
    assert all(0 <= picture < 6 for picture, _, _ in one.asked)


def test_scene_captions_exclude_what_is_true_of_another_picture() -> None:
    source = SceneCaptions(seed=1)
    rows = [source.row(i) for i in range(64)]
    again = SceneCaptions(seed=1).row(5)
    assert (again.caption, again.negatives) == (rows[5].caption, rows[5].negatives)
    own = [row.caption for row in rows]
    negatives = [n for i in range(64) for n in source.negatives_of(i, 3, random.Random(0))]
    excluded = source.excluded(rows, [*own, *negatives])
    assert excluded.shape == (64, 64 + len(negatives))
    assert excluded.diagonal().all()
    assert (excluded.sum() - 64) > 0
    # A hard negative is made to be false of its own picture, so most of them are false of most pictures.
    assert excluded[:, 64:].mean() < 0.1
    place = 64
    for i, row in enumerate(rows):
        assert not excluded[i, place : place + len(row.negatives)].any()
        place += len(row.negatives)


def test_scene_pairs_mean_the_same_in_other_words() -> None:
    source = ScenePairs(seed=1)
    rows = [source.row(i) for i in range(40)]
    pairs = [(row, pair) for row in rows for pair in row.pairs]
    excluded = source.excluded(pairs, [pair.phrase for _, pair in pairs])
    for i, (_, one) in enumerate(pairs):
        for j, (_, other) in enumerate(pairs):
            if one.phrase.meaning == other.phrase.meaning:
                assert excluded[i, j]
    assert any(pair.phrase.text != pair.phrase.meaning for _, pair in pairs)
    assert 0 < excluded.mean() < 0.2


def test_the_tokenizer_reads_any_text_and_keeps_qwens_order() -> None:
    tokenizer = train_tokenizer(vocab_size=512, seed=0)
    assert tokenizer.get_vocab_size() == 512
    assert tokenizer.token_to_id("!") == 0
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] == list(range(512 - len(SPECIAL_TOKENS), 512))
    for text in ("a dog", "Übergrößenträger, naïve café", "日本語 🐕", "x = 3; y\n\tz"):
        assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text.lower()
    assert train_tokenizer(vocab_size=512, seed=0).to_str() == tokenizer.to_str()


def test_a_mention_is_about_its_kind() -> None:
    rng = random.Random(0)
    assert all("guitar" in mention("guitar", rng) for _ in range(200))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mini")
    train_mini(out, TINY)
    return out


def test_all_three_stages_make_a_checkpoint_that_the_loader_takes(trained: Path) -> None:
    picture = render(random_scene(random.Random(0), objects=2))
    inputs = [Text("a dog"), Image(picture), InstructedImage(picture, "the animal")]
    embedder = load_embedder(trained, device="cpu")
    vectors = embedder.embed(inputs)
    assert embedder.dim == TINY.width
    assert embedder.fingerprint.model == "abc-mini"
    assert (embedder.fingerprint.min_tokens, embedder.fingerprint.max_tokens) == (9, 9)
    assert np.isfinite(vectors).all()
    assert json.loads((trained / "training.json").read_text())["seed"] == 0
    # What instruction finetuning wrote names the other two parts, and is the same model.
    other = load_embedder(trained / "instruct", device="cpu")
    assert np.abs(other.embed(inputs) - vectors).max() < 1e-6
    for stage in ("base", "pretrain", "instruct"):
        rows = [json.loads(line) for line in (trained / stage / "metrics.jsonl").read_text().splitlines()]
        assert {"step", "seconds", "loss", "accuracy", "temperature", "grad_norm", "lr"} <= set(rows[-1])
        assert not (trained / stage / "checkpoints").exists()


def test_the_adapters_hold_what_abcs_hold(trained: Path) -> None:
    pretrain = load_file(trained / "pretrain" / "adapter_model.safetensors")
    instruct = load_file(trained / "instruct" / "adapter_model.safetensors")
    assert any("visual." in n for n in pretrain)
    assert any(".layers." in n for n in pretrain)
    assert "base_model.model.temperature.temp" in pretrain
    assert "base_model.model.mlp_head.linear_layer2.weight" in pretrain
    assert instruct
    assert not any("visual." in n or "head" in n or "temperature" in n for n in instruct)
    # Something was learned: a LoRA's second matrix starts at zero.
    assert all(t.abs().max() > 0 for n, t in {**pretrain, **instruct}.items() if "lora_B" in n and "layers.0" in n)


def test_the_same_seed_gives_the_same_weights(trained: Path, tmp_path: Path) -> None:
    train_mini(tmp_path, TINY)
    for part in ("base/model", "pretrain/adapter_model", "instruct/adapter_model"):
        one, two = (load_file(folder / f"{part}.safetensors") for folder in (trained, tmp_path))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[n], two[n]) for n in one), part


def test_a_finished_stage_is_not_repeated(trained: Path) -> None:
    file = trained / "base" / "model.safetensors"
    before = file.stat().st_mtime_ns
    train_mini(trained, TINY)
    assert file.stat().st_mtime_ns == before


def test_another_configuration_needs_another_folder(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "run.json").write_text((trained / "base" / "run.json").read_text())
    with pytest.raises(InputError, match=r"lr was 0\.005 and is 0\.001"):
        train_mini(tmp_path, replace(TINY, base_lr=1e-3))
    with pytest.raises(InputError, match="the data have changed"):
        train_mini(tmp_path, replace(TINY, vision_depth=2))
