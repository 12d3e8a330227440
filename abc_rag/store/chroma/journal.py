"""The truth of an embedded store: every record and its vector, in a SQLite file beside Chroma's.

Chroma writes its index files in place: a process that is killed meanwhile, or a full disk, leaves an index that cannot
be read, or that silently lacks records. Whatever is acknowledged is therefore in this file first, flushed to the disk.
A write goes through three steps, and a kill between any two of them costs nothing:

1.  `Journal.begin`: rows are changed here and noted as pending, in one transaction.
2.  Chroma is changed.
3.  `Journal.done`: the rows are no longer pending, and the state of Chroma's files is noted.

Rows that are pending when a directory is opened belong to a write that was cut short: they are written to Chroma
again or, if its index files have changed since the last complete write, the index is built anew from here
(`abc_rag.store.chroma.recovery`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import numpy as np

from abc_rag.errors import StoreError
from abc_rag.store.chroma.columns import Change, Columns
from abc_rag.store.chroma.fields import FIELD_TABLES, Keys, change_fields, few_keys, forget_fields
from abc_rag.store.filters import Condition
from abc_rag.store.table import PAGE
from abc_rag.store.words import Words, check_regular, transaction
from abc_rag.types import Record, Vectors

__all__ = ["CHROMA_FILE", "Journal", "collections_in", "index_folders"]

logger = logging.getLogger(__name__)

CHROMA_FILE = "chroma.sqlite3"
_FILE = "abc-records.sqlite3"
_SEGMENT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    key INTEGER PRIMARY KEY, name TEXT NOT NULL, id TEXT NOT NULL, record TEXT NOT NULL, UNIQUE (name, id)
);
CREATE TABLE IF NOT EXISTS vectors (key INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS pending (name TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (name, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, fingerprint TEXT);
CREATE TABLE IF NOT EXISTS state (files TEXT NOT NULL);
"""
_Column = Literal["id", "record", "vector"]
# Instead of an id: all rows of the collection.
_ALL = ""
_VECTOR = np.dtype("<f4")
# 1: rows are indexed by their fields.
_VERSION = 1
# What filters let through is remembered until something is written: bytes of keys.
_MOST_REMEMBERED = 2**25
_MOST_ANSWERS = 100
_TOO_MANY: Keys = np.zeros(0, np.int64)
# Rows that changed since, of which those who keep vectors in memory can learn.
_MOST_CHANGES = 20_000


def collections_in(folder: str) -> list[str]:
    """The names of the collections of an embedded store that hold records. Changes nothing.

    Args:
        folder: The store's directory; a missing one has none.

    Raises:
        StoreError: The journal cannot be read.
    """
    path = os.path.join(folder, _FILE)
    if not os.path.exists(path):
        return []
    check_regular(path)
    try:
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            rows = connection.execute("SELECT DISTINCT name FROM rows ORDER BY name").fetchall()
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be read ({error}); repair the store: abc-rag store repair") from error
    return [name for (name,) in rows if not name.endswith(".facets")]


class Journal:
    """The rows of all collections of one directory. Safe to use from many threads.

    Args:
        folder: The store's directory.

    Attributes:
        words: The keyword index of the rows.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._found: OrderedDict[tuple[str, str], Keys] = OrderedDict()
        self._counts: dict[str, int] = {}
        self._columns = Columns()
        self._changed: dict[str, tuple[int, list[int]]] = {}
        path = os.path.join(folder, _FILE)
        check_regular(path)
        try:
            self._open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            logger.warning("%s is damaged (%s); it is set aside and made anew from Chroma's files", path, error)
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.replace(path + suffix, f"{path}.damaged{suffix}")
            self._open(path)

    def _open(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            # A write-ahead log takes one flush a write, and readers of other processes never wait for it.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.executescript(_SCHEMA + FIELD_TABLES)
            if self._connection.execute("PRAGMA user_version").fetchone()[0] < _VERSION:
                self._index_all()
            self.words = Words(self._connection, self._lock, path)
        except BaseException:
            self._connection.close()
            raise

    def _index_all(self) -> None:
        """Index what was written before there was an index of fields."""
        with self._transaction(durable=True) as to:
            last = -1
            while rows := to.execute(
                "SELECT key, name, record FROM rows WHERE key > ? ORDER BY key LIMIT ?", (last, PAGE)
            ).fetchall():
                last = rows[-1][0]
                for name in {name for _, name, _ in rows}:
                    change_fields(to, name, [(key, None, _record(text)) for key, of, text in rows if of == name])
            to.execute(f"PRAGMA user_version = {_VERSION}")

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock, suppress(sqlite3.Error):  # the directory may be gone
            self._connection.close()

    # -- writing -------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with transaction(self._connection, self._lock) as connection:
                yield connection

    def begin(
        self, name: str, rows: Iterable[tuple[Record, Vectors]], removed: Sequence[str], mark: str | None
    ) -> None:
        """Change rows for good, and note that Chroma has yet to follow."""
        changed = list(rows)

        def change() -> Change:
            with self._transaction(durable=True) as to:
                done = self._change(to, name, changed, removed)
                to.execute(
                    "INSERT INTO marks VALUES (?, ?) ON CONFLICT (name) DO UPDATE"
                    " SET fingerprint = coalesce(excluded.fingerprint, fingerprint)",
                    (name, mark),
                )
            return done

        with self._lock:  # nobody asks between the commit and what follows it
            try:
                self._columns.follow(name, self.words.mended(change))
            except BaseException:
                self._columns.clear()
                raise

    def begin_all(self, name: str) -> None:
        """Note that Chroma's whole collection has to be built anew."""
        with self._transaction(durable=True) as to:
            to.execute("INSERT OR IGNORE INTO pending VALUES (?, ?)", (name, _ALL))

    def _change(
        self, to: sqlite3.Connection, name: str, rows: Iterable[tuple[Record, Vectors]], removed: Sequence[str]
    ) -> Change:
        fields: list[tuple[int, Record | None, Record | None]] = []
        for record, vector in rows:
            old = self._stored(to, name, record.id)
            # An update keeps the key, and with it the record's place in the order.
            (key,) = to.execute(
                "INSERT INTO rows (name, id, record) VALUES (?, ?, ?)"
                " ON CONFLICT (name, id) DO UPDATE SET record = excluded.record RETURNING key",
                (name, record.id, json.dumps(asdict(record), ensure_ascii=False)),
            ).fetchone()
            to.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?)", (key, vector.astype(_VECTOR).tobytes()))
            to.execute("INSERT OR IGNORE INTO pending VALUES (?, ?)", (name, record.id))
            fields.append((key, old[1] if old else None, record))
        for id_ in removed:
            if old := self._stored(to, name, id_):
                to.execute("DELETE FROM vectors WHERE key = ?", old[:1])
                to.execute("DELETE FROM rows WHERE key = ?", old[:1])
                fields.append((*old, None))
            to.execute("INSERT OR IGNORE INTO pending VALUES (?, ?)", (name, id_))
        changed = change_fields(to, name, fields)
        self._note_change(name, [key for key, _, _ in fields])
        new = [key for key, old, _ in fields if old is None]
        return Change(new, [key for key, _, record in fields if record is None], changed)

    @staticmethod
    def _stored(of: sqlite3.Connection, name: str, id_: str) -> tuple[int, Record] | None:
        row = of.execute("SELECT key, record FROM rows WHERE name = ? AND id = ?", (name, id_)).fetchone()
        return None if row is None else (row[0], _record(row[1]))

    def _note_change(self, name: str, keys: Sequence[int]) -> None:
        # Before it is committed, under the lock: a change that is taken back costs no more than a second look.
        self._found.clear()
        self._counts.clear()
        first, known = self._changed.get(name, (0, []))
        known.extend(keys)
        dropped = len(known) - _MOST_CHANGES if len(known) > 2 * _MOST_CHANGES else 0
        self._changed[name] = first + dropped, known[dropped:] if dropped else known

    def done(self) -> None:
        """Chroma has followed: nothing is pending, and its files are what they should be."""
        # Not flushed: if a power cut takes this back, Chroma is written to once more, which is safe.
        with self._transaction(durable=False) as to:
            to.execute("DELETE FROM pending")
            to.execute("DELETE FROM state")
            to.execute("INSERT INTO state VALUES (?)", (json.dumps([self._index_files(), self._change_counter()]),))

    def forget(self, name: str) -> None:
        """Drop a collection that is gone from Chroma."""
        with self._transaction(durable=True) as to:
            forget_fields(to, name)
            keys = [key for (key,) in to.execute("SELECT key FROM rows WHERE name = ?", (name,))]
            self._note_change(name, keys)
            self._columns.clear()
            to.execute("DELETE FROM vectors WHERE key IN (SELECT key FROM rows WHERE name = ?)", (name,))
            for table in ("rows", "pending", "marks"):
                to.execute(f"DELETE FROM {table} WHERE name = ?", (name,))

    # -- what was interrupted ------------------------------------------------------------------

    def pending(self) -> dict[str, list[str] | None]:
        """The ids that Chroma has yet to follow, by collection; None for all of them."""
        found: dict[str, list[str] | None] = {}
        for name, id_ in self._all("SELECT name, id FROM pending ORDER BY name, id"):
            ids = found.setdefault(name, [])
            if id_ == _ALL:
                found[name] = None
            elif ids is not None:
                ids.append(id_)
        return found

    def index_is_as_left(self) -> bool:
        """Whether Chroma's index files are those of the last complete write."""
        return bool(self._state()[0] == self._index_files())

    def chroma_is_as_left(self) -> bool:
        """Whether nothing has written to Chroma's database since the last complete write."""
        return bool(self._state()[1] == self._change_counter())

    def _state(self) -> list[Any]:
        rows = self._all("SELECT files FROM state")
        return list(json.loads(rows[0][0])) if rows else [None, None]

    def _index_files(self) -> list[Any]:
        found = []
        for folder in index_folders(self.folder):
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                status = entry.stat()
                found.append([os.path.basename(folder), entry.name, status.st_size, status.st_mtime_ns])
        return found

    def _change_counter(self) -> int:
        # SQLite counts the transactions of a database in its header, which survives copies, unlike its time.
        try:
            with open(os.path.join(self.folder, CHROMA_FILE), "rb") as file:
                return int.from_bytes(file.read(28)[24:], "big")
        except OSError:
            return -1

    # -- reading -------------------------------------------------------------------------------

    def _all(self, statement: str, arguments: Sequence[object] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, arguments).fetchall()

    def marks(self) -> dict[str, str | None]:
        """The fingerprint of each collection that is kept here."""
        return dict(self._all("SELECT name, fingerprint FROM marks"))

    def count(self, name: str) -> int:
        """How many rows a collection has."""
        with self._lock:
            if name not in self._counts:  # SQLite counts by looking at each
                self._counts[name] = int(self._all("SELECT count(*) FROM rows WHERE name = ?", (name,))[0][0])
            return self._counts[name]

    def ids(self, name: str, ids: Sequence[str]) -> list[str]:
        """Which of at most `PAGE` ids there are."""
        return [row[0] for row in self._all(f"SELECT id FROM rows WHERE {_among(ids)}", (name, *ids))]

    def records(self, name: str, ids: Sequence[str]) -> dict[str, Record]:
        """The records of at most `PAGE` ids, in the order in which they came."""
        rows = self._all(f"SELECT id, record FROM rows WHERE {_among(ids)} ORDER BY key", (name, *ids))
        return {id_: _record(text) for id_, text in rows}

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        """The vectors of at most `PAGE` ids, in the order in which they came."""
        rows = self._all(
            f"SELECT id, vector FROM rows JOIN vectors USING (key) WHERE {_among(ids)} ORDER BY key", (name, *ids)
        )
        return {id_: np.frombuffer(vector, dtype=_VECTOR) for id_, vector in rows}

    def dim(self, name: str) -> int | None:
        """The length of a collection's vectors; None while there are none."""
        return next((len(vector) for vector in self.vectors(name, self.page(name, 0)[:1]).values()), None)

    def page(self, name: str, offset: int) -> list[str]:
        """At most `PAGE` ids in the order in which they came, from an offset on."""
        rows = self._all("SELECT id FROM rows WHERE name = ? ORDER BY key LIMIT ? OFFSET ?", (name, PAGE, offset))
        return [row[0] for row in rows]

    # -- by key --------------------------------------------------------------------------------

    def matching(self, name: str, condition: Condition | None) -> Keys:
        """The keys of the rows that a filter lets through, ascending: in the order in which they came."""
        # By its text, as 1, 1.0 and True are one key of a dict.
        asked = name, repr(condition)
        with self._lock:
            known = self._found.get(asked)
            if known is None:
                if condition is None:
                    rows = self._all("SELECT key FROM rows WHERE name = ? ORDER BY key", (name,))
                    known = np.fromiter((row[0] for row in rows), dtype=np.int64)
                else:
                    known = self._columns.keys(self._connection, name, condition)
                self._remember(asked, known)
            self._found.move_to_end(asked)
            return known

    def _remember(self, asked: tuple[str, str], keys: Keys) -> None:
        self._found[asked] = keys
        while len(self._found) > 1 and (
            len(self._found) > _MOST_ANSWERS or sum(keys.nbytes for keys in self._found.values()) > _MOST_REMEMBERED
        ):
            self._found.popitem(last=False)

    def knows(self, name: str, condition: Condition) -> bool:
        """Whether `matching` has this answer, and nothing has been written since."""
        return (name, repr(condition)) in self._found

    def few_matching(self, name: str, condition: Condition, most: int) -> Keys | None:
        """At most ``most`` keys that include all rows that a filter lets through; None where there may be more."""
        asked = name, f"at most {most}: {condition!r}"
        with self._lock:
            if asked not in self._found:
                keys = few_keys(self._connection, name, condition, most)
                self._remember(asked, _TOO_MANY if keys is None else keys)
            known = self._found[asked]
            return None if known is _TOO_MANY else known

    def by_key(self, name: str, keys: Sequence[int], column: _Column) -> list[tuple[int, Any]]:
        """The key and a column of at most `PAGE` keys, in the order of keys."""
        table = "rows JOIN vectors USING (key)" if column == "vector" else "rows"
        marks = ", ".join("?" * len(keys))
        # The plus keeps SQLite from looking through the whole collection.
        rows = self._all(
            f"SELECT key, {column} FROM {table} WHERE key IN ({marks}) AND +name = ? ORDER BY key", (*keys, name)
        )
        if column == "id":
            return rows
        use = _record if column == "record" else partial(np.frombuffer, dtype=_VECTOR)
        return [(key, use(value)) for key, value in rows]

    def after(self, name: str, key: int) -> list[int]:
        """The next `PAGE` keys behind one."""
        # The plus keeps SQLite from sorting all of them for each page.
        rows = self._all("SELECT key FROM rows WHERE key > ? AND +name = ? ORDER BY key LIMIT ?", (key, name, PAGE))
        return [row[0] for row in rows]

    def all_vectors(self, name: str) -> Iterator[tuple[list[int], bytes]]:
        """The keys of all rows in their order, and their vectors one behind the other, a page at a time."""
        last = -1
        while rows := self._all(
            "SELECT key, vector FROM rows JOIN vectors USING (key) WHERE key > ? AND +name = ? ORDER BY key LIMIT ?",
            (last, name, PAGE),
        ):
            last = rows[-1][0]
            yield [row[0] for row in rows], b"".join(row[1] for row in rows)

    def changes(self, name: str) -> int:
        """How many rows of a collection have been changed through this object."""
        first, known = self._changed.get(name, (0, []))
        return first + len(known)

    def changed_since(self, name: str, changes: int) -> list[int] | None:
        """The keys of the rows that were changed since `changes` was this much; None where that was too long ago."""
        with self._lock:
            first, known = self._changed.get(name, (0, []))
            return None if changes < first else sorted(set(known[changes - first :]))


def _record(text: str) -> Record:
    return Record(**json.loads(text))


def _among(ids: Sequence[str]) -> str:
    return f"name = ? AND id IN ({', '.join('?' * len(ids))})"


def index_folders(folder: str) -> list[str]:
    """The folders in which Chroma keeps index files."""
    with suppress(FileNotFoundError):
        return sorted(e.path for e in os.scandir(folder) if _SEGMENT.fullmatch(e.name) and e.is_dir())
    return []
