"""An embedder whose vectors a test gives, and which counts what it is asked for; and a hold on the real one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.engine.runner import BatchReport
from abc_rag.errors import ImageFormatError
from abc_rag.types import Fingerprint, Image, Input, InstructedImage, Text, Vectors

Key = str | tuple[str, str | None]


class Given(Embedder):
    """Vectors by text, and by (stem of the picture's file, instruction or None). They are scaled to unit length.

    Like the real one, it raises for a whole call when one of its pictures is broken.
    """

    def __init__(
        self, vectors: Mapping[Key, Sequence[float]], *, broken: Sequence[str] = (), model: str = "given"
    ) -> None:
        self.vectors = vectors
        self.broken = set(broken)
        self.model = model
        self.calls = 0
        self.embedded: list[Key] = []
        self.stop_after: int | None = None

    @property
    def dim(self) -> int:
        return len(next(iter(self.vectors.values())))

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.model, "1", 1, 1)

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        keys = [self._key(one) for one in inputs]
        for key in keys:
            if isinstance(key, tuple) and key[0] in self.broken:
                raise ImageFormatError(f"{key[0]}.png", "is broken")
        self.embedded += keys
        rows = np.array([self.vectors[key] for key in keys], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    @staticmethod
    def _key(one: Input) -> Key:
        if isinstance(one, Text):
            return one.text
        assert isinstance(one, (Image, InstructedImage))
        return Path(str(one.source)).stem, one.instruction if isinstance(one, InstructedImage) else None


class Held:
    """Notes how many inputs each batch of an engine has, and holds its model back after each until it is let on."""

    def __init__(self, embedder: Embedder) -> None:
        assert isinstance(embedder, LocalEmbedder)
        self.batches: list[int] = []
        self.begun = threading.Semaphore(0)
        self.on = threading.Semaphore(0)
        embedder.report_to(self)

    def __call__(self, report: BatchReport) -> None:
        self.batches.append(report.items)
        self.begun.release()
        assert self.on.acquire(timeout=60), "nobody let the model go on"
