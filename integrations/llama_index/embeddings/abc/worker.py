"""A few threads of one's own for what an event loop must not wait for."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Worker"]

T = TypeVar("T")


class Worker:
    """Threads that are started by the first call. A call that is cancelled while it waits for one never runs.

    Args:
        name: Begins the threads' names.
        threads: How many calls run at once.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self._name = name
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()
        self._pid = 0

    def __reduce__(self) -> tuple[type[Worker], tuple[str, int]]:
        # Threads cannot be copied or pickled, and need not be: a copy starts its own.
        return type(self), (self._name, self._threads)

    async def run(self, call: Callable[[], T]) -> T:
        """Run ``call`` in one of the threads, in the caller's context (LlamaIndex keeps its current span there)."""
        context = contextvars.copy_context()

        def guarded() -> T:
            try:
                return context.run(call)
            except StopIteration as error:
                # No future can hold one: whoever awaits it would wait for ever.
                raise RuntimeError("StopIteration left the call") from error

        return await asyncio.get_running_loop().run_in_executor(self._threads_of_this_process(), guarded)

    def _threads_of_this_process(self) -> ThreadPoolExecutor:
        with self._starting:
            # A forked child has the pool but not its threads.
            if self._pool is None or self._pid != os.getpid():
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=self._name)
                self._pid = os.getpid()
            return self._pool
