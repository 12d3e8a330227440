"""What is remembered of filters is what a comparison with every record finds, whoever writes in between."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from abc_rag.store import LanceStore
from abc_rag.store.filters import matches, parse
from abc_rag.store.lance import answers, neighbours, table
from abc_rag.types import Record

DIM = 8


class World:
    """What is in a store, twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = random.Random(0)
        self.there: dict[str, tuple[Record, np.ndarray]] = {}

    def put(self, numbers: range, seed: int) -> None:
        """Write through a store of its own, as another process does."""
        rows = np.random.default_rng(seed).standard_normal((len(numbers), DIM))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        days = ["2024-01-01", "2024-02-01T10:00Z", "no day"]
        records = [
            Record(
                f"r{i}",
                "image" if i % 3 else "text",
                source=f"{i}.png",
                metadata={"page": (i * 7 + seed) % 50, "day": days[i % 3]} if i % 5 else {"lang": "en"},
            )
            for i in numbers
        ]
        with LanceStore(self.folder) as store:
            store.add(records, rows)
        self.there.update((record.id, (record, row)) for record, row in zip(records, rows, strict=True))

    def remove(self, numbers: range) -> None:
        with LanceStore(self.folder) as store:
            store.delete([f"r{i}" for i in numbers])
        for i in numbers:
            self.there.pop(f"r{i}", None)

    def some(self, depth: int = 2) -> dict[str, object]:
        rng = self.rng
        if depth and rng.random() < 0.4:
            return {rng.choice(["$and", "$or"]): [self.some(depth - 1) for _ in range(rng.randint(2, 3))]}
        if rng.random() < 0.2:
            return {"day": {rng.choice(["$gt", "$lte"]): rng.choice(["2024-01-01", "2024-01-15"])}}
        if rng.random() < 0.3:
            return rng.choice([{"abc:modality": "text"}, {"lang": {"$ne": "en"}}, {"page": {"$in": [1, 2, 3]}}])
        return {"page": {"$gte": rng.randint(0, 30), "$lt": rng.randint(20, 60)}}

    def check(self, store: LanceStore, where: dict[str, object]) -> None:
        condition, query = parse(where), np.array([self.rng.gauss(0, 1) for _ in range(DIM)])
        far = sorted(
            (round(-float(row @ query / np.linalg.norm(query)), 6), id_)
            for id_, (record, row) in self.there.items()
            if matches(condition, record)
        )[:5]
        assert [hit.id for hit in store.search(query, 5, where)] == [id_ for _, id_ in far], where


@pytest.mark.parametrize("in_memory", [True, False])
def test_every_filter_is_exact_whoever_writes(in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_memory:  # as with a million records
        monkeypatch.setattr(table.LanceTable, "_fits", lambda *_: False)
    world = World(tmp_path / "s")
    world.put(range(200), 0)
    with LanceStore(world.folder) as store:

        def check() -> None:
            wheres = [world.some() for _ in range(12)]
            for where in wheres * 3:
                world.check(store, where)

        check()
        world.put(range(150, 220), 1)
        check()
        world.remove(range(40, 60))
        check()
        kept = store._records_table._answers
        assert any(block is not None for block in kept._blocks.values())
        assert any(column is not None for column in kept._columns.values())


def test_how_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / "s")
    world.put(range(100), 0)
    most = 4 * DIM * 20
    monkeypatch.setattr(table, "MOST_BYTES", most)
    monkeypatch.setattr(answers, "_MOST_COLUMNS", 1)
    monkeypatch.setattr(answers, "_MOST_KEYS", 8 * 30)
    with LanceStore(world.folder) as store:
        kept = store._records_table._answers
        narrow = [{"page": {"$in": [n, n + 1, n + 2, n + 3]}} for n in range(0, 50, 4)]
        for _ in range(3):
            for where in narrow:
                world.check(store, where)
        first = [sql for sql, block in kept._blocks.items() if block is not None]
        assert 0 < len(first) < len(narrow)  # there is no room for more, and what is used stays
        monkeypatch.setattr(answers, "_LATELY", 1)
        for _ in range(3):
            world.check(store, narrow[-1])
        assert kept._blocks[list(kept._blocks)[-1]] is not None
        for where in ({"page": {"$gte": 3}}, {"day": {"$gte": "2024-01-01"}}, {"page": {"$gte": 4}}) * 2:
            world.check(store, where)  # more than there is room for
        blocks = [one.block for one in kept._blocks.values() if one is not None]
        assert blocks
        assert sum(block.rows.nbytes for block in blocks) <= most
        assert len(kept._columns) == 1
        assert sum(keys.nbytes for keys in kept._keys.values()) <= 8 * 100


def test_few_of_many_are_found_among_the_candidates_of_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more partitions than are read at first, and filters that are never asked twice."""
    for name, value in (("_FEW", 20), ("_FEW_IN_MEMORY", 20)):
        monkeypatch.setattr(table, name, value)
    for name, value in (("_PARTITION", 20), ("_LEAST_PROBES", 10)):
        monkeypatch.setattr(neighbours, name, value)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 32))
    rows = centres[rng.integers(0, 60, 2000)] + 0.7 * rng.standard_normal((2000, 32))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    right = 0
    with LanceStore(tmp_path / "s") as store:
        store.add([Record(f"r{i}", "text", metadata={"page": i * 7919 % 1000}) for i in range(2000)], rows)
        store.build_index("int8")
        for n in range(40):
            low, high = 10 * n, 10 * n + (20, 50, 100, 300)[n % 4]
            query = rows[rng.integers(2000)] + 0.1 * rng.standard_normal(32)
            near = [i for i in np.argsort(-(rows @ query)) if low <= i * 7919 % 1000 < high][:5]
            hits = store.search(query, 5, {"page": {"$gte": low, "$lt": high}})
            right += len({hit.id for hit in hits} & {f"r{i}" for i in near})
    assert right >= 0.95 * 200
