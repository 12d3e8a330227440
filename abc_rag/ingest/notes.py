"""What was in which file when it was read: a file with the same size and time of change is not read again.

These are facts about files on this machine and say nothing of any record: whoever relies on a note looks up whether
what was in the file is stored. A time of change says nothing where the file was read within the same tick of its clock:
what is written in the rest of that tick leaves the time as it is. So what was read too soon is not noted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["FileNotes"]

logger = logging.getLogger(__name__)

# Raise it when the same file yields other ids than before.
_VERSION = 1
# The longest tick of the clocks of file systems: 2 s on FAT, which has whole seconds only; 16 ms of what has fractions.
_SECOND_NS = 1_000_000_000
_LONG_TICK_NS = 2 * _SECOND_NS
_TICK_NS = 50_000_000
_MOST_WAITING = 500  # notes that are written together
_WAIT_S = 10.0  # for another process that writes


class FileNotes:
    """Notes in a file; without them where it cannot be used, which is logged. Safe to use from many threads.

    Args:
        path: The file; made with the first note.
        trust: Whether `ids` and `kind` answer at all; notes are made in any case.
    """

    def __init__(self, path: Path, *, trust: bool = True) -> None:
        self._path = path
        self._trust = trust
        self._lock = threading.Lock()
        self._new: dict[str, tuple[int, int, str, str]] = {}
        self._opened: sqlite3.Connection | None = None
        self._broken = False

    def __enter__(self) -> FileNotes:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        with self._lock:
            opened, self._opened, self._broken = self._opened, None, True
        if opened is not None:
            opened.close()

    def ids(self, path: str, kind: str) -> list[str] | None:
        """What `put` was told of a file; None where it is not known, or the file may have changed."""
        noted, ids = self._noted(path)
        return list(json.loads(ids)) if noted == kind else None

    def kind(self, path: str) -> str | None:
        """The kind of a file; None where it is not known, or the file may have changed."""
        return self._noted(path)[0]

    def _noted(self, path: str) -> tuple[str | None, str]:
        """The kind of a file and what was noted of it."""
        if not self._trust:
            return None, ""
        try:
            status = os.stat(path)
        except OSError:
            return None, ""
        rows = self._run("SELECT size, changed, kind, ids FROM files WHERE path = ?", (_name(path),), write=False)
        if not rows or rows[0][:2] != (status.st_size, status.st_mtime_ns):
            return None, ""
        return rows[0][2:]

    def before(self, path: str) -> os.stat_result | None:
        """What to hand to `put` when the file has been read; None where that would be too soon after its last change.

        Waits until a change that was made a moment ago can be told from one that is made now.
        """
        try:
            status = os.stat(path)
        except OSError:
            return None
        tick = _TICK_NS if status.st_mtime_ns % _SECOND_NS else _LONG_TICK_NS
        age = time.time_ns() - status.st_mtime_ns
        if tick == _TICK_NS and 0 <= age < tick:
            time.sleep((tick - age) / _SECOND_NS)
            age = time.time_ns() - status.st_mtime_ns
        return status if age >= tick else None

    def put(self, path: str, kind: str, before: os.stat_result | None, ids: Sequence[str]) -> None:
        """Note what was found in a file, if it did not change while it was read.

        Args:
            path: The file.
            kind: What it is.
            before: From `before`.
            ids: Of what is in it; of a document, its hash and the name of its reader.
        """
        try:
            after = os.stat(path)
        except OSError:
            return
        if before is None or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            return
        with self._lock:
            self._new[_name(path)] = after.st_size, after.st_mtime_ns, kind, json.dumps(list(ids))
            full = len(self._new) >= _MOST_WAITING
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what has been noted."""
        with self._lock:
            new, self._new = self._new, {}
        if new:
            rows = [(path, *note) for path, note in new.items()]
            self._run("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows, write=True)

    def forget(self, paths: Iterable[str]) -> None:
        """Drop the notes of files that are gone."""
        self._run("DELETE FROM files WHERE path = ?", [(_name(path),) for path in paths], write=True)

    def _run(self, statement: str, arguments: Sequence[object], *, write: bool) -> list[tuple[int, int, str, str]]:
        with self._lock:
            try:
                connection = self._connection(make=write)
                if connection is None:
                    return []
                if not write:
                    return connection.execute(statement, arguments).fetchall()
                with connection:
                    connection.executemany(statement, arguments)  # type: ignore[arg-type]  # rows of values
            except (OSError, sqlite3.Error) as error:
                self._broken = True
                logger.warning("%s cannot be used (%s): files are read again; remove it", self._path, error)
            return []

    def _connection(self, *, make: bool) -> sqlite3.Connection | None:
        if self._broken or (self._opened is None and not make and not self._path.exists()):
            return None
        if self._opened is None:
            if make:
                # Private: names of files are nobody else's business.
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            if not stat.S_ISREG(os.stat(self._path).st_mode):  # a pipe would never end
                raise OSError("not a regular file")
            self._opened = _opened(self._path)
        return self._opened


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_S, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                connection.execute("DROP TABLE IF EXISTS files")
                connection.execute(
                    "CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, changed INTEGER, kind TEXT, ids TEXT)"
                    " WITHOUT ROWID"
                )
                connection.execute(f"PRAGMA user_version = {_VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _name(path: str) -> str:
    # Names that are no Unicode cannot be bound to an SQL statement.
    return path.encode("utf-8", "backslashreplace").decode()
