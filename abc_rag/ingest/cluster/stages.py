"""What runs on the cluster: reading, embedding and writing, each on a table of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from abc_rag.embedding.ahead import named
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import ABCRagError
from abc_rag.ingest.cluster.lake import Lake, Made
from abc_rag.ingest.cluster.ledger import Asked
from abc_rag.ingest.cluster.options import Reading
from abc_rag.ingest.cluster.reading import Failure, Item, items_of
from abc_rag.ingest.facets import checked_facets
from abc_rag.store.facets import facet_id
from abc_rag.store.lance.rows import Dtype
from abc_rag.store.pictures import KeptPictures
from abc_rag.types import Image, Input, InstructedImage, Record, Text, Vectors

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Engine", "Facts", "facts_of", "read", "write"]

_MOST_ITEMS = 64
_MOST_BYTES = 64 * 2**20


class Facts(NamedTuple):
    """What the driver knows of the model, which it does not load itself."""

    dim: int
    fingerprint: str


def facts_of(embedder: Embedder, facets: Sequence[str], lake: Lake, dtype: Dtype) -> Facts | ABCRagError:
    """Load the model once, and make the datasets for it; an error comes back as a value."""
    try:
        checked_facets(facets, embedder)
        facts = Facts(embedder.dim, str(embedder.fingerprint))
        lake.prepare(facts.dim, dtype, facts.fingerprint, facets=bool(facets))
    except ABCRagError as error:
        return error
    return facts


def read(
    batch: pa.Table,
    *,
    ledger: Asked,
    reading: Reading,
    facets: Sequence[str],
) -> Iterator[pa.Table]:
    """Units as rows of what has to be embedded: ``place``, ``record``, ``data``, ``is_new``, ``facets``."""
    kept = None if reading.pictures is None else KeptPictures(Path(reading.pictures))
    for told in batch.column("unit").to_pylist():
        for items, failures in _groups(items_of(json.loads(told), reading)):
            yield _claimed(items, failures, ledger, kept, facets)


def _groups(found: Iterator[Item | Failure]) -> Iterator[tuple[list[Item], list[Failure]]]:
    items: list[Item] = []
    failures: list[Failure] = []
    held = 0
    for one in found:
        if isinstance(one, Failure):
            failures.append(one)
        else:
            if items and (len(items) >= _MOST_ITEMS or held + len(one.data) > _MOST_BYTES):
                yield items, failures
                items, failures, held = [], [], 0
            items.append(one)
            held += len(one.data)
    yield items, failures


def _claimed(
    items: list[Item],
    failures: list[Failure],
    ledger: Asked,
    kept: KeptPictures | None,
    facets: Sequence[str],
) -> pa.Table:
    ledger.fail([(failure.place, "", failure.reason) for failure in failures])
    asked = [(item.place, [item.record.id, *_facet_ids(item.record, facets)]) for item in items]
    rows: list[dict[str, Any]] = []
    for item, claims in zip(items, ledger.claim(asked), strict=True):
        if not any(claims):
            continue
        record = item.record
        if item.keep and kept is not None:
            source = kept.keep(item.data, record.mime_type)
            record = kept.to_stored(replace(record, source=source, source_type="path"))
        lacks = [facet for facet, mine in zip(facets, claims[1:], strict=False) if mine]
        told = json.dumps(asdict(record))
        rows.append({"place": item.place, "record": told, "data": item.data, "is_new": claims[0], "facets": lacks})
    return _table(rows, _READ)


def _facet_ids(record: Record, facets: Sequence[str]) -> list[str]:
    return [facet_id(record.id, facet) for facet in facets] if record.modality == "image" else []


_READ = {"place": "string", "record": "string", "data": "binary", "is_new": "bool", "facets": "texts"}
_MADE = {"record": "string", "is_new": "bool", "facets": "texts", "vectors": "floats"}
_WRITTEN = {"fragments": "texts", "ids": "texts", "facet_fragments": "texts", "facet_ids": "texts"}


def _table(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> pa.Table:
    import pyarrow as pa

    kinds = {
        "string": pa.string(),
        "binary": pa.binary(),
        "bool": pa.bool_(),
        "texts": pa.list_(pa.string()),
        "floats": pa.list_(pa.float32()),
    }
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    return pa.Table.from_pylist(rows, schema=schema)


class Engine:
    """An actor with a model.

    Args:
        embedder: Loads its weights here, on first use.
        ledger: The run's.
    """

    def __init__(self, embedder: Embedder, ledger: Asked) -> None:
        self._embedder = embedder
        self._ledger = ledger

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of `read`, with vectors in place of bytes; without those that cannot be embedded."""
        parts = [(row, Record(**json.loads(row["record"]))) for row in batch.to_pylist()]
        inputs = [_inputs(row, record) for row, record in parts]
        results = self._embedder.embed_iter([one for some in inputs for one in some], return_errors=True)
        rows: list[dict[str, Any]] = []
        failures: list[tuple[str, str, str]] = []
        for (row, record), some in zip(parts, inputs, strict=True):
            own = [next(results) for _ in some]
            errors = [result for result in own if isinstance(result, ABCRagError)]
            vectors = [result for result in own if not isinstance(result, ABCRagError)]
            facets = row["facets"]
            if errors:
                reason = str(named(errors[0], row["place"])).removeprefix(f"{row['place']}: ")
                failures.append((row["place"], record.id, reason))
                if not row["is_new"] or isinstance(own[0], ABCRagError):
                    continue
                # Of a picture's facets, all or none; its own vector is sound.
                vectors, facets = vectors[:1], []
            flat = np.concatenate(vectors)
            rows.append({"record": row["record"], "is_new": row["is_new"], "facets": facets, "vectors": flat})
        self._ledger.fail(failures)
        return _table(rows, _MADE)


def _inputs(row: Mapping[str, Any], record: Record) -> list[Input]:
    if record.modality == "text":
        return [Text(record.text)]
    own: list[Input] = [Image(row["data"])] if row["is_new"] else []
    return [*own, *(InstructedImage(row["data"], facet) for facet in row["facets"])]


def write(batch: pa.Table, *, lake: Lake, dim: int) -> pa.Table:
    """Rows of `Engine` as fragments that wait for a commit: one row that describes them."""
    made = [
        Made(Record(**json.loads(row["record"])), _matrix(row["vectors"], dim), row["is_new"], row["facets"])
        for row in batch.to_pylist()
    ]
    records, facets = lake.write(made)
    row = {"fragments": records.fragments, "ids": records.ids}
    return _table([row | {"facet_fragments": facets.fragments, "facet_ids": facets.ids}] if made else [], _WRITTEN)


def _matrix(flat: list[float], dim: int) -> Vectors:
    return np.asarray(flat, np.float32).reshape(-1, dim)
