"""Small pictures whose colours say what an embedder sees in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image

from abc_rag import ChromaStore, Image, InstructedImage, Record, Text
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.ingest.pictures import index_images
from abc_rag.search.retriever import Retriever
from abc_rag.store import Store
from abc_rag.types import Fingerprint, Input, Vectors

INSTRUCTION = "what is on the left?"


class ByPixel(Embedder):
    """Under an instruction, green says all; without one, it is a small part beside noise by red."""

    dim = 24
    fingerprint = Fingerprint("by-pixel", "1", 1, 1)

    def __init__(self) -> None:
        self.looks = 0
        self.noise = np.random.default_rng(3).normal(size=(256, 16))

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        rows = np.zeros((len(inputs), 24))
        for row, one in zip(rows, inputs, strict=True):
            if isinstance(one, Text):
                row[int(one.text)] = 1.0
                continue
            assert isinstance(one, (Image, InstructedImage))
            with PIL.Image.open(BytesIO(one.source) if isinstance(one.source, bytes) else str(one.source)) as opened:
                red, green, _ = opened.getpixel((0, 0))  # type: ignore[misc]
            if isinstance(one, InstructedImage):
                self.looks += 1
                row[green] = 1.0
            else:
                row[green], row[8:] = 2.0, self.noise[red]
        return unit(rows)


class Looks(Retriever):
    """A retriever that tells what its embedder is."""

    embedder: ByPixel

    def __init__(self, embedder: ByPixel, store: Store) -> None:
        super().__init__(embedder, store)

    @staticmethod
    def unit(rows: Sequence[Sequence[float]]) -> Vectors:
        """Vectors of the embedder's length, from their first numbers."""
        return unit(np.pad(np.array(rows, dtype=np.float64), ((0, 0), (0, 24 - len(rows[0])))))


def unit(rows: np.ndarray) -> Vectors:
    found: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


@contextmanager
def pictures(folder: Path, colours: Sequence[tuple[int, int]], *, passage: str = "") -> Iterator[Looks]:
    """A store of pictures, each with red and green as given, with their positions as ids; and perhaps a passage."""
    files = []
    for number, (red, green) in enumerate(colours):
        files.append(folder / f"{number}.png")
        PIL.Image.new("RGB", (4, 4), (red, green, 0)).save(files[-1])
    embedder = ByPixel()
    with ChromaStore(folder / "store", fingerprint=embedder.fingerprint) as store:
        index_images(files, embedder, store, ids=[file.stem for file in files])
        if passage:
            store.add([Record(passage, "text", passage)], np.eye(24)[:1])
        embedder.looks = 0
        yield Looks(embedder, store)
