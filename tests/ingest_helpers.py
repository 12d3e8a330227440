"""Folders of small pictures and passages, and an embedder that notes what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import PIL.Image

from abc_rag import ChromaStore, Input, Text
from abc_rag.embedding.embedder import BatchSize
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.images.open import content_hash
from abc_rag.ingest.report import IndexReport
from abc_rag.store.records import image_id
from abc_rag.types import Vectors

Index = Callable[..., tuple[IndexReport, int]]


class Counting(FakeEmbedder):
    """Notes what it is given; refuses texts with a certain word; can be interrupted at the n-th call."""

    def __init__(self, *, refuse: str = "", interrupt_at: int = 0) -> None:
        super().__init__()
        self.batches: list[list[Input]] = []
        self.refuse = refuse
        self.interrupt_at = interrupt_at

    @property
    def embedded(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        if len(self.batches) + 1 == self.interrupt_at:
            raise KeyboardInterrupt
        if self.refuse and any(isinstance(one, Text) and self.refuse in one.text for one in inputs):
            raise InputError(f"input 0: I do not embed {self.refuse!r}")
        vectors = super()._embed(inputs, batch_size=batch_size, progress=progress)
        self.batches.append(list(inputs))
        return vectors


def picture(path: Path, colour: str, size: tuple[int, int] = (6, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path)
    return path


def passage(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def id_of(path: Path) -> str:
    return image_id(content_hash(path))


def counts(report: IndexReport) -> tuple[int, int, int, int]:
    return report.added, report.unchanged, report.removed, len(report.failed)


def sources(store: ChromaStore) -> dict[str, str]:
    return {record.id: record.source for record in store.records()}
