"""What all training of adapters shares: rows in random order, one process's share of each batch, the saved adapter."""

from __future__ import annotations

import random
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import nn

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.abc.network import ABCNetwork, ABCSettings
from abc_rag.models.abc.prompts import ABCPrompts
from abc_rag.models.family import Family, Picture, Prepared
from abc_rag.models.hub import is_folder
from abc_rag.models.lora_layers import LoraConfig
from abc_rag.training.adapters import save_adapter
from abc_rag.training.config import AdapterConfig, TrainConfig
from abc_rag.training.data.mmeb import PairRow
from abc_rag.training.data.rows import problem_of
from abc_rag.training.data.sources import CaptionRow, PairsRow, Source
from abc_rag.training.running.card import write_card
from abc_rag.training.running.loop import Objective
from abc_rag.training.shares import Plan, Share, share_of
from abc_rag.training.step import Encoder, LossOptions, accumulate, seeded
from abc_rag.types import Fingerprint, Image, Input

__all__ = ["ABCObjective", "RowsObjective", "frozen_dtype", "init_head", "plan_of"]


Row = TypeVar("Row", bound=CaptionRow | PairsRow | PairRow)


def frozen_dtype(config: AdapterConfig) -> torch.dtype:
    """Precision of the weights that are not trained."""
    if config.base_dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    dtype: torch.dtype = getattr(torch, config.base_dtype)
    return dtype


def init_head(network: ABCNetwork, how: Literal["published", "neutral"]) -> None:
    """Initialise both layers of the head as identities (``"published"``), or the whole head as one (``"neutral"``)."""
    first, second = network.head.linear_layer1, network.head.linear_layer2
    if how == "published":
        nn.init.eye_(first.weight)
        nn.init.eye_(second.weight)
        nn.init.zeros_(first.bias)
    else:
        nn.init.zeros_(second.weight)
    nn.init.zeros_(second.bias)


def plan_of(
    rows: int,
    queries: Sequence[tuple[int, Input]],
    targets: Sequence[Input],
    excluded: Callable[[Sequence[Input]], npt.NDArray[np.bool_]],
    *,
    negatives: Iterable[tuple[int, Input]] = (),
) -> Plan:
    """Plan a batch: every target is one candidate, then come the negatives that are not among them.

    Args:
        rows: Number of rows in the batch.
        queries: (row, input) of each query.
        targets: Each query's own candidate.
        excluded: True where a candidate is true of a query, bool ``(queries, candidates)``; own ones may be among
            them.
        negatives: (row, input) of further candidates.
    """
    owners: dict[Input, int] = {}
    for (row, _), target in zip(queries, targets, strict=True):
        owners.setdefault(target, row)
    for row, negative in negatives:
        owners.setdefault(negative, row)
    position = {candidate: n for n, candidate in enumerate(owners)}
    own = np.array([position[target] for target in targets])
    true = excluded(list(owners)).copy()
    true[np.arange(len(own)), own] = False
    return Plan(
        rows, [item for _, item in queries], [row for row, _ in queries], list(owners), list(owners.values()), own, true
    )


class RowsObjective(Objective[Share], Generic[Row]):
    """Contrastive training of an adapter on rows of data.

    Args:
        config: How to train.
        family: Prepares inputs.
        network: The family's network, with the adapter on it; its trainable weights are marked.
        lora: The adapter's configuration.
        source: The data.
        size: Rows per batch, over all processes.
        what: What the configuration calls them.
        temperature: A fixed temperature; the network's own if None.
    """

    def __init__(
        self,
        config: AdapterConfig,
        family: Family,
        network: nn.Module,
        lora: LoraConfig,
        source: Source[Row],
        *,
        size: int,
        what: str,
        temperature: float | None = None,
    ) -> None:
        if len(source) < size:
            raise InputError(
                f"{config.data} has {len(source)} usable rows, fewer than one batch of {size} {what}; "
                f"set {what}={len(source)} or less"
            )
        if config.attention == "flash_attention_2" and not torch.cuda.is_available():
            raise InputError("attention='flash_attention_2' needs a GPU; use 'sdpa'")
        self.family = family
        self.source = source
        self.model: Encoder = Encoder(network, bf16=config.bf16, temperature=temperature)
        self.model.network.backbone.use_library()
        # LoRA's dropout and gradient checkpointing work in training mode only; nothing else here depends on it.
        self.model.train()
        if config.gradient_checkpointing:
            self.model.network.backbone.recompute_activations()
        self._settings, self._lora, self._size, self._what = config, lora, size, what
        self._state = PartialState()
        self._counting = threading.Lock()
        self._left_out: set[str] = set()
        about = source.describe()
        self.data = {key: about[key] for key in ("rows", "sha256", "revision", "seed") if key in about}
        self._pool = ThreadPoolExecutor(config.workers, thread_name_prefix="abc-rag-pictures")
        self._packed = not parse_flag_from_env("ACCELERATE_USE_FSDP")

    @abstractmethod
    def plan(self, rows: list[Row], indices: list[int], step: int) -> Plan:
        """What is asked of some rows, and what may answer.

        Args:
            rows: The rows of one batch.
            indices: Their numbers in the data.
            step: The step, from 0.
        """

    @property
    @abstractmethod
    def loss_options(self) -> LossOptions:
        """How the loss is computed; see `accumulate`."""

    def backward(self, accelerator: Accelerator, model: nn.Module, batch: Share, step: int) -> dict[str, float]:
        """Pass the loss of one batch on to what is trained; see `accumulate`."""
        return accumulate(
            accelerator, model, batch, seed=seeded(self._settings.seed, "dropout", step), **self.loss_options
        )

    def row(self, index: int) -> Row:
        """A row of the data."""
        return self.source.row(index)

    def batch(self, step: int) -> Share:
        """This process's part of the batch of ``step``; see `Objective.batch`."""
        indices = self._indices(step)
        rows = [self.row(index) for index in indices]
        return self.share(rows, self.plan(rows, indices, step))

    def share(self, rows: Sequence[Row], plan: Plan) -> Share:
        """This process's part of a batch of some rows. A row whose input cannot be used is left out and counted.

        Raises:
            DatasetError: Too many rows were left out, or there are fewer rows than processes.
        """
        pictures = _PicturesOnce(self.family)

        def prepare(item: Input, row: int) -> Prepared | None:
            try:
                return pictures.prepare(item)
            except InputError as error:
                self._leave_out(rows[row], error)
                return None

        return share_of(
            plan,
            prepare,
            lambda: self._filler,
            rank=self._state.process_index,
            ranks=self._state.num_processes,
            chunk=self._settings.chunk,
            pool=self._pool,
            packed=self._packed,
            what=self._what,
        )

    def write(
        self,
        out: Path,
        tensors: dict[str, torch.Tensor],
        run: dict[str, Any],
        *,
        base: str,
        **names: Any,  # noqa: ANN401
    ) -> None:
        """Write the model card, then the adapter, whose file says that the run is finished.

        Args:
            out: The folder.
            tensors: See `Objective.save`.
            run: See `Objective.save`.
            base: What the adapter's configuration names as its base.
            names: Further arguments of `save_adapter`.
        """
        write_card(out, stage=self.label, run=run, source=self.source.describe(), bad=self.source.bad.as_dict())
        save_adapter(
            out,
            {name.removeprefix("network."): tensor for name, tensor in tensors.items()},
            self.label,
            self._lora,
            base=base,
            dtype=getattr(torch, self._settings.save_dtype),
            **names,
        )

    def _leave_out(self, row: Row, error: InputError) -> None:
        with self._counting:
            # Once, however often the row's turn comes.
            if row.id not in self._left_out:
                self._left_out.add(row.id)
                self.source.bad.add(row.id, problem_of(error), str(error))

    def _indices(self, step: int) -> list[int]:
        """Rows of one batch: each epoch has a new random order, and leaves out the few rows that fill no batch."""
        batches = len(self.source) // self._size
        order = _shuffled(len(self.source), seeded(self._settings.seed, "order", step // batches))
        start = step % batches * self._size
        return order[start : start + self._size]

    @cached_property
    def _filler(self) -> Prepared:
        return self.family.prepare(Image(PIL.Image.new("RGB", (28, 28))))


class ABCObjective(RowsObjective[Row]):
    """Either stage of ABC's training (arXiv 2503.00329).

    Args:
        config: How to train.
        network: With the adapter on it.
        prompts: Prompts of the base model.
        lora: The adapter's configuration.
        source: The data.
    """

    def __init__(
        self, config: TrainConfig, network: ABCNetwork, prompts: ABCPrompts, lora: LoraConfig, source: Source[Row]
    ) -> None:
        fingerprint = Fingerprint("training", "", config.min_tokens, config.max_tokens)
        family = ABCFamily(network, prompts, fingerprint=fingerprint, image_limits=ImageLimits())
        super().__init__(config, family, network, lora, source, size=config.pictures, what="pictures")
        self._head_hidden = network.head.linear_layer1.out_features

    def save_as(
        self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any], config: TrainConfig, *, with_head: bool
    ) -> None:
        """Write the settings, the model card and the adapter; see `Objective.save`."""
        ABCSettings(out.resolve().name, config.min_tokens, config.tokens_in_use, self._head_hidden).write(out)
        # The path of a local base means nothing on another machine.
        base = Path(config.base).name if is_folder(config.base) else config.base
        self.write(out, tensors, run, base=base, with_head=with_head)


class _PicturesOnce:
    """Opens each picture of a batch once, whichever inputs show it and whichever threads ask for it."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._lock = threading.Lock()
        self._opened: dict[object, Future[Picture]] = {}

    def prepare(self, item: Input) -> Prepared:
        return self._family.prepare(item, [self._picture(source) for source in item.pictures])

    def _picture(self, source: Any) -> Picture:  # noqa: ANN401
        key = source if isinstance(source, str) else id(source)
        with self._lock:
            known = self._opened.get(key)
            found = self._opened[key] = known or Future()
        if known is None:
            try:
                (picture,) = self._family.opened(Image(source))
                found.set_result(picture)
            except BaseException as error:
                found.set_exception(error)
        return found.result()


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
