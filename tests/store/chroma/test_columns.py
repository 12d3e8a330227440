"""Filters are answered alike from arrays, whatever is written between two of them."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from abc_rag.store import filters
from abc_rag.store.chroma import columns
from abc_rag.store.chroma.journal import Journal
from abc_rag.store.filters import All, Condition, Either, Moment, matches, parse
from abc_rag.types import Record

LONG = "a text that is longer than what stands in the index as it is"
VALUES = [0, 1, 1.0, 1.5, -1, 7, 8, 9, 10, True, False, "", "x", "ü", "1", LONG, "2024-01-31", "2024-02-01T10:00Z"]
LISTS = [["red", "x"], [1, 2], [1.5]]


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(columns, "_MANY", 5)  # rows of an answer after which a field is read
    monkeypatch.setattr(columns, "_TEXTS", 1)
    opened = Journal(str(tmp_path))
    yield opened
    opened.close()


class World:
    """What is in a journal, twice."""

    def __init__(self, journal: Journal, seed: int) -> None:
        self.journal = journal
        self.rng = random.Random(seed)
        self.records: dict[str, Record] = {}

    def write(self, ids: list[str], gone: list[str]) -> None:
        records = [self._record(id_) for id_ in ids]
        self.journal.begin("abc", [(record, np.ones(4, np.float32)) for record in records], gone, None)
        self.records.update((record.id, record) for record in records)
        for id_ in gone:
            self.records.pop(id_, None)

    def _record(self, id_: str) -> Record:
        values = self.rng.choices([*VALUES, *LISTS], k=3)
        metadata = {key: value for key, value in zip("pqr", values, strict=True) if self.rng.random() < 0.8}
        return Record(id_, self.rng.choice(["text", "image"]), "t", self.rng.choice(["", "a.png", LONG]), metadata)

    def condition(self, depth: int = 2) -> Condition:
        rng = self.rng
        if depth and rng.random() < 0.5:
            parts = tuple(self.condition(depth - 1) for _ in range(rng.randint(2, 3)))
            return All(parts) if rng.random() < 0.5 else Either(parts)
        key = rng.choice(["p", "q", "r", "abc:modality", "abc:source", "none"])
        moment = Moment(1706659200.0)
        operator = rng.choice(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$contains", "$not_contains"])
        if operator in ("$in", "$nin"):
            wanted = [*VALUES, "text", moment]
            return filters.Test(key, operator, tuple(rng.choices(wanted, k=rng.choice([1, 4, 12]))))
        if operator in ("$gt", "$gte", "$lt", "$lte"):
            return filters.Test(key, operator, rng.choice([0, 1, 1.5, -1.5, 2**53 + 1, moment]))
        return filters.Test(key, operator, rng.choice([*VALUES, "red", "text", moment]))

    def check(self, condition: Condition) -> None:
        found = self.journal.matching("abc", condition)
        assert found.dtype == np.int64
        assert (np.diff(found) > 0).all()
        expected = {id_ for id_, record in self.records.items() if matches(condition, record)}
        assert {id_ for _, id_ in self.journal.by_key("abc", found.tolist(), "id")} == expected, condition


def test_answers_follow_what_is_written(journal: Journal) -> None:
    world = World(journal, 0)
    world.write([f"r{i}" for i in range(60)], [])
    for turn in range(25):
        for _ in range(15):
            world.check(world.condition())
        known = sorted(world.records)
        last = max(world.records, key=lambda id_: int(id_[1:]))  # the highest key, which is given out again
        gone = [last, *world.rng.sample(known, 2)] if turn % 2 else []
        new = [f"r{60 + 3 * turn + i}" for i in range(3)] if turn % 3 else []
        world.write([*new, *world.rng.sample(sorted(set(known) - set(gone)), 2)], gone)
        if turn % 5 == 4:
            other = Record("other", "text", metadata={"p": turn, "q": "x"})
            journal.begin("others", [(other, np.ones(4, np.float32))], [], None)
    kept = [column for _, column in journal._columns._columns.values()]
    assert {type(column).__name__ for column in kept} >= {"_Numbers", "_Texts"}


def test_a_field_that_arrays_cannot_hold_is_asked_of_sqlite_again(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_TEXTS", 8)
    world = World(journal, 1)

    def put(numbers: range, value: object) -> None:
        for i in numbers:
            record = Record(f"r{i}", "text", metadata={"p": value, "t": f"{value}-{i}"})  # type: ignore[dict-item]
            journal.begin("abc", [(record, np.ones(4, np.float32))], [], None)
            world.records[record.id] = record

    def check() -> None:
        for _ in range(3):
            for where in ({"p": {"$gte": 1}}, {"p": {"$gt": 2**53}}, {"t": {"$in": [f"1-{i}" for i in range(20)]}}):
                condition = parse(where)
                assert condition is not None
                world.check(condition)

    put(range(20), 1)
    check()
    put(range(20, 22), 2**53 + 1)  # as a float it is 2**53
    check()
    assert [column for _, column in journal._columns._columns.values()] == [None, None]


def test_a_write_that_fails_is_in_no_answer(journal: Journal) -> None:
    world = World(journal, 2)
    world.write([f"r{i}" for i in range(30)], [])
    conditions = [world.condition() for _ in range(30)]

    def check() -> None:
        for condition in conditions * 2:
            world.check(condition)

    check()
    journal._connection.execute("CREATE TRIGGER full BEFORE INSERT ON marks BEGIN SELECT RAISE(ABORT, 'full'); END")
    with pytest.raises(Exception, match="full"):
        journal.begin("abc", [(Record("new", "text", metadata={"p": 1}), np.ones(4, np.float32))], ["r1", "r2"], None)
    check()
    journal._connection.execute("DROP TRIGGER full")
    world.write(["r1", "new"], ["r2"])
    check()
    journal.forget("abc")
    world.records.clear()
    check()


def test_fields_that_were_not_asked_for_lately_are_let_go(journal: Journal) -> None:
    names = [f"f{i}" for i in range(12)]
    records = [Record(f"r{i}", "text", metadata={name: i % 3 for name in names}) for i in range(30)]
    journal.begin("abc", [(record, np.ones(4, np.float32)) for record in records], [], None)
    for _ in range(3):
        for name in names:
            assert len(journal.matching("abc", filters.Test(name, "$lt", random.random()))) == 10
    assert len(journal._columns._columns) == 8
