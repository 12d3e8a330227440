"""A model family on this machine, behind the `Embedder` seam."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from abc_rag._progress import Progress, progress_bar
from abc_rag.embedder import BatchSize, Embedder, Vectors
from abc_rag.errors import ImageError, InputError
from abc_rag.models.family import Family, Prepared
from abc_rag.types import Fingerprint, Input

__all__ = ["LocalEmbedder"]

# Items prepared ahead of the network: bounds memory, and is enough to sort into even batches.
_WINDOW = 256
# Tokens of one batch when batch_size is "auto": a few hundred keep a GPU busy with the 7B model, and this many leave
# room beside its weights; on a CPU it keeps a batch's memory to some hundred megabytes.
_AUTO_TOKENS = 4096


class LocalEmbedder(Embedder):
    """Embeds with a network in this process.

    The network is loaded on first use. It has one owner: a lock lets one thread at a time compute, because
    which adapter is active is state of the whole network. Pictures are opened and resized by several
    threads beside it.

    Args:
        load: Makes the family; called once, on first use.
    """

    def __init__(self, load: Callable[[], Family]) -> None:
        self._load = load
        self._family: Family | None = None
        self._loading = threading.Lock()
        self._computing = threading.Lock()
        self._workers = min(8, os.cpu_count() or 1)

    @property
    def family(self) -> Family:
        """The loaded model family; loads it."""
        with self._loading:
            if self._family is None:
                self._family = self._load()
            return self._family

    @property
    def dim(self) -> int:
        """Length of a vector; loads the model."""
        return self.family.dim

    @property
    def fingerprint(self) -> Fingerprint:
        """Model, revision and resolution; loads the model."""
        return self.family.fingerprint

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        family = self.family
        vectors = np.empty((len(inputs), family.dim), dtype=np.float32)
        with progress_bar("embedding", total=len(inputs), enabled=progress) as bar:
            with ThreadPoolExecutor(self._workers, thread_name_prefix="abc-rag-prepare") as pool:
                for start in range(0, len(inputs), _WINDOW):
                    window = inputs[start : start + _WINDOW]
                    prepared = list(pool.map(lambda pair: _prepare(family, *pair), enumerate(window, start)))
                    for positions in _batches(prepared, batch_size):
                        self._compute(prepared, positions, vectors[start : start + _WINDOW], bar)
        return vectors

    def _compute(self, prepared: Sequence[Prepared], positions: Sequence[int], out: Vectors, bar: Progress) -> None:
        with self._computing:
            rows = self.family.forward([prepared[p] for p in positions]).cpu().numpy()
        out[list(positions)] = rows
        bar.advance(len(positions))


def _prepare(family: Family, position: int, item: Input) -> Prepared:
    try:
        return family.prepare(item)
    except ImageError:
        raise  # names its picture already
    except InputError as error:
        raise InputError(f"input {position}: {error}") from error


def _batches(prepared: Sequence[Prepared], batch_size: BatchSize) -> Iterator[list[int]]:
    """Positions of items of one kind and of similar length, longest first."""
    order = sorted(range(len(prepared)), key=lambda i: (prepared[i].kind, -prepared[i].tokens))
    batch: list[int] = []
    for position in order:
        if batch:
            first = prepared[batch[0]]
            full = (len(batch) + 1) * first.tokens > _AUTO_TOKENS if batch_size == "auto" else len(batch) >= batch_size
            if full or first.kind != prepared[position].kind:
                yield batch
                batch = []
        batch.append(position)
    if batch:
        yield batch
