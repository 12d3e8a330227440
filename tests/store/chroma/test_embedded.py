"""Searches behind filters, in a store that is too large to compare with everything."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from store_helpers import Elsewhere, finish

from abc_rag.store.chroma.store import ChromaStore
from abc_rag.store.filters import matches, parse
from abc_rag.types import Record

COUNT = 5400  # more than are compared with where nothing else is known
DIM = 8


def world() -> tuple[list[Record], np.ndarray]:
    """Pictures on one side, passages on the other, as with many models."""
    rows = np.random.default_rng(0).standard_normal((COUNT, DIM))
    rows[:, 0] = np.where(np.arange(COUNT) % 2, 4.0, -4.0)
    records = [Record(f"r{i:04}", "text" if i % 2 else "image", metadata={"p": i % 100}) for i in range(COUNT)]
    return records, rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("store")
    with ChromaStore(made) as store:
        store.add(*world())
    return made


@pytest.fixture
def store(folder: Path) -> Iterator[ChromaStore]:
    with ChromaStore(folder) as opened:
        yield opened


@pytest.mark.parametrize(
    ("where", "modality"),
    [
        ({"p": 3}, None),  # narrow
        ({"p": 4}, "image"),  # narrow, and on the other side
        ({"p": {"$gte": 40}}, None),  # wide
        ({"p": {"$ne": 5}}, "text"),
        (None, "image"),  # half of all, and nowhere near
        ({"p": {"$lt": 40}}, "image"),
        ({"$or": [{"p": 2}, {"p": {"$gt": 90}}]}, "image"),
        ({"p": -1}, None),
    ],
)
def test_what_is_found_is_what_comparing_with_everything_finds(
    store: ChromaStore, where: dict[str, object] | None, modality: str | None
) -> None:
    records, rows = world()
    condition = parse(where, modality)
    queries = rows[[1, 77, 4001]] + 0.01  # passages
    for _ in range(3):  # the index first, then what is known of the filter
        for query, hits in zip(queries, store.search_many(queries, 5, where, modality=modality), strict=True):
            far = sorted(
                (round(-float(row @ query / np.linalg.norm(query)), 6), record.id)
                for record, row in zip(records, rows, strict=True)
                if matches(condition, record)
            )[:5]
            assert [hit.id for hit in hits] == [id_ for _, id_ in far]
            np.testing.assert_allclose([hit.score for hit in hits], [(1 - d) / 2 for d, _ in far], atol=1e-5)


def test_a_reader_sees_what_another_process_wrote(tmp_path: Path, elsewhere: Elsewhere) -> None:
    with ChromaStore(tmp_path, hold_s=0.0) as store:
        store.add([Record(f"a{i}", "text", metadata={"p": 1}) for i in range(20)], np.eye(20, DIM) + 1.0)
        assert len(store.search(np.ones(DIM), 50, {"p": 1})) == 20
    with ChromaStore(tmp_path) as store:
        assert len(store.search(np.ones(DIM), 50, {"p": 1})) == 20
        code = (
            "with ChromaStore(sys.argv[1]) as store:\n"
            "    store.add([Record('b', 'text', metadata={'p': 1})], np.ones((1, 8)))\n"
            "    store.delete(['a3'])\n"
        )
        finish(elsewhere(code, tmp_path))
        found = {hit.id for hit in store.search(np.ones(DIM), 50, {"p": 1})}
        assert found == {f"a{i}" for i in range(20) if i != 3} | {"b"}


def test_pages_do_not_shift_under_a_writer(tmp_path: Path) -> None:
    with ChromaStore(tmp_path) as store:
        store.add(
            [Record(f"r{i:04}", "text") for i in range(2100)], np.random.default_rng(0).standard_normal((2100, DIM))
        )
        ids = store.ids()
        first = [next(ids) for _ in range(1000)]
        store.delete(first[:500])
        store.add([Record("new", "text")], np.ones((1, DIM)))
        assert [*first, *ids] == [*(f"r{i:04}" for i in range(2100)), "new"]
