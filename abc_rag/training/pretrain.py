"""Pretraining: pictures find their captions among those of the batch and mined negatives (arXiv 2503.00329).

Trains LoRA on the vision tower and the language model, and the whole head and temperature.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from abc_rag.models.abc.network import ABCNetwork
from abc_rag.models.abc.prompts import load_prompts
from abc_rag.models.hub import part_folder
from abc_rag.models.placement import Placement
from abc_rag.models.qwen2_vl.network import load_backbone
from abc_rag.training.adapters import TEXT_TARGETS, VISION_TARGETS, add_lora
from abc_rag.training.config import PretrainConfig
from abc_rag.training.data.open import open_captions
from abc_rag.training.data.scenes import SceneCaptions
from abc_rag.training.data.sources import Candidate, CaptionRow, CaptionSource
from abc_rag.training.objective import ABCObjective, frozen_dtype, init_head, plan_of
from abc_rag.training.running.loop import run
from abc_rag.training.shares import Plan
from abc_rag.training.step import LossOptions, seeded
from abc_rag.types import Image, Input, Text

__all__ = ["Pretraining", "pretrain"]


def pretrain(config: PretrainConfig, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Train a pretrain adapter; an interrupted run is resumed.

    Args:
        config: Data, base model and settings.
        say: Receives a line of progress now and then where no progress bar can be shown.

    Returns:
        The folder with the adapter, its settings, its metrics and its model card.

    Raises:
        InputError: A setting is unusable, or the folder holds another run.
        DatasetError: The data cannot be read, or too many rows are unusable.
        CheckpointError: Weights cannot be read or written.
    """
    return run(lambda: Pretraining(config), config, say=say)


class Pretraining(ABCObjective[CaptionRow]):
    """Queries are pictures; candidates are their captions and the mined negatives.

    Args:
        config: Data, base model and settings.
        source: The data; if not given, what the configuration names.
    """

    label = "pretrain"

    def __init__(self, config: PretrainConfig, source: CaptionSource | None = None) -> None:
        self._config = config
        base = part_folder(config.base, config.base_revision)
        torch.manual_seed(config.seed)
        backbone = load_backbone(base, Placement(config.attention, frozen_dtype(config))).requires_grad_(False)
        targets = TEXT_TARGETS + VISION_TARGETS
        lora = add_lora(backbone, self.label, targets, rank=config.rank, alpha=config.alpha, dropout=config.dropout)
        network = ABCNetwork(backbone, head_hidden=config.head_hidden)
        init_head(network, config.head_init)
        nn.init.constant_(network.temperature.temp, config.temperature)
        self._captions: CaptionSource = _open(config) if source is None else source
        super().__init__(config, network, load_prompts(base), lora, self._captions)

    def row(self, index: int) -> CaptionRow:
        """A row of the data, without its negatives: the plan draws them."""
        return self._captions.bare(index)

    def plan(self, rows: list[CaptionRow], indices: list[int], step: int) -> Plan:
        """Pictures ask; their captions answer, beside the negatives drawn for this step."""
        rng = random.Random(seeded(self._config.seed, "negatives", step))
        known: dict[Input, Candidate] = {Text(row.caption.text): row.caption for row in rows}
        negatives: list[tuple[int, Input]] = []
        for n, index in enumerate(indices):
            for negative in self._captions.negatives_of(index, self._config.negatives, rng):
                text = Text(negative.text)
                known.setdefault(text, negative)
                negatives.append((n, text))
        return plan_of(
            len(rows),
            [(n, Image(row.image)) for n, row in enumerate(rows)],
            [Text(row.caption.text) for row in rows],
            lambda candidates: self._captions.excluded(rows, [known[one] for one in candidates]),
            negatives=negatives,
        )

    @property
    def loss_options(self) -> LossOptions:
        """See `RowsObjective.loss_options`."""
        config = self._config
        return {
            "smoothing": config.label_smoothing,
            "min_temperature": config.min_temperature,
            "true_negatives": config.true_negatives,
        }

    def save(self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any]) -> None:
        """Write settings, card and adapter; see `Objective.save`."""
        self.save_as(out, tensors, run, self._config, with_head=True)


def _open(config: PretrainConfig) -> CaptionSource:
    if config.data == "scenes":
        return SceneCaptions(seed=config.seed, negatives=config.negatives)
    return open_captions(
        config.data,
        images=config.images,
        negatives=config.negatives_file,
        max_bad=config.max_bad,
        allow_download=config.download,
    )
