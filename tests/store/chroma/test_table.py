"""Searches behind filters on a server, which learn what filters let through and find the same again and again."""

import uuid
from collections.abc import Iterator

import numpy as np
import pytest

from abc_rag.store.chroma.store import ChromaStore
from abc_rag.store.filters import matches, parse
from abc_rag.types import Record

COUNT, DIM = 2600, 6
# Narrow, in between, wide, wide and nowhere near, and none; and the same kinds with other values.
FILTERS: list[tuple[dict[str, object] | None, str | None]] = [
    ({"p": 3}, None),
    ({"p": {"$lt": 20}}, None),
    ({"p": {"$gte": 40}}, None),
    (None, "image"),
    ({"p": {"$lt": 90}}, "image"),
    ({"p": -1}, None),
    ({"half": 1}, None),
    ({"half": 7}, None),
    ({"p": {"$in": [1, 2, 3]}}, "image"),
]


def world() -> tuple[list[Record], np.ndarray]:
    rows = np.random.default_rng(0).standard_normal((COUNT, DIM))
    rows[:, 0] = np.where(np.arange(COUNT) % 2, 4.0, -4.0)
    records = [
        Record(f"r{i:04}", "text" if i % 2 else "image", metadata={"p": i % 100, "half": i % 2 if i % 50 else 7})
        for i in range(COUNT)
    ]
    return records, rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def store(server_url: str) -> Iterator[ChromaStore]:
    with ChromaStore(url=server_url, collection=f"c-{uuid.uuid4().hex}") as opened:
        opened.add(*world())
        yield opened


def test_what_is_found_is_what_comparing_with_everything_finds_however_often(store: ChromaStore) -> None:
    records, rows = world()
    queries = rows[[1, 77, 2001]] + 0.01  # passages
    order = np.argsort(-queries @ rows.T, axis=1, kind="stable")
    for _ in range(4):
        for where, modality in FILTERS:
            condition = parse(where, modality)
            passing = np.array([matches(condition, record) for record in records])
            found = store.search_many(queries, 5, where, modality=modality)
            for nearest, hits in zip(order, found, strict=True):
                expected = [records[i].id for i in nearest[passing[nearest]][:5]]
                assert [hit.id for hit in hits] == expected, (where, modality)
