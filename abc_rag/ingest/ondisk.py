"""Mappings of a run that may be as large as the store: in a temporary file, not in memory."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, MutableMapping
from itertools import islice

__all__ = ["OnDisk"]

_PAGE = 1000


class OnDisk(MutableMapping[str, str]):
    """Texts by text. A few megabytes are kept in memory, the rest is in a temporary file that goes with this object.

    Safe to use from many threads. Texts that are no Unicode come back as they were.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Without a name: SQLite's own temporary database.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE pairs (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        self._by_value = False

    def close(self) -> None:
        """Remove the temporary file. Idempotent."""
        with self._lock:
            self._database.close()

    def _all(self, statement: str, *arguments: object) -> list[tuple[bytes, ...]]:
        with self._lock:
            return self._database.execute(statement, arguments).fetchall()

    def __getitem__(self, key: str) -> str:
        rows = self._all("SELECT value FROM pairs WHERE key = ?", _bytes(key))
        if not rows:
            raise KeyError(key)
        return _text(rows[0][0])

    def __setitem__(self, key: str, value: str) -> None:
        self._all("INSERT OR REPLACE INTO pairs VALUES (?, ?)", _bytes(key), _bytes(value))

    def __delitem__(self, key: str) -> None:
        if not self._all("DELETE FROM pairs WHERE key = ? RETURNING key", _bytes(key)):
            raise KeyError(key)

    def __len__(self) -> int:
        (row,) = self._all("SELECT count(*) FROM pairs")
        return int(row[0])

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self.pairs())

    def put(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Set many."""
        rest = iter(pairs)
        while rows := [(_bytes(key), _bytes(value)) for key, value in islice(rest, _PAGE)]:
            with self._lock:
                self._database.execute("BEGIN")
                self._database.executemany("INSERT OR REPLACE INTO pairs VALUES (?, ?)", rows)
                self._database.execute("COMMIT")

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Everything, in the order of keys, a page at a time."""
        last = b""
        while rows := self._all("SELECT key, value FROM pairs WHERE key > ? ORDER BY key LIMIT ?", last, _PAGE):
            last = rows[-1][0]
            yield from ((_text(key), _text(value)) for key, value in rows)

    # -- the other way round ---------------------------------------------------------------------

    def keys_of(self, value: str) -> set[str]:
        """The keys that have a value."""
        self._index()
        return {_text(row[0]) for row in self._all("SELECT key FROM pairs WHERE value = ?", _bytes(value))}

    def distinct(self) -> Iterator[str]:
        """Each value once, in order."""
        self._index()
        if self._all("SELECT 1 FROM pairs WHERE value = ? LIMIT 1", b""):
            yield ""
        last = b""
        while rows := self._all("SELECT DISTINCT value FROM pairs WHERE value > ? ORDER BY value LIMIT ?", last, _PAGE):
            last = rows[-1][0]
            yield from (_text(row[0]) for row in rows)

    def _index(self) -> None:
        if not self._by_value:
            self._all("CREATE INDEX IF NOT EXISTS by_value ON pairs (value)")
            self._by_value = True


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
