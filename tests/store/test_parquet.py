from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from store_helpers import ONE, texts, vectors

from abc_rag.errors import InputError, StoreError
from abc_rag.store import LanceStore, export_parquet
from abc_rag.types import Record


def test_records_and_facets_are_rows(tmp_path: Path) -> None:
    rows = vectors(4)
    with LanceStore(tmp_path / "s", fingerprint=ONE) as store:
        with pytest.raises(InputError, match="empty"):
            export_parquet(store, tmp_path / "e.parquet")
        store.add([*texts(3), Record("p", "image", "", "p.png", {"tags": ["ü"]})], rows)
        store.add_facets(["p"], "what is on the left?", rows[:1])
        with pytest.raises(StoreError, match="cannot be written"):
            export_parquet(store, tmp_path / "missing" / "e.parquet")
        assert export_parquet(store, tmp_path / "e.parquet") == 5
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.schema.metadata[b"abc:fingerprint"].decode() == str(ONE)
    assert table["id"].to_pylist() == ["t00000", "t00001", "t00002", "p", "p"]
    assert table["facet"].to_pylist() == [None, None, None, None, "what is on the left?"]
    assert json.loads(table["metadata"][3].as_py()) == {"tags": ["ü"]}
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), np.concatenate([rows, rows[:1]]), atol=1e-6)
