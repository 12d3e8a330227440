"""What Chroma is given and gives back: checked records and vectors, filters, answers and hits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from abc_rag.errors import FingerprintMismatchError, InputError, StoreError
from abc_rag.store.base import _bytes, _checked_ids
from abc_rag.store.pictures import _KEPT
from abc_rag.types import Hit, MetadataValue, Modality, Record, SourceType, Vectors

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

Item = tuple[Record, dict[str, MetadataValue], npt.NDArray[np.float32], int]

_OWN = "abc:"
_MODALITY = "abc:modality"
_SOURCE = "abc:source"
_SOURCE_TYPE = "abc:source_type"
_SHA256 = "abc:sha256"
_MIME_TYPE = "abc:mime_type"
# The record that a facet belongs to.
_OF = "abc:of"
_FINGERPRINT = "abc:fingerprint"
# Ids go to SQLite as variables, of which one statement takes 32,766.
_PAGE = 1000
_MOST_TIES = 1000


def _got(collection: Collection, **arguments: Any) -> dict[str, Any] | None:  # noqa: ANN401
    page: dict[str, Any] = dict(collection.get(**arguments))
    return page if page["ids"] else None


def _more_than(n: int, condition: dict[str, Any] | None, collection: Collection) -> bool:
    if condition is None:
        return collection.count() > n
    return len(collection.get(where=condition, limit=n + 1, include=[])["ids"]) > n


def _indexed(
    rows: Vectors, k: int, condition: dict[str, Any] | None, collection: Collection
) -> Iterator[tuple[int, list[Hit]]]:
    """Ask the index; yield row numbers with hits, except where the index finds fewer than there are."""
    # One more than asked shows whether the last place is tied.
    wanted, most = k + 1, k + _MOST_TIES
    if wanted > _PAGE:
        wanted = most = max(1, min(wanted, collection.count()))
    complete: dict[int, bool] = {}
    numbers = list(range(len(rows)))
    while numbers:
        answer = collection.query(
            query_embeddings=rows[numbers],
            n_results=wanted,
            where=condition,
            include=["metadatas", "documents", "uris", "distances"],
        )
        tied = []
        for position, i in enumerate(numbers):
            far = (answer["distances"] or [])[position]
            if len(far) < wanted:
                if len(far) not in complete:
                    complete[len(far)] = not _more_than(len(far), condition, collection)
                if not complete[len(far)]:
                    continue
            elif wanted < most and far[k - 1] == far[-1]:
                tied.append(i)
                continue
            columns = [(answer[column] or [])[position] for column in ("metadatas", "documents", "uris")]
            yield i, _hits(zip(far, _records(answer["ids"][position], *columns), strict=True), k)
        numbers, wanted = tied, min(2 * wanted, most)


def _exact(rows: Vectors, k: int, condition: dict[str, Any] | None, collection: Collection) -> list[list[Hit]]:
    """Compare with every vector: beside many equal vectors, or behind a narrow filter, the index is blind."""
    ids: list[str] = []
    parts: list[Vectors] = [np.zeros((0, rows.shape[1]), dtype=np.float32)]
    while page := _got(collection, where=condition, limit=_PAGE, offset=len(ids), include=["embeddings"]):
        ids += page["ids"]
        parts.append(np.asarray(page["embeddings"], dtype=np.float32))
    order = sorted(range(len(ids)), key=ids.__getitem__)
    # In float64 and rounded, so that equal vectors have equal distances however the product is blocked.
    distances = np.round(1.0 - rows.astype(np.float64) @ np.concatenate(parts)[order].T.astype(np.float64), 9)
    ranked = [[(float(row[j]), ids[order[j]]) for j in np.argsort(row, kind="stable")[:k]] for row in distances]
    wanted = list({id_ for pairs in ranked for _, id_ in pairs})
    records: dict[str, Record] = {}
    for start in range(0, len(wanted), _PAGE):
        page = _got(collection, ids=wanted[start : start + _PAGE], include=["metadatas", "documents", "uris"])
        if page:
            found = _records(page["ids"], page["metadatas"], page["documents"], page["uris"])
            records.update((record.id, record) for record in found)
    return [_hits(((far, records[id_]) for far, id_ in pairs if id_ in records), k) for pairs in ranked]


def _hits(pairs: Iterable[tuple[float, Record]], k: int) -> list[Hit]:
    ranked = sorted(pairs, key=lambda pair: (pair[0], pair[1].id))[:k]
    return [Hit(record, min(1.0, max(0.0, 1.0 - float(distance) / 2.0))) for distance, record in ranked]


def _mark(collection: Collection) -> str | None:
    mark = (collection.metadata or {}).get(_FINGERPRINT)
    return None if mark is None else str(mark)


def _check(collection: Collection, place: str, name: str, wanted: str | None) -> None:
    configuration = collection.configuration_json
    space = (configuration.get("hnsw") or configuration.get("spann") or {}).get("space")
    if space != "cosine":
        raise StoreError(
            f"{place}: collection {name!r} was made with the distance {space!r}, and only 'cosine' is "
            "supported; use another collection name and index again"
        )
    mark = _mark(collection)
    if wanted is None or mark == wanted:
        return
    if mark is not None:
        raise FingerprintMismatchError(
            f"{place}: collection {name!r} holds vectors of {mark}, which cannot be compared with "
            f"those of {wanted}; use another collection or path, or delete this one and index again"
        )
    if collection.count():
        raise FingerprintMismatchError(
            f"{place}: collection {name!r} holds vectors but not the name of the model that made them, "
            f"so they cannot be compared with those of {wanted}; use another collection or path and index "
            "again, or open it without a fingerprint"
        )


def _records(ids: Sequence[str], metadatas: Any, documents: Any, uris: Any) -> list[Record]:  # noqa: ANN401
    made = []
    for id_, metadata, document, uri in zip(ids, metadatas, documents, uris, strict=True):
        values = dict(metadata or {})
        # A record that something else wrote has no modality: one with a reference alone is a picture.
        guess = "image" if uri and not document else "text"
        modality: Modality = "image" if values.pop(_MODALITY, guess) == "image" else "text"
        source = values.pop(_SOURCE, None) or uri or ""
        source_type: SourceType = values.pop(_SOURCE_TYPE, "path")
        sha256, mime_type = str(values.pop(_SHA256, "")), str(values.pop(_MIME_TYPE, ""))
        values = {key: value for key, value in values.items() if not key.startswith(_OWN)}
        made.append(Record(id_, modality, document or "", source, values, source_type, sha256, mime_type))
    return made


def _item(record: Record, row: npt.NDArray[np.float32], own: Mapping[str, str] | None = None) -> Item:
    """A checked record with what is stored of it, and the bytes it takes in a request."""
    _checked_ids([record.id])
    if record.modality not in ("text", "image"):
        raise InputError(f"record {record.id!r}: modality must be 'text' or 'image', not {record.modality!r}")
    size = len(row) * 6 + 200  # base64 of float32, and what is around it
    if record.source_type not in ("path", "url", _KEPT):
        raise InputError(f"record {record.id!r}: source_type must be 'path' or 'url', not {record.source_type!r}")
    for name in ("text", "source", "sha256", "mime_type"):
        text = getattr(record, name)
        if not isinstance(text, str):
            raise InputError(f"record {record.id!r}: {name} must be a str, not {type(text).__name__}")
        size += 2 * _bytes(text, f"record {record.id!r}: {name}")
    metadata: dict[str, MetadataValue] = {_MODALITY: record.modality, _SOURCE: record.source, **(own or {})}
    if record.source_type != "path":
        metadata[_SOURCE_TYPE] = record.source_type
    metadata.update((key, value) for key, value in ((_SHA256, record.sha256), (_MIME_TYPE, record.mime_type)) if value)
    if not isinstance(record.metadata, Mapping):
        raise InputError(f"record {record.id!r}: metadata must be a dict, not {type(record.metadata).__name__}")
    for key, value in record.metadata.items():
        where = f"record {record.id!r}: metadata key {key!r}"
        if not isinstance(key, str) or not key:
            raise InputError(f"{where}: keys must be non-empty str")
        if key.startswith((_OWN, "chroma:")):
            raise InputError(f"{where}: keys starting with 'abc:' or 'chroma:' are reserved; rename it")
        metadata[key] = _plain(value, where)
        size += _bytes(key, where) + (_bytes(value, where) if isinstance(value, str) else 24)
    return record, metadata, row, size


def _items(records: Sequence[Record], rows: Vectors, own: Sequence[Mapping[str, str]] | None = None) -> list[Item]:
    """One item a record; of records with the same id the last."""
    items: dict[str, Item] = {}
    for position, (record, row) in enumerate(zip(records, rows, strict=True)):
        items[record.id] = _item(record, row, own[position] if own else None)
    return list(items.values())


def _plain(value: object, where: str) -> MetadataValue:
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InputError(f"{where}: {value} does not fit into 64 bits; store it as a str")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where}: {value} cannot be stored; leave the key out")
        return float(value)
    raise InputError(f"{where}: values must be str, int, float or bool, not {type(value).__name__}")


def _condition(where: Mapping[str, Any] | None, modality: Modality | None) -> dict[str, Any] | None:
    if where is not None and not isinstance(where, Mapping):
        raise InputError(f"where must be a dict such as {{'page': 3}}, not {type(where).__name__}")
    if modality not in (None, "text", "image"):
        raise InputError(f"modality must be 'text', 'image' or None, not {modality!r}")
    parts: list[dict[str, Any]] = [dict(where)] if where else []
    if modality is not None:
        parts.append({_MODALITY: modality})
    return {"$and": parts} if len(parts) > 1 else parts[0] if parts else None


def _batches(sizes: Sequence[int], most: int, most_bytes: int) -> Iterator[slice]:
    """Cut a sequence so that no part exceeds ``most`` items or, unless it is a single item, ``most_bytes``."""
    start = held = 0
    for position, size in enumerate(sizes):
        if position > start and (position - start >= most or held + size > most_bytes):
            yield slice(start, position)
            start, held = position, 0
        held += size
    if start < len(sizes):
        yield slice(start, len(sizes))
