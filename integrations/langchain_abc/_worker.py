"""One thread that an event loop can give work to."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Calls made one after the other in one thread, which is neither the event loop's nor of its shared pool.

    LangChain's own async twins run in the loop's shared pool, where every other awaited call of the program waits
    behind the model. The thread starts with the first call and ends with this object.

    Args:
        name: What the thread is called.
        threads: More than one only for calls that merely wait, such as for a chat model.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self._name = name
        self._threads = threads
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pid = 0

    async def run(self, call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """Await ``call(...)``. Cancelled while it waits for its turn, it never runs; once begun, it runs to its end."""
        # With the context, LangChain knows which chain the call belongs to.
        context = contextvars.copy_context()

        def guarded() -> T:
            try:
                return context.run(call, *arguments, **keywords)
            except StopIteration as error:
                # No future can hold one: whoever awaits it would wait for ever.
                raise RuntimeError("StopIteration left the call") from error

        return await asyncio.get_running_loop().run_in_executor(self._executor(), guarded)

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            # A forked child has the pool but not its threads.
            if self._pool is None or self._pid != os.getpid():
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=self._name)
                self._pid = os.getpid()
            return self._pool
