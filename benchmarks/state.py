"""The state that a CPU is in: what its cores reach alone and together, and what it costs to wake one.

    python -m benchmarks.state

Machines of one kind differ here, and one machine from hour to hour, with its neighbours. Every benchmark writes this
beside its figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from abc_rag.models.kernels.layers import product

__all__ = ["main", "state"]

# Rows, inner and outer size of a product as a vision layer has it, small and large.
_SIZES = ((256, 640, 640), (512, 1280, 1280))
_SMALL = 32_768  # the most elements that torch leaves to one thread
_COPIED = 1 << 23  # float32: 32 MiB, more than most caches hold
_TIMES = 5


def state(threads: int | None = None) -> dict[str, float]:
    """Measure for about a second; medians.

    Args:
        threads: How many cores to use; torch's number if not given.

    Returns:
        ``wake_us``: microseconds that a step on all cores takes longer than its part on one core. ``gflops_1``,
        ``gflops_all`` and ``gflops_apart``: of products on one core, on all in turn, and on all at once with one
        product each; the mean of the sizes. ``gb_s_1``, ``gb_s_apart``: memory copied, read and written, in gigabytes a
        second.
    """
    threads = threads or torch.get_num_threads()
    with torch.inference_mode(), _threads(threads):
        pairs = [(torch.randn(rows, inner), torch.randn(outer, inner)) for rows, inner, outer in _SIZES]
        flops = [2.0 * rows * inner * outer for rows, inner, outer in _SIZES]
        wide, narrow = torch.zeros(threads * _SMALL), torch.zeros(_SMALL)
        all_cores = _median(lambda: wide.add_(1.0), 200)
        together = [_median(lambda x=x, w=w: product(x, w)) for x, w in pairs]  # type: ignore[misc]
        with _threads(1):
            one_core = _median(lambda: narrow.add_(1.0), 200)
            alone = [_median(lambda x=x, w=w: product(x, w)) for x, w in pairs]  # type: ignore[misc]
            copy_alone = _median(_copier())
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:

            def each(make: Callable[[], Callable[[], object]]) -> float:
                jobs = [make() for _ in range(threads)]
                return _median(lambda: list(pool.map(_twice, jobs))) / 2

            apart = [each(lambda x=x, w=w: lambda: _product(x, w)) for x, w in pairs]  # type: ignore[misc]
            copy_apart = each(_copier)
    mean = len(_SIZES)
    moved = 2 * 4 * _COPIED / 1e9
    found = {
        "wake_us": 1e6 * max(0.0, all_cores - one_core),
        "gflops_1": sum(f / t for f, t in zip(flops, alone, strict=True)) / mean / 1e9,
        "gflops_all": sum(f / t for f, t in zip(flops, together, strict=True)) / mean / 1e9,
        "gflops_apart": sum(threads * f / t for f, t in zip(flops, apart, strict=True)) / mean / 1e9,
        "gb_s_1": moved / copy_alone,
        "gb_s_apart": threads * moved / copy_apart,
    }
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def _product(x: torch.Tensor, weight: torch.Tensor) -> object:
    with torch.inference_mode():
        return product(x, weight)


def _copier() -> Callable[[], object]:
    one, other = np.zeros(_COPIED, dtype=np.float32), np.ones(_COPIED, dtype=np.float32)
    return lambda: np.copyto(one, other)


def _twice(job: Callable[[], object]) -> None:
    job()
    job()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _median(job: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one run, the median of some stretches."""
    job()
    seconds = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        for _ in range(repeats):
            job()
        seconds.append((time.perf_counter() - begun) / repeats)
    return sorted(seconds)[len(seconds) // 2]


def main() -> None:
    """Print as JSON."""
    print(json.dumps(state(), indent=2))


if __name__ == "__main__":
    main()
