"""The cores of a CPU: all on one step after the other, or each on pictures of its own, whichever is faster just now.

A step that cores share ends with its slowest core, and begins by waking the others. What that costs differs tenfold
between machines of one kind, and changes while one runs, with its neighbours. Pictures on cores of their own wait for
no other core, but compete for memory and for the interpreter. So both ways are tried on the work that there is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

import torch

__all__ = ["CoreUse", "Cores", "Faster", "shares"]

T = TypeVar("T")

# A way that is not chosen is tried again after this long, and after so many times what the trial took.
_AGAIN_S, _TIMES = 10.0, 20.0
# A way is tried that often before it is judged: the first time compiles kernels.
_TRIALS = 2
# How much of a rate is that of the last batch.
_NEW = 0.3
# A rate that falls to this share of what it was has a cause: the other way is tried at once.
_FALLEN = 0.7


@dataclass
class _Way:
    rate: float = 0.0
    best: float = 0.0
    tried: int = 0
    at: float = -1e9
    took: float = 0.0


@dataclass(frozen=True)
class CoreUse:
    """How the cores of a CPU see pictures.

    Attributes:
        apart: Whether each has pictures of its own.
        gain: How many times as fast that is as all cores on one step after the other, by the last trials.
    """

    apart: bool
    gain: float


@dataclass
class Faster:
    """Which of two ways is faster, by the work that was done in each.

    Args:
        clock: Seconds.
    """

    clock: Callable[[], float] = time.perf_counter
    _apart: _Way = field(default_factory=_Way)
    _together: _Way = field(default_factory=_Way)

    def apart(self) -> bool:
        """Whether each core has pictures of its own in the work that comes next."""
        apart, together = self._apart, self._together
        for way, answer in ((together, False), (apart, True)):
            if way.tried < _TRIALS:
                return answer
        better = apart.rate > together.rate
        chosen, other = (apart, together) if better else (together, apart)
        fallen = chosen.rate < _FALLEN * chosen.best
        if fallen:
            chosen.best = chosen.rate
        if fallen or self.clock() - other.at > max(_AGAIN_S, _TIMES * other.took):
            return not better
        return better

    def done(self, *, apart: bool, size: float, seconds: float) -> None:
        """Note what was done, in any measure of size, and the seconds that it took."""
        way = self._apart if apart else self._together
        rate = size / max(seconds, 1e-9)
        way.rate = rate if way.tried < _TRIALS else (1 - _NEW) * way.rate + _NEW * rate
        way.best = way.rate if way.tried < _TRIALS else max(way.best, way.rate)
        way.tried, way.at, way.took = way.tried + 1, self.clock(), seconds

    @property
    def use(self) -> CoreUse | None:
        """What is chosen now; None before both ways were tried."""
        apart, together = self._apart, self._together
        if min(apart.tried, together.tried) < _TRIALS:
            return None
        return CoreUse(apart.rate > together.rate, apart.rate / together.rate)


class Cores:
    """Threads with a core each.

    Args:
        count: How many.
        wake: Called, in any thread, when a job has ended.
    """

    def __init__(self, count: int, wake: Callable[[], None]) -> None:
        self.count = count
        self.faster = Faster()
        self._wake = wake
        self._pool: ThreadPoolExecutor | None = None

    def start(self, jobs: Sequence[Callable[[], T]]) -> list[Future[T]]:
        """Begin jobs, in this order as cores become free."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, "abc-rag-core")
            here = torch.get_num_threads()
            all_there = threading.Barrier(self.count)
            wait([self._pool.submit(_one_core, all_there) for _ in range(self.count)])
            # What a thread sets is also the start of every thread that has not used torch yet.
            torch.set_num_threads(here)
        futures = [self._pool.submit(job) for job in jobs]
        for future in futures:
            future.add_done_callback(lambda _: self._wake())
        return futures

    def close(self) -> None:
        """End the threads, each after the job that it has begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _one_core(all_there: threading.Barrier) -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread's first call takes what is set for all; from here on it keeps its own
    all_there.wait()


def shares(sizes: Sequence[int], cores: int, *, most: int) -> list[list[int]]:
    """Positions of inputs in shares of work, the largest first.

    Inputs that are small beside a core's part of the work go together, as one pass over many costs less than many.

    Args:
        sizes: Of the inputs.
        cores: Number of cores.
        most: Maximum size of a share of several inputs.
    """
    # Two shares for each core: whichever ends early takes another.
    target = min(most, sum(sizes) // (2 * cores) + 1)
    found: list[list[int]] = []
    room = 0
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        if not found or sizes[at] > room:
            found.append([])
            room = target
        found[-1].append(at)
        room -= sizes[at]
    return found
