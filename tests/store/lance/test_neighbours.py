"""An index of neighbours finds what comparing with all rows finds, or nearly all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from abc_rag.errors import InputError
from abc_rag.store import LanceStore
from abc_rag.store.lance import neighbours, table
from abc_rag.types import Record

COUNT, DIM = 1600, 32
RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((24, DIM))
ROWS = CENTRES[RNG.integers(0, 24, COUNT)] + 0.5 * RNG.standard_normal((COUNT, DIM))
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)
QUERIES = CENTRES[RNG.integers(0, 24, 20)] + 0.5 * RNG.standard_normal((20, DIM))


def records(first: int, last: int) -> list[Record]:
    return [Record(f"r{i:05}", "image", "", f"{i}.png", {"page": i % 8, "odd": i % 100}) for i in range(first, last)]


def names(store: LanceStore, where: dict[str, object] | None = None) -> list[set[str]]:
    return [{hit.id for hit in hits} for hits in store.search_many(QUERIES, 10, where)]


def recall(found: list[set[str]], true: list[set[str]]) -> float:
    return sum(len(one & other) for one, other in zip(found, true, strict=True)) / sum(map(len, true))


@pytest.mark.parametrize("kind", ["int8", "binary"])
def test_found_by_an_index(kind: neighbours.IndexKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_FEW_IN_MEMORY", 100)  # so that a filter with few rows is one, and others ask the index
    monkeypatch.setattr(neighbours, "_PARTITION", 100)
    monkeypatch.setattr(neighbours, "_SAMPLED", 50)  # for the check
    wide, narrow = {"page": {"$in": [1, 2, 3]}}, {"odd": 7}
    with LanceStore(tmp_path / "s") as store:
        store.add(records(0, 1400), ROWS[:1400])
        store.add_facets(["r00000"], "what is on the left?", -ROWS[:1])
        true = {str(where): names(store, where) for where in (None, wide, narrow)}
        best = store.search(QUERIES[0], 3)
        assert store.build_index(kind) == {"records": 1400, "facets": 0}
        for where in (None, wide):
            assert recall(names(store, where), true[str(where)]) >= 0.95
        assert names(store, narrow) == true[str(narrow)]
        again = store.search(QUERIES[0], 3)
        assert [(hit.id, round(hit.score, 6)) for hit in again] == [(hit.id, round(hit.score, 6)) for hit in best]
        # What is written later is found at once, and what is deleted is gone.
        store.add(records(1400, COUNT), ROWS[1400:])
        store.delete(["r00003"])
        assert [found[0].id for found in store.search_many(ROWS[1400:1410], 1)] == [
            f"r{i:05}" for i in range(1400, 1410)
        ]
        assert store.search(ROWS[3], 1)[0].id != "r00003"
        assert store.search(-ROWS[0], 1)[0].facet == "what is on the left?"
        assert store.build_index(kind)["records"] == COUNT - 1
        assert [found[0].id for found in store.search_many(ROWS[1400:1410], 1)] == [
            f"r{i:05}" for i in range(1400, 1410)
        ]
        assert store.check() == []
        assert store.repair() == COUNT - 1
        assert len(store.search(QUERIES[0], COUNT)) == COUNT - 1  # more than any index hands over


def test_what_is_no_index(tmp_path: Path) -> None:
    with LanceStore(tmp_path / "s") as store:
        store.add(records(0, 10), ROWS[:10])
        with pytest.raises(InputError, match="int8, binary, pq, hnsw"):
            store.build_index("flat")  # type: ignore[arg-type]
        assert store.build_index() == {"records": 0, "facets": 0}  # too few
        assert [found[0].id for found in store.search_many(ROWS[:10], 1)] == [f"r{i:05}" for i in range(10)]
