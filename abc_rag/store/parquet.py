"""A store as one Parquet file, for programs that know nothing of stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abc_rag.errors import InputError, MissingExtraError, StoreError
from abc_rag.files import new_file
from abc_rag.store.base import Store
from abc_rag.types import Record, Vectors

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["export_parquet"]

_TEXTS = ("id", "modality", "text", "source", "source_type", "sha256", "mime_type")


def export_parquet(store: Store, path: Path) -> int:
    """Write every record and facet as a row; return how many rows there are.

    Columns are the fields of `abc_rag.types.Record`, with the metadata as a JSON object, ``facet`` (the instruction of
    a facet, null for a record itself; its id is its picture's) and ``vector`` (float32, unit length). The file's schema
    has the fingerprint as ``abc:fingerprint``. Some thousand records are in memory at a time.

    Args:
        store: What to write.
        path: The file, which is there once it is whole.

    Raises:
        InputError: The store is empty.
        MissingExtraError: pyarrow is not installed.
        StoreError: The file cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_module(error, "export_parquet", extra="lance") from error
    dim = store.dim
    if dim is None:
        raise InputError(f"{store!r} is empty, so there is nothing to export; index something first")
    mark = store.fingerprint
    schema = pa.schema(
        [
            *(pa.field(name, pa.string(), nullable=False) for name in _TEXTS),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("facet", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ],
        metadata=None if mark is None else {"abc:fingerprint": mark},
    )
    rows = 0
    try:
        with new_file(path) as draft, pq.ParquetWriter(draft, schema) as writer:
            for table in _tables(store, schema):
                writer.write_table(table)
                rows += table.num_rows
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error}); choose another path") from error
    return rows


def _tables(store: Store, schema: pa.Schema) -> Iterator[pa.Table]:
    for records, vectors in store.pages():
        yield _table(records, vectors, None, schema)
    for instruction, ids, vectors in store.facet_pages():
        known = {record.id: record for record in store.get(ids)}
        places = [place for place, id_ in enumerate(ids) if id_ in known]
        yield _table([known[ids[place]] for place in places], vectors[places], instruction, schema)


def _table(records: list[Record], vectors: Vectors, facet: str | None, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    columns: dict[str, Any] = {name: [getattr(record, name) for record in records] for name in _TEXTS}
    columns["metadata"] = [json.dumps(dict(record.metadata), ensure_ascii=False) for record in records]
    columns["facet"] = pa.array([facet] * len(records), pa.string())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table(columns, schema=schema)
