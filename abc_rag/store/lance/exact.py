"""The nearest rows by comparing with every one of them, a block at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from abc_rag.store.codes import Codes
from abc_rag.store.lance.rows import matrix_of
from abc_rag.types import Vectors

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

__all__ = [
    "Block",
    "Keys",
    "Ranking",
    "block_of",
    "blocks_of",
    "joined",
    "keys_of",
    "loaded",
    "ranked",
    "ranked_by_codes",
]

ROWS = 8192
# Between float32 and float64: more than rounding makes of a cosine.
_CLOSE = 1e-5
_DIGITS = 9  # so that equal vectors have equal distances however the product is blocked

Keys = npt.NDArray[np.int64]


class Near(NamedTuple):
    """A row that was found: its distance, 1 - cosine, its id and its key in the dataset."""

    far: float
    id: str
    key: int


Ranking = list[Near]
"""Nearest first, equal ones in the order of ids."""


class Block(NamedTuple):
    """Some rows: their keys, ids, and vectors of shape ``(n, dim)``."""

    keys: Keys
    ids: pa.Array
    rows: Vectors

    def only(self, keys: Keys) -> Block:
        """The rows whose key is one of ``keys``."""
        places = np.flatnonzero(np.isin(self.keys, keys, assume_unique=True))
        return Block(self.keys[places], self.ids.take(places), self.rows[places])


def blocks_of(dataset: lance.LanceDataset, sql: str | None) -> Iterator[Block]:
    """The rows that pass, from the disk."""
    scanner = dataset.scanner(columns=["id", "vector"], filter=sql, with_row_id=True, batch_size=ROWS)
    for batch in scanner.to_batches():
        if batch.num_rows:
            yield block_of(batch)


def loaded(dataset: lance.LanceDataset) -> Block:
    """All rows, in memory."""
    import pyarrow as pa

    count = dataset.count_rows()
    keys, ids = np.empty(count, np.int64), []
    rows = np.empty((count, dataset.schema.field("vector").type.list_size), np.float32)
    at = 0
    for block in blocks_of(dataset, None):
        end = at + len(block.keys)
        keys[at:end], rows[at:end] = block.keys, block.rows
        ids.append(block.ids)
        at = end
    return Block(keys, pa.chunked_array(ids, pa.string()).combine_chunks(), rows)


def joined(blocks: Iterable[Block]) -> Block:
    """Blocks as one; there is at least one row."""
    import pyarrow as pa

    parts = list(blocks)
    ids = pa.chunked_array([part.ids for part in parts], pa.string()).combine_chunks()
    return Block(np.concatenate([part.keys for part in parts]), ids, np.concatenate([part.rows for part in parts]))


def block_of(batch: pa.RecordBatch | pa.Table) -> Block:
    """Rows that were read with their keys."""
    keys = batch.column("_rowid").to_numpy().astype(np.int64)
    return Block(keys, batch.column("id"), matrix_of(batch.column("vector")))


def ranked(queries: Vectors, k: int, blocks: Iterable[Block]) -> list[Ranking]:
    """The ``k`` rows nearest to each unit vector, ties included by id."""
    best: list[Ranking] = [[] for _ in queries]
    for block in blocks:
        for start in range(0, len(block.keys), ROWS):
            rows = block.rows[start : start + ROWS]
            # One query is a product of a matrix and a vector, which takes less than one of two matrices.
            near = (rows @ queries[0])[None] if len(queries) == 1 else queries @ rows.T
            for number, scores in enumerate(near):
                best[number] = _merged(best[number], k, queries[number], block, start, scores)
    return best


def ranked_by_codes(queries: Vectors, k: int, block: Block, codes: Codes) -> list[Ranking]:
    """`ranked` for one block, of which the vectors' codes are compared first."""
    found: list[Ranking] = []
    count = len(block.keys)
    most = min(k, count)
    for query in queries:
        (scores,), (off,) = codes.scores(query[None], np.arange(count))
        # The most-th best is at least as near as the most-th best that is as far as it can be.
        least = np.partition(scores - off, count - most)[count - most]
        places = np.flatnonzero(scores + off >= least - _CLOSE)
        near = Block(block.keys[places], block.ids.take(places), block.rows[places])
        found += ranked(query[None], k, [near])
    return found


def _merged(
    best: Ranking, k: int, query: npt.NDArray[np.float32], block: Block, start: int, scores: npt.NDArray[np.float32]
) -> Ranking:
    """The best so far with what is as near in a further block."""
    least = -2.0
    if len(best) == k:
        least = 1.0 - best[-1].far
    elif len(scores) > k:
        least = float(np.partition(scores, len(scores) - k)[len(scores) - k])
    # All that may be among the nearest: also what is as near as the last of them but for rounding.
    chosen = np.flatnonzero(scores >= least - _CLOSE)
    if not len(chosen):
        return best
    rows = block.rows[chosen + start].astype(np.float64)
    far = np.round(1.0 - rows @ query.astype(np.float64), _DIGITS)
    if len(far) > k:  # ids are made of those only that can remain
        kept = far <= np.partition(far, k - 1)[k - 1]
        chosen, far = chosen[kept], far[kept]
    ids = block.ids.take(chosen + start).to_pylist()
    new = map(Near, far.tolist(), ids, block.keys[chosen + start].tolist())
    return sorted([*best, *new])[:k]


def keys_of(dataset: lance.LanceDataset, sql: str) -> Keys:
    """The keys of the rows that pass, ascending."""
    found = dataset.scanner(columns=[], filter=sql, with_row_id=True).to_table()
    return np.sort(np.asarray(found.column("_rowid").to_numpy(), dtype=np.int64))
