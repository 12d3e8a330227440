"""One directory on disk, many objects and processes: who may write, and when an index may be loaded.

An embedded Chroma keeps its index in memory and on disk, and neither notices another process:

- two processes that write lose vectors for good, even one after the other when the second had opened
  the store before the first wrote;
- a process that only *reads* rewrites index files while it loads them, so loading while another
  process saves leaves a store that crashes whoever opens it next.

Hence two locks and a mark in the directory:

- ``abc-writer.lock`` is held from a process's first write until its last writing object is closed;
- ``abc-index.lock`` is held for the length of one write, and while an index is being loaded;
- ``abc-writer.json`` names the writer, and carries a mark that changes with every write. Whoever sees
  a new mark reopens the store before using it, so readers follow a writer of another process.

The locks are the operating system's: they vanish with the process that held them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout

from abc_rag.errors import StoreError, StoreLockedError
from abc_rag.files import write

__all__ = ["Lease"]

C = TypeVar("C")
T = TypeVar("T")

_WRITER_LOCK = "abc-writer.lock"
_WRITER_FILE = "abc-writer.json"
_INDEX_LOCK = "abc-index.lock"
# Longer than the slowest single request (30 MB of vectors) takes to be indexed on a slow disk.
_INDEX_TIMEOUT_S = 300.0
_POLL_S = 0.01

_registry: dict[str, _Directory[Any]] = {}
_registry_lock = threading.Lock()
_used = False
_forked = False


def _after_fork_in_child() -> None:
    # The parent's clients have lost their threads here, and its locks are not ours. Both must outlive even
    # this process's exit: Chroma's finaliser would wait for those threads, a lock's would unlock the parent.
    global _registry, _registry_lock, _forked
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_registry))
    _registry = {}
    _registry_lock = threading.Lock()
    _forked = _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _refuse_fork(path: str) -> None:
    # Chroma's native thread pool is one per process and does not survive a fork: every call would hang.
    if _forked:
        raise StoreError(
            f"{path}: an embedded store cannot be used in a process forked from one that had used an embedded store; "
            "start the process with multiprocessing's 'spawn', open stores only after forking, or use a Chroma server"
        )


def _note_use() -> None:
    global _used
    _used = True


class _Gate:
    """Many users at once, or one alone. Not re-entrant."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._closed = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._closed = True
            self._changed.wait_for(lambda: self._users == 0)
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


class _Directory(Generic[C]):
    """What all objects of this process share about one directory: the client and the locks."""

    def __init__(
        self, path: str, open_client: Callable[[str], C], close_client: Callable[[C], None], watched: str
    ) -> None:
        self.path = path
        self.pid = os.getpid()
        self.leases: set[Lease[C]] = set()
        self._open_client = open_client
        self._close_client = close_client
        self._watched = watched
        self._gate = _Gate()
        self._client: C | None = None
        self._seen: tuple[int, str] | None = None
        self._loaded: set[Lease[C]] = set()
        self._writers: set[Lease[C]] = set()
        self._writer_mutex = threading.Lock()
        self._writer_lock = FileLock(self._file(_WRITER_LOCK), thread_local=False)
        self._writer_inode = 0
        self._since = ""
        # A FileLock counts the threads of one process as one holder, hence the mutex beside it.
        self._index_mutex = threading.Lock()
        self._index_lock = FileLock(self._file(_INDEX_LOCK), thread_local=False)

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    # -- the mark in the directory ---------------------------------------------------------------

    def _read_note(self) -> dict[str, object]:
        try:
            with open(self._file(_WRITER_FILE), encoding="utf-8") as file:
                note = json.load(file)
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _write_note(self, mark: str, *, holding: bool) -> None:
        note: dict[str, object] = {"mark": mark}
        if holding:
            note |= {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                # The name alone: arguments may carry secrets.
                "command": os.path.basename(sys.argv[0] if sys.argv else "") or "python",
                "since": self._since,
            }
        write(Path(self._file(_WRITER_FILE)), json.dumps(note))

    def _state(self) -> tuple[int, str]:
        """Changes when anybody writes, and when the directory is deleted and made anew."""
        try:
            inode = os.stat(self._file(self._watched)).st_ino
        except OSError:
            inode = 0
        return inode, str(self._read_note().get("mark", ""))

    # -- the client ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _index(self) -> Iterator[None]:
        with self._index_mutex:
            try:
                self._index_lock.acquire(timeout=_INDEX_TIMEOUT_S, poll_interval=_POLL_S)
            except Timeout as error:
                raise StoreError(
                    f"{self.path}: another process has been busy with the index for {_INDEX_TIMEOUT_S:.0f} s; "
                    "try again, or end that process"
                ) from error
            try:
                yield
            finally:
                self._index_lock.release()

    def _current(self) -> C | None:
        return self._client if self._client is not None and self._seen == self._state() else None

    def _reopen(self) -> None:
        # Two processes that open a new directory at once both try to create its tables: hence the lock here.
        with self._gate.alone():
            if self._current() is not None:
                return
            with self._index():
                self._drop_client()
                _note_use()
                self._client = self._open_client(self.path)
                self._seen = self._state()

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        self._loaded.clear()
        if client is not None:
            self._close_client(client)

    def read(self, lease: Lease[C], use: Callable[[C], T]) -> T:
        while True:
            with self._gate.shared():
                self._refuse_gone(lease)
                client = self._current()
                if client is not None and lease in self._loaded:
                    try:
                        return use(client)
                    except Exception:
                        # Another process may have written meanwhile, so that the files are ahead of the memory.
                        if self._current() is client:
                            raise
                elif client is not None:
                    with self._index():
                        # A writer of another process may have finished while this one waited.
                        if self._current() is client:
                            lease.load(client)
                            self._loaded.add(lease)
                            continue
            self._reopen()

    def write(self, lease: Lease[C], use: Callable[[C], T]) -> T:
        while True:
            self._become_writer(lease)
            with self._gate.shared():
                self._refuse_gone(lease)
                client = self._current()
                # Another thread's close() may have given the lock back since.
                if client is not None and lease in self._writers:
                    with self._index():
                        if self._current() is client:
                            # The mark goes first: if this process dies half-way, others still reopen.
                            self._write_note(uuid.uuid4().hex, holding=True)
                            self._seen = self._state()
                            return use(client)
            if self._current() is None:
                self._reopen()

    def _refuse_gone(self, lease: Lease[C]) -> None:
        if lease not in self.leases:
            raise StoreError(f"{self.path}: this store has been closed; open a new one")
        if not os.path.isdir(self.path):  # the locks and Chroma would make it anew, and empty
            raise StoreError(
                f"{self.path}: the directory of this store has been deleted; open a new store at that path"
            )

    # -- the writer ------------------------------------------------------------------------------

    def _become_writer(self, lease: Lease[C]) -> None:
        with self._writer_mutex:
            self._refuse_gone(lease)
            if self._writer_lock.is_locked and self._writer_inode != _inode(self._file(_WRITER_LOCK)):
                # The directory was deleted and made anew: what is held guards a file that is gone.
                self._writer_lock.release(force=True)
            if not self._writer_lock.is_locked:
                try:
                    self._writer_lock.acquire(timeout=lease.timeout_s, poll_interval=_POLL_S)
                except Timeout as error:
                    raise StoreLockedError(self._locked_message()) from error
                self._writer_inode = _inode(self._file(_WRITER_LOCK))
                self._since = datetime.now(timezone.utc).isoformat(timespec="seconds")
                self._write_note(str(self._read_note().get("mark", "")), holding=True)
            self._writers.add(lease)

    def _locked_message(self) -> str:
        note = self._read_note()
        holder = "which one is unknown"
        if "pid" in note:
            holder = f"pid {note['pid']} on {note.get('host')} ({note.get('command')}), since {note.get('since')}"
        return (
            f"{self.path}: another process is writing to this store: {holder}. Wait until it closes the store or ends "
            "(lock_timeout_s waits for you), or let several processes write through one Chroma server: "
            f"run 'chroma run --path {self.path}' and open the store with url="
        )

    def release(self, lease: Lease[C]) -> None:
        """Take back one lease; the caller holds the registry's lock."""
        with self._gate.alone(), self._writer_mutex:
            self.leases.discard(lease)
            self._writers.discard(lease)
            self._loaded.discard(lease)
            try:
                if not self.leases:
                    self._drop_client()
            finally:
                if not self._writers and self._writer_lock.is_locked:
                    with contextlib.suppress(OSError):  # a deleted directory or a full disk: the lock still goes
                        self._write_note(str(self._read_note().get("mark", "")), holding=False)
                    self._writer_lock.release(force=True)


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


class Lease(Generic[C]):
    """One object's share of a directory. Safe to use from many threads.

    Args:
        path: The directory; it must exist. Every spelling of it is the same directory.
        open_client: Opens what is shared, given the path.
        close_client: Closes it.
        load: Brings this object's indexes into memory; called without any writer of another process at work.
        watched: A file in the directory whose replacement means that the directory was made anew.
        timeout_s: How long a write waits for another process to stop writing, in seconds.
    """

    def __init__(
        self,
        path: str,
        open_client: Callable[[str], C],
        close_client: Callable[[C], None],
        load: Callable[[C], None],
        *,
        watched: str,
        timeout_s: float,
    ) -> None:
        self.path = os.path.realpath(path)
        self.load = load
        self.timeout_s = timeout_s
        self._arguments = (open_client, close_client, watched)
        self._directory: _Directory[C] | None = self._join()

    def _join(self) -> _Directory[C]:
        _refuse_fork(self.path)
        with _registry_lock:
            directory: _Directory[C] | None = _registry.get(self.path)
            if directory is None:
                directory = _registry[self.path] = _Directory(self.path, *self._arguments)
            directory.leases.add(self)
            return directory

    def _shared(self) -> _Directory[C]:
        _refuse_fork(self.path)
        directory = self._directory
        if directory is None:
            raise StoreError(f"{self.path}: this store has been closed; open a new one")
        return directory

    def read(self, use: Callable[[C], T]) -> T:
        """Call ``use(client)`` with a client that has seen every finished write.

        It takes no lock, unless another process has written since the last call.
        """
        return self._shared().read(self, use)

    def write(self, use: Callable[[C], T]) -> T:
        """Call ``use(client)`` as the only process that writes, one thread at a time.

        Raises:
            StoreLockedError: Another process is writing; the message says which.
        """
        return self._shared().write(self, use)

    def close(self) -> None:
        """Give the share back; the last one closes the client, the last writer unlocks. Idempotent."""
        directory, self._directory = self._directory, None
        if directory is None or directory.pid != os.getpid():  # a forked child leaves its parent's things alone
            return
        with _registry_lock:
            directory.release(self)
            if not directory.leases and _registry.get(self.path) is directory:
                del _registry[self.path]
