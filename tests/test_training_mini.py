"""The recipe of abc-mini: losses with known answers, and all three stages at the smallest size."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from abc_rag import Image, InstructedImage, Text, load_embedder
from abc_rag.scenes import phrases, random_scene, render
from abc_rag.training._mini_data import make_batch, make_caption_batch
from abc_rag.training._words import SPECIAL_TOKENS, mention, train_tokenizer
from abc_rag.training.mini import MiniConfig, contrastive_loss, train_mini

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


def unit(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


@pytest.mark.parametrize("candidates", [2, 7, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_uniform_scores_give_log_n(candidates: int, smoothing: float) -> None:
    queries = unit((1.0, 0.0), (1.0, 0.0))
    same = unit(*[(0.0, 1.0)] * candidates)
    loss, _ = contrastive_loss(queries, same, torch.tensor([0, 1]), torch.tensor(0.05), smoothing=smoothing)
    assert float(loss) == pytest.approx(math.log(candidates), rel=1e-6)


def test_two_opposite_candidates_give_the_closed_form() -> None:
    query, candidates = unit((1.0, 0.0)), unit((1.0, 0.0), (-1.0, 0.0))
    loss, right = contrastive_loss(query, candidates, torch.tensor([0]), torch.tensor(0.5), smoothing=0.0)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-5)
    assert float(right) == 1.0
    smoothed, _ = contrastive_loss(query, candidates, torch.tensor([0]), torch.tensor(0.5), smoothing=0.1)
    far = math.log(1 + math.exp(-4)) + 4
    assert float(smoothed) == pytest.approx(0.95 * math.log(1 + math.exp(-4)) + 0.05 * far, rel=1e-5)


def test_the_loss_is_torchs_own_where_nothing_is_excluded() -> None:
    generator = torch.Generator().manual_seed(0)
    q, c = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (5, 9))
    targets = torch.tensor([0, 3, 3, 8, 1])
    loss, _ = contrastive_loss(q, c, targets, torch.tensor(0.07))
    expected = torch.nn.functional.cross_entropy(q @ c.T / 0.07, targets, label_smoothing=0.1)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_an_excluded_candidate_does_not_count() -> None:
    query, candidates = unit((1.0, 0.0)), unit((1.0, 0.1), (1.0, 0.0), (0.0, 1.0))
    excluded = torch.tensor([[False, True, False]])
    loss, right = contrastive_loss(query, candidates, torch.tensor([0]), torch.tensor(0.1), excluded=excluded)
    without, _ = contrastive_loss(query, candidates[[0, 2]], torch.tensor([0]), torch.tensor(0.1))
    assert float(loss) == pytest.approx(float(without), rel=1e-5)
    assert float(right) == 1.0
    query.requires_grad_()
    contrastive_loss(query, candidates, torch.tensor([0]), torch.tensor(0.1), excluded=excluded)[0].backward()
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()


def test_batches_are_the_same_for_the_same_seed_and_hold_right_answers() -> None:
    one = make_batch(random.Random(3), TINY, singles=0.5, negatives=2)
    two = make_batch(random.Random(3), TINY, singles=0.5, negatives=2)
    assert one.asked == two.asked
    assert one.captions == two.captions
    assert all((a.pixels == b.pixels).all() for a, b in zip(one.pictures, two.pictures, strict=True))
    assert len(one.candidates) == len(phrases())
    assert len(one.asked) == TINY.pictures * TINY.questions
    assert all(0 <= picture < TINY.pictures for picture, _, _ in one.asked)


def test_caption_batches_exclude_what_is_true_of_another_picture() -> None:
    batch = make_caption_batch(random.Random(1), replace(TINY, pictures=64), singles=0.2, negatives=3)
    assert batch.excluded is not None
    assert batch.excluded.shape == (64, len(batch.captions))
    assert not batch.excluded.diagonal().any()
    assert batch.excluded.any()
    # A hard negative is made to be false of its own picture, so most of them are false of most pictures.
    assert batch.excluded[:, 64:].float().mean() < 0.1


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
    embedder = load_embedder(trained, device="cpu")
    text, image, instructed = embedder.embed([Text("a dog"), Image(picture), InstructedImage(picture, "the animal")])
    assert embedder.dim == TINY.width
    assert embedder.fingerprint.model == "abc-mini"
    assert (embedder.fingerprint.min_tokens, embedder.fingerprint.max_tokens) == (9, 9)
    assert np.isfinite([text, image, instructed]).all()
    assert json.loads((trained / "training.json").read_text())["seed"] == 0
    assert (trained / "metrics.jsonl").read_text().count('"stage": "instruct"') >= 1


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
