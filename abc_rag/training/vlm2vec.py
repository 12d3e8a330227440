"""VLM2Vec's training: queries find their targets among those of the batch (arXiv 2410.05160).

Queries and targets are texts, pictures or both, in the words of the data alone. LoRA or DoRA, a fixed temperature, no
label smoothing. Equal targets are one candidate, and the answer to a query is never a negative of the same query in
another row. The published code does neither: there, such targets are each other's negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.hub import part_folder
from abc_rag.models.placement import Placement
from abc_rag.models.vlm2vec.family import VLM2VecFamily, VLM2VecNetwork
from abc_rag.models.vlm2vec.loader import load_parts
from abc_rag.training.adapters import add_lora, as_seen_from
from abc_rag.training.config import VLM2VecConfig
from abc_rag.training.data.mmeb import MMEBRows, PairRow, Side, open_mmeb_rows
from abc_rag.training.objective import RowsObjective, frozen_dtype, plan_of
from abc_rag.training.running.loop import run
from abc_rag.training.shares import Plan
from abc_rag.training.step import LossOptions
from abc_rag.types import Fingerprint, Input

__all__ = ["VLM2VecTraining", "plan_rows", "train_vlm2vec"]


def train_vlm2vec(config: VLM2VecConfig, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Train an adapter, which ``load_embedder`` takes; see `abc_rag.training.pretrain.pretrain`."""
    return run(lambda: VLM2VecTraining(config), config, say=say)


def plan_rows(rows: Sequence[PairRow]) -> Plan:
    """Plan a batch: every target is one candidate, then come the negatives that are not among them."""
    answers: dict[Side, set[Input]] = {}
    for row in rows:
        answers.setdefault(row.query, set()).add(row.target.as_input())
    return plan_of(
        len(rows),
        [(n, row.query.as_input()) for n, row in enumerate(rows)],
        [row.target.as_input() for row in rows],
        lambda candidates: np.array([[one in answers[row.query] for one in candidates] for row in rows]),
        negatives=((n, negative.as_input()) for n, row in enumerate(rows) for negative in row.negatives),
    )


class VLM2VecTraining(RowsObjective[PairRow]):
    """Trains an adapter on any backbone of VLM2Vec.

    Args:
        config: Data, base model and settings.
        source: The data; if not given, what the configuration names.
    """

    label = "vlm2vec"

    def __init__(self, config: VLM2VecConfig, source: MMEBRows | None = None) -> None:
        self._config = config
        base = part_folder(config.base, config.base_revision)
        backbone, prompts = load_parts(base, None, Placement(config.attention, frozen_dtype(config)))
        # Before the data are read, as the model may refuse it.
        recipe = backbone.recipe(config.resolution, config.min_tokens, config.max_tokens)
        torch.manual_seed(config.seed)
        lora = add_lora(
            backbone,
            self.label,
            _names(config.targets, "targets"),
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            dora=config.dora,
            gaussian=config.init == "gaussian",
        )
        network = VLM2VecNetwork(backbone)
        self._family = VLM2VecFamily(
            network,
            prompts,
            recipe=recipe,
            fingerprint=Fingerprint(config.base, "", *backbone.token_limits(recipe)),
            image_limits=ImageLimits(),
        )
        super().__init__(
            config,
            self._family,
            network,
            lora,
            _open(config) if source is None else source,
            size=config.rows,
            what="rows",
            temperature=config.temperature,
        )

    def plan(self, rows: Sequence[PairRow], indices: Sequence[int], step: int) -> Plan:
        """See `RowsObjective.plan`."""
        return plan_rows(rows)

    @property
    def loss_options(self) -> LossOptions:
        """See `RowsObjective.loss_options`."""
        return {"smoothing": 0.0}

    def save(self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any]) -> None:
        """Write card and adapter; see `Objective.save`."""
        base = as_seen_from(out, self._config.base)
        self.write(out, tensors, run, base=base, published_name=self._family.backbone.published_name)


def _names(text: str, setting: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{setting} is empty; give names separated by commas")
    return names


def _open(config: VLM2VecConfig) -> MMEBRows:
    return open_mmeb_rows(
        config.data,
        images=config.images,
        subsets=None if config.subsets is None else _names(config.subsets, "subsets"),
        split=config.split,
        per_subset=config.rows_per_subset,
        max_bad=config.max_bad,
    )
