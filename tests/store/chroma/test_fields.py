"""The index of fields answers every filter as the rules over records do."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from abc_rag.store import filters
from abc_rag.store.chroma.columns import Columns
from abc_rag.store.chroma.fields import few_keys
from abc_rag.store.chroma.journal import Journal
from abc_rag.store.filters import All, Condition, Either, Moment, matches, parse
from abc_rag.types import Record

LONG = "a text that is longer than what stands in the index as it is"
SCALARS = [0, 1, 1.0, 1.5, -1, -1.5, 2**53, 2**53 + 1, True, False, "", "x", "ü", "a\0b", "1", LONG, LONG + "!"]
DATES = ["2024-01-31", "2024-01-31T00:00:00Z", "2024-01-31T01:00:00+02:00", "1969-07-20"]
LISTS = [["red", "x"], ["red", LONG], [1, 2], [1.0, 1.5], [True], ["2024-01-31", "no date"]]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(str(tmp_path))
    yield opened
    opened.close()


def put(journal: Journal, records: list[Record], removed: list[str] | None = None, name: str = "abc") -> None:
    rows = np.eye(max(1, len(records)), 4, dtype=np.float32)
    journal.begin(name, zip(records, rows, strict=False), removed or [], None)


def some_record(number: int, rng: random.Random) -> Record:
    values = [*SCALARS, *DATES, *LISTS]
    metadata = {key: rng.choice(values) for key in ("p", "q", "day") if rng.random() < 0.8}
    return Record(f"r{number}", rng.choice(["text", "image"]), "t", rng.choice(["", "a.png", LONG]), metadata)


def some_condition(rng: random.Random, depth: int = 2) -> Condition:
    if depth and rng.random() < 0.5:
        parts = tuple(some_condition(rng, depth - 1) for _ in range(rng.randint(2, 3)))
        return All(parts) if rng.random() < 0.5 else Either(parts)
    key = rng.choice(["p", "q", "day", "abc:modality", "abc:source", "none"])
    moment = Moment(1706659200.0)
    operator = rng.choice(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$contains", "$not_contains"])
    if operator in ("$in", "$nin"):
        return filters.Test(key, operator, tuple(rng.choices([*SCALARS, *DATES, "text", moment], k=3)))
    if operator in ("$gt", "$gte", "$lt", "$lte"):
        return filters.Test(key, operator, rng.choice([0, 1, 1.5, -1.5, 2**53 + 1, moment]))
    return filters.Test(key, operator, rng.choice([*SCALARS, *DATES, "red", "text", LONG, moment]))


def test_every_filter_finds_what_the_rules_find(journal: Journal) -> None:
    rng = random.Random(0)
    records = {f"r{i}": some_record(i, rng) for i in range(150)}
    put(journal, list(records.values()))
    # Replaced and removed rows are found by what they are now.
    changed = [some_record(i, rng) for i in range(0, 150, 3)]
    records |= {record.id: record for record in changed}
    gone = [f"r{i}" for i in range(1, 150, 5)]
    put(journal, changed, gone)
    records = {id_: record for id_, record in records.items() if id_ not in gone}
    put(journal, [some_record(i, rng) for i in range(50)], name="other")
    narrow = 0
    for _ in range(500):
        condition = some_condition(rng)
        expected = {id_ for id_, record in records.items() if matches(condition, record)}
        keys = journal.matching("abc", condition)
        assert {id_ for _, id_ in journal.by_key("abc", keys.tolist(), "id")} == expected, condition
        assert keys.tolist() == sorted(set(keys.tolist()))
        few = journal.few_matching("abc", condition, 40)
        if few is not None:
            narrow += 1
            assert len(few) <= 40
            assert set(keys.tolist()) <= set(few.tolist()), condition
    assert narrow > 30


def test_numbers_and_bools_are_not_taken_for_each_other(journal: Journal) -> None:
    """1 and True are one key of a dict, and must not be one of what is remembered."""
    put(journal, [Record("one", "text", metadata={"p": 1}), Record("yes", "text", metadata={"p": True})])
    for wanted, expected in ((1, "one"), (True, "yes"), (1.0, "one")):
        keys = journal.matching("abc", filters.Test("p", "$eq", wanted))
        assert journal.by_key("abc", keys.tolist(), "id") == [(keys[0], expected)]


def test_more_values_than_a_statement_takes(journal: Journal) -> None:
    put(journal, [Record("a", "text", metadata={"p": 39_999}), Record("b", "text", metadata={"p": -1})])
    condition = parse({"p": {"$in": list(range(40_000))}})
    assert len(journal.matching("abc", condition)) == 1


def test_a_write_that_fails_leaves_the_index_as_it_was(journal: Journal) -> None:
    put(journal, [Record("a", "text", metadata={"p": 1})])
    journal.matching("abc", filters.Test("p", "$eq", 1))

    def broken() -> Iterator[tuple[Record, np.ndarray]]:
        yield Record("b", "text", metadata={"p": 1}), np.eye(1, 4, dtype=np.float32)[0]
        raise RuntimeError("the caller's generator")

    with pytest.raises(RuntimeError):
        journal.begin("abc", broken(), [], None)
    assert len(journal.matching("abc", filters.Test("p", "$eq", 1))) == 1
    put(journal, [Record("b", "text", metadata={"p": 1})])
    assert len(journal.matching("abc", filters.Test("p", "$eq", 1))) == 2


def test_a_forgotten_collection_leaves_no_fields(journal: Journal) -> None:
    put(journal, [Record("a", "text", metadata={"p": 1})])
    put(journal, [Record("a", "text", metadata={"p": 1})], name="other")
    journal.forget("abc")
    assert len(journal.matching("abc", filters.Test("p", "$eq", 1))) == 0
    assert len(journal.matching("other", filters.Test("p", "$eq", 1))) == 1


def test_a_journal_from_before_the_index_gets_one_when_it_is_opened(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    put(journal, [Record(f"r{i}", "text", metadata={"p": i % 2}) for i in range(1200)])
    connection = journal._connection
    connection.executescript("DROP TABLE fields; DROP TABLE labels; PRAGMA user_version = 0;")
    journal.close()
    journal = Journal(str(tmp_path))
    assert len(journal.matching("abc", filters.Test("p", "$eq", 1))) == 600
    journal.close()


def test_few_of_a_filter_with_a_narrow_part(journal: Journal) -> None:
    records = [Record(f"r{i}", "text" if i % 2 else "image", metadata={"p": i % 10}) for i in range(100)]
    put(journal, records)
    connection = journal._connection
    condition = parse({"p": 3}, "text")
    assert condition is not None
    assert few_keys(connection, "abc", condition, 10) is not None
    assert few_keys(connection, "abc", condition, 9) is None
    assert few_keys(connection, "abc", filters.Test("p", "$ne", 3), 99) is None
    assert len(Columns().keys(connection, "abc", condition)) == 10


def test_comparisons_with_a_field_that_is_kept_in_memory(journal: Journal) -> None:
    values: list[object] = [1, 2.5, -3, 2**53, "2024-01-31", True, "x", [7, 8]]
    records = [Record(f"r{i}", "text", metadata={"p": values[i % 8]} if i % 3 else {}) for i in range(60)]  # type: ignore[dict-item]
    put(journal, records)

    def check() -> None:
        for bound in (-3, 0, 2.5, 2**53, 2**53 + 1, -(2**60), "2024-01-31", "2000-01-01"):
            for operator in ("$gt", "$gte", "$lt", "$lte"):
                condition = parse({"p": {operator: bound}})
                found = journal.by_key("abc", journal.matching("abc", condition).tolist(), "id")
                assert {id_ for _, id_ in found} == {r.id for r in records if matches(condition, r)}, condition

    check()
    records[7] = Record("r7", "text", metadata={"p": -5})
    put(journal, [records[7]], ["r10"])
    del records[10]
    check()
    records.append(Record("large", "text", metadata={"p": 2**53 + 1}))  # as a float it is 2**53
    put(journal, records[-1:])
    check()
