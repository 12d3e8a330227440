"""Threads for calls that an event loop must not wait for, apart from the loop's shared pool, which others may fill."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["Worker", "in_thread"]

P = ParamSpec("P")
T = TypeVar("T")

# One for all workers, held only while a pool is looked up or made: only a module's lock survives a fork (see below).
_starting = threading.Lock()


class Worker:
    """A few threads that an event loop hands calls to.

    They start with the first call and end with this object. A copy or a pickle starts threads of its own.

    Args:
        name: Prefix of the threads' names.
        threads: How many calls run at once.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self._name = name
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._pid = 0

    def __reduce__(self) -> tuple[type[Worker], tuple[str, int]]:
        return type(self), (self._name, self._threads)

    async def run(self, call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """Await ``call(...)`` in one of the threads, in the caller's context.

        A call that is cancelled while it waits for a thread never runs; once begun, it runs to its end.
        """
        context = contextvars.copy_context()

        def guarded() -> T:
            try:
                return context.run(call, *arguments, **keywords)
            except StopIteration as error:
                # A future cannot hold a StopIteration: whoever awaits it would wait for ever.
                raise RuntimeError("StopIteration left the call") from error

        return await asyncio.get_running_loop().run_in_executor(self._executor(), guarded)

    def _executor(self) -> ThreadPoolExecutor:
        with _starting:
            # A forked child has the pool but not its threads.
            if self._pool is None or self._pid != os.getpid():
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=self._name)
                self._pid = os.getpid()
            return self._pool


in_thread = Worker("abc-rag-await", threads=8).run
"""`Worker.run` of the worker that everything in this process shares."""

# A lock that another thread holds at the time of a fork would stay locked in the child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_starting.release)
