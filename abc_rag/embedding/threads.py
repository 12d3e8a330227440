"""Threads beside an event loop, and locks that a forked child does not find taken."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["ForkSafeLock", "Worker", "async_twin", "in_thread"]

P = ParamSpec("P")
S = TypeVar("S")
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


def async_twin(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The async twin of a method: it runs the method in the object's own ``_worker``, else in the shared threads."""
    name = method.__name__

    @wraps(method)
    async def twin(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        worker = getattr(self, "_worker", None)
        # By name, so that a subclass's own method is called.
        return await (in_thread if worker is None else worker.run)(getattr(self, name), *args, **kwargs)

    twin.__name__, twin.__qualname__ = f"a{name}", method.__qualname__.replace(name, f"a{name}")
    twin.__doc__ = f"See `{name}`; does not block the event loop. A call that is cancelled before it began never runs."
    return twin  # type: ignore[return-value]  # wraps() hides the first argument from mypy


class ForkSafeLock:
    """A reentrant lock for what takes long, such as loading a model.

    A lock that another thread holds at the time of a fork stays locked in the child, where nobody releases it. So a
    fork waits until this one is free. It does not wait for ever (a model may be downloading): then the child finds the
    lock free, and what it protects half done.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._patience_s = _FORK_WAIT_S
        with _starting:
            _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def acquire_before_fork(self) -> bool:
        """Whether the lock is held now; a second fork does not wait again for what the first gave up on."""
        held = self._lock.acquire(timeout=self._patience_s)
        self._patience_s = _FORK_WAIT_S if held else 0.0
        return held

    def release_after_fork(self, *, in_child: bool, held: bool) -> None:
        """Undo `acquire_before_fork`; in the child the lock is free in any case."""
        if in_child:
            self._lock = threading.RLock()
        elif held:
            self._lock.release()


_FORK_WAIT_S = 60.0
_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_taken: list[ForkSafeLock] = []  # by the thread that forks, between the two sides of a fork


def _before_fork() -> None:
    with _starting:
        locks = list(_locks)
    held = [lock for lock in locks if lock.acquire_before_fork()]
    _starting.acquire()
    _taken[:] = held


def _after_fork(*, in_child: bool) -> None:
    held = set(map(id, _taken))
    locks = list(_locks) if in_child else list(_taken)
    _taken.clear()
    for lock in locks:
        lock.release_after_fork(in_child=in_child, held=id(lock) in held)
    _starting.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=partial(_after_fork, in_child=False),
        after_in_child=partial(_after_fork, in_child=True),
    )
