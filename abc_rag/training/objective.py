"""What all contrastive training of adapters shares: rows in a random order, and one process's part of each batch."""

from __future__ import annotations

import hashlib
import random
import threading
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import nn

from abc_rag.errors import DatasetError, ImageError, InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.abc.network import ABCNetwork, ABCSettings
from abc_rag.models.abc.prompts import ABCPrompts
from abc_rag.models.hub import is_folder
from abc_rag.models.lora_layers import LoraConfig
from abc_rag.models.qwen2_vl.pictures import Patches
from abc_rag.training.adapters import save_adapter
from abc_rag.training.config import AdapterConfig, TrainConfig
from abc_rag.training.data.rows import BadRows
from abc_rag.training.running.card import write_card
from abc_rag.training.running.loop import Objective
from abc_rag.training.shares import Plan, Share, share_of
from abc_rag.training.step import Encoder
from abc_rag.types import Fingerprint, ImageSource

__all__ = ["ContrastiveObjective", "RowsObjective", "frozen_dtype", "init_head", "recompute_activations", "seeded"]


class _Row(Protocol):
    @property
    def id(self) -> str: ...


class _PictureRow(_Row, Protocol):
    @property
    def image(self) -> ImageSource: ...


Row = TypeVar("Row", bound=_Row)
PictureRow = TypeVar("PictureRow", bound=_PictureRow)


class _Source(Protocol[Row]):  # type: ignore[misc]
    bad: BadRows

    def __len__(self) -> int: ...
    def row(self, index: int) -> Row: ...
    def describe(self) -> dict[str, Any]: ...


def seeded(*parts: object) -> int:
    """A seed for one purpose, the same for the same parts on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def frozen_dtype(config: AdapterConfig) -> torch.dtype:
    """Precision of the weights that are not trained."""
    if config.base_dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    dtype: torch.dtype = getattr(torch, config.base_dtype)
    return dtype


def init_head(network: ABCNetwork, how: Literal["published", "neutral"]) -> None:
    """Start the head with identities as the published code does, or as the identity, which leaves vectors alone."""
    first, second = network.head.linear_layer1, network.head.linear_layer2
    if how == "published":
        nn.init.eye_(first.weight)
        nn.init.eye_(second.weight)
        nn.init.zeros_(first.bias)
    else:
        nn.init.zeros_(second.weight)
    nn.init.zeros_(second.bias)


def recompute_activations(network: ABCNetwork) -> None:
    """Keep no activations of the layers in training; the backward pass computes them again."""
    network.backbone.recompute_activations()


class RowsObjective(Objective[Share], Generic[Row]):
    """Draws rows, and takes note of those that turn out to be unusable.

    Args:
        config: How to train.
        model: With an adapter; what is trained is marked so.
        source: The data.
        size: Rows of a batch, over all processes together.
        what: What the configuration calls them.
    """

    def __init__(self, config: AdapterConfig, model: Encoder, source: Any, *, size: int, what: str) -> None:  # noqa: ANN401
        if len(source) < size:
            raise InputError(
                f"{config.data} has {len(source)} usable rows, fewer than one batch of {size} {what}; "
                f"set {what}={len(source)} or less"
            )
        if config.attention == "flash_attention_2" and not torch.cuda.is_available():
            raise InputError("attention='flash_attention_2' needs a GPU; use 'sdpa'")
        self.model: Encoder = model
        # LoRA's dropout and gradient checkpointing work in training mode only; nothing else here depends on it.
        self.model.train()
        if config.gradient_checkpointing:
            model.network.backbone.recompute_activations()
        self._rows: _Source[Row] = source
        self._size = size
        self._seed = config.seed
        self._state = PartialState()
        self._counting = threading.Lock()
        self._left_out: set[str] = set()
        said = source.describe()
        self.data = {key: said[key] for key in ("rows", "sha256", "revision", "seed") if key in said}
        self._pool = ThreadPoolExecutor(config.workers, thread_name_prefix="abc-rag-pictures")
        self._packed = not parse_flag_from_env("ACCELERATE_USE_FSDP")

    def row(self, index: int) -> Row:
        """A row of the data."""
        return self._rows.row(index)

    def leave_out(self, row: Row, problem: str, error: Exception) -> None:
        """Count a row whose turn has come and that cannot be used.

        Raises:
            DatasetError: It is one too many.
        """
        with self._counting:
            # Once, however often the row's turn comes.
            if row.id not in self._left_out:
                self._left_out.add(row.id)
                self._rows.bad.add(row.id, problem, str(error))

    def _indices(self, step: int) -> list[int]:
        """Rows of one batch: the data in a new random order each time round, without the few that fill no batch."""
        a_round = len(self._rows) // self._size
        order = _shuffled(len(self._rows), seeded(self._seed, "order", step // a_round))
        start = step % a_round * self._size
        return order[start : start + self._size]


class ContrastiveObjective(RowsObjective[PictureRow]):
    """ABC's: opens the pictures of rows, and leaves to a subclass what is asked and what answers.

    Args:
        config: How to train.
        network: With its adapter; what is trained is marked so.
        prompts: Of the base model.
        source: The data.
    """

    def __init__(self, config: TrainConfig, network: ABCNetwork, prompts: ABCPrompts, source: Any) -> None:  # noqa: ANN401
        super().__init__(config, Encoder(network, bf16=config.bf16), source, size=config.pictures, what="pictures")
        self._settings = config
        self._prompts = prompts
        self._pictures = ABCFamily(
            network,
            prompts,
            fingerprint=Fingerprint("training", "", config.min_tokens, config.max_tokens),
            image_limits=ImageLimits(),
        )

    @abstractmethod
    def plan(self, rows: list[PictureRow], indices: list[int], step: int) -> Plan:
        """What is asked of the pictures of some rows, and what may answer."""

    def batch(self, step: int) -> Share:
        """This process's part of the batch of ``step``; see `Objective.batch`."""
        indices = self._indices(step)
        rows = [self.row(i) for i in indices]
        return share_of(
            self.plan(rows, indices, step),
            self._prompts,
            lambda position: self._open(rows[position]),
            patch=self._pictures.network.backbone.patch,
            merge=self._pictures.network.backbone.merge,
            rank=self._state.process_index,
            ranks=self._state.num_processes,
            chunk=self._settings.chunk,
            pool=self._pool,
            packed=self._packed,
        )

    def save_as(
        self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any], lora: LoraConfig, *, with_head: bool
    ) -> None:
        """Write the adapter that `label` names, its card and its settings; the adapter last, as it says "finished"."""
        config, network = self._settings, self._pictures.network
        write_card(out, stage=self.label, run=run, source=self._rows.describe(), bad=self._rows.bad.as_dict())
        head_hidden = network.head.linear_layer1.out_features
        ABCSettings(out.resolve().name, config.min_tokens, config.tokens_in_use, head_hidden).write(out)
        save_adapter(
            out,
            {name.removeprefix("network."): tensor for name, tensor in tensors.items()},
            self.label,
            lora,
            # A folder's place on this machine tells nobody else anything.
            base=Path(config.base).name if is_folder(config.base) else config.base,
            dtype=getattr(torch, config.save_dtype),
            with_head=with_head,
        )

    def _open(self, row: PictureRow) -> Patches | None:
        try:
            return self._pictures.prepare_image(row.image)
        except DatasetError:
            raise
        except (ImageError, InputError) as error:
            self.leave_out(row, "unusable picture", error)
            return None


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
