"""One collection on a server, with a keyword index of its texts in a folder of this machine.

The server is the truth. The index has a copy of what it indexes, and follows: what goes through this table is noted as
pending, written to the server and then to the copy, so that a kill in between costs one look-up. What other clients
write is noticed by the number of records and by every hit, which is read from the server. Only a text that another
client changes, while the number of records stays, is not found by its new words until `ChromaStore.repair`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from filelock import FileLock

from abc_rag.store.chroma.client import Server, translated
from abc_rag.store.chroma.shards import ShardedTable
from abc_rag.store.chroma.table import ChromaTable
from abc_rag.store.filters import Condition
from abc_rag.store.keywords import Keywords
from abc_rag.store.table import PAGE, Column, Page, Table, hits_of, pages
from abc_rag.store.words import WordFile, transaction
from abc_rag.types import Hit, Record, Vectors

__all__ = ["ServedTable"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    key INTEGER PRIMARY KEY, name TEXT NOT NULL, id TEXT NOT NULL, record TEXT NOT NULL, UNIQUE (name, id)
);
CREATE TABLE IF NOT EXISTS pending (name TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (name, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS followed (name TEXT PRIMARY KEY, collection TEXT NOT NULL);
"""
# Each look at the server may show that hits have changed; by then they are mended, or somebody is writing all the time.
_MOST_LOOKS = 10


class ServedTable(Table):
    """A collection on a server, or several as one, with a keyword index beside it.

    Args:
        rows: What the server has.
        server: The server.
        place: Its name, for messages.
        name: The name of the collection.
        folder: Where the keyword index is; made if missing. Several stores and processes may share it.
    """

    def __init__(self, rows: ChromaTable | ShardedTable, server: Server, place: str, name: str, folder: str) -> None:
        self._rows = rows
        self._server = server
        self._place = place
        self._name = name
        self._folder = folder
        self._opened: tuple[int, _Copy] | None = None
        self._opening = threading.Lock()
        self._followed: object = None

    def _copy(self) -> _Copy:
        # A connection of SQLite must not be carried across a fork.
        with self._opening:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), _Copy(self._folder, f"{self._place.rstrip('/')}#{self._name}")
            return self._opened[1]

    def close(self) -> None:
        """Close the keyword index. Idempotent."""
        with self._opening:
            opened, self._opened = self._opened, None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()

    # -- as the server has it ------------------------------------------------------------------

    def fingerprint(self) -> str | None:
        """See `ChromaTable.fingerprint`."""
        return self._rows.fingerprint()

    def check(self) -> None:
        """See `ChromaTable.check`."""
        self._rows.check()

    def count(self) -> int:
        """See `Table.count`."""
        return self._rows.count()

    def dim(self) -> int | None:
        """See `Table.dim`."""
        return self._rows.dim()

    def read(
        self,
        column: Column,
        *,
        ids: Sequence[str] | None = None,
        where: Condition | None = None,
        offset: int = 0,
    ) -> Page | None:
        """See `Table.read`."""
        return self._rows.read(column, ids=ids, where=where, offset=offset)

    def scan(self, column: Column, where: Condition | None = None) -> Iterator[Page]:
        """See `Table.scan`."""
        return self._rows.scan(column, where)

    def nearest(self, vectors: Vectors, k: int, where: Condition | None) -> list[list[Hit]]:
        """See `Table.nearest`."""
        return self._rows.nearest(vectors, k, where)

    # -- writing -------------------------------------------------------------------------------

    def put(self, records: Sequence[Record], vectors: Vectors) -> None:
        """See `Table.put`."""
        for start in range(0, len(records), PAGE):
            part = slice(start, start + PAGE)
            new = {record.id: record for record in records[part]}
            with translated(self._place), self._copy().changing(list(new), new):
                self._rows.put(records[part], vectors[part])

    def remove(self, ids: Sequence[str]) -> int:
        """See `Table.remove`."""
        removed = 0
        for page in pages(ids):
            with translated(self._place), self._copy().changing(page, {}):
                removed += self._rows.remove(page)
        return removed

    # -- keywords ------------------------------------------------------------------------------

    def has_words(self) -> bool:
        """See `Table.has_words`."""
        with translated(self._place):
            return self._server.read(lambda _: self._copy().words.available)

    def matching(self, keywords: Keywords, k: int, where: Condition | None) -> list[Hit]:
        """See `Table.matching`."""
        with translated(self._place):
            if not self._follow():
                return []
            for _ in range(_MOST_LOOKS):
                hits, changed = self._matching(keywords, k, where)
                if not changed:
                    break
            return hits

    def _matching(self, keywords: Keywords, k: int, where: Condition | None) -> tuple[list[Hit], bool]:
        """The hits, and whether the copy of one of them had to be mended."""
        copy = self._copy()
        hits: list[Hit] = []
        ranked = copy.words.search(copy.name, keywords, k if where is None else -1)
        for page in map(dict, pages(ranked)):
            records, changed = self._freshened(list(page))
            if changed:
                return hits, True
            hits += hits_of(page, records, where)
            if len(hits) >= k:
                break
        return hits[:k], False

    def meeting(self, keywords: Keywords, ids: Sequence[str]) -> set[str]:
        """See `Table.meeting`."""
        with translated(self._place):
            if not self._follow():
                return set()
            for some in pages(ids):
                self._freshened(some)
            copy = self._copy()
            return copy.words.meeting(copy.name, keywords, ids)

    def word_problems(self) -> list[str]:
        """See `Table.word_problems`."""
        with translated(self._place):
            copy = self._copy()
            found = copy.words.problems()
            if not self._follow():
                return []
            for page in self.scan("ids"):
                known = copy.known(page.ids)
                there = self._there(page.ids)
                found += [f"the keyword index is behind: record {i!r}" for i in page.ids if known.get(i) != there[i]]
            return found

    def rebuild(self) -> None:
        """Make the keyword index anew from what the server has."""
        with translated(self._place):
            if self._rows.identity() is None:
                return
            copy = self._copy()
            copy.words.rebuild()
            with copy.locked():
                copy.put([], copy.ids())
                for page in self.scan("ids"):
                    copy.put(self._there(page.ids).values(), [])

    def _follow(self) -> bool:
        """Bring the copy to the ids that the server has, where something shows that it is behind.

        Returns:
            Whether there is a collection.
        """
        # A collection that was deleted is noticed when it is counted.
        count, identity = self._rows.count(), self._rows.identity()
        if identity is None:
            return False
        copy = self._copy()
        if self._followed == identity and not copy.pending() and copy.count() == count:
            return True
        with copy.locked():
            there = {id_ for page in self.scan("ids") for id_ in page.ids}
            # Of a collection that was deleted and made anew, nothing is known.
            known = copy.ids() if copy.followed() == identity else set()
            behind = there & (set(copy.pending()) | (there - known))
            copy.put([], copy.ids() - there)
            for some in pages(sorted(behind)):
                copy.put(self._there(some).values(), [])
            copy.settle(copy.pending())
            copy.follow(identity)
        self._followed = identity
        return True

    def _there(self, ids: Sequence[str]) -> dict[str, Record]:
        """The records of ids that the server has; a damaged one stands there without words."""
        found = {id_: Record(id_, "text") for id_ in ids}
        page = self._rows.read("records", ids=ids)
        return found | {record.id: record for record in (page.records if page else ())}

    def _freshened(self, ids: Sequence[str]) -> tuple[dict[str, Record], bool]:
        """The server's records, and whether the copy differed; it does not any more."""
        copy = self._copy()
        page = self._rows.read("records", ids=ids)
        records = {record.id: record for record in (page.records if page else ())}
        known = copy.known(ids)
        changed = [record for id_, record in records.items() if known.get(id_) != record]
        gone = [id_ for id_ in ids if id_ not in records and id_ in known]
        if gone:
            damaged = self._rows.has(gone)
            blank = [Record(id_, "text") for id_ in damaged]
            changed += [record for record in blank if known[record.id] != record]
            gone = [id_ for id_ in gone if id_ not in damaged]
        if changed or gone:
            copy.put(changed, gone)
        return records, bool(changed or gone)


class _Copy:
    """The local copy of a collection's records, with their index. Safe to use from many threads and processes."""

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        with translated(folder):
            file = WordFile(folder, _SCHEMA)
        self._lock, self._connection, self.words, self.close = file.lock, file.connection, file.words, file.close
        # Held by whoever writes to the server: what is pending then is nobody else's to settle.
        self._writers = FileLock(f"{file.path}.lock", thread_local=False)
        self._mutex = threading.RLock()

    @contextmanager
    def locked(self) -> Iterator[None]:
        with self._mutex, self._writers:
            yield

    @contextmanager
    def changing(self, ids: Sequence[str], records: Mapping[str, Record]) -> Iterator[None]:
        """Note ids as pending while the server is written to; afterwards the copy has ``records``, and no others."""
        with self.locked():
            self._run("INSERT OR IGNORE INTO pending VALUES (?, ?)", [(self.name, id_) for id_ in ids])
            yield
            self.put(records.values(), [id_ for id_ in ids if id_ not in records])
            self.settle(ids)

    def put(self, records: Iterable[Record], gone: Iterable[str]) -> None:
        values = [(self.name, r.id, json.dumps(asdict(r), ensure_ascii=False)) for r in records]
        self.words.mended(
            lambda: self._run(
                "INSERT INTO rows (name, id, record) VALUES (?, ?, ?)"
                " ON CONFLICT (name, id) DO UPDATE SET record = excluded.record",
                values,
            )
        )
        removed = [(self.name, id_) for id_ in gone]
        self.words.mended(lambda: self._run("DELETE FROM rows WHERE name = ? AND id = ?", removed))

    def settle(self, ids: Sequence[str]) -> None:
        self._run("DELETE FROM pending WHERE name = ? AND id = ?", [(self.name, id_) for id_ in ids])

    def follow(self, collection: str) -> None:
        self._run("INSERT OR REPLACE INTO followed VALUES (?, ?)", [(self.name, collection)])

    def followed(self) -> str:
        return "".join(self._column("SELECT collection FROM followed WHERE name = ?", self.name))

    def _run(self, statement: str, rows: Sequence[tuple[str, ...]]) -> None:
        with transaction(self._connection, self._lock) as to:
            to.executemany(statement, rows)

    def _column(self, statement: str, *arguments: str) -> list[str]:
        with self._lock:
            return [row[0] for row in self._connection.execute(statement, arguments)]

    def pending(self) -> list[str]:
        return self._column("SELECT id FROM pending WHERE name = ?", self.name)

    def count(self) -> int:
        return int(self._column("SELECT count(*) FROM rows WHERE name = ?", self.name)[0])

    def ids(self) -> set[str]:
        return set(self._column("SELECT id FROM rows WHERE name = ?", self.name))

    def known(self, ids: Sequence[str]) -> dict[str, Record]:
        marks = ", ".join("?" * len(ids))
        found = self._column(f"SELECT record FROM rows WHERE name = ? AND id IN ({marks})", self.name, *ids)
        return {record.id: record for record in (Record(**json.loads(one)) for one in found)}
