"""A server in a process of its own, to be killed: its embedder stops for ever after a number of inputs.

Arguments: folder, number of inputs. The address is printed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from abc_rag.embedding.embedder import BatchSize
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.server import ServerSettings, serve
from abc_rag.server.stores import chroma
from abc_rag.types import Input, Vectors


class Stopping(FakeEmbedder):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        self.left -= len(inputs)
        if self.left < 0:
            threading.Event().wait()
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    serve(
        Stopping(int(sys.argv[2])),
        ServerSettings(port=0, folder=place / "abc-server"),
        stores=chroma(place),
        started=lambda url: print(url, flush=True),
    )
