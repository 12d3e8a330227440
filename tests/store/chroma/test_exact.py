"""The nearest by comparison are those that a comparison with everything in float64 finds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from abc_rag.store.chroma import exact
from abc_rag.store.chroma.exact import Comparison
from abc_rag.store.chroma.journal import Journal
from abc_rag.store.filters import matches, parse
from abc_rag.types import Record

DIM = 16


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(str(tmp_path))
    yield opened
    opened.close()


def unit(count: int, seed: int) -> npt.NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    made: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return made


class World:
    """What is in a journal, twice."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.rows: dict[str, tuple[Record, npt.NDArray[np.float32]]] = {}
        self.comparison = Comparison("abc")

    def put(self, numbers: range, seed: int) -> None:
        vectors = unit(len(numbers), seed)
        vectors[::7] = vectors[0]  # equal ones
        changes = [
            (Record(f"r{i:05}", "text", metadata={"p": i % 50}), v) for i, v in zip(numbers, vectors, strict=True)
        ]
        self.journal.begin("abc", changes, [], None)
        self.rows.update((record.id, (record, vector)) for record, vector in changes)

    def remove(self, numbers: range) -> None:
        ids = [f"r{i:05}" for i in numbers]
        self.journal.begin("abc", [], ids, None)
        for id_ in ids:
            self.rows.pop(id_, None)

    def check(self, where: dict[str, object], k: int, *, load: bool) -> None:
        condition = parse(where)
        queries = np.concatenate([unit(3, 99), next(iter(self.rows.values()))[1][None]])
        keys = self.journal.matching("abc", condition)
        found = self.comparison.nearest(self.journal, keys, queries, k, lambda r: matches(condition, r), load=load)
        for query, ranking in zip(queries, found, strict=True):
            far = sorted(
                (round(1.0 - float(vector.astype(np.float64) @ query.astype(np.float64)), 9), record.id)
                for record, vector in self.rows.values()
                if matches(condition, record)
            )[:k]
            assert [record.id for _, record in ranking] == [id_ for _, id_ in far]
            np.testing.assert_allclose([d for d, _ in ranking], [d for d, _ in far], atol=1e-9)
            assert all(record == self.rows[record.id][0] for _, record in ranking)


@pytest.mark.parametrize(("load", "codes"), [(False, False), (True, False), (True, True)])
def test_the_nearest_stay_right_while_rows_come_change_and_go(
    journal: Journal, load: bool, codes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if codes:  # as with millions of numbers
        monkeypatch.setattr(exact, "_MOST_NUMBERS", 0)
    world = World(journal)
    world.put(range(1500), 1)
    filters: list[dict[str, object]] = [{"p": 3}, {"p": {"$lt": 25}}, {"p": {"$ne": 7}}, {"p": -1}]

    def check() -> None:
        for where in filters * 3:
            world.check(where, 5, load=load)
        world.check({"p": {"$lt": 5}}, 1000, load=load)

    check()
    assert world.comparison.holds(journal) == load
    world.put(range(1500, 1520), 2)  # new ones
    check()
    world.put(range(100, 140), 3)  # other vectors
    check()
    world.remove(range(1490, 1530))  # the last ones, of which the keys are given out again
    world.put(range(3000, 3010), 4)
    check()
    world.remove(range(1400))  # most of them
    check()


def test_where_records_are_asked_the_next_ones_take_the_place_of_those_that_do_not_fit(journal: Journal) -> None:
    world = World(journal)
    world.put(range(300), 1)
    keys = journal.matching("abc", parse({"p": {"$gte": 0}}))
    wanted = parse({"p": 49})
    (found,) = world.comparison.nearest(journal, keys, unit(1, 5), 4, lambda r: matches(wanted, r), load=False)
    assert [record.metadata["p"] for _, record in found] == [49] * 4
    assert [far for far, _ in found] == sorted(far for far, _ in found)


def test_a_journal_that_was_opened_anew_is_read_anew(tmp_path: Path) -> None:
    first = Journal(str(tmp_path))
    world = World(first)
    world.put(range(200), 1)
    world.check({"p": {"$lt": 25}}, 3, load=True)
    other = Journal(str(tmp_path))  # of another process, say
    world.journal = other
    world.put(range(200, 220), 2)
    world.check({"p": {"$lt": 25}}, 3, load=True)
    assert not world.comparison.holds(first)
    first.close()
    other.close()
