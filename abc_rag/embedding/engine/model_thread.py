"""The thread that owns a network, and what it does about memory and cores."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import torch

from abc_rag.models.family import Family

__all__ = ["JOIN_S", "ModelThread", "one_thread", "release_freed_memory"]

# A block of this size, freed once, raises the allocator's thresholds (see `_keep_freed_memory`); it learns from blocks
# of up to 32 MiB.
_FREED_BYTES = 24 * 2**20
JOIN_S = 10.0
"""How long threads that were told to end are waited for."""


class ModelThread(threading.Thread):
    """The thread that owns a network: it loads it, and everything that is computed with it is computed here.

    On a CPU that also makes it the only thread with helpers of OpenMP's: with more of them than cores, those of GNU's
    library stop waiting actively, and each of the many small steps of a network costs a call of the system.

    Args:
        load: Makes the families.
    """

    def __init__(self, load: Callable[[], list[Family]]) -> None:
        super().__init__(name="abc-rag-model", daemon=True)
        self._threads = torch.get_num_threads()
        self._load: Callable[[], list[Family]] | None = load
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loaded: Future[list[Family]] = Future()
        self.start()

    def run(self) -> None:
        """Load, then do what is asked for."""
        # Another embedder may be computing with one thread just now, and a new thread would do the same for good.
        torch.set_num_threads(self._threads)
        _keep_freed_memory()
        try:
            assert self._load is not None
            self._loaded.set_result(self._load())
        except BaseException as error:
            self._loaded.set_exception(error)
            return
        finally:
            self._load = None
        while (job := self._jobs.get()) is not None:
            job()

    def families(self) -> list[Family]:
        """What was loaded; waits for it."""
        return self._loaded.result()

    def do(self, job: Callable[[], None]) -> None:
        """Do this after what was asked for before."""
        self._jobs.put(job)

    def end(self) -> None:
        """End, after what was asked for before, and wait for that: a thread must not outlive the interpreter."""
        self._jobs.put(None)
        if self is not threading.current_thread():
            self.join(JOIN_S)
        self._loaded = Future()  # whoever refers to this thread keeps no weights
        release_freed_memory()


def _keep_freed_memory() -> None:
    """Have GNU's allocator keep what is freed, up to some ten megabytes, instead of giving it back at once.

    It maps a block anew that is as large as the largest that it has seen freed, and gives what is free at the end of
    its memory back to the system; so the intermediate results of a network, a few megabytes each, were all zeroed by
    the system again and again. Having freed something larger, it does neither. Elsewhere this does nothing.
    """
    torch.empty(_FREED_BYTES, dtype=torch.uint8)  # never touched, so it costs no memory


def release_freed_memory() -> None:
    """Give back to the system what GNU's allocator has kept (see `_keep_freed_memory`); elsewhere nothing happens.

    Threads come and go with embedders, and each may have left tens of megabytes to an arena that no other thread uses.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch use this thread alone within the block; others that have used torch before are not concerned."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
