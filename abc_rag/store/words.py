"""The keyword index: SQLite's FTS5 beside the rows that it indexes, changed by the same transactions.

The database has a table ``rows`` (``key``, ``name`` of the collection, ``id``, ``record`` as JSON). Triggers keep two
indexes of its texts and file names: by words (case and diacritics folded), and by trigrams, for scripts without spaces
and for parts of names. So there is no moment at which rows and index differ, whichever process or version changes the
rows, and none of the texts is stored again. The triggers are made with the index: where they are missing, it is built
anew. Ranking is BM25 (Robertson and Zaragoza, 2009).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeVar

from abc_rag.errors import StoreError
from abc_rag.store.keywords import Keywords, by_trigrams, by_words
from abc_rag.store.table import pages

__all__ = ["WordFile", "Words", "check_regular", "transaction"]

_FILE_NAME = "abc-words.sqlite3"

logger = logging.getLogger(__name__)

T = TypeVar("T")

# To be counted up where anything below changes what is indexed.
_VERSION = 1
_INDEXES = {
    "words_plain": "tokenize = 'unicode61 remove_diacritics 2'",
    "words_grams": "tokenize = 'trigram'",
}
_TRIGGERS = tuple(f"words_{event}_{_VERSION}" for event in ("insert", "delete", "update"))
# The instructions of facets are no texts of pictures. Two spaces, so that a trigram begins with each character.
_FACETS = ".facets"
_TEXT = "json_extract({record}, '$.text') || '  '"
_PATH = "replace(json_extract({record}, '$.source'), '\\', '/')"
_FILE = (
    "iif(json_extract({record}, '$.source_type') = 'kept', '',"
    f" replace({_PATH}, rtrim({_PATH}, replace({_PATH}, '/', '')), '')) || '  '"
)
# A piece of one or two characters stands for the trigrams that begin with it.
_MOST_GRAMS = 200
_SOME = 900  # variables in a statement
_DAMAGE = ("malformed", "corrupt", "constructor failed", "no such table", "not a database")


def check_regular(path: str) -> None:
    """Refuse to open what is neither missing nor a regular file: a pipe would never end.

    Raises:
        StoreError: It is something else.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StoreError(f"{path}: not a regular file but a device, a pipe or a folder; remove it")


@contextmanager
def transaction(connection: sqlite3.Connection, lock: AbstractContextManager[object]) -> Iterator[sqlite3.Connection]:
    """Change the file as a whole or not at all."""
    with lock:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise


class WordFile:
    """A file of an index beside a store that has no database of its own, made if missing. Several stores may share it.

    Args:
        folder: Where it is; made if missing.
        schema: Statements that make its tables where they are missing; one is ``rows``.

    Attributes:
        path: Of the file.
        lock: Held while the connection is used.
        connection: In autocommit mode.
        words: The index.
    """

    def __init__(self, folder: str, schema: str) -> None:
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, _FILE_NAME)
        check_regular(self.path)
        self.lock = threading.RLock()
        self.connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.executescript(schema)
            self.words = Words(self.connection, self.lock, self.path)
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self.lock, suppress(sqlite3.Error):
            self.connection.close()


class Words:
    """The keyword index of one database. Safe to use from many threads.

    Args:
        connection: In autocommit mode, with the table ``rows``.
        lock: Held while the connection is used.
        place: Its name, for messages.
    """

    def __init__(self, connection: sqlite3.Connection, lock: threading.RLock, place: str) -> None:
        self._connection = connection
        self._lock = lock
        self._place = place
        self.available = self._install()

    def _install(self) -> bool:
        """Make the index where there is none; whether there is one now."""
        try:
            if self._is_there():
                return True
            self.rebuild()
        except sqlite3.OperationalError as error:
            if "no such module" not in str(error) and "no such tokenizer" not in str(error):
                raise
            logger.warning("%s: no keyword search, as SQLite %s lacks it (%s)", self._place, _sqlite(), error)
            with transaction(self._connection, self._lock) as to:
                _drop_triggers(to)  # without them rows can be written, and whoever has FTS5 makes the index anew
            return False
        return True

    def _is_there(self) -> bool:
        marks = ", ".join("?" * len(_TRIGGERS))
        (found,) = self._connection.execute(
            f"SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name IN ({marks})", _TRIGGERS
        ).fetchone()
        if found < len(_TRIGGERS):
            return False
        try:
            for index in _INDEXES:
                self._connection.execute(f"SELECT rowid FROM {index} WHERE {index} MATCH 'a' LIMIT 1").fetchall()
        except sqlite3.DatabaseError as error:
            if not any(sign in str(error) for sign in _DAMAGE):
                raise
            logger.warning("%s: the keyword index was damaged (%s), and is built anew", self._place, error)
            return False
        return True

    def rebuild(self) -> None:
        """Make the index anew from the rows."""
        with transaction(self._connection, self._lock) as to:
            _drop_triggers(to)
            for index in ("words_vocabulary", *_INDEXES):
                to.execute(f"DROP TABLE IF EXISTS {index}")
            to.execute("DROP VIEW IF EXISTS words")
            for statement in _schema():
                to.execute(statement)

    def mended(self, use: Callable[[], T]) -> T:
        """``use()``; once more where the index turns out to be damaged, after it was made anew."""
        try:
            return use()
        except sqlite3.DatabaseError as error:
            if not self.available or not any(sign in str(error) for sign in _DAMAGE):
                raise
            logger.warning("%s: the keyword index was damaged (%s), and is built anew", self._place, error)
            self.rebuild()
            return use()

    def problems(self) -> list[str]:
        """What is wrong with the index: a line for each part that does not fit to the rows."""
        found = []
        for index in _INDEXES if self.available else ():
            try:
                with transaction(self._connection, self._lock) as to:
                    to.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)")
            except sqlite3.DatabaseError as error:
                found.append(f"the keyword index {index!r} does not fit to the records ({error})")
        return found

    # -- searching -----------------------------------------------------------------------------

    def search(self, name: str, keywords: Keywords, limit: int) -> list[tuple[str, float]]:
        """The ids of a collection's rows that match, best first, with their BM25; equal ones in the order of ids.

        Args:
            name: The collection.
            keywords: What to look for. One of its words is enough, all of its phrases must be there.
            limit: How many at most; -1 for all.

        Raises:
            StoreError: This SQLite has no FTS5.
        """
        self._need()
        return self.mended(lambda: self._search(name, keywords, limit))

    def _search(self, name: str, keywords: Keywords, limit: int) -> list[tuple[str, float]]:
        with self._lock:
            kinds = _kinds(keywords)
            plain = [_quoted(word) for word in keywords.words if kinds[word][0]]
            grams = [self._in_grams(word) for word in keywords.words if kinds[word][1]]
            said = {"words_plain": " OR ".join(plain), "words_grams": " OR ".join(filter(None, grams))}
            said = {index: what for index, what in said.items() if what}
            if not said:
                return []
            parts = [f"SELECT rowid AS key, -bm25({one}) AS score FROM {one} WHERE {one} MATCH ?" for one in said]
            must, values = self._musts(keywords, kinds)
            rows = self._connection.execute(
                f"WITH found AS MATERIALIZED ({' UNION ALL '.join(parts)})"
                f" SELECT id, sum(score) AS total FROM found JOIN rows USING (key) WHERE name = ?{must}"
                " GROUP BY key ORDER BY total DESC, id LIMIT ?",
                (*said.values(), name, *values, limit),
            ).fetchall()
        return [(id_, float(score)) for id_, score in rows]

    def meeting(self, name: str, keywords: Keywords, ids: Sequence[str]) -> set[str]:
        """Which of some rows have all of the phrases, and nothing that must not be there."""
        self._need()
        return self.mended(lambda: self._meeting(name, keywords, ids))

    def _meeting(self, name: str, keywords: Keywords, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        with self._lock:
            must, values = self._musts(keywords, _kinds(keywords))
            for some in pages(ids, _SOME):
                marks = ", ".join("?" * len(some))
                found.update(
                    row[0]
                    for row in self._connection.execute(
                        f"SELECT id FROM rows WHERE name = ? AND id IN ({marks}){must}", (name, *some, *values)
                    )
                )
        return found

    def _need(self) -> None:
        if not self.available:
            raise StoreError(
                f"{self._place}: keyword search needs SQLite 3.35 or later with FTS5, and this Python has "
                f"{_sqlite()}; use another build of Python, or search with keywords=False"
            )

    def _in_grams(self, piece: str) -> str:
        """FTS5's expression for a piece of text, of any length, in the index of trigrams."""
        if len(piece) >= 3:
            return _quoted(piece)
        low = piece.lower()
        grams = self._connection.execute(
            "SELECT term FROM words_vocabulary WHERE term >= ? AND term < ? LIMIT ?",
            (low, low + "\U0010ffff", _MOST_GRAMS),
        )
        return " OR ".join(_quoted(term) for (term,) in grams)

    def _musts(self, keywords: Keywords, kinds: Mapping[str, tuple[bool, bool]]) -> tuple[str, list[str]]:
        """What rows have to meet, as an SQL condition with its values."""
        condition, values = "", []
        for pieces, test in ((keywords.phrases, "IN"), (keywords.needed, "IN"), (keywords.without, "NOT IN")):
            for piece in pieces:
                # What is needed may be a part of a name; a phrase is whole words.
                by_word, by_gram = kinds[piece]
                plain = by_word and not (by_gram and pieces is keywords.needed)
                index, said = ("words_plain", _quoted(piece)) if plain else ("words_grams", self._in_grams(piece))
                if said:
                    condition += f" AND key {test} (SELECT rowid FROM {index} WHERE {index} MATCH ?)"
                    values.append(said)
                elif test == "IN":
                    condition += " AND 0"
        return condition, values


def _kinds(keywords: Keywords) -> dict[str, tuple[bool, bool]]:
    """Whether each piece is looked up by its words, and by its trigrams."""
    pieces = (*keywords.words, *keywords.phrases, *keywords.needed, *keywords.without)
    return {piece: (by_words(piece), by_trigrams(piece)) for piece in pieces}


def _drop_triggers(to: sqlite3.Connection) -> None:
    old = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'words~_%' ESCAPE '~'"
    for (name,) in to.execute(old).fetchall():
        to.execute(f"DROP TRIGGER {name}")


def _schema() -> Iterator[str]:
    yield (
        f"CREATE VIEW words AS SELECT key, {_TEXT.format(record='record')} AS said, {_FILE.format(record='record')} AS"
        f" file FROM rows WHERE name NOT LIKE '%{_FACETS}'"
    )
    for index, options in _INDEXES.items():
        columns = f"said, file, content = 'words', content_rowid = 'key', {options}"
        yield f"CREATE VIRTUAL TABLE {index} USING fts5({columns})"
        yield f"INSERT INTO {index} ({index}) VALUES ('rebuild')"
    yield "CREATE VIRTUAL TABLE words_vocabulary USING fts5vocab('words_grams', 'row')"
    gone, new = (
        "".join(
            f" INSERT INTO {index} ({column}rowid, said, file) VALUES"
            f" ({value}{row}.key, {_TEXT.format(record=f'{row}.record')}, {_FILE.format(record=f'{row}.record')});"
            for index in _INDEXES
            for column, value in [(f"{index}, ", "'delete', ") if row == "old" else ("", "")]
        )
        for row in ("old", "new")
    )
    insert, delete, update = _TRIGGERS
    yield f"CREATE TRIGGER {insert} AFTER INSERT ON rows WHEN new.name NOT LIKE '%{_FACETS}' BEGIN{new} END"
    yield f"CREATE TRIGGER {delete} AFTER DELETE ON rows WHEN old.name NOT LIKE '%{_FACETS}' BEGIN{gone} END"
    yield (
        f"CREATE TRIGGER {update} AFTER UPDATE OF record ON rows WHEN new.name NOT LIKE '%{_FACETS}'"
        f" AND new.record <> old.record BEGIN{gone}{new} END"
    )


def _quoted(piece: str) -> str:
    return '"' + piece.replace('"', '""') + '"'


def _sqlite() -> str:
    return sqlite3.sqlite_version
