"""Instruction finetuning: one picture, several instructions, and only the instruction says which phrase is meant.

Several (instruction, phrase) pairs of a picture sit in one batch (arXiv 2503.00329). LoRA on the language model only;
candidates are embedded without the adapter and without gradient, so the space that texts and pictures live in stays as
it is; the temperature is frozen.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from abc_rag.models.abc.network import ABCSettings, load_merged
from abc_rag.models.abc.prompts import load_prompts
from abc_rag.models.hub import part_folder
from abc_rag.training.adapters import TEXT_TARGETS, add_lora, as_seen_from
from abc_rag.training.config import InstructConfig
from abc_rag.training.data.open import open_pairs
from abc_rag.training.data.scenes import ScenePairs
from abc_rag.training.data.sources import PairsRow, PairsSource
from abc_rag.training.objective import ContrastiveObjective, frozen_dtype, seeded
from abc_rag.training.running.loop import is_finished, run
from abc_rag.training.shares import Plan, Share
from abc_rag.training.step import accumulate

__all__ = ["Instructing", "instruct"]


def instruct(config: InstructConfig, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Train an instruct adapter; a run that was interrupted is taken up where it stopped.

    Args:
        config: What to train on, from what, and how.
        say: Receives a line of progress now and then where no progress bar can be shown.

    Returns:
        The folder with the adapter, its settings, its metrics and its model card; ``load_embedder`` takes it.

    Raises:
        InputError: A setting is unusable, or the folder holds another run.
        DatasetError: The data cannot be read, or too many rows are unusable.
        CheckpointError: Weights cannot be read, or written.
    """
    out = Path(config.out).expanduser()
    if not is_finished(config, "adapter_model.safetensors"):
        run(lambda: Instructing(config), config, say=say)
    return out


class Instructing(ContrastiveObjective[PairsRow]):
    """Queries are pictures under an instruction; candidates are the phrases of the batch.

    Args:
        config: What to train on, from what, and how.
        source: The data; opened as the configuration says if not given.
    """

    label = "instruct"

    def __init__(self, config: InstructConfig, source: PairsSource | None = None) -> None:
        self._config = config
        base = part_folder(config.base, config.base_revision)
        adapter = part_folder(config.pretrain, config.pretrain_revision)
        network = load_merged(
            base,
            adapter,
            attention=config.attention,
            dtype=frozen_dtype(config),
            head_hidden=_head_hidden(adapter, config.head_hidden),
        )
        torch.manual_seed(config.seed)
        self._lora = add_lora(
            network.backbone, "instruct", TEXT_TARGETS, rank=config.rank, alpha=config.alpha, dropout=config.dropout
        )
        network.register_instruct_layers()
        # While it is off, peft marks its weights as not to be trained.
        network.set_instruct(True)
        self._network = network
        if source is None:
            source = _open(config)
        self._source: PairsSource = source
        super().__init__(config, network, load_prompts(base), source)

    def plan(self, rows: list[PairsRow], indices: list[int], step: int) -> Plan:
        """Up to ``pairs`` pairs of each row, drawn anew each time; every phrase is one candidate."""
        rng = random.Random(seeded(self._config.seed, "pairs", step))
        asked = []
        for n, row in enumerate(rows):
            pairs = row.pairs
            if len(pairs) > self._config.pairs:
                pairs = tuple(pairs[i] for i in sorted(rng.sample(range(len(pairs)), self._config.pairs)))
            asked += [(n, row, pair) for pair in pairs]
        candidates = {pair.phrase.text: pair.phrase for _, _, pair in asked}
        owners = {pair.phrase.text: n for n, _, pair in reversed(asked)}
        position = {text: n for n, text in enumerate(candidates)}
        targets = np.array([position[pair.phrase.text] for _, _, pair in asked])
        excluded = self._source.excluded([(row, pair) for _, row, pair in asked], list(candidates.values())).copy()
        excluded[np.arange(len(asked)), targets] = False
        return Plan(
            tuple(row.id for row in rows),
            tuple((n, f"Instruction: {pair.instruction}") for n, _, pair in asked),
            tuple(candidates),
            targets,
            excluded,
            tuple(owners[text] for text in candidates),
        )

    def backward(self, accelerator: Accelerator, model: nn.Module, batch: Share, step: int) -> dict[str, float]:
        """Pass the loss of one batch on to the adapter; see `accumulate`."""
        return accumulate(
            accelerator,
            model,
            batch,
            seed=seeded(self._config.seed, "dropout", step),
            smoothing=self._config.label_smoothing,
            min_temperature=self._config.min_temperature,
            fixed_candidates=self._network.set_instruct,
        )

    def save(self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any]) -> None:
        """Write adapter, card, settings, and what ``load_embedder`` needs; see `Objective.save`."""
        config = self._config
        parts = {
            "base": as_seen_from(out, config.base),
            "base_revision": config.base_revision,
            "pretrain": as_seen_from(out, config.pretrain),
            "pretrain_revision": config.pretrain_revision,
            "instruct": "./",
        }
        (out / "parts.json").write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
        self.save_as(out, tensors, run, self._lora, with_head=False)


def _head_hidden(adapter: Path, default: int) -> int:
    """The head's width is in the settings beside an adapter that was trained here; published ones have the default."""
    return ABCSettings.read(adapter).head_hidden if (adapter / "abc.json").is_file() else default


def _open(config: InstructConfig) -> PairsSource:
    if config.data == "scenes":
        return ScenePairs(seed=config.seed)
    return open_pairs(
        config.data,
        images=None if config.images is None else Path(config.images),
        max_bad=config.max_bad,
        allow_download=config.download,
    )
