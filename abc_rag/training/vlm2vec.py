"""VLM2Vec's training: queries find their targets among those of the batch (arXiv 2410.05160).

Queries and targets are texts, pictures, or both, in the words of the data and nothing else; LoRA or DoRA; a fixed
temperature, no label smoothing. Equal targets are one candidate, and what answers a query is no wrong answer to the
same query in another row: the published code knows neither, and takes each for a wrong answer to the other's row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from torch import nn

from abc_rag.errors import DatasetError, ImageError, InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.family import Picture, Prepared
from abc_rag.models.hub import part_folder
from abc_rag.models.vlm2vec.family import VLM2VecFamily, VLM2VecNetwork
from abc_rag.models.vlm2vec.loader import load_parts
from abc_rag.training.adapters import add_lora, as_seen_from, save_adapter
from abc_rag.training.config import VLM2VecConfig
from abc_rag.training.data.mmeb import MMEBRows, PairRow, Side, open_mmeb_rows
from abc_rag.training.objective import RowsObjective, frozen_dtype, seeded
from abc_rag.training.running.card import write_card
from abc_rag.training.running.loop import is_finished, run
from abc_rag.training.shares import PairPlan, Share, share_of_pairs
from abc_rag.training.step import Encoder, accumulate
from abc_rag.types import Fingerprint, Image, Interleaved, Text

__all__ = ["VLM2VecTraining", "plan_of", "train_vlm2vec"]


def train_vlm2vec(config: VLM2VecConfig, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Train an adapter; a run that was interrupted is taken up where it stopped.

    Args:
        config: What to train on, from what, and how.
        say: Receives a line of progress now and then where no progress bar can be shown.

    Returns:
        The folder with the adapter, its metrics and its model card; ``load_embedder`` takes it.

    Raises:
        InputError: A setting is unusable, or the folder holds another run.
        DatasetError: The data cannot be read, or too many rows are unusable.
        CheckpointError: Weights cannot be read, or written.
    """
    out = Path(config.out).expanduser()
    if not is_finished(config, "adapter_model.safetensors"):
        run(lambda: VLM2VecTraining(config), config, say=say)
    return out


def plan_of(rows: list[PairRow]) -> tuple[PairPlan, list[Side]]:
    """What is asked, and what may answer: every target once, then the negatives that are not among them.

    Args:
        rows: Of one batch.

    Returns:
        The plan, and its candidates.
    """
    owners: dict[Side, int] = {}
    for n, row in enumerate(rows):
        owners.setdefault(row.target, n)
    for n, row in enumerate(rows):
        for negative in row.negatives:
            owners.setdefault(negative, n)
    position = {side: n for n, side in enumerate(owners)}
    targets = np.array([position[row.target] for row in rows])
    excluded = np.zeros((len(rows), len(owners)), dtype=bool)
    answers: dict[Side, list[int]] = {}
    for row in rows:
        answers.setdefault(row.query, []).append(position[row.target])
    for n, row in enumerate(rows):
        excluded[n, answers[row.query]] = True
    excluded[np.arange(len(rows)), targets] = False
    return PairPlan(targets, excluded, tuple(owners.values())), list(owners)


class VLM2VecTraining(RowsObjective[PairRow]):
    """An adapter on whichever backbone VLM2Vec has.

    Args:
        config: What to train on, from what, and how.
        source: The data; opened as the configuration says if not given.
    """

    label = "vlm2vec"

    def __init__(self, config: VLM2VecConfig, source: MMEBRows | None = None) -> None:
        self._config = config
        base = part_folder(config.base, config.base_revision)
        backbone, prompts = load_parts(base, None, attention=config.attention, dtype=frozen_dtype(config))
        # Before the data are read, as it may be refused.
        recipe = backbone.recipe(config.resolution, config.min_tokens, config.max_tokens)
        torch.manual_seed(config.seed)
        self._lora = add_lora(
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
        if source is None:
            source = _open(config)
        self._source = source
        self.family = VLM2VecFamily(
            network,
            prompts,
            recipe=recipe,
            fingerprint=Fingerprint(config.base, "", *backbone.token_limits(recipe)),
            image_limits=ImageLimits(),
        )
        super().__init__(
            config,
            Encoder(network, bf16=config.bf16, temperature=config.temperature),
            source,
            size=config.rows,
            what="rows",
        )

    def batch(self, step: int) -> Share:
        """This process's part of the batch of ``step``; see `Objective.batch`."""
        return self.share([self.row(index) for index in self._indices(step)])

    def share(self, rows: list[PairRow]) -> Share:
        """This process's part of a batch that consists of some rows."""
        plan, candidates = plan_of(rows)
        pictures = _PicturesOnce(self.family)

        def prepared(side: Side, row: PairRow, what: str) -> Prepared | None:
            try:
                return pictures.prepare(side)
            except DatasetError:
                raise
            except (ImageError, InputError) as error:
                self.leave_out(row, f"unusable {what}", error)
                return None

        return share_of_pairs(
            plan,
            lambda n: prepared(rows[n].query, rows[n], "query"),
            lambda n: prepared(candidates[n], rows[plan.owners[n]], "candidate"),
            filler=lambda: self._filler,
            rank=self._state.process_index,
            ranks=self._state.num_processes,
            chunk=self._config.chunk,
            pool=self._pool,
            packed=self._packed,
        )

    def backward(self, accelerator: Accelerator, model: nn.Module, batch: Share, step: int) -> dict[str, float]:
        """Pass the loss of one batch on to the adapter; see `accumulate`."""
        return accumulate(accelerator, model, batch, seed=seeded(self._config.seed, "dropout", step), smoothing=0.0)

    def save(self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any]) -> None:
        """Write adapter and card, the adapter last, as it says "finished"; see `Objective.save`."""
        config = self._config
        write_card(out, stage=self.label, run=run, source=self._source.describe(), bad=self._source.bad.as_dict())
        save_adapter(
            out,
            {name.removeprefix("network."): tensor for name, tensor in tensors.items()},
            self.label,
            self._lora,
            base=as_seen_from(out, config.base),
            dtype=getattr(torch, config.save_dtype),
            published_name=self.family.backbone.published_name,
        )

    @cached_property
    def _filler(self) -> Prepared:
        return self.family.prepare(Interleaved([Image(PIL.Image.new("RGB", (28, 28))), Text(" .")]))


class _PicturesOnce:
    """Opens each picture of a batch once, whichever of its inputs it is in, and whichever threads ask for it."""

    def __init__(self, family: VLM2VecFamily) -> None:
        self._family = family
        self._lock = threading.Lock()
        self._opened: dict[str, Future[Picture]] = {}

    def prepare(self, side: Side) -> Prepared:
        item = side.as_input()
        return self._family.prepare(item, [self._picture(str(source)) for source in item.pictures])

    def _picture(self, path: str) -> Picture:
        with self._lock:
            known = self._opened.get(path)
            found = self._opened[path] = known or Future()
        if known is None:
            try:
                (picture,) = self._family.opened(Image(path))
                found.set_result(picture)
            except BaseException as error:
                found.set_exception(error)
        return found.result()


def _names(said: str, setting: str) -> list[str]:
    names = [name.strip() for name in said.split(",") if name.strip()]
    if not names:
        raise InputError(f"{setting} names nothing; give names with commas between them")
    return names


def _open(config: VLM2VecConfig) -> MMEBRows:
    return open_mmeb_rows(
        config.data,
        images=None if config.images is None else Path(config.images),
        subsets=None if config.subsets is None else _names(config.subsets, "subsets"),
        split=config.split,
        per_subset=config.rows_per_subset,
        max_bad=config.max_bad,
    )
