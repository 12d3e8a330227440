"""Pretraining: pictures find their captions among those of the batch and mined negatives (arXiv 2503.00329).

LoRA on vision tower and language model; head and temperature are trained in full.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from abc_rag.models.abc.network import ABCNetwork
from abc_rag.models.abc.prompts import load_prompts
from abc_rag.models.hub import part_folder
from abc_rag.models.qwen2_vl.network import load_backbone
from abc_rag.training.adapters import TEXT_TARGETS, VISION_TARGETS, add_lora
from abc_rag.training.config import PretrainConfig
from abc_rag.training.data.open import open_captions
from abc_rag.training.data.scenes import SceneCaptions
from abc_rag.training.data.sources import CaptionRow, CaptionSource
from abc_rag.training.objective import ContrastiveObjective, frozen_dtype, init_head, seeded
from abc_rag.training.running.loop import is_finished, run
from abc_rag.training.shares import Plan, Share
from abc_rag.training.step import accumulate

__all__ = ["Pretraining", "pretrain"]


def pretrain(config: PretrainConfig, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Train a pretrain adapter; a run that was interrupted is taken up where it stopped.

    Args:
        config: What to train on, from what, and how.
        say: Receives a line of progress now and then where no progress bar can be shown.

    Returns:
        The folder with the adapter, its settings, its metrics and its model card.

    Raises:
        InputError: A setting is unusable, or the folder holds another run.
        DatasetError: The data cannot be read, or too many rows are unusable.
        CheckpointError: Weights cannot be read, or written.
    """
    out = Path(config.out).expanduser()
    if not is_finished(config, "adapter_model.safetensors"):
        run(lambda: Pretraining(config), config, say=say)
    return out


class Pretraining(ContrastiveObjective[CaptionRow]):
    """Queries are pictures; candidates are their captions and the mined negatives.

    Args:
        config: What to train on, from what, and how.
        source: The data; opened as the configuration says if not given.
    """

    label = "pretrain"

    def __init__(self, config: PretrainConfig, source: CaptionSource | None = None) -> None:
        self._config = config
        base = part_folder(config.base, config.base_revision)
        torch.manual_seed(config.seed)
        backbone = load_backbone(base, attention=config.attention, dtype=frozen_dtype(config)).requires_grad_(False)
        self._lora = add_lora(
            backbone,
            "pretrain",
            TEXT_TARGETS + VISION_TARGETS,
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
        )
        network = ABCNetwork(backbone, head_hidden=config.head_hidden)
        init_head(network, config.head_init)
        nn.init.constant_(network.temperature.temp, config.temperature)
        if source is None:
            source = _open(config)
        self._source: CaptionSource = source
        super().__init__(config, network, load_prompts(base), source)

    def row(self, index: int) -> CaptionRow:
        """A row of the data; its negatives are drawn for the plan."""
        return self._source.bare(index)

    def plan(self, rows: list[CaptionRow], indices: list[int], step: int) -> Plan:
        """Every caption once, then the negatives that are not among them."""
        rng = random.Random(seeded(self._config.seed, "negatives", step))
        candidates = {row.caption.text: row.caption for row in rows}
        owners = {row.caption.text: n for n, row in reversed(list(enumerate(rows)))}
        for n, index in enumerate(indices):
            for negative in self._source.negatives_of(index, self._config.negatives, rng):
                candidates.setdefault(negative.text, negative)
                owners.setdefault(negative.text, n)
        position = {text: n for n, text in enumerate(candidates)}
        targets = np.array([position[row.caption.text] for row in rows])
        excluded = self._source.excluded(rows, list(candidates.values())).copy()
        excluded[np.arange(len(rows)), targets] = False
        return Plan(
            tuple(row.id for row in rows),
            tuple((n, "") for n in range(len(rows))),
            tuple(candidates),
            targets,
            excluded,
            tuple(owners[text] for text in candidates),
        )

    def backward(self, accelerator: Accelerator, model: nn.Module, batch: Share, step: int) -> dict[str, float]:
        """Pass the loss of one batch on to adapter, head and temperature; see `accumulate`."""
        return accumulate(
            accelerator,
            model,
            batch,
            seed=seeded(self._config.seed, "dropout", step),
            smoothing=self._config.label_smoothing,
            min_temperature=self._config.min_temperature,
            true_negatives=self._config.true_negatives,
        )

    def save(self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any]) -> None:
        """Write adapter, card and settings; see `Objective.save`."""
        self.save_as(out, tensors, run, self._lora, with_head=True)


def _open(config: PretrainConfig) -> CaptionSource:
    if config.data == "scenes":
        return SceneCaptions(seed=config.seed, negatives=config.negatives)
    return open_captions(
        config.data,
        images=None if config.images is None else Path(config.images),
        negatives=None if config.negatives_file is None else Path(config.negatives_file),
        max_bad=config.max_bad,
        allow_download=config.download,
    )
