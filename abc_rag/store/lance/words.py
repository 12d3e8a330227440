"""The keyword index of a dataset: SQLite's FTS5 in a file of its own, which follows the dataset's versions.

The dataset is the truth. Before each search the index takes in what has changed since the version that it has seen, in
one transaction: rows that are newer, and where the counts differ then, ids that are gone. So it finds what is in the
dataset at that moment, whoever wrote it, and a kill costs nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from abc_rag.store.lance.rows import IDENTITY, RECORD, records_of
from abc_rag.store.table import PAGE
from abc_rag.store.words import WordFile, transaction

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

__all__ = ["WordIndex"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    key INTEGER PRIMARY KEY, name TEXT NOT NULL, id TEXT NOT NULL, record TEXT NOT NULL, UNIQUE (name, id)
);
CREATE TABLE IF NOT EXISTS followed (name TEXT PRIMARY KEY, identity TEXT NOT NULL, version INTEGER NOT NULL);
"""


class WordIndex:
    """The index of one collection. Safe to use from many threads and processes.

    Args:
        folder: Where its file is; made if missing. Several stores may share it.
        name: The collection's name in it.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        # What a power cut takes away comes again from the dataset.
        file = WordFile(folder, f"PRAGMA synchronous = NORMAL;{_SCHEMA}")
        self._lock, self._connection, self.words, self.close = file.lock, file.connection, file.words, file.close

    def follow(self, dataset: lance.LanceDataset) -> None:
        """Take in what has changed, up to the dataset's version."""
        at = dataset.schema_metadata.get(IDENTITY, ""), dataset.version
        with self._lock:
            if self._followed() != at:
                self.words.mended(lambda: self._take_in(dataset, at))

    def rebuild(self, dataset: lance.LanceDataset | None) -> None:
        """Make the index anew from the dataset."""
        with self._lock:
            with transaction(self._connection, self._lock) as to:
                to.execute("DELETE FROM rows WHERE name = ?", (self.name,))
                to.execute("DELETE FROM followed WHERE name = ?", (self.name,))
            self.words.rebuild()
            if dataset is not None:
                self.follow(dataset)

    def problems(self, dataset: lance.LanceDataset) -> list[str]:
        """A line for each row of which the index has no copy, or another one."""
        self.follow(dataset)
        found = self.words.problems()
        for batch in _batches(dataset, None):
            there = {record.id: _json(record) for record in records_of(batch)}
            known = dict(self._rows(list(there)))
            found += [f"the keyword index is behind: record {i!r}" for i, text in there.items() if known.get(i) != text]
        return found

    def _rows(self, ids: list[str]) -> Iterator[tuple[str, str]]:
        for start in range(0, len(ids), PAGE):
            some = ids[start : start + PAGE]
            marks = ", ".join("?" * len(some))
            with self._lock:
                yield from self._connection.execute(
                    f"SELECT id, record FROM rows WHERE name = ? AND id IN ({marks})", (self.name, *some)
                ).fetchall()

    def _followed(self) -> tuple[str, int] | None:
        row = self._connection.execute("SELECT identity, version FROM followed WHERE name = ?", (self.name,)).fetchone()
        return None if row is None else (str(row[0]), int(row[1]))

    def _take_in(self, dataset: lance.LanceDataset, at: tuple[str, int]) -> None:
        with transaction(self._connection, self._lock) as to:
            seen = self._followed()  # another process may have been here
            if seen is None or seen[0] != at[0]:
                to.execute("DELETE FROM rows WHERE name = ?", (self.name,))
                seen = at[0], 0
            if seen[1] >= at[1]:
                return
            self._put(to, dataset, f"_row_last_updated_at_version > {seen[1]}" if seen[1] else None)
            if self._count(to) != dataset.count_rows():
                self._forget_gone(to, dataset)
                if self._count(to) != dataset.count_rows():  # rows that do not say since when they are there
                    self._put(to, dataset, None)
            to.execute("INSERT OR REPLACE INTO followed VALUES (?, ?, ?)", (self.name, *at))

    def _count(self, to: sqlite3.Connection) -> int:
        return int(to.execute("SELECT count(*) FROM rows WHERE name = ?", (self.name,)).fetchone()[0])

    def _put(self, to: sqlite3.Connection, dataset: lance.LanceDataset, sql: str | None) -> None:
        for batch in _batches(dataset, sql):
            texts = {record.id: _json(record) for record in records_of(batch)}
            to.executemany(
                "INSERT INTO rows (name, id, record) VALUES (?, ?, ?)"
                " ON CONFLICT (name, id) DO UPDATE SET record = excluded.record",
                # A damaged record has a place in the count, and no words.
                [(self.name, id_, texts.get(id_, "{}")) for id_ in batch.column("id").to_pylist()],
            )

    def _forget_gone(self, to: sqlite3.Connection, dataset: lance.LanceDataset) -> None:
        to.execute("CREATE TEMP TABLE IF NOT EXISTS there (id TEXT PRIMARY KEY) WITHOUT ROWID")
        to.execute("DELETE FROM there")
        for batch in dataset.scanner(columns=["id"]).to_batches():
            to.executemany("INSERT OR IGNORE INTO there VALUES (?)", [(id_,) for id_ in batch.column("id").to_pylist()])
        to.execute("DELETE FROM rows WHERE name = ? AND id NOT IN (SELECT id FROM there)", (self.name,))
        to.execute("DELETE FROM there")


def _batches(dataset: lance.LanceDataset, sql: str | None) -> Iterator[pa.RecordBatch]:
    yield from dataset.scanner(columns=RECORD, filter=sql, batch_size=PAGE).to_batches()


def _json(record: object) -> str:
    return json.dumps(asdict(record), ensure_ascii=False)  # type: ignore[call-overload]
