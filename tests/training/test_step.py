"""One training step: the published figures, gradient caching, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import FIXTURE
from safetensors.torch import load_file
from training_helpers import (
    RECORDS,
    family_of,
    gradients,
    instructing_network,
    plan_of,
    pretraining_network,
    share,
    step,
)

from abc_rag.errors import DatasetError
from abc_rag.models.abc.network import ABCNetwork
from abc_rag.models.abc.prompts import ABCPrompts, load_prompts
from abc_rag.models.qwen2_vl.network import load_backbone
from abc_rag.training.adapters import TEXT_TARGETS, VISION_TARGETS, add_lora
from abc_rag.training.losses import contrastive_loss, loss_gradients
from abc_rag.training.step import Encoder, accumulate

TENSORS = load_file(FIXTURE / "loss_pillow12.safetensors")


# --- The loss -----------------------------------------------------------------------------------------------


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


def test_a_query_that_does_not_count_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    q, c = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (4, 6))
    targets, t = torch.tensor([0, 1, 2, 3]), torch.tensor(0.1)
    found = loss_gradients(q, c, targets, t, smoothing=0.1, counted=torch.tensor([True, False, True, True]))
    kept = [0, 2, 3]
    expected = loss_gradients(q[kept], c, targets[kept], t, smoothing=0.1)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert torch.allclose(found.candidates, expected.candidates, atol=1e-7)
    assert torch.allclose(found.queries[kept], expected.queries, atol=1e-7)
    assert float(found.queries[1].abs().max()) == 0.0


def test_a_temperature_below_the_least_gets_no_gradient() -> None:
    q, c = unit((1.0, 0.2)), unit((1.0, 0.0), (0.0, 1.0))
    low = loss_gradients(q, c, torch.tensor([0]), torch.tensor(0.001), smoothing=0.1, min_temperature=0.01)
    at = loss_gradients(q, c, torch.tensor([0]), torch.tensor(0.01), smoothing=0.1)
    assert low.loss == pytest.approx(at.loss)
    assert float(low.temperature) == 0.0
    assert float(at.temperature) != 0.0


# --- The published figures ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts() -> ABCPrompts:
    return load_prompts(FIXTURE / "base")


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def published_name(name: str) -> str:
    """The parameter that a gradient of the fixture belongs to."""
    name = name.removeprefix("base_model.model.").replace(".default.", ".{adapter}.")
    if name.startswith(("mlp_head", "temperature")):
        return name.replace("mlp_head.modules_to_save.{adapter}.", "head.").replace("modules_to_save.{adapter}.", "")
    return "backbone." + (name.replace("model.", "language_model.", 1) if name.startswith("model.") else name)


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("mode", ["pretrain", "instruct"])
def test_a_step_gives_the_published_loss_and_gradients(
    mode: str, chunk: int | None, prompts: ABCPrompts, pool: ThreadPoolExecutor
) -> None:
    record = RECORDS[mode]
    network = pretraining_network() if mode == "pretrain" else instructing_network()
    values = step(network, record, prompts, pool, chunk=chunk)
    expected = record["later_step"]
    assert values["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert values["accuracy"] == pytest.approx(expected["accuracy"])
    assert values["temperature"] == pytest.approx(expected["temperature"], rel=1e-6)
    assert values["candidates"] == expected["num_cand"]
    found = gradients(network)
    assert len(found) == expected["trainable_tensors"]
    total = math.sqrt(sum(float(g.square().sum()) for g in found.values()))
    assert total == pytest.approx(expected["grad_norm_total"], rel=1e-4)
    for name, norm in expected["grad_norms"].items():
        assert float(found[published_name(name).format(adapter=mode)].norm()) == pytest.approx(norm, rel=1e-4), name
    stored = {n: t for n, t in TENSORS.items() if n.startswith(f"{mode}.later_step.grad.")}
    assert stored
    for name, gradient in stored.items():
        own = found[published_name(name.removeprefix(f"{mode}.later_step.grad.")).format(adapter=mode)]
        assert float((own - gradient).norm() / gradient.norm()) < 1e-4, name


def test_padding_does_not_enter_the_loss(prompts: ABCPrompts, pool: ThreadPoolExecutor) -> None:
    """The published loss of a ragged batch does contain padding; here it is the loss of the single vectors."""
    record = RECORDS["pretrain_padded"]
    network = pretraining_network()
    values = step(network, record, prompts, pool)
    assert values["loss"] != pytest.approx(record["later_step"]["loss"], rel=1e-3)
    plan, family, encoder = plan_of(record), family_of(network, prompts), Encoder(network)
    with torch.no_grad():
        singles = []
        for query in plan.queries:
            one = family.prepare(query)
            singles.append(encoder([one.pictures[0].opened], [((0,), one.input_ids)], [])[0])
        texts = [encoder([], [], [((), family.prepare(text).input_ids)])[1] for text in plan.candidates]
        loss, _ = contrastive_loss(
            torch.cat(singles), torch.cat(texts), torch.from_numpy(plan.targets), network.temperature.stored
        )
    assert values["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_padding_does_not_enter_the_gradients(prompts: ABCPrompts, pool: ThreadPoolExecutor) -> None:
    """Computed in groups of similar length, or all together with much padding: the gradients are the same."""
    packed, padded = pretraining_network(), pretraining_network()
    one = step(packed, RECORDS["pretrain_padded"], prompts, pool)
    two = step(padded, RECORDS["pretrain_padded"], prompts, pool, packed=False)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    found = gradients(padded)
    for name, gradient in gradients(packed).items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-4, name


def test_instruct_leaves_everything_but_its_adapter_alone(prompts: ABCPrompts, pool: ThreadPoolExecutor) -> None:
    network = instructing_network()
    step(network, RECORDS["instruct"], prompts, pool)
    assert all(".instruct." in name for name in gradients(network))
    assert not network.temperature.temp.requires_grad


def test_an_unusable_picture_costs_the_others_nothing(prompts: ABCPrompts, pool: ThreadPoolExecutor) -> None:
    record = RECORDS["pretrain"]
    network = pretraining_network()
    values = step(network, record, prompts, pool, unusable=[0], chunk=1)
    left = {**record, "items": record["items"][1:]}
    # Its caption and negatives still count as candidates, only its query does not.
    rest = [record["items"][0]["positive"], *record["items"][0]["negatives"]]
    left["items"] = [dict(left["items"][0], negatives=[*left["items"][0]["negatives"], *rest]), *left["items"][1:]]
    other = pretraining_network()
    expected = step(other, left, prompts, pool)
    assert values["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    name = "backbone.language_model.layers.0.self_attn.q_proj.lora_A.pretrain.weight"
    assert torch.allclose(gradients(network)[name], gradients(other)[name], rtol=1e-3, atol=1e-6)


def test_a_batch_without_any_picture_is_an_error(prompts: ABCPrompts, pool: ThreadPoolExecutor) -> None:
    plan, network = plan_of(RECORDS["pretrain"]), pretraining_network()
    part = share(network, plan, prompts, pool, unusable=range(3))
    with pytest.raises(DatasetError, match="none of a batch's 3 pictures"):
        accumulate(Accelerator(), Encoder(network), part, seed=0, smoothing=0.1)
    with pytest.raises(DatasetError, match="cannot be shared by 4 processes"):
        share(network, plan, prompts, pool, rank=3, ranks=4)


def test_gradient_checkpointing_changes_no_gradient(prompts: ABCPrompts, pool: ThreadPoolExecutor) -> None:
    plain, saving = pretraining_network(), pretraining_network()
    saving.backbone.recompute_activations()
    saving.train()
    step(plain, RECORDS["pretrain"], prompts, pool)
    step(saving, RECORDS["pretrain"], prompts, pool)
    one, two = gradients(plain), gradients(saving)
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[n], two[n], rtol=1e-4, atol=1e-6) for n in one)


class Recorder(torch.nn.Module):
    """Passes everything on, and keeps what came back."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.seen: list[list[torch.Tensor]] = []

    def forward(self, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        outputs = self.encoder(*inputs)
        self.seen.append([o.detach() for o in outputs])
        return outputs


def test_dropout_is_the_same_in_both_passes_of_a_chunk(prompts: ABCPrompts, pool: ThreadPoolExecutor) -> None:
    backbone = load_backbone(FIXTURE / "base").requires_grad_(False)
    torch.manual_seed(0)
    add_lora(backbone, "pretrain", TEXT_TARGETS + VISION_TARGETS, rank=4, alpha=8, dropout=0.5)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    network = ABCNetwork(backbone)
    torch.nn.init.zeros_(network.head.linear_layer2.weight)
    recorder = Recorder(Encoder(network)).train()
    part = share(network, plan_of(RECORDS["pretrain"]), prompts, pool, chunk=1)
    accumulate(Accelerator(), recorder, part, seed=0, smoothing=0.1)
    assert len(recorder.seen) == 6
    for first, second in zip(recorder.seen[:3], recorder.seen[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # Another seed draws other zeros: dropout was at work.
    accumulate(Accelerator(), recorder, part, seed=1, smoothing=0.1)
    assert not torch.equal(recorder.seen[0][0], recorder.seen[6][0])
