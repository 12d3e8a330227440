"""Instruction finetuning: one picture, several instructions, and only the instruction tells which phrase is meant.

A batch holds several (instruction, phrase) pairs of each picture (arXiv 2503.00329). Trains LoRA on the language model
only. Candidates are embedded without the adapter and without gradients, so the space of texts and plain pictures stays
as it is. The temperature is frozen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from abc_rag.files import write_json
from abc_rag.models.abc.network import ABCSettings, load_merged
from abc_rag.models.abc.prompts import load_prompts
from abc_rag.models.hub import part_folder
from abc_rag.models.placement import Placement
from abc_rag.scenes.kinds import load_kinds
from abc_rag.training.adapters import TEXT_TARGETS, add_lora, as_seen_from
from abc_rag.training.config import InstructConfig
from abc_rag.training.data.open import open_pairs
from abc_rag.training.data.scenes import SIDE
from abc_rag.training.data.sources import Candidate, PairsRow, PairsSource
from abc_rag.training.data.wide_rows import WidePairs
from abc_rag.training.objective import ABCObjective, frozen_dtype, plan_of
from abc_rag.training.running.loop import run
from abc_rag.training.shares import Plan
from abc_rag.training.step import LossOptions, seeded
from abc_rag.types import Input, InstructedImage, Text

__all__ = ["Instructing", "instruct"]


def instruct(config: InstructConfig, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Train an instruct adapter, which ``load_embedder`` takes; see `abc_rag.training.pretrain.pretrain`."""
    return run(lambda: Instructing(config), config, say=say)


class Instructing(ABCObjective[PairsRow]):
    """Queries are pictures under an instruction; candidates are the phrases of the batch.

    Args:
        config: Data, base model and settings.
        source: The data; if not given, what the configuration names.
    """

    label = "instruct"

    def __init__(self, config: InstructConfig, source: PairsSource | None = None) -> None:
        self._config = config
        base = part_folder(config.base, config.base_revision)
        adapter = part_folder(config.pretrain, config.pretrain_revision)
        network = load_merged(
            base,
            adapter,
            Placement(config.attention, frozen_dtype(config)),
            head_hidden=_head_hidden(adapter, config.head_hidden),
        )
        torch.manual_seed(config.seed)
        lora = add_lora(
            network.backbone, self.label, TEXT_TARGETS, rank=config.rank, alpha=config.alpha, dropout=config.dropout
        )
        network.register_instruct_layers()
        # While the adapter is off, its weights are marked as frozen.
        network.set_instruct(True)
        self._network = network
        self._pairs: PairsSource = _open(config) if source is None else source
        super().__init__(config, network, load_prompts(base), lora, self._pairs)

    def plan(self, rows: list[PairsRow], indices: list[int], step: int) -> Plan:
        """Up to ``pairs`` pairs of each row, drawn again each time; every phrase is one candidate."""
        rng = random.Random(seeded(self._config.seed, "pairs", step))
        asked = []
        for n, row in enumerate(rows):
            pairs = row.pairs
            if len(pairs) > self._config.pairs:
                pairs = tuple(pairs[i] for i in sorted(rng.sample(range(len(pairs)), self._config.pairs)))
            asked += [(n, row, pair) for pair in pairs]
        known: dict[Input, Candidate] = {Text(pair.phrase.text): pair.phrase for _, _, pair in asked}
        pairs_of_rows = [(row, pair) for _, row, pair in asked]
        return plan_of(
            len(rows),
            [(n, InstructedImage(row.image, pair.instruction)) for n, row, pair in asked],
            [Text(pair.phrase.text) for _, _, pair in asked],
            lambda candidates: self._pairs.excluded(pairs_of_rows, [known[one] for one in candidates]),
        )

    @property
    def loss_options(self) -> LossOptions:
        """See `RowsObjective.loss_options`."""
        return {
            "smoothing": self._config.label_smoothing,
            "min_temperature": self._config.min_temperature,
            "fixed_candidates": self._network.set_instruct,
        }

    def save(self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any]) -> None:
        """Write what ``load_embedder`` needs, settings, card and adapter; see `Objective.save`."""
        config = self._config
        parts = {
            "base": as_seen_from(out, config.base),
            "base_revision": config.base_revision,
            "pretrain": as_seen_from(out, config.pretrain),
            "pretrain_revision": config.pretrain_revision,
            "instruct": "./",
        }
        write_json(out / "parts.json", parts)
        self.save_as(out, tensors, run, config, with_head=False)


def _head_hidden(adapter: Path, default: int) -> int:
    """The head's width: adapters trained here have it in their settings, published ones have the default."""
    return ABCSettings.read(adapter).head_hidden if (adapter / "abc.json").is_file() else default


def _open(config: InstructConfig) -> PairsSource:
    if config.data == "scenes":
        return WidePairs(load_kinds(), own=1, seed=config.seed, side=SIDE)
    return open_pairs(
        config.data,
        images=config.images,
        max_bad=config.max_bad,
        allow_download=config.download,
    )
