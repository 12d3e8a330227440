"""Opening pictures and cutting them into patches: abc-rag against the processor of transformers, and its scaling.

Each case fixes the number of image tokens. ``ready`` pictures are in memory and already have the right size, so they
are only cut into patches; ``memory`` pictures are resized; ``jpeg`` files are opened and resized. The results must be
bit-identical: the pixels that abc-rag passes to the network, normalised, and ``pixel_values`` of transformers. abc-rag
normalises on the device, so its time does not include that; a second ratio adds the time of normalising on this CPU.

Scaling: JPEG files through `Family.prepare` in 1, 2, ... threads.

    python -m benchmarks.preprocess --json results/preprocess.json
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import torch

from abc_rag import Image
from abc_rag.bench.inputs import random_jpeg
from abc_rag.bench.shapes import random_family
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.qwen2_vl.network import normalise
from benchmarks._baseline import StockPictures
from benchmarks._harness import alternate, finish, parser, prepare, ratio, spread, timed

# A square of n tokens has sides of 28 * sqrt(n) pixels.
TOKENS = (64, 256, 1024)


def main() -> int:
    """Run the benchmark; the exit status is 1 if a pixel differs."""
    options = parser(__doc__, shapes=("tiny",), rounds=7)
    options.set_defaults(shape="tiny")
    options.add_argument("--pictures", type=int, default=24, help="pictures per round at 256 tokens")
    arguments = options.parse_args()
    prepare(arguments)
    # One picture at a time on one thread, to compare the work rather than its parallelism.
    torch.set_num_threads(arguments.threads or 1)
    tokens = (4, 16) if arguments.quick else TOKENS
    pictures = 4 if arguments.quick else arguments.pictures
    cases = [measure(n, source, arguments, pictures) for n in tokens for source in ("ready", "memory", "jpeg")]
    scaling = [measure_workers(n, arguments, 2 * pictures) for n in tokens]
    identical = all(case["identical"] for case in cases)
    finish("preprocess", arguments, {"identical": identical, "cases": cases, "scaling": scaling})
    if not identical:
        print("pixels differ", file=sys.stderr)
    return 0 if identical else 1


def make_pictures(tokens: int, source: str, seed: Sequence[int], count: int) -> list[Any]:
    """Pictures in memory, or the bytes of JPEG files."""
    side = 28 * round(tokens**0.5)
    # A photograph with about 1.5 times the pixels, so that both axes are resized.
    width, height = (side, side) if source == "ready" else (round(1.4 * side), round(1.05 * side))
    rng = np.random.default_rng(list(seed))
    files = [random_jpeg(rng, width, height) for _ in range(count)]
    if source == "jpeg":
        return files
    return [PIL.Image.open(io.BytesIO(file)).convert("RGB") for file in files]


def measure(tokens: int, source: str, arguments: Any, pictures: int) -> dict[str, Any]:  # noqa: ANN401
    """One row of the table, in seconds per picture."""
    family = random_family("tiny", min_tokens=tokens, max_tokens=tokens)
    stock = StockPictures(min_tokens=tokens, max_tokens=tokens)
    count = max(2, pictures * 256 // max(256, tokens))

    def make(number: int) -> list[Any]:
        return make_pictures(tokens, source, (arguments.seed, tokens, number), count)

    def ours(batch: list[Any]) -> object:
        return [family.facts.open(picture) for picture in batch]

    def theirs(batch: list[Any]) -> object:
        return [stock([_opened(picture)]) for picture in batch]

    cut = [torch.from_numpy(patches.pixels) for patches in map(family.facts.open, make(0))]
    sides = {"engine": ours, "stock": theirs, "normalise": lambda _: [normalise(pixels) for pixels in cut]}
    seconds = alternate({name: timed(side, make) for name, side in sides.items()}, rounds=arguments.rounds)
    each = {name: [took / count for took in values] for name, values in seconds.items()}
    return {
        "tokens": tokens,
        "source": source,
        "pictures": count,
        "identical": all(_identical(family, stock, picture) for picture in make(10**6)[:4]),
        "seconds_each": {name: spread(values) for name, values in each.items()},
        "ratio": ratio(each["stock"], each["engine"]),
        "ratio_with_normalise": ratio(
            each["stock"], [a + b for a, b in zip(each["engine"], each["normalise"], strict=True)]
        ),
    }


def _opened(picture: Any) -> PIL.Image.Image:  # noqa: ANN401
    return PIL.Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture


def _identical(family: ABCFamily, stock: StockPictures, picture: Any) -> bool:  # noqa: ANN401
    theirs, grid = stock([_opened(picture)])
    patches = family.facts.open(picture)
    ours = normalise(torch.from_numpy(patches.pixels)).view(len(patches.pixels), 3, 1, 14, 14)
    same = torch.equal(theirs.view(-1, 3, 2, 14, 14), ours.expand(-1, -1, 2, -1, -1))
    return same and grid.tolist() == [[1, patches.rows, patches.columns]]


def measure_workers(tokens: int, arguments: Any, pictures: int) -> dict[str, Any]:  # noqa: ANN401
    """Pictures per second by number of threads, in alternating rounds."""
    family = random_family("tiny", min_tokens=tokens, max_tokens=tokens)
    cores = os.cpu_count() or 1
    workers = [n for n in (1, 2, 4, 8, 16, 32) if n <= max(2, cores)]

    def prepare_all(pool: ThreadPoolExecutor) -> Callable[[list[bytes]], object]:
        # With the prompt and its tokens, as the engine does.
        return lambda files: list(pool.map(lambda file: family.prepare(Image(file)), files))

    pools = {n: ThreadPoolExecutor(n) for n in workers}

    def make(number: int) -> list[bytes]:
        return make_pictures(tokens, "jpeg", (arguments.seed, tokens, number, 1), pictures)

    seconds = alternate({str(n): timed(prepare_all(pool), make) for n, pool in pools.items()}, rounds=arguments.rounds)
    for pool in pools.values():
        pool.shutdown()
    return {
        "tokens": tokens,
        "pictures": pictures,
        "workers": {
            n: {
                "per_second": pictures / spread(took)["median"],
                "ratio": ratio(seconds["1"], took),
            }
            for n, took in seconds.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
