"""A timeline of computation and preparation, and the reasons why the device waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from abc_rag.models.abc.family import ABCFamily

Interval = tuple[float, float]


class Recorder:
    """Records when a family computes and prepares, in seconds since the recorder was made.

    Opening a picture and `prepare` are preparation; `see` and `forward` are computation.

    On CUDA, a forward is timed on the device, by events on its stream, because the host runs far ahead. Preparation in
    other processes is not recorded.
    """

    def __init__(self, family: ABCFamily) -> None:
        self._family = family
        self._cuda = family.facts.device.type == "cuda"
        self._lock = threading.Lock()
        self._prepared: list[Interval] = []
        self._computed: list[Any] = []
        if self._cuda:
            torch.cuda.synchronize()
            self._zero = torch.cuda.Event(enable_timing=True)
            self._zero.record()
            torch.cuda.synchronize()
        self._start = time.perf_counter()

    def __enter__(self) -> Recorder:
        # On the instance only, not on the class.
        family: Any = self._family
        recipe = family.facts.recipe
        object.__setattr__(
            recipe, "open", self._watch(recipe.open, self._host, self._prepared)
        )  # the dataclass is frozen
        family.prepare = self._watch(family.prepare, self._host, self._prepared)
        on_device = self._device if self._cuda else self._host
        family.see = self._watch(family.see, on_device, self._computed)
        family.forward = self._watch(family.forward, on_device, self._computed)
        return self

    def __exit__(self, *_: object) -> None:
        family: Any = self._family
        del family.prepare, family.see, family.forward
        object.__delattr__(family.facts.recipe, "open")

    def _watch(
        self, call: Callable[..., Any], timed: Callable[[Callable[[], Any]], tuple[Any, Any]], into: list[Any]
    ) -> Callable[..., Any]:
        def watched(*values: Any, **named: Any) -> Any:  # noqa: ANN401
            result, interval = timed(lambda: call(*values, **named))
            with self._lock:
                into.append(interval)
            return result

        return watched

    def _host(self, call: Callable[[], Any]) -> tuple[Any, Interval]:
        start = time.perf_counter()
        result = call()
        return result, (start - self._start, time.perf_counter() - self._start)

    def _device(self, call: Callable[[], Any]) -> tuple[Any, Any]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        result = call()
        events[1].record()
        return result, events

    def intervals(self) -> tuple[list[Interval], list[Interval]]:
        """The intervals in which the device computed, and in which inputs were prepared."""
        if not self._cuda:
            return list(self._computed), list(self._prepared)
        torch.cuda.synchronize()
        computed = [
            (self._zero.elapsed_time(start) / 1000, self._zero.elapsed_time(end) / 1000)
            for start, end in self._computed
        ]
        return computed, list(self._prepared)


def merged(intervals: Sequence[Interval]) -> list[Interval]:
    """The union of intervals, sorted and without overlap."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def length(intervals: Sequence[Interval]) -> float:
    """Seconds in the union of intervals."""
    return sum(end - start for start, end in merged(intervals))


def shares(computed: Sequence[Interval], prepared: Sequence[Interval], seconds: float) -> dict[str, float]:
    """How the device spent the time.

    Args:
        computed: Intervals in which the device computed.
        prepared: Intervals in which inputs were prepared.
        seconds: Duration of the run.

    Returns:
        Shares with a sum of 1: ``busy``; ``waiting_for_preparation``: not computing while inputs were prepared;
        ``waiting_otherwise``: neither computing nor preparing.
    """
    busy = length(computed)
    either = length([*computed, *prepared])
    return {
        "busy": busy / seconds,
        "waiting_for_preparation": (either - busy) / seconds,
        "waiting_otherwise": max(0.0, seconds - either) / seconds,
    }


def draw(path: Path, title: str, computed: Sequence[Interval], prepared: Sequence[Interval]) -> bool:
    """Draw both as bars over time; return False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(12, 2), layout="constrained")
    axes = figure.subplots()
    for row, (intervals, colour) in enumerate(((prepared, "tab:orange"), (computed, "tab:blue"))):
        bars = [(start, end - start) for start, end in merged(intervals)]
        axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=colour)
    axes.set_yticks([0, 1], ["preparing", "computing"])
    axes.set_xlabel("seconds")
    axes.set_title(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True
