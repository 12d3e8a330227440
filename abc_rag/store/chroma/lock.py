"""Locks on a store's directory: which process may write, and when an index may be loaded.

An embedded Chroma keeps its index in memory and on disk, and does not notice changes by another process:

- two processes that write lose vectors permanently, even one after the other, if the second opened the store before
  the first wrote;
- a process that only *reads* rewrites index files while it loads them. If another process saves at that time, the
  store crashes every process that opens it afterwards.

Therefore the directory has two locks and a mark:

- ``abc-writer.lock`` is held while a process writes and for a short time after, so that successive writes need not
  reload the index;
- ``abc-index.lock`` is held during one write, and while an index is loaded;
- ``abc-writer.json`` names the writer, and has a mark that changes with every write. A process that sees a new mark
  reopens the store before it uses it, so readers follow a writer of another process.

These are locks of the operating system, which releases them when a process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock, Timeout

from abc_rag.errors import ABCRagError, StoreError, StoreLockedError
from abc_rag.files import write
from abc_rag.store.chroma.client import close_client
from abc_rag.store.chroma.gate import Gate
from abc_rag.store.chroma.journal import CHROMA_FILE, Journal
from abc_rag.store.chroma.recovery import open_directory, says_all

if TYPE_CHECKING:
    from chromadb.api.client import Client

__all__ = ["Lease"]

T = TypeVar("T")

_WRITER_LOCK = "abc-writer.lock"
_WRITER_FILE = "abc-writer.json"
_INDEX_LOCK = "abc-index.lock"
# Longer than indexing the largest request (30 MB of vectors) takes on a slow disk.
_INDEX_TIMEOUT_S = 300.0
_POLL_S = 0.01
# A note has a few hundred bytes. A longer file is not ours, and is not read.
_NOTE_BYTES = 4096
# Bytes at the beginning of a note, which contain its mark.
_MARK_BYTES = 64

_registry: dict[str, _Directory] = {}
_registry_lock = threading.Lock()
_used = False
_forked = False


def _after_fork_in_child() -> None:
    # The parent's clients have no threads in this process, and its locks are not ours. Both are kept until after
    # the exit: Chroma's finaliser would wait for those threads, and a lock's would release the parent's lock.
    global _registry, _registry_lock, _forked
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_registry))
    _registry = {}
    _registry_lock = threading.Lock()
    _forked = _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _refuse_fork(path: str) -> None:
    # Chroma has one native thread pool per process, which does not survive a fork: every call would hang.
    if _forked:
        raise StoreError(
            f"{path}: an embedded store cannot be used in a process forked from one that had used an embedded store; "
            "start the process with multiprocessing's 'spawn', open stores only after forking, or use a Chroma server"
        )


def _note_use() -> None:
    global _used
    _used = True


class _Directory:
    """The client, the journal and the locks that all objects of this process share for one directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pid = os.getpid()
        self.leases: set[Lease] = set()
        self.journal: Journal | None = None
        self._gate = Gate()
        self._client: Client | None = None
        self._seen: tuple[int, bytes] | None = None
        self._loaded: set[Lease] = set()
        self._writers: set[Lease] = set()
        self._writing = 0
        self._idle_since = 0.0
        self._timer: threading.Timer | None = None
        self._writer_mutex = threading.Lock()
        self._writer_lock = FileLock(self._file(_WRITER_LOCK), thread_local=False)
        self._writer_inode = 0
        self._since = ""
        # A FileLock treats the threads of a process as one holder, so a mutex is needed as well.
        self._index_mutex = threading.Lock()
        self._index_lock = FileLock(self._file(_INDEX_LOCK), thread_local=False)

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    # -- the mark in the directory ---------------------------------------------------------------

    def _note_bytes(self, most: int) -> bytes:
        """The beginning of the note; empty if it is not a regular file, because reading a pipe would never end."""
        try:
            handle = os.open(self._file(_WRITER_FILE), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            return b""
        try:
            return os.read(handle, most) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
        except OSError:
            return b""
        finally:
            os.close(handle)

    def _read_note(self) -> dict[str, object]:
        try:
            note = json.loads(self._note_bytes(_NOTE_BYTES))
        except (ValueError, RecursionError):
            return {}
        return note if isinstance(note, dict) else {}

    def _write_note(self, mark: str, *, holding: bool) -> None:
        # The mark comes first: see `_state`.
        note: dict[str, object] = {"mark": mark}
        if holding:
            note |= {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                # Only the name, because arguments may contain secrets.
                "command": os.path.basename(sys.argv[0] if sys.argv else "") or "python",
                "since": self._since,
            }
        path = Path(self._file(_WRITER_FILE))
        if path.exists() and not path.is_file():
            raise StoreError(f"{path}: not a regular file but a device, a pipe or a folder; remove it")
        write(path, json.dumps(note), durable=False)

    def _state(self) -> tuple[int, bytes]:
        """A value that changes with every write, and when the directory is deleted and created again."""
        try:
            inode = os.stat(self._file(CHROMA_FILE)).st_ino
        except OSError:
            inode = 0
        # The holder of the lock is written after the mark, and is not part of the state.
        return inode, self._note_bytes(_MARK_BYTES).partition(b",")[0].rstrip(b"}")

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

    def _current(self) -> Client | None:
        return self._client if self._client is not None and self._seen == self._state() else None

    def _reopen(self) -> None:
        # Without the lock, two processes that open a new directory at once would both create its tables.
        with self._gate.alone():
            if self._current() is not None:
                return
            with self._index():
                self._drop_client()
                _note_use()
                journal = Journal(self.path)
                try:
                    self._client = open_directory(self.path, journal)
                except BaseException:
                    journal.close()
                    raise
                self.journal = journal
                self._seen = self._state()

    def _journal_alone(self) -> bool:
        """Open the journal without Chroma, which takes a second to import, where the journal says all there is."""
        with self._gate.alone():
            if self._client is not None:
                return False
            if self.journal is not None and self._seen == self._state():
                return True
            if not os.path.isfile(self._file(CHROMA_FILE)):
                return False
            with self._index():
                self._drop_client()
                _note_use()
                journal = Journal(self.path)
                try:
                    whole = says_all(self.path, journal)
                except BaseException:
                    journal.close()
                    raise
                if not whole:
                    journal.close()
                    return False
                self.journal, self._seen = journal, self._state()
                return True

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        journal, self.journal = self.journal, None
        self._loaded.clear()
        if journal is not None:
            journal.close()
        if client is not None:
            close_client(client)

    def reopen_later(self) -> None:
        """Reopen the client before the next use."""
        self._seen = None

    def read(self, lease: Lease, use: Callable[[Client], T]) -> T:
        while True:
            with self._gate.shared():
                self._refuse_gone(lease)
                client = self._current()
                if client is not None and lease in self._loaded:
                    try:
                        return use(client)
                    except Exception:
                        # Another process may have written in the meantime, so the files may be newer than the memory.
                        if self._current() is client:
                            raise
                elif client is not None:
                    with self._index():
                        # Another process may have finished writing while this one waited.
                        if self._current() is client:
                            lease.load(client)
                            self._loaded.add(lease)
                            continue
            self._reopen()

    def glance(self, lease: Lease, use: Callable[[Client | None], T]) -> T:
        while self._client is None:
            with self._gate.shared():
                self._refuse_gone(lease)
                seen = self._seen
                if self.journal is not None and self._client is None and seen == self._state():
                    try:
                        return use(None)
                    except Exception:
                        if seen == self._state():
                            raise
            if not self._journal_alone():
                break
        return self.read(lease, use)

    def write(self, lease: Lease, use: Callable[[Client], T]) -> T:
        self._become_writer(lease)
        try:
            while True:
                with self._gate.shared():
                    self._refuse_gone(lease)
                    client = self._current()
                    if client is not None:
                        with self._index():
                            if self._current() is client:
                                return self._write(client, use)
                self._reopen()
        finally:
            self._rest(lease)

    def _write(self, client: Client, use: Callable[[Client], T]) -> T:
        # The mark is written first: if this process dies during the write, others still reopen.
        self._write_note(uuid.uuid4().hex, holding=True)
        self._seen = self._state()
        try:
            return use(client)
        except BaseException as error:
            if not isinstance(error, ABCRagError):  # the state of Chroma's memory is unknown now
                self.reopen_later()
            raise

    def _refuse_gone(self, lease: Lease) -> None:
        if lease not in self.leases:
            raise StoreError(f"{self.path}: this store has been closed; open a new one")
        if not os.path.isdir(self.path):  # the locks and Chroma would create it again, empty
            raise StoreError(
                f"{self.path}: the directory of this store has been deleted; open a new store at that path"
            )

    # -- the writer ------------------------------------------------------------------------------

    def _become_writer(self, lease: Lease) -> None:
        with self._writer_mutex:
            self._refuse_gone(lease)
            if self._writer_lock.is_locked and self._writer_inode != _inode(self._file(_WRITER_LOCK)):
                # The directory was deleted and created again: the held lock is on a file that is gone.
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
            self._writing += 1

    def _rest(self, lease: Lease) -> None:
        """Release the lock some time after a write, unless another write follows."""
        with self._writer_mutex:
            self._writing -= 1
            self._idle_since = time.monotonic()
            if self._timer is None and self._writer_lock.is_locked:
                self._wait(lease.hold_s)

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._end_of_rest)
        self._timer.daemon = True
        self._timer.start()

    def _end_of_rest(self) -> None:
        with self._writer_mutex:
            self._timer = None
            if not self._writers:
                return
            hold = max(lease.hold_s for lease in self._writers)
            left = self._idle_since + hold - time.monotonic()
            if self._writing or left > 0:
                self._wait(max(left, _POLL_S) if not self._writing else hold)
            else:
                self._writers.clear()
                self._unlock()

    def _unlock(self) -> None:
        """Release the lock; the caller holds the writers' mutex."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writer_lock.is_locked:
            with contextlib.suppress(OSError, StoreError):  # a deleted directory or a full disk
                self._write_note(str(self._read_note().get("mark", "")), holding=False)
            self._writer_lock.release(force=True)

    def _locked_message(self) -> str:
        note = self._read_note()
        holder = "which one is unknown"
        if "pid" in note:
            holder = f"pid {note['pid']} on {note.get('host')} ({note.get('command')}), since {note.get('since')}"
        return (
            f"{self.path}: another process is writing to this store: {holder}. Wait until it has finished "
            "(lock_timeout_s waits for you), or let several processes write through one Chroma server: "
            f"run 'chroma run --path {self.path}' and open the store with url="
        )

    def release(self, lease: Lease) -> None:
        """Take back one lease; the caller holds the registry's lock."""
        with self._gate.alone(), self._writer_mutex:
            self.leases.discard(lease)
            self._writers.discard(lease)
            self._loaded.discard(lease)
            try:
                if not self.leases:
                    self._drop_client()
            finally:
                if not self._writers:
                    self._unlock()


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


class Lease:
    """One object's lease on a directory. Safe to use from many threads.

    Args:
        path: The directory; it must exist. Different spellings of its path share one client.
        load: Loads this object's indexes into memory; called while no other process writes.
        timeout_s: How long a write waits for another process to stop writing, in seconds.
        hold_s: How long the right to write is kept after a write, in seconds.
    """

    def __init__(self, path: str, load: Callable[[Client], None], *, timeout_s: float, hold_s: float) -> None:
        self.path = os.path.realpath(path)
        self.load = load
        self.timeout_s = timeout_s
        self.hold_s = hold_s
        self._directory: _Directory | None = self._join()

    def _join(self) -> _Directory:
        _refuse_fork(self.path)
        with _registry_lock:
            directory = _registry.get(self.path)
            if directory is None:
                directory = _registry[self.path] = _Directory(self.path)
            directory.leases.add(self)
            return directory

    def _shared(self) -> _Directory:
        _refuse_fork(self.path)
        directory = self._directory
        if directory is None:
            raise StoreError(f"{self.path}: this store has been closed; open a new one")
        return directory

    @property
    def journal(self) -> Journal:
        """The directory's journal; use it only within `read`, `glance` and `write`."""
        journal = self._shared().journal
        if journal is None:
            raise StoreError(f"{self.path}: this store has been closed; open a new one")
        return journal

    def read(self, use: Callable[[Client], T]) -> T:
        """Call ``use(client)`` with a client that has seen every finished write.

        It takes no lock, unless another process has written since the last call.
        """
        return self._shared().read(self, use)

    def glance(self, use: Callable[[Client | None], T]) -> T:
        """`read`, but ``use(None)`` while Chroma has not been needed: then the journal alone is open."""
        return self._shared().glance(self, use)

    def write(self, use: Callable[[Client], T]) -> T:
        """Call ``use(client)`` as the only process that writes, one thread at a time.

        Raises:
            StoreLockedError: Another process is writing; the message says which.
        """
        return self._shared().write(self, use)

    def reopen(self) -> None:
        """Make the next call reopen the client, with the collections' current settings."""
        self._shared().reopen_later()

    def close(self) -> None:
        """End the lease. The last one closes the client; the last writer releases the lock. Idempotent."""
        directory, self._directory = self._directory, None
        if directory is None or directory.pid != os.getpid():  # after a fork, these are the parent's
            return
        with _registry_lock:
            directory.release(self)
            if not directory.leases and _registry.get(self.path) is directory:
                del _registry[self.path]
