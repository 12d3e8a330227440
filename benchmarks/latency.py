"""Latency of one query: alone, and while a thread indexes with the same embedder.

Queries are a passage of about 12 tokens, and a new JPEG picture with a question. They are sent one after the other with
a short pause, as a user would. The background thread embeds passages and pictures in turn until it is stopped.

    python -m benchmarks.latency --shape mini --json results/latency-mini.json
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np

from abc_rag import Image, Input, InstructedImage, Text
from abc_rag.bench.inputs import QUESTIONS, random_jpeg, random_passage
from abc_rag.bench.shapes import random_family
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.settings import EngineSettings
from benchmarks._harness import finish, parser, prepare, spread


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__)
    options.add_argument("--queries", type=int, default=100, help="queries of each kind")
    options.add_argument("--pause-ms", type=float, default=20.0, help="pause between two queries")
    arguments = options.parse_args()
    prepare(arguments)
    count = 6 if arguments.quick else arguments.queries
    embedder = LocalEmbedder(
        lambda: random_family(
            arguments.shape,
            device=arguments.device,
            dtype=arguments.dtype,
            min_tokens=arguments.min_tokens,
            max_tokens=arguments.max_tokens,
            seed=arguments.seed,
        ),
        EngineSettings(embedding_cache_bytes=0),
    )
    rows = []
    for name, make in (("text", text), ("picture with a question", question)):
        for beside in (False, True):
            rng = np.random.default_rng([arguments.seed, len(rows)])
            embedder.embed([make(rng)])
            with Background(embedder, arguments.seed + len(rows)) if beside else nullcontext() as background:
                done, start = background.count if background else 0, time.perf_counter()
                took = measure(embedder, make, rng, count, arguments.pause_ms / 1000)
                indexed = (background.count - done) / (time.perf_counter() - start) if background else 0.0
            rows.append(row(name, beside, took, indexed))
    finish("latency", arguments, {"rows": rows})
    return 0


def text(rng: np.random.Generator) -> Input:
    """A query of about 12 tokens."""
    return Text(random_passage(random.Random(int(rng.integers(2**32))), 10))


def question(rng: np.random.Generator) -> Input:
    """A picture as a camera or a browser saves it, with a question."""
    return InstructedImage(random_jpeg(rng), QUESTIONS[int(rng.integers(len(QUESTIONS)))])


def measure(
    embedder: LocalEmbedder,
    make: Callable[[np.random.Generator], Input],
    rng: np.random.Generator,
    count: int,
    pause: float,
) -> list[float]:
    """Latency of each query in milliseconds."""
    took = []
    for _ in range(count):
        item = make(rng)
        time.sleep(pause)
        start = time.perf_counter()
        embedder.embed([item])
        took.append(1000 * (time.perf_counter() - start))
    return took


def row(name: str, beside: bool, took: list[float], indexed: float) -> dict[str, Any]:
    """One row of the table."""
    return {
        "query": name,
        "beside_index_run": beside,
        "count": len(took),
        "p50_ms": float(np.percentile(took, 50)),
        "p99_ms": float(np.percentile(took, 99)),
        "ms": spread(took),
        "indexed_per_second": indexed,
    }


class Background:
    """An index run in a thread while the block runs.

    Attributes:
        count: Number of inputs embedded.
    """

    def __init__(self, embedder: LocalEmbedder, seed: int) -> None:
        self.count = 0
        self._embedder = embedder
        self._seed = seed
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="index run", daemon=True)

    def __enter__(self) -> Background:
        """Wait until the index run is busy."""
        self._thread.start()
        while self.count == 0 and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until the index run has ended, so that it does not disturb the next measurement."""
        self._ended.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for _ in self._embedder.embed_iter(self._inputs()):
                self.count += 1
                if self._ended.is_set():
                    break
        except BaseException as error:  # raised again in the measuring thread
            self._error = error

    def _inputs(self) -> Iterator[Input]:
        rng = np.random.default_rng([self._seed, 1])
        words = random.Random(self._seed)
        # Made in advance, because making them would compete with the measurement.
        files = [random_jpeg(rng) for _ in range(16)]
        while not self._ended.is_set():
            yield Text(random_passage(words, 100))
            # New content each time: a JPEG decoder ignores bytes after the end.
            yield Image(files[words.randrange(16)] + words.randbytes(8))


if __name__ == "__main__":
    sys.exit(main())
