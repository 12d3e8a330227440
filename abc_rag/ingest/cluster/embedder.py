"""An embedder whose engines are on a Ray cluster, for whatever takes an embedder: mining, evaluation, a store."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import numpy as np
from typing_extensions import Self

from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.errors import ABCRagError
from abc_rag.ingest.cluster.client import connected, translated
from abc_rag.ingest.cluster.options import Engines
from abc_rag.types import Fingerprint, Input, Vectors

__all__ = ["ClusterEmbedder"]

# Batches that an engine has, so that it never waits for the next.
_AHEAD = 2


class _Remote:
    """An actor with a model."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def facts(self) -> tuple[int, Fingerprint, tuple[type, ...], tuple[str, ...]]:
        own = self._embedder
        return own.dim, own.fingerprint, own.accepts, own.roles

    def embed(self, inputs: list[Input], batch_size: BatchSize) -> list[Vectors | ABCRagError]:
        return list(self._embedder.embed_iter(inputs, batch_size=batch_size, return_errors=True))


class ClusterEmbedder(Embedder):
    """Embeds on engines of a cluster, which hold a copy of the model each. Vectors are those of the model itself.

    Inputs are sent to the engines: a picture that is given by its path is read there, so all nodes must see it. An
    engine that is lost is started anew elsewhere, and its inputs are embedded again. Use it as a context manager, or
    call `close`.

    Args:
        embedder: Is sent without weights, and not loaded here.
        address: Of the cluster; see `abc_rag.ingest.cluster.client.connected`.
        engines: ``engines.most`` of them (1 if None) are started, ``engines.batch`` inputs are sent at a time.

    Raises:
        InputError: There is no such cluster.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, embedder: Embedder, *, address: str | None = None, engines: Engines = Engines()) -> None:  # noqa: B008
        self._engines = engines
        self._open = ExitStack()
        self._ray = self._open.enter_context(connected(address))
        actor = self._ray.remote(_Remote).options(
            num_cpus=engines.cpus, num_gpus=engines.gpus, max_restarts=-1, max_task_retries=-1
        )
        self._actors: list[Any] = [actor.remote(embedder) for _ in range(engines.most or 1)]
        with translated():
            self._facts = self._ray.get(self._actors[0].facts.remote())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engines. Idempotent."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        self._open.close()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._facts[0])

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the model."""
        found: Fingerprint = self._facts[1]
        return found

    @property
    def accepts(self) -> tuple[type, ...]:
        """What the model takes."""
        found: tuple[type, ...] = self._facts[2]
        return found

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that the model knows."""
        found: tuple[str, ...] = self._facts[3]
        return found

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        rows = []
        for position, result in enumerate(self._embed_each(iter(inputs), batch_size=batch_size)):
            if isinstance(result, ABCRagError):
                raise result.at(position)
            rows.append(result)
        return np.stack(rows)

    def _embed_each(self, inputs: Iterator[Input], *, batch_size: BatchSize) -> Iterator[Vectors | ABCRagError]:
        if not self._actors:
            raise ABCRagError("this embedder has been closed; make a new one")
        waiting: deque[Any] = deque()
        number = 0
        with translated():
            while True:
                while len(waiting) < _AHEAD * len(self._actors) and (some := list(islice(inputs, self._engines.batch))):
                    actor = self._actors[number % len(self._actors)]
                    waiting.append(actor.embed.remote(some, batch_size))
                    number += 1
                if not waiting:
                    return
                for result in self._ray.get(waiting.popleft()):
                    yield result.at(None) if isinstance(result, ABCRagError) else result
