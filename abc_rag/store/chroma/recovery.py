"""Opening a directory: damage is found before Chroma reads it, and mended from the journal, without the model."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sqlite3
import struct
from collections.abc import Collection as Names
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from abc_rag.errors import StoreError
from abc_rag.store.chroma.collections import create, mark_of, page_of, upsert
from abc_rag.store.chroma.journal import CHROMA_FILE, Journal, index_folders
from abc_rag.store.table import pages
from abc_rag.store.words import check_regular

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.models.Collection import Collection

__all__ = ["adopt", "open_directory", "rebuild", "says_all"]

logger = logging.getLogger(__name__)

# hnswlib's header, as Chroma writes it: version, offset of level 0, capacity, elements, bytes an element, offset of the
# label, offset of the vector, highest level, entry point, most links, most links on level 0, M, 1/ln(M), construction.
_HEADER = struct.Struct("<iQQQQQQiIQQQdQ")
_MOST_ELEMENTS = 2**40
_MOST_LEVELS = 64


def open_directory(folder: str, journal: Journal) -> Client:
    """Open Chroma's client, once its files are sound. The caller excludes every other process.

    Raises:
        StoreError: A file is damaged, and the journal does not have what was in it.
    """
    check_regular(os.path.join(folder, CHROMA_FILE))
    marks = journal.marks()
    _set_aside(folder, marks.keys())
    rebuilt = _damaged(folder, marks.keys())
    pending = journal.pending()
    if not os.path.exists(os.path.join(folder, CHROMA_FILE)) or (pending and not journal.index_is_as_left()):
        rebuilt |= marks.keys()
    rebuilt |= {name for name, ids in pending.items() if ids is None}
    changed = not pending and not rebuilt and not journal.chroma_is_as_left()

    import chromadb
    from chromadb.config import Settings

    for name in rebuilt:
        journal.begin_all(name)
    client = cast("Client", chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False)))
    try:
        for name in sorted(rebuilt):
            logger.warning("%s: the index of collection %r was damaged, and is built anew", folder, name)
            rebuild(client, journal, name)
        for name, ids in pending.items():
            if ids and name not in rebuilt:
                try:
                    _replay(client, journal, name, ids)
                except Exception as error:
                    logger.warning("%s: a write that was cut short cannot be repeated: %s", folder, error)
                    rebuild(client, journal, name)
        for name in marks if changed else ():
            adopt(client, journal, name)
        journal.done()  # opening alone has changed Chroma's database
    except BaseException:
        client.close()
        raise
    return client


def says_all(folder: str, journal: Journal) -> bool:
    """Whether the journal has all that Chroma has, and nothing is left to be done there."""
    if journal.pending() or not journal.index_is_as_left() or not journal.chroma_is_as_left():
        return False
    try:
        there = {row[0] for row in _rows(folder, "SELECT name FROM collections")}
    except sqlite3.Error:
        return False
    return there <= journal.marks().keys()


def rebuild(client: Client, journal: Journal, name: str) -> None:
    """Rebuild a collection from the journal."""
    from chromadb.errors import NotFoundError

    mark, count = journal.marks().get(name), journal.count(name)
    journal.begin_all(name)
    with suppress(NotFoundError):
        client.delete_collection(name)
    _remove_orphans(journal.folder)
    if dim := journal.dim(name):
        collection = create(client, name, mark, count, dim)
        offset = 0
        while ids := journal.page(name, offset):
            _put(collection, journal, name, ids)
            offset += len(ids)


def _replay(client: Client, journal: Journal, name: str, ids: Sequence[str]) -> None:
    """Write to Chroma what was cut short."""
    from chromadb.errors import NotFoundError

    try:
        collection = client.get_collection(name, embedding_function=None)
    except NotFoundError:
        return rebuild(client, journal, name)
    for page in pages(list(ids)):
        kept = set(journal.ids(name, page))
        gone = [id_ for id_ in page if id_ not in kept]
        if gone:
            collection.delete(ids=gone)
        if kept:
            _put(collection, journal, name, list(kept))
    return None


def _put(collection: Collection, journal: Journal, name: str, ids: Sequence[str]) -> None:
    records, vectors = journal.records(name, ids), journal.vectors(name, ids)
    upsert(collection, [records[id_] for id_ in vectors], np.stack(list(vectors.values())))


def adopt(client: Client, journal: Journal, name: str) -> None:
    """Take over what another program has written to Chroma's collection, or what was there before the journal."""
    from chromadb.errors import NotFoundError

    try:
        collection = client.get_collection(name, embedding_function=None)
    except NotFoundError:
        return journal.forget(name)
    mark, there, offset = mark_of(collection), set[str](), 0
    while page := page_of(collection, offset):
        ids, records, vectors = page
        offset += len(ids)
        whole = [record.id for record in records]
        there.update(whole)
        known, old = journal.records(name, whole), journal.vectors(name, whole)
        changed = [
            (record, vector)
            for record, vector in zip(records, vectors, strict=True)
            if known.get(record.id) != record or not np.array_equal(old[record.id], vector)
        ]
        journal.begin(name, changed, [], mark)
    gone, offset = [], 0
    while ids := journal.page(name, offset):
        gone += [id_ for id_ in ids if id_ not in there]
        offset += len(ids)
    return journal.begin(name, [], gone, mark)


# -- Chroma's files --------------------------------------------------------------------------------


def _set_aside(folder: str, known: Names[str]) -> None:
    """Move Chroma's files out of the way if its database cannot be read and the journal has what was in it."""
    try:
        _rows(folder, "SELECT id FROM segments")
    except sqlite3.OperationalError:  # a database of another version, which Chroma migrates
        return
    except sqlite3.DatabaseError as error:
        if not known:
            return
        logger.warning("%s: Chroma's database is damaged (%s); it is set aside and made anew", folder, error)
        for path in [os.path.join(folder, CHROMA_FILE), *index_folders(folder)]:
            os.replace(path, f"{path}.damaged.{secrets.token_hex(4)}")


def _damaged(folder: str, known: Names[str]) -> set[str]:
    """Collections with unreadable index files: Chroma would end the process."""
    damaged = set()
    for segment in index_folders(folder):
        reason = _damage_of(segment)
        if reason is None:
            continue
        name = _collection_of(folder, os.path.basename(segment))
        if name is None:  # nothing refers to it any more
            continue
        if name not in known:
            raise StoreError(
                f"{folder}: the index of collection {name!r} is damaged ({reason}), and nothing else has its vectors; "
                "restore a copy, or use another path and index again"
            )
        damaged.add(name)
    return damaged


def _damage_of(segment: str) -> str | None:
    """What is wrong with the files of an index; None if they fit together."""
    sizes: dict[str, int] = {}
    for name in ("header.bin", "data_level0.bin", "length.bin", "link_lists.bin"):
        path = os.path.join(segment, name)
        if not os.path.exists(path):
            continue
        check_regular(path)
        sizes[name] = os.path.getsize(path)
    if not sizes:  # nothing has been written yet
        return None
    if len(sizes) < 4:
        return "files are missing"
    if sizes["header.bin"] != _HEADER.size:
        return "header.bin has another size"
    with open(os.path.join(segment, "header.bin"), "rb") as file:
        values = _HEADER.unpack(file.read(_HEADER.size))
    _, level0, capacity, elements, size, label, vector, level, entry, most, most0, m, _, _ = values
    sound = (
        elements <= capacity < _MOST_ELEMENTS
        and level0 == 0
        and 0 < vector < label < size < 2**32
        and label + 8 == size
        and -1 <= level < _MOST_LEVELS
        and (elements == 0 or entry < elements)
        and 0 < most == m <= most0 <= 4 * m
    )
    if not sound:
        return "header.bin has impossible values"
    # A new index is written with its whole capacity, later ones with their elements.
    fitting = [n for n in (elements, capacity) if sizes["data_level0.bin"] == n * size and sizes["length.bin"] == 4 * n]
    if not fitting or sizes["link_lists.bin"] < 4 * elements:
        return "the sizes of its files do not fit together"
    return None


def _rows(folder: str, statement: str, *arguments: object) -> list[tuple[str]]:
    path = os.path.join(folder, CHROMA_FILE)
    if not os.path.exists(path):
        return []
    with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as database:
        return database.execute(statement, arguments).fetchall()


def _collection_of(folder: str, segment: str) -> str | None:
    statement = "SELECT c.name FROM segments s JOIN collections c ON c.id = s.collection WHERE s.id = ?"
    rows = _rows(folder, statement, segment)
    return rows[0][0] if rows else None


def _remove_orphans(folder: str) -> None:
    """Delete index folders of collections that are gone, which Chroma leaves behind."""
    known = {row[0] for row in _rows(folder, "SELECT id FROM segments")}
    for segment in index_folders(folder):
        if os.path.basename(segment) not in known:
            shutil.rmtree(segment, ignore_errors=True)
