"""One Lance dataset as a table: read, write and search it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from abc_rag.errors import InputError, StoreError
from abc_rag.store.filters import Condition, matches
from abc_rag.store.keywords import Keywords
from abc_rag.store.lance.answers import Answers, version_of
from abc_rag.store.lance.client import translated
from abc_rag.store.lance.exact import Block, Ranking, blocks_of, joined, loaded, ranked
from abc_rag.store.lance.handle import Handle, Opening
from abc_rag.store.lance.neighbours import Neighbours
from abc_rag.store.lance.rows import RECORD, as_float32, dim_of, matrix_of, records_of, table_of, tidy
from abc_rag.store.lance.where import is_exact, quoted, to_sql
from abc_rag.store.lance.words import WordIndex
from abc_rag.store.table import PAGE, Column, Page, Table
from abc_rag.types import Hit, Record, Vectors

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

__all__ = ["MOST_BYTES", "LanceTable"]

MOST_BYTES = 2**28
"""Of the vectors of one dataset that are kept in memory; as many again of those behind filters."""

_COLUMNS: dict[Column, list[str]] = {"ids": ["id"], "records": RECORD, "vectors": ["id", "vector"]}
# Rows that are compared with one by one, whatever index there is: their vectors are read from the disk, or in memory.
_FEW = 2500
_FEW_IN_MEMORY = 10_000
_QUERIES = 256
_COMMIT_BYTES = 2**28  # of vectors, in one commit
_IDS = 10_000  # in one deletion
_RETRIES = 100
_PATIENCE = timedelta(minutes=5)


class LanceTable(Table):
    """A dataset, which the first `put` makes and marks.

    Args:
        uri: Where it is.
        place: The store's name, for messages.
        how: How it is opened.
        facets: Whether its rows are facets.
        words: Opens the keyword index; None for none.
    """

    def __init__(
        self,
        uri: str,
        place: str,
        how: Opening,
        *,
        facets: bool = False,
        words: Callable[[], WordIndex] | None = None,
    ) -> None:
        self.handle = Handle(uri, place, how)
        self.neighbours = Neighbours()
        self._place = place
        self._how = how
        self._facets = facets
        self._lock = threading.Lock()
        self._block: tuple[object, Block] | None = None
        self._answers = Answers()
        self._open_words = words
        self._words: WordIndex | None = None

    def close(self) -> None:
        """Let go of the dataset. Idempotent."""
        self.handle.close()
        with self._lock:
            words, self._words, self._block = self._words, None, None
        self._answers.clear()
        if words is not None:
            words.close()

    def fingerprint(self) -> str | None:
        """The mark of the dataset, if there is one."""
        dataset = self.handle.current()
        return None if dataset is None else dataset.schema_metadata.get("abc:fingerprint")

    # -- reading -------------------------------------------------------------------------------

    def count(self) -> int:
        """See `Table.count`."""
        dataset = self.handle.current()
        with translated(self._place):
            return 0 if dataset is None else int(dataset.count_rows())

    def dim(self) -> int | None:
        """See `Table.dim`."""
        dataset = self.handle.current()
        with translated(self._place):
            return None if dataset is None or not dataset.count_rows() else dim_of(dataset.schema)

    def kept(self, vectors: Vectors) -> Vectors:
        """See `Table.kept`."""
        dataset = self.handle.current()
        if dataset is None:
            return as_float32(vectors.astype(self._how.dtype))
        return as_float32(vectors.astype(dataset.schema.field("vector").type.value_type.to_pandas_dtype()))

    def read(
        self,
        column: Column,
        *,
        ids: Sequence[str] | None = None,
        where: Condition | None = None,
        offset: int = 0,
    ) -> Page | None:
        """See `Table.read`."""
        dataset = self.handle.current()
        if dataset is None:
            return None
        if ids is None and not is_exact(where):
            return _paged(list(self._pages(dataset, column, where)), column, offset)
        sql = _among(ids) if ids is not None else to_sql(where)
        some: dict[str, int] = {} if ids is not None else {"limit": PAGE, "offset": offset}
        with translated(self._place):
            found = dataset.scanner(columns=_COLUMNS[column], filter=sql, scan_in_order=True, **some).to_table()
            return _page(found, column) if found.num_rows else None

    def scan(self, column: Column, where: Condition | None = None) -> Iterator[Page]:
        """See `Table.scan`. All pages are of one version, whatever is written meanwhile."""
        dataset = self.handle.current()
        if dataset is not None:
            yield from self._pages(dataset, column, where)

    def _pages(self, dataset: lance.LanceDataset, column: Column, where: Condition | None) -> Iterator[Page]:
        exact = is_exact(where)
        columns = _COLUMNS[column] if exact else list(dict.fromkeys([*RECORD, *_COLUMNS[column]]))
        with translated(self._place):
            scanner = dataset.scanner(columns=columns, filter=to_sql(where), batch_size=PAGE, scan_in_order=True)
            batches = iter(scanner.to_batches())
        while True:
            with translated(self._place):
                batch = next(batches, None)
                if batch is None:
                    return
                if not exact:
                    fit = {record.id for record in records_of(batch) if matches(where, record)}
                    batch = batch.filter([id_ in fit for id_ in batch.column("id").to_pylist()])
                page = _page(batch, column) if batch.num_rows else None
            if page is not None:
                yield page

    # -- writing -------------------------------------------------------------------------------

    def put(self, records: Sequence[Record], vectors: Vectors) -> None:
        """See `Table.put`. What fits into one commit is there at once, or not at all."""
        with translated(self._place):
            dataset = self.handle.writable(vectors.shape[1])
            step = max(1, _COMMIT_BYTES // (4 * vectors.shape[1]))
            for start in range(0, len(records), step):
                part = slice(start, start + step)
                rows = table_of(records[part], vectors[part], dataset.schema, facets=self._facets)
                merge = dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.conflict_retries(_RETRIES).retry_timeout(_PATIENCE).execute(rows)
            tidy(dataset)

    def remove(self, ids: Sequence[str]) -> int:
        """See `Table.remove`."""
        known = self.handle.current()
        if known is None:
            return 0
        with translated(self._place):
            dataset = self.handle.writable(dim_of(known.schema))
            removed = 0
            for start in range(0, len(ids), _IDS):
                some = _among(ids[start : start + _IDS])
                if not dataset.count_rows(some):  # a deletion of nothing would be a version, too
                    continue
                done = dataset.delete(some, conflict_retries=_RETRIES, retry_timeout=_PATIENCE)
                removed += int(done["num_deleted_rows"])
            return removed

    # -- searching -----------------------------------------------------------------------------

    def nearest(self, vectors: Vectors, k: int, where: Condition | None) -> list[list[Hit]]:
        """See `Table.nearest`. Exact, unless an index of neighbours was built (`abc_rag.store.lance.neighbours`)."""
        dataset = self.handle.current()
        with translated(self._place):
            if dataset is None or not dataset.count_rows():
                return [[] for _ in vectors]
            dim = dim_of(dataset.schema)
            if len(vectors) and vectors.shape[1] != dim:
                raise InputError(
                    f"{self._place}: the vector has {vectors.shape[1]} dimensions, but those stored have {dim}; "
                    "search with the model that made them"
                )
            found: list[list[Hit]] = []
            for start in range(0, len(vectors), _QUERIES):
                found += self._hits(dataset, vectors[start : start + _QUERIES], k, where)
            return found

    def _hits(self, dataset: lance.LanceDataset, queries: Vectors, k: int, where: Condition | None) -> list[list[Hit]]:
        exact, wanted = is_exact(where), k
        while True:
            rankings = self._rankings(dataset, queries, wanted, where)
            keys = sorted({near.key for ranking in rankings for near in ranking})
            records = self._by_key(dataset, keys)
            hits = [
                [
                    Hit(records[near.id], min(1.0, max(0.0, 1.0 - near.far / 2.0)))
                    for near in ranking
                    if near.id in records and (exact or matches(where, records[near.id]))
                ]
                for ranking in rankings
            ]
            # Damaged records are left out, and leave no gap; so are those that an inexact filter let through.
            if all(len(ok) >= k or len(all_) < wanted for ok, all_ in zip(hits, rankings, strict=True)):
                return [found[:k] for found in hits]
            wanted *= 4

    def _by_key(self, dataset: lance.LanceDataset, keys: Sequence[int]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for start in range(0, len(keys), PAGE):
            rows = dataset.scanner(columns=RECORD, filter=_with_keys(keys[start : start + PAGE])).to_table()
            found.update((record.id, record) for record in records_of(rows))
        return found

    def _rankings(
        self, dataset: lance.LanceDataset, queries: Vectors, k: int, where: Condition | None
    ) -> list[Ranking]:
        in_memory = self._fits(dataset)
        if where is None:
            if self.neighbours.serves(dataset):
                return self.neighbours.ranked(dataset, queries, k)
            return ranked(queries, k, [self._loaded(dataset)] if in_memory else blocks_of(dataset, None))
        keys, sql = self._answers.keys(dataset, where), to_sql(where)
        if not len(keys):
            return [[] for _ in queries]

        def read() -> Iterable[Block]:
            if in_memory:
                return [self._loaded(dataset).only(keys)]
            return blocks_of(dataset, _with_keys(keys.tolist()) if len(keys) <= _FEW else sql)

        kept = self._answers.block(dataset, where, len(keys), MOST_BYTES, lambda: joined(read()))
        if kept is not None:
            return kept.ranked(queries, k)
        if self.neighbours.serves(dataset) and len(keys) > (_FEW_IN_MEMORY if in_memory else _FEW):
            return self.neighbours.ranked(dataset, queries, k, keys, sql)
        return ranked(queries, k, read())

    def _fits(self, dataset: lance.LanceDataset) -> bool:
        """Whether all rows may be kept in memory."""
        fits = bool(4 * dim_of(dataset.schema) * dataset.count_rows() <= MOST_BYTES)
        if not fits:
            self._block = None
        return fits

    def _loaded(self, dataset: lance.LanceDataset) -> Block:
        """All rows, in memory."""
        at = version_of(dataset)
        with self._lock:
            if self._block is None or self._block[0] != at:
                self._block = None
                self._block = at, loaded(dataset)
            return self._block[1]

    # -- keywords ------------------------------------------------------------------------------

    def has_words(self) -> bool:
        """See `Table.has_words`."""
        if self._open_words is None or self._how.as_of is not None:
            return False
        with translated(self._place):
            return self._index().words.available

    def matching(self, keywords: Keywords, k: int, where: Condition | None) -> list[Hit]:
        """See `Table.matching`."""
        dataset, index = self._followed()
        if dataset is None:
            return []
        with translated(self._place):
            # All at once where the first do not suffice: the index ranks everything in any case.
            for limit in (k,) if where is None else (max(PAGE, 4 * k), -1):
                scores = index.words.search(index.name, keywords, limit)
                hits: list[Hit] = []
                for start in range(0, len(scores), PAGE):
                    page = dict(scores[start : start + PAGE])
                    records = self.get(page)
                    hits += [
                        Hit(records[id_], bm25 / (1.0 + bm25))
                        for id_, bm25 in page.items()
                        if id_ in records and matches(where, records[id_])
                    ]
                    if len(hits) >= k:
                        return hits[:k]
                if len(scores) < limit:
                    break
            return hits

    def meeting(self, keywords: Keywords, ids: Sequence[str]) -> set[str]:
        """See `Table.meeting`."""
        dataset, index = self._followed()
        with translated(self._place):
            return set() if dataset is None else index.words.meeting(index.name, keywords, ids)

    def word_problems(self) -> list[str]:
        """See `Table.word_problems`."""
        if not self.has_words():
            return []
        dataset, index = self._followed()
        with translated(self._place):
            return [] if dataset is None else index.problems(dataset)

    def rebuild_words(self) -> None:
        """Make the keyword index anew, if there is one."""
        if self.has_words():
            dataset = self.handle.current()
            with translated(self._place):
                self._index().rebuild(dataset)

    def _index(self) -> WordIndex:
        with self._lock:
            if self._words is None:
                assert self._open_words is not None
                self._words = self._open_words()
            return self._words

    def _followed(self) -> tuple[lance.LanceDataset | None, WordIndex]:
        dataset = self.handle.current()
        if self._open_words is None or self._how.as_of is not None:
            raise StoreError(
                f"{self._place}: no keyword index; open the store with keywords=FOLDER and without as_of, or search "
                "with keywords=False"
            )
        with translated(self._place):
            index = self._index()
            if dataset is not None:
                index.follow(dataset)
            return dataset, index

    def unfound(self, what: str) -> Iterator[str]:
        """See `Table.unfound`: a comparison with all rows finds what there is, so only an index is asked."""
        dataset = self.handle.current()
        if dataset is not None and self.neighbours.serves(dataset):
            yield from self.neighbours.unfound(dataset, what)


def _among(ids: Sequence[str]) -> str:
    return f"id IN ({', '.join(map(quoted, ids))})"


def _with_keys(keys: Sequence[int]) -> str:
    return f"_rowid IN ({', '.join(map(str, keys))})"


def _page(rows: pa.Table | pa.RecordBatch, column: Column) -> Page:
    ids = rows.column("id").to_pylist()
    if column == "records":
        return Page(ids, records_of(rows))
    return Page(ids, vectors=list(matrix_of(rows.column("vector")))) if column == "vectors" else Page(ids)


def _paged(pages: list[Page], column: Column, offset: int) -> Page | None:
    """The next `PAGE` rows of pages that were filtered."""
    end = offset + PAGE
    ids = [id_ for page in pages for id_ in page.ids][offset:end]
    records = [record for page in pages for record in page.records]
    vectors = [vector for page in pages for vector in page.vectors][offset:end]
    if column == "records":
        known = {record.id: record for record in records}
        records = [known[id_] for id_ in ids if id_ in known]
    return Page(ids, records, vectors) if ids else None
