"""Threads for what an event loop must not wait for, apart from the loop's own pool, which others may fill."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")

_MOST = 8
_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}  # by process: a forked child has none of the threads


async def in_thread(call: Callable[[], T]) -> T:
    """Await ``call()``. Cancelled while it waits for a thread, it never runs; once begun, it runs to its end."""
    context = contextvars.copy_context()

    def guarded() -> T:
        try:
            return context.run(call)
        except StopIteration as error:
            # No future can hold one: whoever awaits it would wait for ever.
            raise RuntimeError("StopIteration left the call") from error

    return await asyncio.get_running_loop().run_in_executor(_pool(), guarded)


def _pool() -> ThreadPoolExecutor:
    with _lock:
        if os.getpid() not in _pools:
            _pools[os.getpid()] = ThreadPoolExecutor(_MOST, thread_name_prefix="abc-rag-await")
        return _pools[os.getpid()]


# A lock that another thread holds at the time of a fork would stay locked in the child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
