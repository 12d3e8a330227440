"""What must survive a kill: which collections there are, and every job with its items. One SQLite file.

A job is accepted when its files are on the disk and its rows are committed. Its items are then worked through; each
that is settled is committed. A server that was killed begins again with the items that are not: storing one twice
replaces it by itself.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from abc_rag.errors import StoreError

__all__ = ["Collection", "Item", "Job", "Ledger"]

JobState = Literal["waiting", "running", "done"]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS collections (
    tenant TEXT NOT NULL, name TEXT NOT NULL, stored TEXT NOT NULL UNIQUE, created REAL NOT NULL,
    PRIMARY KEY (tenant, name)
);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, stored TEXT NOT NULL, facets TEXT NOT NULL,
    created REAL NOT NULL, finished REAL
);
CREATE TABLE IF NOT EXISTS items (
    job TEXT NOT NULL, position INTEGER NOT NULL, told TEXT NOT NULL, settled INTEGER NOT NULL DEFAULT 0,
    error TEXT, PRIMARY KEY (job, position)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_of ON jobs (stored, number);
"""
_MOST_ERRORS = 100


@dataclass(frozen=True)
class Collection:
    """A tenant's collection, and the store's name for it."""

    tenant: str
    name: str
    stored: str
    created: float


@dataclass(frozen=True)
class Item:
    """One item of a job.

    Attributes:
        position: Its place in the job, from 0.
        told: What is to be stored: plain values.
    """

    position: int
    told: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Items on their way into a collection.

    Attributes:
        id: Names it.
        stored: The store's name of the collection.
        facets: Instructions under which its pictures get further vectors.
        created: When it was accepted, in seconds since 1970.
        finished: When its last item was settled; None before.
        total: Number of its items.
        settled: How many are stored or have failed.
        failed: How many have failed.
        errors: Why, of the first hundred: plain values with the item's position.
    """

    id: str
    stored: str
    facets: tuple[str, ...]
    created: float
    finished: float | None
    total: int
    settled: int
    failed: int
    errors: tuple[dict[str, Any], ...]

    @property
    def state(self) -> JobState:
        """Whether it waits, runs or is done."""
        return "done" if self.finished is not None else "running" if self.settled else "waiting"


class Ledger:
    """The file. Safe to use from many threads.

    Args:
        path: Made if missing.

    Raises:
        StoreError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: cannot be opened ({error}); make it writable, or restore it") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _rows(self, query: str, *values: Any) -> list[Any]:  # noqa: ANN401  (what SQLite takes)
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    # -- collections ---------------------------------------------------------------------------

    def collections(self, tenant: str) -> list[Collection]:
        """A tenant's collections, by name."""
        rows = self._rows(
            "SELECT tenant, name, stored, created FROM collections WHERE tenant = ? ORDER BY name", tenant
        )
        return [Collection(*row) for row in rows]

    def collection(self, tenant: str, name: str) -> Collection | None:
        """One of them."""
        rows = self._rows(
            "SELECT tenant, name, stored, created FROM collections WHERE tenant = ? AND name = ?", tenant, name
        )
        return Collection(*rows[0]) if rows else None

    def make(self, tenant: str, name: str, *, stored: str | None = None) -> tuple[Collection, bool]:
        """Make a collection; the second value tells whether it is new.

        Args:
            tenant: Whose.
            name: What the tenant calls it.
            stored: What the store calls it. If not given, a name that was never used: what a deleted one left behind
                is nobody's.
        """
        with self._change() as to:
            found = self.collection(tenant, name)
            if found is not None:
                return found, False
            stored = stored or f"{tenant}.{name}.{secrets.token_hex(4)}"
            to.execute("INSERT INTO collections VALUES (?, ?, ?, ?)", (tenant, name, stored, time.time()))
        return Collection(tenant, name, stored, time.time()), True

    def knows(self, stored: str) -> bool:
        """Whether a collection of the store is somebody's."""
        return bool(self._rows("SELECT 1 FROM collections WHERE stored = ?", stored))

    def drop(self, collection: Collection) -> list[str]:
        """Forget a collection and its jobs; the ids of the jobs."""
        with self._change() as to:
            jobs = [id_ for (id_,) in to.execute("SELECT id FROM jobs WHERE stored = ?", (collection.stored,))]
            to.execute("DELETE FROM items WHERE job IN (SELECT id FROM jobs WHERE stored = ?)", (collection.stored,))
            to.execute("DELETE FROM jobs WHERE stored = ?", (collection.stored,))
            to.execute("DELETE FROM collections WHERE stored = ?", (collection.stored,))
        return jobs

    # -- jobs ----------------------------------------------------------------------------------

    def accept(self, id_: str, stored: str, items: Sequence[dict[str, Any]], facets: Sequence[str]) -> None:
        """Write a job down. From here on it will be done."""
        with self._change() as to:
            number = to.execute("SELECT COALESCE(MAX(number), 0) + 1 FROM jobs").fetchone()[0]
            finished = None if items else time.time()
            to.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)",
                (id_, number, stored, json.dumps(list(facets)), time.time(), finished),
            )
            to.executemany(
                "INSERT INTO items (job, position, told) VALUES (?, ?, ?)",
                [(id_, position, json.dumps(told)) for position, told in enumerate(items)],
            )

    def settle(self, job: str, errors: dict[int, dict[str, Any] | None]) -> None:
        """Note what became of items: stored (None), or the error. With the last one the job is done."""
        with self._change() as to:
            to.executemany(
                "UPDATE items SET settled = 1, error = ?, told = '{}' WHERE job = ? AND position = ?",
                [(None if error is None else json.dumps(error), job, position) for position, error in errors.items()],
            )
            to.execute(
                "UPDATE jobs SET finished = ? WHERE id = ? AND finished IS NULL AND NOT EXISTS "
                "(SELECT 1 FROM items WHERE job = ? AND settled = 0)",
                (time.time(), job, job),
            )

    def waiting(self, job: str, most: int) -> list[Item]:
        """The next items of a job that are not settled."""
        rows = self._rows(
            "SELECT position, told FROM items WHERE job = ? AND settled = 0 ORDER BY position LIMIT ?", job, most
        )
        return [Item(position, json.loads(told)) for position, told in rows]

    def unfinished(self, stored: str | None = None) -> list[str]:
        """The ids of the jobs that are not done, in the order in which they came."""
        if stored is None:
            rows = self._rows("SELECT id FROM jobs WHERE finished IS NULL ORDER BY number")
        else:
            rows = self._rows("SELECT id FROM jobs WHERE finished IS NULL AND stored = ? ORDER BY number", stored)
        return [id_ for (id_,) in rows]

    def jobs(self, stored: str, most: int = 100) -> list[Job]:
        """The last jobs of a collection, the newest first."""
        rows = self._rows("SELECT id FROM jobs WHERE stored = ? ORDER BY number DESC LIMIT ?", stored, most)
        return [job for (id_,) in rows if (job := self.job(id_)) is not None]

    def job(self, id_: str) -> Job | None:
        """A job."""
        with self._lock:
            rows = self._rows("SELECT id, stored, facets, created, finished FROM jobs WHERE id = ?", id_)
            if not rows:
                return None
            total, settled, failed = self._rows(
                "SELECT COUNT(*), COALESCE(SUM(settled), 0), COUNT(error) FROM items WHERE job = ?", id_
            )[0]
            errors = self._rows(
                "SELECT position, error FROM items WHERE job = ? AND error IS NOT NULL ORDER BY position LIMIT ?",
                id_,
                _MOST_ERRORS,
            )
        job, stored, facets, created, finished = rows[0]
        told = tuple({"item": position, **json.loads(error)} for position, error in errors)
        return Job(job, stored, tuple(json.loads(facets)), created, finished, total, settled, failed, told)
