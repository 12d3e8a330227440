"""Embedders that note what they do in a folder, and can be stopped or killed there; and a driver to kill."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from abc_rag import Input, InstructedImage
from abc_rag.embedding.embedder import BatchSize
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.ingest.cluster import Engines, index_on_cluster
from abc_rag.store.records import image_id, text_id
from abc_rag.types import Vectors

PATIENCE_S = 400.0
# Not 127.0.0.1, which Ray replaces by the address of a network card.
LOOPBACK = "127.0.0.2"
NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "node_ip_address": LOOPBACK}


class Noting(FakeEmbedder):
    """Writes down the node and the content of each call; then dies once, or waits for a file named ``go``.

    Args:
        folder: For the notes.
        die: Whether the first call ends its process.
        wait_after: Inputs after which calls wait.
    """

    def __init__(self, folder: Path, *, die: bool = False, wait_after: int | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.die = die
        self.wait_after = wait_after

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        import ray

        before = len(noted(self.folder))
        names = [_id_of(one) for one in inputs if not isinstance(one, InstructedImage)]
        note = self.folder / f"{ray.get_runtime_context().get_node_id()}.{uuid.uuid4().hex}"
        note.with_suffix(".part").write_text("\n".join(names))
        note.with_suffix(".part").rename(note)
        if self.die and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(1)
        if self.wait_after is not None and before >= self.wait_after:
            until(lambda: (self.folder / "go").exists())
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


def _id_of(one: Input) -> str:
    import hashlib

    return image_id(hashlib.sha256(one.pictures[0]).hexdigest()) if one.pictures else text_id(one.words)  # type: ignore


def until(true: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def _notes(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if "." in path.name and path.suffix != ".part"]


def noted(folder: Path) -> Counter[str]:
    """How often each id was embedded."""
    return Counter(name for path in _notes(folder) for name in path.read_text().splitlines())


def nodes_of(folder: Path) -> set[str]:
    """The nodes that embedded anything."""
    return {path.stem for path in _notes(folder)}


if __name__ == "__main__":
    address, source, lake, notes = sys.argv[1:]
    from cluster_helpers import Noting as Importable  # workers do not know this file as __main__

    index_on_cluster(
        [source],
        Importable(Path(notes), wait_after=24),
        lake,
        address=address,
        engines=Engines(most=2, batch=4),
        commit_rows=8,
    )
