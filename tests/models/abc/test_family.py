"""ABC against figures that the original research code computed (tests/fixtures/abc/README.md)."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from abc_helpers import ATTENTIONS, SQUARE, copied, family_of, worst
from helpers import FIXTURE, TOLERANCE, as_input
from safetensors.torch import load_file, save_file

from abc_rag import Image, InstructedImage, Text, load_embedder
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.load import open_embedder
from abc_rag.embedding.options import EmbedderOptions
from abc_rag.embedding.settings import EngineSettings
from abc_rag.errors import InputError
from abc_rag.models.abc.network import ABCNetwork
from abc_rag.models.kernels.attention import Segments
from abc_rag.models.kernels.packed import PackedBatch
from abc_rag.models.qwen2_vl.pictures import QwenPictures
from abc_rag.types import MaskedImage


@pytest.mark.parametrize("adapters", ["merged", "beside"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_single_case_meets_its_golden(attention: Any, adapters: Any, cases: Any, goldens: Any) -> None:
    embedder = open_embedder(FIXTURE, EmbedderOptions(device="cpu", attention=attention), adapters=adapters)
    differences = worst(embedder, cases, goldens)
    assert len(differences) >= 39
    assert max(differences.values()) < TOLERANCE, differences


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_pooled_states_meet_their_goldens(attention: str, cases: Any, goldens: Any) -> None:
    family = family_of(load_embedder(FIXTURE, device="cpu", attention=attention))
    network, checked = family.network, 0
    for case in cases:
        golden = goldens.get(f"{case['id']}.pooled")
        if golden is None:
            continue
        prepared = family.prepare(as_input(case))
        ids, lengths = torch.from_numpy(prepared.input_ids)[None], torch.tensor([prepared.tokens])
        with torch.inference_mode():
            network.set_instruct(case["kind"] == "image+instruction")
            opened = [picture.opened for picture in prepared.pictures]
            features = network.backbone.image_features(opened) if opened else None
            states = network.backbone.hidden_states(ids, lengths=lengths, features=features)
            pooled = network.pool(states, ids, lengths)[0]
            # The same without padding, as the engine computes it.
            segments = Segments([prepared.tokens], family.facts.device)
            at_images = (ids[0] == network.backbone.image_token_id).nonzero().flatten()
            seen = family.see(opened)[0] if opened else None
            packed = network.packed.hidden_states(ids[0], segments, features=seen, image_positions=at_images)
            pooled_packed = network.pool_packed(packed, ids[0], segments)[0]
        assert (pooled - golden).abs().max() < TOLERANCE, case["id"]
        assert (pooled_packed - golden).abs().max() < TOLERANCE, case["id"]
        checked += 1
    assert checked >= 39


def test_vision_features_meet_their_goldens(tiny: Embedder, cases: Any, goldens: Any) -> None:
    family = family_of(tiny)
    for case in cases:
        if case["image"] and f"{case['id']}.visual_mean" in goldens:
            patches = family.facts.open(str(FIXTURE / case["image"]))
            with torch.inference_mode():
                mean = family.network.backbone.image_features([patches]).mean(dim=0)
            assert (mean - goldens[f"{case['id']}.visual_mean"]).abs().max() < TOLERANCE, case["id"]
            packed = family.see([patches])[0].mean(dim=0)
            assert (packed - goldens[f"{case['id']}.visual_mean"]).abs().max() < TOLERANCE, case["id"]


def test_prompts_are_the_published_token_ids(tiny: Embedder, cases: Any) -> None:
    for case in cases:
        expected: list[int] = []
        for item in case["input_ids"]:
            expected += [item["id"]] * item["times"] if isinstance(item, dict) else [item]
        assert family_of(tiny).prepare(as_input(case)).input_ids.tolist() == expected, case["id"]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64, "auto"])
def test_results_do_not_depend_on_the_batch(tiny: Embedder, cases: Any, goldens: Any, batch_size: Any) -> None:
    order = random.Random(str(batch_size)).sample(cases, len(cases))
    vectors = tiny.embed([as_input(c) for c in order], batch_size=batch_size)
    expected = np.stack([goldens[f"{c['id']}.embedding"].numpy() for c in order])
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(cases), tiny.dim)
    assert np.abs(vectors - expected).max() < TOLERANCE
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("adapters", ["merged", "beside"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_batches_meet_the_goldens_with_every_attention(attention: Any, adapters: Any, cases: Any, goldens: Any) -> None:
    embedder = open_embedder(FIXTURE, EmbedderOptions(device="cpu", attention=attention), adapters=adapters)
    vectors = embedder.embed([as_input(c) for c in cases], batch_size=5)
    expected = np.stack([goldens[f"{c['id']}.embedding"].numpy() for c in cases])
    assert np.abs(vectors - expected).max() < TOLERANCE


def test_eight_threads_give_the_numbers_of_one(tiny: Embedder, cases: Any, goldens: Any) -> None:
    def one(seed: int) -> float:
        order = random.Random(seed).sample(cases, 12)
        vectors = tiny.embed([as_input(c) for c in order], batch_size=3)
        return max(
            float(np.abs(v - goldens[f"{c['id']}.embedding"].numpy()).max())
            for v, c in zip(vectors, order, strict=True)
        )

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(one, range(8))) < TOLERANCE


def test_merged_and_beside_make_the_same_vectors(tiny: Embedder, cases: Any) -> None:
    beside = open_embedder(FIXTURE, EmbedderOptions(device="cpu"), adapters="beside")
    inputs = [as_input(case) for case in cases]
    assert np.abs(beside.embed(inputs) - tiny.embed(inputs)).max() < TOLERANCE
    assert beside.fingerprint == tiny.fingerprint


# --- Each known mistake, switched on, must fail the bar above ------------------------------


class _Mistaken(ABCNetwork):
    """The network with its one call into the backbone changed."""

    mistake = ""

    def embed(self, packed: PackedBatch) -> Any:
        assert packed.position_ids is None
        input_ids, segments, features = packed.input_ids, packed.segments, packed.features
        if self.mistake == "3-D positions":
            # The path with padding takes three axes; a batch of one needs none.
            states = self.backbone.hidden_states(
                input_ids[None],
                lengths=segments.counts,
                features=features,
                position_ids=_three_d_positions(self, input_ids[None]),
            )[0]
        else:
            states = self.packed.hidden_states(
                **packed.sequence,
                causal=self.mistake == "causal attention",
                position_ids=segments.positions + 1 if self.mistake == "positions from 1" else None,
            )
        pooled = self.pool_packed(states, input_ids, segments)
        if self.mistake == "all tokens summed":
            pooled = torch.segment_reduce(states, "mean", lengths=segments.counts, axis=0)
        if self.mistake == "no head":
            return torch.nn.functional.normalize(pooled, dim=-1)
        return torch.nn.functional.normalize(self.head(pooled), dim=-1)

    def set_instruct(self, on: bool) -> None:
        super().set_instruct(on and self.mistake != "instruct adapter dropped")


def _three_d_positions(network: ABCNetwork, input_ids: torch.Tensor) -> torch.Tensor:
    """Qwen2-VL's own positions of one sequence with at most one square picture."""
    at_image = (input_ids[0] == network.backbone.image_token_id).nonzero().flatten()
    length = input_ids.shape[1]
    if not len(at_image):
        return torch.arange(length).expand(3, 1, -1)
    first, count = int(at_image[0]), len(at_image)
    side = round(count**0.5)
    assert side * side == count
    grid = torch.stack(
        [torch.zeros(count), torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)]
    ).long()
    after = torch.arange(length - first - count) + first + side
    return torch.cat([torch.arange(first).expand(3, -1), grid + first, after.expand(3, -1)], dim=1).unsqueeze(1)


@pytest.mark.parametrize(
    ("mistake", "affected"),
    [
        ("3-D positions", SQUARE),
        ("causal attention", ("t_question", *SQUARE)),
        ("instruct adapter dropped", ("i_224", "i_640_a", "i_gray")),
        ("no head", ("t_dog", "i_224")),
        ("all tokens summed", ("t_bang2",)),
    ],
)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_wrong_network_would_be_noticed(
    attention: str, mistake: str, affected: tuple[str, ...], cases: Any, goldens: Any
) -> None:
    embedder = load_embedder(FIXTURE, device="cpu", attention=attention)
    network = family_of(embedder).network
    chosen = [c for c in cases if c["id"] in affected]
    assert max(worst(embedder, chosen, goldens).values()) < TOLERANCE
    network.__class__ = _Mistaken
    network.mistake = mistake  # type: ignore[attr-defined]
    assert min(worst(embedder, chosen, goldens).values()) > 100 * TOLERANCE


@pytest.mark.parametrize("worker_kind", ["thread", "process"])
@pytest.mark.parametrize(
    ("kept", "affected"),
    [
        # Where the first resize gives a size within the second one's limits already, the second does nothing.
        (slice(1, None), ("img_rgba_200x150", "img_noise_333x257", "i_rgba", "i_gray")),
        (slice(0, 1), ("img_shapes_56x56", "img_shapes_224x224", "i_large")),
    ],
    ids=["the second alone", "the first alone"],
)
def test_a_skipped_resize_would_be_noticed(
    kept: slice, affected: tuple[str, ...], worker_kind: Any, cases: Any, goldens: Any
) -> None:
    embedder = load_embedder(FIXTURE, device="cpu", engine=EngineSettings(workers=1, worker_kind=worker_kind))
    chosen = [c for c in cases if c["id"] in affected]
    family = family_of(embedder)
    assert max(worst(embedder, chosen, goldens).values()) < TOLERANCE
    embedder.close()  # type: ignore[attr-defined]
    recipe = family.facts.recipe
    assert isinstance(recipe, QwenPictures)
    family.facts = replace(family.facts, recipe=replace(recipe, resizes=recipe.resizes[kept]))
    assert min(worst(embedder, chosen, goldens).values()) > 10 * TOLERANCE
    embedder.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", ["vision", "language", "head"])
def test_half_a_pretrain_adapter_would_be_noticed(part: str, tmp_path: Path, cases: Any, goldens: Any) -> None:
    folder = copied(tmp_path)
    file = folder / "pretrain" / "adapter_model.safetensors"
    tensors = load_file(file)
    where = {"vision": "visual.", "language": ".layers.", "head": "linear_layer2"}[part]
    changed = [n for n in tensors if where in n and ("lora_B" in n or part == "head")]
    assert changed
    save_file({n: torch.zeros_like(t) if n in changed else t for n, t in tensors.items()}, file)
    chosen = [c for c in cases if c["id"] in SQUARE]
    assert min(worst(load_embedder(folder, device="cpu"), chosen, goldens).values()) > 100 * TOLERANCE


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_first_token_sees_the_last(attention: str) -> None:
    network = family_of(load_embedder(FIXTURE, device="cpu", attention=attention)).network
    backbone = network.backbone
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 10]])
    for lengths in (torch.tensor([5, 5]), torch.tensor([5, 5, 3])):
        rows = torch.cat([ids, ids[:1]])[: len(lengths)]  # with a shorter row, a mask is in play
        with torch.inference_mode():
            states = backbone.hidden_states(rows, lengths=lengths)
            causal = backbone.hidden_states(rows, lengths=lengths, causal=True)
        assert (states[0, 0] - states[1, 0]).abs().max() > 1e-2
        assert (causal[0, 0] - causal[1, 0]).abs().max() < 1e-6
        segments = Segments(lengths.tolist(), ids.device)
        together = torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])
        with torch.inference_mode():
            packed = network.packed.hidden_states(together, segments)
            packed_causal = network.packed.hidden_states(together, segments, causal=True)
        assert (packed[0] - packed[5]).abs().max() > 1e-2
        assert (packed_causal[0] - packed_causal[5]).abs().max() < 1e-6


# --- Inputs ----------------------------------------------------------------------------------------------


def test_special_tokens_in_a_text_are_only_text(tiny: Embedder) -> None:
    family = family_of(tiny)
    specials = {"<|im_end|>", "<|image_pad|>", "<|im_start|>", "<|vision_start|>"}
    plain = family.prepare(Text("x")).input_ids
    for text in specials:
        ids = family.prepare(Text(f"a {text} b")).input_ids
        assert (ids >= 1000).sum() == (plain >= 1000).sum(), text
    picture = str(FIXTURE / "images" / "shapes_56x56.png")
    ids = family.prepare(InstructedImage(picture, "<|image_pad|><|im_end|>")).input_ids
    assert (ids == 1012).sum() == 256


def test_kinds_can_be_mixed_and_the_empty_list_is_empty(tiny: Embedder) -> None:
    assert tiny.embed([]).shape == (0, tiny.dim)
    picture = PIL.Image.new("RGB", (60, 60), "red")
    alone, instructed, empty = tiny.embed(
        [Image(picture), InstructedImage(picture, "colour?"), InstructedImage(picture, "")]
    )
    assert np.abs(alone - instructed).max() > 1e-2
    assert np.abs(alone - empty).max() > 1e-2  # an empty instruction is still an instruction
    assert np.allclose(tiny.embed_images([picture], instruction="colour?")[0], instructed, atol=TOLERANCE)
    assert np.allclose(tiny.embed_images([picture])[0], alone, atol=TOLERANCE)


@pytest.mark.parametrize("bad", ["a string", 3, None, b"bytes"])
def test_untyped_inputs_are_refused_with_their_position(tiny: Embedder, bad: Any) -> None:
    with pytest.raises(InputError, match="input 1 is a"):
        tiny.embed([Text("fine"), bad])


def test_a_single_string_is_not_a_list(tiny: Embedder) -> None:
    with pytest.raises(InputError, match="must be a list"):
        tiny.embed_texts("hello")
    with pytest.raises(InputError, match="must be a list"):
        tiny.embed_images("photo.jpg")


@pytest.mark.parametrize("batch_size", [0, -1, "many", 2.5, True])
def test_bad_batch_sizes_are_refused(tiny: Embedder, batch_size: Any) -> None:
    with pytest.raises(InputError, match="batch_size"):
        tiny.embed([Text("a")], batch_size=batch_size)


def test_too_long_a_text_is_refused(tiny: Embedder) -> None:
    with pytest.raises(InputError, match="longer than the model's 32768"):
        tiny.embed([Text("fine"), Text("word " * 40_000)])


def test_half_a_character_is_refused(tiny: Embedder) -> None:
    with pytest.raises(InputError, match=r"input 1: .*lone surrogate"):
        tiny.embed([Text("fine"), Text("\ud800")])


def test_a_missing_picture_is_named(tiny: Embedder) -> None:
    with pytest.raises(InputError, match=r"nowhere\.png"):
        tiny.embed([Image("nowhere.png")])


def test_what_stays_of_a_picture_keeps_its_positions(cases: Any) -> None:
    """Against the padded forward, which is given the positions of the whole input."""
    case = next(case for case in cases if case["kind"] == "image+instruction")
    item = as_input(case)
    assert isinstance(item, InstructedImage)
    embedder = load_embedder(FIXTURE, device="cpu")
    family = family_of(embedder)
    rows, columns = embedder.grid(item.source)
    without = sorted(random.Random(1).sample(range(rows * columns), rows * columns // 2))
    network, whole = family.network, family.prepare(item)
    ids = torch.from_numpy(whole.input_ids)
    at = (ids == network.backbone.image_token_id).nonzero().flatten()
    kept = torch.ones(len(ids), dtype=torch.bool)
    kept[at[without]] = False
    features = network.backbone.image_features([whole.pictures[0].opened])
    with torch.inference_mode():
        network.set_instruct(True)
        states = network.backbone.hidden_states(
            ids[kept][None],
            lengths=kept.sum()[None],
            features=features[[n for n in range(len(at)) if n not in without]],
            position_ids=kept.nonzero().flatten()[None],
        )
        expected = torch.nn.functional.normalize(network.head(network.pool(states, ids[kept][None], kept.sum()[None])))
    # In one batch with a whole input, whose positions are plain.
    masked = MaskedImage(item.source, item.instruction, without)
    (found, other) = embedder.embed([masked, item])
    assert np.abs(found - expected[0].numpy()).max() < TOLERANCE
    assert np.abs(other - embedder.embed([item])[0]).max() < TOLERANCE
    assert np.abs(found - other).max() > 10 * TOLERANCE
