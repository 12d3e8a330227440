"""The fixture's checkpoint as it is trained, for the tests of training and for the processes that they start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from helpers import FIXTURE

from abc_rag.images.limits import ImageLimits
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.abc.network import ABCNetwork, load_merged
from abc_rag.models.abc.prompts import ABCPrompts
from abc_rag.models.family import Prepared
from abc_rag.models.lora import load_adapter
from abc_rag.models.qwen2_vl.network import backbone_name, load_backbone
from abc_rag.training.adapters import TEXT_TARGETS, VISION_TARGETS, add_lora
from abc_rag.training.shares import Plan, Share, share_of
from abc_rag.training.step import Encoder, accumulate
from abc_rag.types import Fingerprint, Image, Input, InstructedImage, Text

RECORDS = {r["id"]: r for r in json.loads((FIXTURE / "loss_pillow12.json").read_text())}


def pretraining_network() -> ABCNetwork:
    backbone = load_backbone(FIXTURE / "base").requires_grad_(False)
    add_lora(backbone, "pretrain", TEXT_TARGETS + VISION_TARGETS, rank=8, alpha=16, dropout=0.0)
    network = ABCNetwork(backbone)
    others = {f"mlp_head.{n}": p for n, p in network.head.named_parameters()}
    load_adapter(
        network.backbone,
        FIXTURE / "pretrain",
        "pretrain",
        backbone_name,
        others | {"temperature.temp": network.temperature.stored},
    )
    return network


def instructing_network() -> ABCNetwork:
    network = load_merged(FIXTURE / "base", FIXTURE / "pretrain")
    add_lora(network.backbone, "instruct", TEXT_TARGETS, rank=4, alpha=8, dropout=0.0)
    load_adapter(network.backbone, FIXTURE / "instruct", "instruct", backbone_name)
    network.register_instruct_layers()
    network.set_instruct(True)
    return network


def plan_of(record: dict[str, Any]) -> Plan:
    items = record["items"]
    pictures = list(dict.fromkeys(i["image"] for i in items))
    texts = [i["positive"] for i in items] + [n for i in items for n in i["negatives"]]
    # Queries come in the order of their pictures.
    order = sorted(range(len(items)), key=lambda n: pictures.index(items[n]["image"]))
    owners = [pictures.index(i["image"]) for i in items]
    return Plan(
        len(pictures),
        [query_of(items[n]) for n in order],
        [owners[n] for n in order],
        [Text(text) for text in texts],
        owners + [pictures.index(i["image"]) for i in items for _ in i["negatives"]],
        np.array(order),
        np.zeros((len(items), len(texts)), dtype=bool),
    )


def query_of(item: dict[str, Any]) -> Input:
    image = str(FIXTURE / item["image"])
    asked = item["user_text"]
    return InstructedImage(image, asked.removeprefix("Instruction: ")) if asked else Image(image)


def family_of(network: ABCNetwork, prompts: ABCPrompts) -> ABCFamily:
    return ABCFamily(network, prompts, fingerprint=Fingerprint("training", "", 256, 512), image_limits=ImageLimits())


def share(
    network: ABCNetwork,
    plan: Plan,
    prompts: ABCPrompts,
    pool: ThreadPoolExecutor,
    *,
    chunk: int | None = None,
    unusable: Sequence[int] = (),
    packed: bool = True,
    rank: int = 0,
    ranks: int = 1,
) -> Share:
    """One process's part of a plan; pictures of ``unusable`` rows cannot be opened."""
    family = family_of(network, prompts)
    opened = lru_cache(lambda item: family.opened(item))

    def prepare(item: Input, row: int) -> Prepared | None:
        if row in unusable and item.pictures:
            return None
        return family.prepare(item, [picture for source in item.pictures for picture in opened(Image(source))])

    return share_of(
        plan, prepare, lambda: prepare(Image(str(FIXTURE / "images/grad_20x20.png")), -1),  # type: ignore[arg-type, return-value]
        rank=rank, ranks=ranks, chunk=chunk, pool=pool, packed=packed, what="pictures",
    )  # fmt: skip


def step(
    network: ABCNetwork,
    record: dict[str, Any],
    prompts: ABCPrompts,
    pool: ThreadPoolExecutor,
    *,
    chunk: int | None = None,
    unusable: Sequence[int] = (),
    packed: bool = True,
) -> dict[str, float]:
    part = share(network, plan_of(record), prompts, pool, chunk=chunk, unusable=unusable, packed=packed)
    fixed = network.set_instruct if record["mode"] == "instruct" else None
    return accumulate(Accelerator(), Encoder(network), part, seed=0, smoothing=0.1, fixed_candidates=fixed)


def gradients(network: ABCNetwork) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
