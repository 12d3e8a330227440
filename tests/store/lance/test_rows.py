"""Datasets that something else fills, such as a cluster: fragments written apart and committed once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import numpy as np
import pytest
from lance.fragment import write_fragments
from store_helpers import ONE, TWO, texts, vectors

from abc_rag.errors import FingerprintMismatchError, StoreError
from abc_rag.store import LanceStore
from abc_rag.store.lance.rows import create, dataset_uri, dim_of, table_of
from abc_rag.types import Record


def commit(uri: str, records: list[Record], rows: np.ndarray) -> None:
    dataset = lance.dataset(uri)
    parts = [slice(start, start + 20) for start in range(0, len(records), 20)]
    fragments = [
        one
        for part in parts
        for one in write_fragments(
            table_of(records[part], rows[part].astype(np.float32), dataset.schema),
            uri,
            schema=dataset.schema,
            mode="append",
            enable_stable_row_ids=True,
        )
    ]
    lance.LanceDataset.commit(uri, lance.LanceOperation.Append(fragments), read_version=dataset.version)


def test_what_a_cluster_commits_is_found_at_once(tmp_path: Path) -> None:
    uri = dataset_uri(str(tmp_path / "lake"), "abc")
    made = create(uri, 8, dtype="float16", fingerprint=str(ONE))
    assert (dim_of(made.schema), create(uri, 8).schema_metadata) == (8, made.schema_metadata)  # the second opens it
    rows = vectors(90)
    commit(uri, texts(50), rows[:50])
    with LanceStore(tmp_path / "lake", fingerprint=ONE) as store:
        assert [found[0].id for found in store.search_many(rows[:50], 1)] == [record.id for record in texts(50)]
        assert {hit.id for hit in store.search(rows[0], 90, {"page": {"$lt": 5}})} == {f"t{i:05}" for i in range(5)}
        assert [hit.id for hit in store.search_words('"passage 7"')] == ["t00007"]
        commit(uri, texts(90)[50:], rows[50:])
        assert store.count() == 90
        assert [hit.id for hit in store.search_words('"passage 77"')] == ["t00077"]
        store.add([Record("t00007", "text", "changed")], rows[7:8])
        assert [hit.id for hit in store.search_words("changed")] == ["t00007"]
        assert store.count() == 90
        assert store.check() == []
    with pytest.raises(FingerprintMismatchError):
        LanceStore(tmp_path / "lake", fingerprint=TWO)


def test_datasets_of_another_layout_are_refused(tmp_path: Path) -> None:
    lance.write_dataset(lance.dataset(create(str(tmp_path / "x.lance"), 4).uri).to_table(), tmp_path / "other.lance")
    with pytest.raises(StoreError, match="stable row ids"):
        LanceStore(tmp_path, collection="other")
    import pyarrow as pa

    lance.write_dataset(pa.table({"a": [1]}), tmp_path / "plain.lance")
    with pytest.raises(StoreError, match=r"not of this layout .*missing columns: id"):
        LanceStore(tmp_path, collection="plain")


def test_a_dataset_that_many_make_at_once_is_made_once(tmp_path: Path) -> None:
    """Lance's own "create" tries again after somebody else's, and empties what they have written."""
    for number in range(12):
        uri, start = str(tmp_path / f"{number}.lance"), threading.Barrier(6)

        def make(thread: int, uri: str = uri, start: threading.Barrier = start) -> None:
            start.wait()
            dataset = create(uri, 8)
            record, row = Record(f"r{thread}", "text", "a rose"), vectors(1)
            merge = dataset.merge_insert("id").when_not_matched_insert_all()
            merge.conflict_retries(50).execute(table_of([record], row, dataset.schema))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(make, range(6)))
        found = lance.dataset(uri)
        assert sorted(found.to_table(columns=["id"])["id"].to_pylist()) == [f"r{thread}" for thread in range(6)]
        assert found.config()["lance.auto_cleanup.interval"] == "100"
