"""Utilisation of the chip: pictures from JPEG files at 256, 512 and 1024 tokens, passages of 12, 100 and 512.

The limit is the rate of a large matrix product in the same precision, measured in the same run. The utilisation is the
rate of the inputs' matrix products (`abc_rag.models.flops`) as a share of it. A further pass records a timeline: when
the device computed, when inputs were prepared, and what the device waited for. ``busy`` is the share of the time in
which the device had work, and ``while busy`` the utilisation within that time.

Vectors and vision features are not cached. The network has random weights, made on the device; nothing is downloaded.

    python -m benchmarks.gpu --shape 7b --device cuda --dtype bfloat16 --json results/gpu-7b.json --timeline results
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abc_rag import Image, Input, Text
from abc_rag.bench.bench import matmul_rate
from abc_rag.bench.inputs import random_jpeg, random_passage
from abc_rag.bench.shapes import random_family
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.settings import EngineSettings
from abc_rag.models.abc.family import ABCFamily
from benchmarks._harness import finish, parser, prepare, spread
from benchmarks._timeline import Recorder, draw, merged, shares

PICTURES = (256, 512, 1024)
PASSAGES = (12, 100, 512)
_DRAWN = 32


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__, rounds=3)
    options.add_argument("--seconds", type=float, default=10.0, help="seconds per round and row")
    options.add_argument(
        "--pictures", nargs="*", type=int, default=list(PICTURES), help="sizes of the pictures, in tokens"
    )
    options.add_argument(
        "--passages", nargs="*", type=int, default=list(PASSAGES), help="lengths of the passages, in tokens"
    )
    options.add_argument("--attention", default="auto", help="as for load_embedder")
    options.add_argument("--workers", type=int, default=None, help="the engine's workers, which open pictures")
    options.add_argument("--timeline", type=Path, default=None, help="folder for drawings of the timelines")
    arguments = options.parse_args()
    prepare(arguments)
    if arguments.quick:
        arguments.seconds, arguments.pictures, arguments.passages = 0.05, [4, 16], [12]
    family = random_family(
        arguments.shape,
        device=arguments.device,
        dtype=arguments.dtype,
        attention=arguments.attention,
        seed=arguments.seed,
    )
    backbone = family.network.backbone
    limit = matmul_rate(backbone.device, backbone.dtype, seconds=0.01 if arguments.quick else 2.0)
    rows = [measure(f"pictures of {n} tokens", family, n, arguments, limit) for n in arguments.pictures]
    rows += [measure(f"passages of {n} tokens", family, -n, arguments, limit) for n in arguments.passages]
    finish("gpu", arguments, {"limit": limit, "memory_bytes": memory(backbone.device), "rows": rows})
    return 0


def memory(device: torch.device) -> int | None:
    """Peak memory on the device, in bytes."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def measure(name: str, shared: ABCFamily, tokens: int, arguments: Any, limit: float) -> dict[str, Any]:  # noqa: ANN401
    """Measure one row: pictures with this number of tokens or, if it is negative, passages."""
    of_pictures = tokens > 0
    family = shared.at(min_tokens=tokens, max_tokens=tokens) if of_pictures else shared
    with tempfile.TemporaryDirectory(prefix="abc-rag-benchmark-") if of_pictures else nullcontext("") as folder:
        make = pictures(Path(folder), tokens, arguments) if of_pictures else passages(family, -tokens, arguments.seed)
        found_tokens, flops = family.count_flops(make(1)[0])
        embedder = LocalEmbedder(lambda: family, settings(arguments))
        count = warm_up(embedder, make, arguments)
        rates = []
        for _ in range(arguments.rounds):
            inputs = make(count)
            start = time.perf_counter()
            embedder.embed(inputs)
            rates.append(count / (time.perf_counter() - start))
        timeline = record(name, family, make(max(2, count // 2)), arguments)
    rate = spread(rates)
    used = rate["median"] * flops / limit
    return {
        "row": name,
        "items": count,
        "tokens": found_tokens,
        "flops_each": flops,
        "per_second": rate,
        "utilisation": used,
        "while_busy": used / timeline["shares"]["busy"] if timeline["shares"]["busy"] else None,
        "timeline": timeline,
    }


def settings(arguments: Any, **others: Any) -> EngineSettings:  # noqa: ANN401
    """Settings without caches."""
    return EngineSettings(workers=arguments.workers, vision_cache_bytes=0, embedding_cache_bytes=0, **others)


def warm_up(embedder: LocalEmbedder, make: Callable[[int], list[Input]], arguments: Any) -> int:  # noqa: ANN401
    """Warm up, and return the number of inputs for a round."""
    count, took = 2, 0.0
    while took < arguments.seconds / 4:
        count *= 2
        inputs = make(count)
        start = time.perf_counter()
        embedder.embed(inputs)
        took = time.perf_counter() - start
    return max(2, round(count * arguments.seconds / took))


def record(name: str, family: ABCFamily, inputs: list[Input], arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    """One pass with a recorder, which records threads but not other processes."""
    embedder = LocalEmbedder(lambda: family, settings(arguments, worker_kind="thread"))
    with Recorder(family) as recorder:
        start = time.perf_counter()
        embedder.embed(inputs)
        seconds = time.perf_counter() - start
        computed, prepared = recorder.intervals()
    drawn = None
    if arguments.timeline is not None:
        path = arguments.timeline / f"timeline-{arguments.shape}-{name.replace(' ', '-')}.png"
        drawn = str(path) if draw(path, name, computed, prepared) else None
    return {
        "seconds": seconds,
        "items": len(inputs),
        "batches": len(computed),
        "shares": shares(computed, prepared, seconds),
        "computed": rounded(computed),
        "prepared": rounded(merged(prepared)),
        "drawing": drawn,
    }


def rounded(intervals: list[tuple[float, float]]) -> list[list[float]]:
    """The first thousand intervals, rounded to a tenth of a millisecond."""
    return [[round(start, 4), round(end, 4)] for start, end in intervals[:1000]]


def pictures(folder: Path, tokens: int, arguments: Any) -> Callable[[int], list[Input]]:  # noqa: ANN401
    """JPEG files with about 1.5 times the pixels that are needed; the same in each round, as nothing is cached."""
    side = 28 * tokens**0.5
    size = round(1.4 * side), round(1.05 * side)
    drawn = [random_jpeg(np.random.default_rng([arguments.seed, number]), *size) for number in range(_DRAWN)]
    files: list[Path] = []

    def make(count: int) -> list[Input]:
        for number in range(len(files), count):
            files.append(folder / f"{number}.jpg")
            # New content each time: a JPEG decoder ignores bytes after the end.
            files[-1].write_bytes(drawn[number % _DRAWN] + number.to_bytes(4, "big"))
        return [Image(path) for path in files[:count]]

    return make


def passages(family: ABCFamily, tokens: int, seed: int) -> Callable[[int], list[Input]]:
    """Distinct passages with this number of tokens, including the prompt."""
    rng = random.Random(seed)
    words = max(1, tokens - family.prepare(Text("")).tokens)
    return lambda count: [Text(random_passage(rng, words)) for _ in range(count)]


if __name__ == "__main__":
    sys.exit(main())
