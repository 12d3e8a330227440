"""Threads beside an event loop, and locks that a forked child does not find taken."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = [
    "ForkSafeLock",
    "Run",
    "Worker",
    "async_twin",
    "awaiting",
    "blocking",
    "core_of",
    "either",
    "in_thread",
    "inline",
]

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


def async_twin(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The async twin of a method: it runs the method in the object's own ``_worker``, else in the shared threads."""

    @wraps(method)
    async def twin(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: ANN401
        # By name, so that a subclass's own method is called.
        result: T = await _run_of(self)(getattr(self, method.__name__), *args, **kwargs)
        return result

    return _as_twin(twin, method, "A call that is cancelled before it began never runs.")  # type: ignore[no-any-return]


Run = Callable[..., Awaitable[Any]]
"""How a core that is written once for both ways makes a call that takes long: by `inline`, or in a thread."""


async def inline(call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """Make a call at once, in the caller's thread."""
    return call(*arguments, **keywords)


async def either(run: Run, call: Callable[P, T], acall: Callable[P, Awaitable[T]], *a: P.args, **k: P.kwargs) -> T:
    """What a core awaits in place of ``run(call)`` where the call has an async twin, which event loops are to get."""
    return call(*a, **k) if run is inline else await acall(*a, **k)


def blocking(core: Callable[Concatenate[Any, Run, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """Makes a method for callers who wait of an asynchronous core, which is given `inline` and awaits only by it.

    `awaiting` makes the method for event loops of the same core.
    """

    @wraps(core)
    def method(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: ANN401
        running = core(self, inline, *args, **kwargs)
        try:
            running.send(None)
        except StopIteration as end:
            result: T = end.value
            return result
        running.close()
        raise RuntimeError(f"{core.__qualname__} awaits something else than its run")

    owner, _, *parameters = inspect.signature(core).parameters.values()
    made: Any = method
    made.__signature__ = inspect.Signature([owner, *parameters])
    return made  # type: ignore[no-any-return]


def awaiting(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The async twin of a method by `blocking`: calls of the core run where `async_twin` runs methods."""

    @wraps(method)
    async def twin(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: ANN401
        result: T = await core_of(method)(self, _run_of(self), *args, **kwargs)
        return result

    return _as_twin(twin, method, "A cancelled call makes no further step.")  # type: ignore[no-any-return]


def core_of(method: Callable[..., T]) -> Callable[..., Coroutine[Any, Any, T]]:
    """The core of a method by `blocking`, to be awaited in another one, which hands on its object and its `Run`."""
    core: Callable[..., Coroutine[Any, Any, T]] = inspect.unwrap(method)
    return core


def _run_of(owner: object) -> Run:
    worker: Worker | None = getattr(owner, "_worker", None)
    return in_thread if worker is None else worker.run


def _as_twin(twin: Any, method: Callable[..., object], more: str) -> Any:  # noqa: ANN401
    name = method.__name__
    awaited = f"_a{name[1:]}" if name.startswith("_") else f"a{name}"
    twin.__name__, twin.__qualname__ = awaited, method.__qualname__.replace(name, awaited)
    twin.__doc__ = f"See `{name}`; does not block the event loop. {more}"
    return twin


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
