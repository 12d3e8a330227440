"""Where the pictures of a store may be opened again.

Whoever can write into a store decides what its records say, and a store may be shared, or come from elsewhere. So a
record's path is no reason to open it: a page or a chat model would be shown any picture on the machine. `Roots` says
which files and folders somebody indexed on this machine, for one store. That is written down in a small registry of
the user's own, outside of the store, and is found again by later processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Union

from abc_rag.errors import InputError

__all__ = ["Roots", "state_folder"]

logger = logging.getLogger(__name__)

Place = Union[str, "os.PathLike[str]"]

_FILE = "roots.sqlite3"
_WAIT_S = 10.0  # for another process that writes
_lock = threading.Lock()
# What this process knows besides the registry: (store, path). Holds what could not be written down, and the folders
# in which the stores that were opened keep copies.
_here: set[tuple[str, str]] = set()


def state_folder() -> Path:
    """Where facts about this machine are kept: ``$ABC_RAG_STATE``, else the platform's folder for a user's state."""
    if given := os.environ.get("ABC_RAG_STATE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.join("~", "AppData", "Local")
    elif sys.platform == "darwin":
        base = os.path.join("~", "Library", "Application Support")
    else:
        base = os.environ.get("XDG_STATE_HOME") or os.path.join("~", ".local", "state")
    return Path(base).expanduser() / "abc-rag"


class Roots:
    """Files, and folders with all that is in them, from which pictures may be opened.

    Args:
        store: The store's name in the registry; None for whatever this user has indexed into any store.
        own: Folders of the store's own, with all links on the way to them followed.
        further: Files and folders that the caller vouches for.

    Raises:
        InputError: ``own`` or ``further`` is not a list of paths.
    """

    def __init__(self, store: str | None = None, *, own: Iterable[Place] = (), further: Iterable[Place] = ()) -> None:
        self._store = store
        # As they are named: whoever filled the store may have put a link in the folder's place.
        self._own = {_named(os.path.abspath(path)) for path in own}
        # Known to be allowed; roots are never taken back, so nothing here becomes wrong.
        self._known = self._own | _names(further)
        if self._own:
            with _lock:
                _here.update((store or "", name) for name in self._own)

    def __repr__(self) -> str:
        return f"Roots({self._store!r})"

    def including(self, further: Iterable[Place]) -> Roots:
        """These and ``further`` ones, which are not written down."""
        made = Roots(self._store, further=further)
        made._own = self._own
        made._known |= self._known
        return made

    def add(self, paths: Iterable[Place]) -> None:
        """Write down files and folders that are indexed into this store, here and now."""
        new = _names(paths) - self._known
        if not new:
            return
        store = self._store or ""
        try:
            with _registry(write=True) as registry:
                registry.executemany("INSERT OR IGNORE INTO roots VALUES (?, ?)", [(name, store) for name in new])
        except (OSError, sqlite3.Error) as error:
            with _lock:
                _here.update((store, name) for name in new)
            logger.warning(
                "%s cannot be written (%s): later processes will not open these pictures again unless they are told "
                "to by roots=[...]; set ABC_RAG_STATE to a folder that can be written to",
                state_folder() / _FILE,
                error,
            )
        self._known |= new

    def listed(self) -> list[str]:
        """What was written down for this store, as absolute paths."""
        try:
            with _registry(write=False) as registry:
                rows = registry.execute("SELECT path FROM roots WHERE store = ?", [self._store or ""]).fetchall()
        except (OSError, sqlite3.Error):
            rows = []
        with _lock:
            here = {path for store, path in _here if store == (self._store or "")}
        return sorted({str(path) for (path,) in rows} | here)

    def forget(self) -> None:
        """Take back what was written down for this store, which is about to vanish; this process still knows it."""
        store = self._store or ""
        try:
            with _registry(write=False) as registry:
                rows = registry.execute("DELETE FROM roots WHERE store = ? RETURNING path", [store]).fetchall()
        except (OSError, sqlite3.Error):  # then it stays, and names what is gone
            return
        with _lock:
            _here.update((store, str(path)) for (path,) in rows)

    def outside(self, paths: Iterable[str]) -> set[str]:
        """Those of ``paths`` that are in none of these, or that link to a file that is in none of these."""
        found = set()
        for path in paths:
            try:
                # By its name first: following links may already reach a share on the network.
                allowed = self._has(_named(os.path.abspath(path))) and self._has(_named(os.path.realpath(path)))
            except (OSError, ValueError):  # no path on this system
                allowed = False
            if not allowed:
                found.add(path)
        return found

    def _has(self, name: str) -> bool:
        path = Path(name)
        lineage = [name, *map(str, path.parents)]
        if not self._known.isdisjoint(lineage):
            return True
        with _lock:
            found = next((one for store, one in _here if self._store in (None, store) and one in lineage), None)
        if found is None:
            found = self._written(lineage)
        if found is not None:
            self._known.add(found)
        return found is not None

    def _written(self, lineage: list[str]) -> str | None:
        marks = ", ".join("?" * len(lineage))
        query, values = f"SELECT path FROM roots WHERE path IN ({marks})", list(lineage)
        if self._store is not None:
            query, values = f"{query} AND store = ?", [*values, self._store]
        try:
            with _registry(write=False) as registry:
                row = registry.execute(f"{query} LIMIT 1", values).fetchone()
        except FileNotFoundError:  # nothing was indexed yet
            return None
        except (OSError, sqlite3.Error) as error:
            logger.warning(
                "%s cannot be read (%s), so pictures are not opened again; delete it and index again",
                state_folder() / _FILE,
                error,
            )
            return None
        return None if row is None else str(row[0])


@contextlib.contextmanager
def _registry(*, write: bool) -> Iterator[sqlite3.Connection]:
    file = state_folder() / _FILE
    if write:
        # Private: names of pictures are nobody else's business.
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    elif not file.is_file():
        raise FileNotFoundError(str(file))
    with contextlib.closing(sqlite3.connect(file, timeout=_WAIT_S)) as registry, registry:
        if write:
            registry.execute(
                "CREATE TABLE IF NOT EXISTS roots (path TEXT, store TEXT, PRIMARY KEY (path, store)) WITHOUT ROWID"
            )
        yield registry


def _names(paths: Iterable[Place]) -> set[str]:
    """Paths as they are given and as they are without links, both absolute."""
    if isinstance(paths, (str, os.PathLike)):
        raise InputError(f"roots must be a list of paths; got a single {type(paths).__name__}: pass [path]")
    found = set()
    for path in paths:
        try:
            expanded = os.path.expanduser(os.fsdecode(path))
        except TypeError as error:
            raise InputError(f"roots must be paths, not {type(path).__name__}") from error
        # What is no path on this system names nothing that could be opened.
        with contextlib.suppress(OSError, ValueError):
            if expanded:
                found |= {_named(os.path.abspath(expanded)), _named(os.path.realpath(expanded))}
    return found


def _named(path: str) -> str:
    # Names that are no Unicode cannot be bound to an SQL statement.
    return os.path.normcase(path).encode("utf-8", "backslashreplace").decode()
