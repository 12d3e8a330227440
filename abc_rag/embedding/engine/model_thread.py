"""The thread that owns a network, and its use of memory and cores."""

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
"""How long to wait for threads that were told to end."""


class ModelThread(threading.Thread):
    """The thread that owns a network: it loads the network and runs every computation with it.

    On a CPU it is therefore the only thread with an OpenMP team. With more OpenMP threads than cores, GNU's library
    stops spinning, and each of a network's many small steps costs a system call.

    Args:
        load: Returns the families.
    """

    def __init__(self, load: Callable[[], list[Family]]) -> None:
        super().__init__(name="abc-rag-model", daemon=True)
        self._threads = torch.get_num_threads()
        self._load: Callable[[], list[Family]] | None = load
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loaded: Future[list[Family]] = Future()
        self.start()

    def run(self) -> None:
        """Load, then run jobs."""
        # A new thread inherits the current setting, which another embedder may have set to one for the moment.
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
        """The loaded families; waits for them."""
        return self._loaded.result()

    def do(self, job: Callable[[], None]) -> None:
        """Run a job after those before it."""
        self._jobs.put(job)

    def end(self) -> None:
        """End after the jobs before, and wait: a thread must not outlive the interpreter."""
        self._jobs.put(None)
        if self is not threading.current_thread():
            self.join(JOIN_S)
        self._loaded = Future()  # a reference to this thread keeps no weights alive
        release_freed_memory()


def _keep_freed_memory() -> None:
    """Make GNU's allocator keep some tens of megabytes of freed memory instead of returning it at once.

    The allocator maps every block that is at least as large as the largest one freed so far, and returns free memory at
    the end of its heap. The intermediate results of a network, a few megabytes each, would be mapped and zeroed again
    and again. Freeing one larger block raises both thresholds. With other allocators this does nothing.
    """
    torch.empty(_FREED_BYTES, dtype=torch.uint8)  # never written to, so it costs no memory


def release_freed_memory() -> None:
    """Return to the system what GNU's allocator has kept (see `_keep_freed_memory`); elsewhere this does nothing.

    Threads end with their embedder, and each may leave tens of megabytes in an arena that no other thread uses.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch use this thread alone within the block. Threads that have used torch before keep their setting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
