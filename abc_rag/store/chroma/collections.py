"""Chroma's collections: made, marked, checked, filled and read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from abc_rag.errors import FingerprintMismatchError, InputError, StoreError
from abc_rag.store.chroma.rows import metadata_of, records_of
from abc_rag.store.projection import mismatch
from abc_rag.store.table import PAGE, pages
from abc_rag.types import Record, Vectors

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.collection_configuration import CreateHNSWConfiguration
    from chromadb.api.models.Collection import Collection
    from chromadb.api.types import Include

__all__ = [
    "FACETS",
    "RECORD",
    "check",
    "check_mark",
    "create",
    "mark_of",
    "marked",
    "page_of",
    "shards_in",
    "shards_of",
    "threshold",
    "tuned",
    "upsert",
]

FACETS = ".facets"
"""What the name of a collection of facets ends in."""

RECORD: Include = ["metadatas", "documents", "uris"]

_FINGERPRINT = "abc:fingerprint"
_SHARDS = "abc:shards"
# With Chroma's 16 neighbours, records beside a few dozen equal vectors cannot be found.
_NEIGHBOURS = 64
# Chroma writes its whole index each time that so many records have come, and inserts anew at every opening those that
# came since. In step with the growth, all writing together stays in proportion to the records; the bound on bytes
# keeps opening short where vectors are wide.
_LEAST_BETWEEN = 1000
_GROWTH = 5
_MOST_BYTES_BETWEEN = 2**26


def threshold(count: int, dim: int) -> int:
    """After how many records Chroma writes an index of ``count`` records."""
    return max(_LEAST_BETWEEN, min(count // _GROWTH, _MOST_BYTES_BETWEEN // (4 * dim)))


def create(client: Client, name: str, mark: str | None, count: int, dim: int, *, shards: int = 1) -> Collection:
    """Make a collection, or get it where somebody else has just made it.

    Args:
        client: Of Chroma.
        name: Of the collection.
        mark: The fingerprint of its vectors.
        count: How many records it will soon have.
        dim: Length of its vectors.
        shards: Of how many collections it is the first.
    """
    between = threshold(count, dim)
    index: CreateHNSWConfiguration = {
        "space": "cosine",
        "max_neighbors": _NEIGHBOURS,
        "ef_search": 200,
        "sync_threshold": between,
        "batch_size": min(between, _LEAST_BETWEEN),
    }
    metadata: dict[str, Any] = {} if mark is None else {_FINGERPRINT: mark}
    if shards > 1:
        metadata[_SHARDS] = shards
    return client.get_or_create_collection(
        name, embedding_function=None, metadata=metadata or None, configuration={"hnsw": index}
    )


def shards_of(collection: Collection) -> int:
    """Of how many collections this is the first."""
    found = (collection.metadata or {}).get(_SHARDS, 1)
    return found if type(found) is int else 1


def shards_in(client: Client, name: str) -> int:
    """Of how many collections the one of this name is the first; 1 if there is none."""
    from chromadb.errors import NotFoundError

    try:
        return shards_of(client.get_collection(name, embedding_function=None))
    except NotFoundError:
        return 1


def tuned(collection: Collection, count: int, dim: int) -> bool:
    """Let Chroma write the index more rarely if it has grown. Takes effect when the index is opened again."""
    now = (collection.configuration_json.get("hnsw") or {}).get("sync_threshold")
    wanted = threshold(count, dim)
    if not isinstance(now, int) or wanted < 2 * now:
        return False
    with warnings.catch_warnings():
        # Chroma warns of collections without an embedding function.
        warnings.simplefilter("ignore", DeprecationWarning)
        collection.modify(configuration={"hnsw": {"sync_threshold": wanted}})
    return True


def mark_of(collection: Collection) -> str | None:
    """The fingerprint of a collection's vectors, if it has been marked."""
    mark = (collection.metadata or {}).get(_FINGERPRINT)
    return None if mark is None else str(mark)


def marked(collection: Collection, mark: str) -> None:
    """Mark a collection that somebody else made."""
    # The space cannot be changed, and Chroma takes naming it for an attempt.
    kept = {key: value for key, value in (collection.metadata or {}).items() if not key.startswith("hnsw:")}
    collection.modify(metadata={**kept, _FINGERPRINT: mark})


def check(collection: Collection, place: str, wanted: str | None, *, shards: int = 1) -> None:
    """Refuse a collection that is not in cosine space, holds another model's vectors, or is of other shards.

    Raises:
        FingerprintMismatchError: It holds other vectors than ``wanted``, or does not say which.
        InputError: It is the first of another number of collections than ``shards``.
        StoreError: It was made with another distance.
    """
    configuration, name = collection.configuration_json, collection.name
    space = (configuration.get("hnsw") or configuration.get("spann") or {}).get("space")
    if space != "cosine":
        raise StoreError(
            f"{place}: collection {name!r} was made with the distance {space!r}, and only 'cosine' is "
            "supported; use another collection name and index again"
        )
    if (have := shards_of(collection)) != shards:
        raise InputError(f"{place}: collection {name!r} has shards={have}, not {shards}; open it with shards={have}")
    check_mark(mark_of(collection), place, name, wanted, collection.count)


def check_mark(mark: str | None, place: str, name: str, wanted: str | None, count: Callable[[], int]) -> None:
    """Refuse a collection that holds other vectors than ``wanted``, or does not say which.

    Raises:
        FingerprintMismatchError: It does.
    """
    if wanted is None or mark == wanted:
        return
    if mark is not None:
        other = "use another collection or path, or delete this one and index again"
        raise mismatch(f"{place}: collection {name!r}", mark, wanted, other)
    if count():
        raise FingerprintMismatchError(
            f"{place}: collection {name!r} holds vectors but not the name of the model that made them, "
            f"so they cannot be compared with those of {wanted}; use another collection or path and index "
            "again, or open it without a fingerprint"
        )


def upsert(
    collection: Collection, records: Sequence[Record], vectors: Vectors, *, known: Sequence[str] | None = None
) -> None:
    """Write records whole.

    Args:
        collection: Where to.
        records: As many as one request takes.
        vectors: Shape ``(len(records), dim)``.
        known: The ids among them that are stored already, if that is known.
    """
    faceted = collection.name.endswith(FACETS)
    new = {r.id: metadata_of(r, r.id.rpartition("#")[0] if faceted else "") for r in records}
    # Chroma merges a record's old metadata into the new; None takes a key away.
    ids = list(new) if known is None else known
    for some in pages(ids):
        old = collection.get(ids=list(some), include=["metadatas"])
        for id_, metadata in zip(old["ids"], old["metadatas"] or [], strict=True):
            new[id_].update((key, None) for key in metadata or {} if key not in new[id_])
    collection.upsert(
        ids=list(new),
        embeddings=vectors,
        metadatas=list(new.values()),
        documents=[record.text for record in records],
        # Empty rather than None, which would leave the old one in place.
        uris=[record.source for record in records],
    )


def page_of(collection: Collection, offset: int) -> tuple[list[str], list[Record], list[Vectors]] | None:
    """The ids of the next `PAGE` rows, and of those that are not damaged the records and vectors; None at the end."""
    found: Any = collection.get(limit=PAGE, offset=offset, include=[*RECORD, "embeddings"])
    if not found["ids"]:
        return None
    records = records_of(found["ids"], *(found[name] for name in RECORD))
    rows = dict(zip(found["ids"], np.asarray(found["embeddings"], dtype=np.float32), strict=True))
    return found["ids"], records, [rows[record.id] for record in records]
