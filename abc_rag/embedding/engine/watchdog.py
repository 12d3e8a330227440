"""Time limits for blocks that cannot be asked to stop."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Watchdog"]

# How long the thread stays without a block to watch: starting one for each picture would cost more than the picture.
_IDLE_S = 10.0
_JOIN_S = 10.0


class Watchdog:
    """Calls a function when a block of code takes too long. One thread watches all blocks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._over: set[int] = set()
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._idle_s = _IDLE_S

    def close(self) -> None:
        """End the thread as soon as no block is left, without the usual idle time."""
        with self._changed:
            self._idle_s = 0.0
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread() and not self._due:
            thread.join(_JOIN_S)

    @contextmanager
    def limit(self, seconds: float, overdue: Callable[[], None]) -> Iterator[None]:
        """Call ``overdue``, once and from another thread, if the block takes longer than ``seconds``."""
        with self._changed:
            number = next(self._numbers)
            heapq.heappush(self._due, (time.monotonic() + seconds, number, overdue))
            if self._thread is None or not self._thread.is_alive():  # a forked child has no threads
                self._thread = threading.Thread(target=self._watch, name="abc-rag-watchdog", daemon=True)
                self._thread.start()
            elif self._due[0][1] == number:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._over.add(number)
                while self._due and self._due[0][1] in self._over:
                    self._over.discard(heapq.heappop(self._due)[1])
                if not self._due:
                    self._over.clear()

    def _watch(self) -> None:
        idle_since = time.monotonic()
        while True:
            with self._changed:
                now = time.monotonic()
                if self._due:
                    idle_since = now
                until = self._due[0][0] if self._due else idle_since + self._idle_s
                if not self._due and now >= until:
                    self._thread = None
                    return
                if until > now:
                    self._changed.wait(until - now)
                    continue
                _, number, overdue = heapq.heappop(self._due)
                if number in self._over:
                    self._over.discard(number)
                    continue
            overdue()
