"""Datasets: their columns, how they are made, and records on their way in and out.

A record is a row. What a filter looks up stands in columns of its own (`abc_rag.store.lance.where`).
Whoever else writes such datasets, such as a cluster, makes them by `create` and their rows by `table_of`.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from abc_rag.errors import FingerprintMismatchError, InputError, StoreError
from abc_rag.store.lance.client import import_lance
from abc_rag.store.lance.where import entries_of
from abc_rag.store.projection import mismatch
from abc_rag.types import Record, Vectors

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

__all__ = [
    "FINGERPRINT",
    "IDENTITY",
    "RECORD",
    "Dtype",
    "as_float32",
    "check",
    "create",
    "dataset_uri",
    "dim_of",
    "matrix_of",
    "records_of",
    "schema_of",
    "table_of",
    "tidy",
]

logger = logging.getLogger(__name__)

Dtype = Literal["float32", "float16"]

FINGERPRINT = "abc:fingerprint"
IDENTITY = "abc:identity"
_ROUNDED = 2e-3
_FORMAT, _VERSION = "abc:format", "1"
# Lance then takes two inserts of one id at once for a conflict, of which one is repeated.
_KEY = {"lance-schema:unenforced-primary-key": "true"}
_TEXTS = ("modality", "text", "source", "source_type", "sha256", "mime_type")
RECORD = ["id", *_TEXTS, "metadata"]
"""The columns that a record is made of."""
# Each commit makes a fragment. When there are so many small ones, they become some that have a share of all rows each.
_MOST_FRAGMENTS = 64
_SHARE = 8
_LEAST_ROWS, _MOST_ROWS = 4096, 2**16
_MOST_JOINED = 2**20  # rows, by one write
# Old versions are for readers that look at one, and for undoing mistakes.
_CLEANUP = {"lance.auto_cleanup.interval": "100", "lance.auto_cleanup.older_than": "1day"}


def dataset_uri(place: str, collection: str, *, facets: bool = False) -> str:
    """Where a collection's dataset of records, or of facets, is."""
    return f"{place.rstrip('/')}/{collection}{'.facets' if facets else ''}.lance"


def schema_of(dim: int, dtype: Dtype = "float32", fingerprint: str | None = None) -> pa.Schema:
    """The columns of a new dataset, with its identity.

    Args:
        dim: Length of a vector.
        dtype: What its numbers are.
        fingerprint: Whose vectors they are, if that is known.
    """
    import pyarrow as pa

    number = pa.float16() if dtype == "float16" else pa.float32()
    metadata = {_FORMAT: _VERSION, IDENTITY: uuid.uuid4().hex}
    if fingerprint is not None:
        metadata[FINGERPRINT] = fingerprint
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata=_KEY),
            pa.field("vector", pa.list_(number, dim), nullable=False),
            *(pa.field(name, pa.string(), nullable=False) for name in (*_TEXTS, "metadata")),
            pa.field("tokens", pa.list_(pa.string()), nullable=False),
            pa.field("number_names", pa.list_(pa.string()), nullable=False),
            pa.field("numbers", pa.list_(pa.float64()), nullable=False),
        ],
        metadata=metadata,
    )


def create(
    uri: str,
    dim: int,
    *,
    dtype: Dtype = "float32",
    fingerprint: str | None = None,
    storage_options: dict[str, str] | None = None,
) -> lance.LanceDataset:
    """Make an empty dataset, or open the one that somebody else has just made."""
    lance = import_lance()
    # `write_dataset(mode="create")` would try again after somebody else's creation, and empty what they wrote.
    nothing = lance.LanceOperation.Overwrite(schema_of(dim, dtype, fingerprint), [])
    try:
        made = lance.LanceDataset.commit(
            uri, nothing, max_retries=0, enable_stable_row_ids=True, storage_options=storage_options
        )
    except (OSError, ValueError, RuntimeError):
        try:
            return lance.dataset(uri, storage_options=storage_options)
        except (OSError, ValueError):
            pass
        raise
    made.update_config(_CLEANUP)
    return made


def check(dataset: lance.LanceDataset, place: str, wanted: str | None) -> None:
    """Refuse a dataset that is not of this layout, or holds another model's vectors.

    Raises:
        FingerprintMismatchError: It holds other vectors than ``wanted``, or does not say which.
        StoreError: It was not made by `create`.
    """
    import pyarrow as pa

    schema, metadata = dataset.schema, dataset.schema_metadata
    missing = {"vector", *RECORD, "tokens", "number_names", "numbers"} - set(schema.names)
    if metadata.get(_FORMAT) != _VERSION or missing or not pa.types.is_fixed_size_list(schema.field("vector").type):
        raise StoreError(
            f"{place}: a Lance dataset, but not of this layout (format {metadata.get(_FORMAT)!r}, missing columns: "
            f"{', '.join(sorted(missing)) or 'none'}); use another place and index again"
        )
    if not dataset.has_stable_row_ids:
        raise StoreError(
            f"{place}: the dataset was made without stable row ids; make it by abc_rag.store.lance.rows.create"
        )
    mark = metadata.get(FINGERPRINT)
    if wanted is None or mark == wanted:
        return
    if mark is not None:
        other = "use another collection or place, or delete this one and index again"
        raise mismatch(f"{place}: it", mark, wanted, other)
    if dataset.count_rows():
        raise FingerprintMismatchError(
            f"{place}: it holds vectors without a fingerprint of the model that made them, so they cannot be compared "
            f"with those of {wanted}; use another collection or place, or open it without a fingerprint"
        )


def dim_of(schema: pa.Schema) -> int:
    """Length of a dataset's vectors."""
    return int(schema.field("vector").type.list_size)


def table_of(records: Sequence[Record], vectors: Vectors, schema: pa.Schema, *, facets: bool = False) -> pa.Table:
    """Rows of a dataset.

    Args:
        records: That have passed `abc_rag.store.records.checked_records`.
        vectors: Unit vectors of shape ``(len(records), dim)``.
        schema: The dataset's.
        facets: Whether it is one of facets.
    """
    import pyarrow as pa

    kind = schema.field("vector").type
    flat = np.ascontiguousarray(vectors, dtype=kind.value_type.to_pandas_dtype()).ravel()
    entries = [entries_of(record, facet=facets) for record in records]
    columns: dict[str, object] = {
        "id": [record.id for record in records],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind),
        **{name: [getattr(record, name) for record in records] for name in _TEXTS},
        "metadata": [json.dumps(dict(record.metadata), ensure_ascii=False) for record in records],
        "tokens": [one.tokens for one in entries],
        "number_names": [one.names for one in entries],
        "numbers": [one.numbers for one in entries],
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def records_of(batch: pa.RecordBatch | pa.Table) -> list[Record]:
    """The records of rows with the columns `RECORD`; a damaged one is left out with a warning that names it."""
    found = []
    for row in batch.select(RECORD).to_pylist():
        try:
            row["metadata"] = json.loads(row["metadata"])
            if not isinstance(row["metadata"], dict):
                raise InputError("its metadata is no object")
            found.append(Record(**row))
        except (ValueError, TypeError, RecursionError) as error:
            logger.warning("a damaged record is left out; delete it and add it again: %r (%s)", row["id"], error)
    return found


def matrix_of(column: pa.Array | pa.ChunkedArray) -> Vectors:
    """A column of vectors: float32 of shape ``(n, dim)``."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of no chunks
        return np.zeros((0, array.type.list_size), np.float32)
    return as_float32(array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size))


def tidy(dataset: lance.LanceDataset) -> None:
    """Join small fragments where there are many, so that reading stays fast."""
    rows = min(max(_LEAST_ROWS, dataset.count_rows() // _SHARE), _MOST_ROWS)
    if sum(fragment.physical_rows < rows for fragment in dataset.get_fragments()) <= _MOST_FRAGMENTS:
        return
    # Another process that changes the same fragments comes first; the next write tries again.
    with suppress(OSError, RuntimeError, ValueError):
        dataset.optimize.compact_files(target_rows_per_fragment=rows, max_source_rows=_MOST_JOINED, num_threads=1)


def as_float32(rows: npt.NDArray[np.floating[Any]]) -> Vectors:
    """Vectors as float32; what half precision has taken from their unit length is given back."""
    wide: Vectors = rows.astype(np.float32, copy=False)
    if rows.dtype != np.float16:
        return wide
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    # Any other length is not by rounding, and `Table.problems` shall see it.
    wide /= np.where(np.abs(lengths - 1.0) < _ROUNDED, lengths, 1.0)
    return wide
