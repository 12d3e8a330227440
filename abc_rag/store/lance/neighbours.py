"""The index of neighbours of a dataset: built, refreshed and searched.

Vectors stand in partitions, as codes that are smaller than they: a search reads the partitions whose centres are
nearest to the query, and takes the best codes in them as candidates. The candidates' own vectors are then read and
compared, so scores and their order are exact among them. Rows that came after the index was built are all compared.

An index is worth its while from about a hundred thousand rows on. Below, and without one, every search is exact.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from abc_rag.errors import InputError
from abc_rag.store.lance.exact import Block, Keys, Ranking, block_of, blocks_of, ranked
from abc_rag.store.lance.rows import dim_of, matrix_of
from abc_rag.types import Vectors

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

__all__ = ["IndexKind", "Neighbours", "build", "checked_kind", "refresh"]

IndexKind = Literal["int8", "binary", "pq", "hnsw"]
"""What stands for a vector in the index: a byte or a bit a dimension, a product code, or a graph over bytes."""

_NAME = "vector_idx"
_PARTITIONS = "abc:partitions"
_LANCE: dict[IndexKind, str] = {"int8": "IVF_SQ", "binary": "IVF_RQ", "pq": "IVF_PQ", "hnsw": "IVF_HNSW_SQ"}
# Candidates whose vectors are read, per hit: the coarser the code, the more.
_CANDIDATES: dict[str, int] = {"IVF_SQ": 5, "IVF_RQ": 40, "IVF_PQ": 20, "IVF_HNSW_SQ": 5}
_LEAST_CANDIDATES = 50
_LEAST_ROWS = 256  # less cannot be divided
_PARTITION = 1000  # rows in one
_GRAPH = 20_000
# Of the partitions, this share is read, and at least so many.
_SHARE = 0.04
_LEAST_PROBES = 50
# Where a filter lets this share through, or more, candidates are asked whether they pass; below, it comes first.
_WIDE = 0.02
_MORE = 1.5  # candidates, so that enough of them pass
_FARTHER = 2.0  # partitions, as what passes lies in more of them
_DIMS_A_CODE = 8  # of product codes
_SAMPLE = 64  # vectors that a centre is trained with
_ROUNDS = 10
_LEAST_BITS = 256  # a bit a dimension says enough where there are many
_SAMPLED = 1000
_GROWN = 2  # since when an index is built anew
_SAME = 1e-4


def checked_kind(kind: object, dim: int) -> IndexKind:
    """A kind of index; None stands for the one that fits to vectors of this length.

    Raises:
        InputError: There is no such one.
    """
    if kind is None:
        return "binary" if dim >= _LEAST_BITS else "int8"
    if kind not in get_args(IndexKind):
        raise InputError(f"there is no index {kind!r}; there are: {', '.join(get_args(IndexKind))}")
    return kind  # type: ignore[return-value]


def build(dataset: lance.LanceDataset, kind: IndexKind) -> int:
    """Build the index of neighbours, and those of ids and fields; or bring them up to date, if there are such ones.

    Args:
        dataset: Changed in place.
        kind: What stands for a vector.

    Returns:
        How many rows are indexed; 0 where there are too few.
    """
    count, known = int(dataset.count_rows()), _described(dataset)
    if known is not None and known.kind == _LANCE[kind] and count <= _GROWN * known.rows:
        dataset.optimize.optimize_indices()
        return count
    dataset.create_scalar_index("id", "BTREE", name="id_idx", replace=True)
    dataset.create_scalar_index("tokens", "LABEL_LIST", name="tokens_idx", replace=True)
    if count < _LEAST_ROWS:
        return 0
    partitions = max(1, count // (_GRAPH if kind == "hnsw" else _PARTITION))
    options: dict[str, int] = {"num_partitions": partitions, "sample_rate": _SAMPLE, "max_iters": _ROUNDS}
    if kind == "pq":
        dim = dim_of(dataset.schema)
        options["num_sub_vectors"] = dim // next(n for n in (_DIMS_A_CODE, 4, 2, 1) if dim % n == 0)
    elif kind == "binary":
        options["num_bits"] = 1
    dataset.create_index("vector", _LANCE[kind], name=_NAME, metric="cosine", replace=True, **options)
    dataset.update_schema_metadata({_PARTITIONS: str(partitions)})
    return count


def refresh(dataset: lance.LanceDataset) -> None:
    """Build all indexes of a dataset anew, those that it has.

    Args:
        dataset: Changed in place.
    """
    known = _described(dataset)
    if known is None:
        return
    kind = next(kind for kind, name in _LANCE.items() if name == known.kind)
    dataset.drop_index(_NAME)
    build(dataset, kind)


class _Index(NamedTuple):
    """An index: Lance's name of its kind, its partitions, and the rows in it."""

    kind: str
    partitions: int
    rows: int


class Neighbours:
    """Searches the index of one dataset. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[tuple[str, int], _Index | None] | None = None

    def serves(self, dataset: lance.LanceDataset) -> bool:
        """Whether there is an index."""
        return self._index(dataset) is not None

    def _index(self, dataset: lance.LanceDataset) -> _Index | None:
        at = dataset.uri, dataset.version
        with self._lock:
            if self._known is None or self._known[0] != at:
                self._known = at, _described(dataset)
            return self._known[1]

    def ranked(
        self,
        dataset: lance.LanceDataset,
        queries: Vectors,
        k: int,
        keys: Keys | None = None,
        sql: str | None = None,
    ) -> list[Ranking]:
        """The ``k`` nearest of each unit vector among the index's candidates, by their own vectors.

        Args:
            dataset: With an index.
            queries: Shape ``(n, dim)``.
            k: How many.
            keys: The rows that pass a filter, ascending; None for all.
            sql: The filter.
        """
        index = self._index(dataset)
        assert index is not None
        count = dataset.count_rows()
        share = 1.0 if keys is None else max(len(keys), 1) / count
        # A filter thins out what is near: more partitions are read, all of them where few rows pass.
        probes = max(_LEAST_PROBES, _SHARE * index.partitions) * (1.0 if keys is None else _FARTHER / share)
        look = _Look(dataset, max(_LEAST_CANDIDATES, _CANDIDATES[index.kind] * k), min(index.partitions, int(probes)))
        found: list[Ranking] = []
        for query in queries:
            near = look.among(query, keys, share) if keys is not None and share >= _WIDE else None
            if near is None or len(near.keys) < k:
                near = look.passing(query, sql)
            blocks = [near] if len(near.keys) >= min(k, int(share * count)) else blocks_of(dataset, sql)
            found += ranked(query[None], k, blocks)
        return found

    def unfound(self, dataset: lance.LanceDataset, what: str) -> Iterator[str]:
        """A line for each of some rows that is not found by its own vector."""
        count = dataset.count_rows()
        places = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED)).astype(np.int64))
        rows = dataset.take(places.tolist(), columns=["id", "vector"])
        found = self.ranked(dataset, matrix_of(rows.column("vector")), 1)
        for id_, best in zip(rows.column("id").to_pylist(), found, strict=True):
            if not best or best[0].far > 2 * _SAME:
                yield f"{what} {id_!r} is not found by its own vector"


def _described(dataset: lance.LanceDataset) -> _Index | None:
    for one in dataset.describe_indices():
        if one.name == _NAME and one.index_type in _CANDIDATES:
            noted, rows = dataset.schema_metadata.get(_PARTITIONS, ""), int(one.num_rows_indexed)
            # It is noted by a commit of its own, which a kill may have left out.
            return _Index(one.index_type, int(noted) if noted.isdigit() else max(1, rows // _PARTITION), rows)
    return None


class _Look(NamedTuple):
    """Asks an index for candidates.

    Attributes:
        dataset: With the index.
        wanted: How many candidates' vectors are read.
        probes: How many partitions are.
    """

    dataset: lance.LanceDataset
    wanted: int
    probes: int

    def passing(self, query: Vectors, sql: str | None) -> Block:
        """The nearest rows that pass, with their vectors."""
        return block_of(self._ask(query, self.wanted, ["id", "vector"], sql))

    def among(self, query: Vectors, keys: Keys, share: float) -> Block:
        """The nearest of ``keys``, which are this share of all: of more candidates, those that are among them."""
        most = int(_MORE * self.wanted / share)
        near = self._ask(query, most, [], None).column("_rowid").to_numpy().astype(np.int64)
        places = np.minimum(np.searchsorted(keys, near), len(keys) - 1)
        kept = near[keys[places] == near][: self.wanted]
        if not len(kept):
            return Block(kept, None, np.zeros((0, len(query)), np.float32))
        sql = f"_rowid IN ({', '.join(map(str, kept.tolist()))})"
        return block_of(self.dataset.scanner(columns=["id", "vector"], filter=sql, with_row_id=True).to_table())

    def _ask(self, query: Vectors, count: int, columns: list[str], sql: str | None) -> pa.Table:
        nearest = {"column": "vector", "q": query, "k": count, "nprobes": self.probes, "metric": "cosine"}
        return self.dataset.scanner(
            columns=columns,
            nearest=nearest,
            filter=sql,
            prefilter=sql is not None,
            with_row_id=True,
            disable_scoring_autoprojection=True,
        ).to_table()
