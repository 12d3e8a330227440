"""Does memory grow with the number of inputs? Peak resident set for streams of increasing length.

Every size runs in its own process, which reports its peak (``VmHWM``). Passages and pictures are generated on demand,
all different, and vectors are discarded. The first sizes are large enough to fill the caches and the queue of prepared
inputs; after that, memory must not grow.

    python -m benchmarks.memory --shape tiny --json results/memory.json
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from abc_rag import Image, Input, Text
from abc_rag.bench.inputs import random_jpeg, random_passage
from abc_rag.bench.shapes import random_family
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.settings import EngineSettings
from benchmarks._harness import finish, parser, prepare

SIZES = {"texts": [2_000, 20_000, 200_000], "pictures": [500, 1_500, 5_000]}
QUICK_SIZES = {"texts": [20, 40], "pictures": [4]}


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__)
    # This measures memory, not speed: with small pictures and a small network, it takes less time.
    options.set_defaults(shape="tiny", min_tokens=16, max_tokens=64)
    options.add_argument("--kinds", nargs="*", default=list(SIZES), choices=list(SIZES))
    options.add_argument("--texts", nargs="*", type=int, default=None, help="numbers of passages, ascending")
    options.add_argument("--pictures", nargs="*", type=int, default=None, help="numbers of pictures, ascending")
    options.add_argument(
        "--vision-cache-mb", type=int, default=8, help="the engine's vision cache; full after some hundred pictures"
    )
    options.add_argument("--child", nargs=2, default=None, metavar=("KIND", "COUNT"), help=argparse.SUPPRESS)
    arguments = options.parse_args()
    prepare(arguments)
    if arguments.child is not None:
        print(json.dumps(stream(arguments.child[0], int(arguments.child[1]), arguments)))
        return 0
    defaults = QUICK_SIZES if arguments.quick else SIZES
    kinds = []
    for kind in arguments.kinds:
        sizes = getattr(arguments, kind) or defaults[kind]
        runs = [in_a_process(kind, count) for count in sizes]
        peaks = [run["peak_bytes"] for run in runs]
        kinds.append({"kind": kind, "runs": runs, "growth": peaks[-1] / peaks[0] - 1})
    finish("memory", arguments, {"kinds": kinds})
    return 0


def in_a_process(kind: str, count: int) -> dict[str, Any]:
    """Run one size in a child with the same options, and read its report."""
    command = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--child", kind, str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def stream(kind: str, count: int, arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    """Embed this number of inputs, and report the peak memory."""
    embedder = LocalEmbedder(
        lambda: random_family(
            arguments.shape,
            device=arguments.device,
            dtype=arguments.dtype,
            min_tokens=arguments.min_tokens,
            max_tokens=arguments.max_tokens,
            seed=arguments.seed,
        ),
        EngineSettings(vision_cache_bytes=arguments.vision_cache_mb * 2**20, embedding_cache_bytes=0),
    )
    embedder.embed([Text("load the weights")])
    before = peak_bytes()
    start = time.perf_counter()
    embedded = sum(1 for _ in embedder.embed_iter(inputs(kind, count, arguments.seed)))
    return {
        "count": embedded,
        "seconds": time.perf_counter() - start,
        "before_bytes": before,
        "peak_bytes": peak_bytes(),
    }


def inputs(kind: str, count: int, seed: int) -> Iterator[Input]:
    """Passages of 5 to 200 words, or pictures of many sizes, made on demand."""
    rng, pixels = random.Random(seed), np.random.default_rng(seed)
    for _ in range(count):
        if kind == "texts":
            yield Text(random_passage(rng, round(5 * 40 ** rng.random())))
        else:
            yield Image(random_jpeg(pixels, rng.randint(100, 400), rng.randint(100, 400)))


def peak_bytes() -> int:
    """Peak memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    # In bytes on macOS; on Linux, the file above is read.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
