"""The fixture's checkpoint as it is trained, for the tests of training and for the processes that they start."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from helpers import FIXTURE

from abc_rag.images.limits import ImageLimits
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.abc.network import ABCNetwork, load_merged
from abc_rag.models.abc.prompts import ABCPrompts
from abc_rag.models.lora import load_adapter
from abc_rag.models.qwen2_vl.network import backbone_name, load_backbone
from abc_rag.models.qwen2_vl.pictures import Patches
from abc_rag.training.adapters import TEXT_TARGETS, VISION_TARGETS, add_lora
from abc_rag.training.shares import Plan, share_of
from abc_rag.training.step import Encoder, accumulate
from abc_rag.types import Fingerprint

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


def plan_of(record: dict[str, Any]) -> tuple[Plan, list[str]]:
    items = record["items"]
    pictures = list(dict.fromkeys(i["image"] for i in items))
    texts = [i["positive"] for i in items] + [n for i in items for n in i["negatives"]]
    # Queries come in the order of their pictures.
    order = sorted(range(len(items)), key=lambda n: pictures.index(items[n]["image"]))
    queries = tuple((pictures.index(items[n]["image"]), items[n]["user_text"] or "") for n in order)
    excluded = np.zeros((len(items), len(texts)), dtype=bool)
    owners = [pictures.index(i["image"]) for i in items]
    owners += [pictures.index(i["image"]) for i in items for _ in i["negatives"]]
    return Plan(tuple(pictures), queries, tuple(texts), np.array(order), excluded, tuple(owners)), pictures


def opener(network: ABCNetwork, prompts: ABCPrompts) -> Callable[[str], Patches]:
    limits = Fingerprint("training", "", 256, 512)
    family = ABCFamily(network, prompts, fingerprint=limits, image_limits=ImageLimits())
    return lambda name: family.prepare_image(str(FIXTURE / name))


def step(
    network: ABCNetwork,
    record: dict[str, Any],
    prompts: ABCPrompts,
    pool: ThreadPoolExecutor,
    *,
    chunk: int | None = None,
    unusable: int | None = None,
    packed: bool = True,
) -> dict[str, float]:
    plan, pictures = plan_of(record)
    open_picture = opener(network, prompts)
    share = share_of(
        plan,
        prompts,
        lambda n: None if n == unusable else open_picture(pictures[n]),
        patch=14,
        merge=2,
        rank=0,
        ranks=1,
        chunk=chunk,
        pool=pool,
        packed=packed,
    )
    fixed = network.set_instruct if record["mode"] == "instruct" else None
    return accumulate(Accelerator(), Encoder(network), share, seed=0, smoothing=0.1, fixed_candidates=fixed)


def gradients(network: ABCNetwork) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
