"""Filters in Lance's SQL let through what the rules over records let through, whatever is in them."""

from __future__ import annotations

import random
import re
from pathlib import Path

from store_helpers import vectors

from abc_rag.store import LanceStore
from abc_rag.store.filters import matches, parse
from abc_rag.store.lance.where import to_sql
from abc_rag.types import Record

ODD = [
    "'",
    "' OR '1'='1",
    "'; DROP TABLE abc; --",
    "\\",
    "\\'",
    "a\nb",
    "a\0b",
    '"',
    "`",
    "%",
    "é",
    "東京",
    "🏳️‍🌈",
    "/*",
    "a=b",
]
VALUES = [*ODD, "x" * 200, 1, 1.0, -1, 0, -0.0, 0.5, -1.5, 2**53, 2**53 + 1, 1e300, -1e-300, 2**63 - 1, True, False]
VALUES += ["2024-01-01", "2024-01-01T12:00:00+02:00", "1", "True", ["a", "'"], [1, 2], [1.0], [True], ["2024-01-01"]]
KEYS = ["k", "n", "a", "a=b", "k'; --", "東", "x" * 200]
ORDERED = [1, 0.5, -1.5, 2**53, 2**53 + 1, -(2**63), 1e300, 1e-300, 1e22, "2024-01-01", "2023-12-31T23:00:00-01:00"]


def test_random_filters_over_odd_values(tmp_path: Path) -> None:
    rng = random.Random(0)
    records = [
        Record(
            f"r{i}{rng.choice(ODD)}",
            rng.choice(["text", "image"]),
            source=rng.choice(["", *ODD]),
            source_type=rng.choice(["path", "url"]),
            metadata={key: rng.choice(VALUES) for key in rng.sample(KEYS, 3)},
        )
        for i in range(120)
    ]

    def some(depth: int) -> dict[str, object]:
        if depth and rng.random() < 0.4:
            return {rng.choice(["$and", "$or"]): [some(depth - 1) for _ in range(rng.randint(1, 3))]}
        key = rng.choice([*KEYS, "abc:modality", "abc:source", "abc:source_type"])
        single = [value for value in VALUES if not isinstance(value, list)] + ["text", "url"]
        name = rng.choice(["$eq", "$ne", "$in", "$nin", "$contains", "$not_contains", "$gt", "$gte", "$lt", "$lte"])
        if name in ("$in", "$nin"):
            return {key: {name: rng.sample(single, 3)}}
        return {key: {name: rng.choice(ORDERED if name[1] in "gl" else single)}}

    found_some = 0
    with LanceStore(tmp_path / "s") as store:
        store.add(records, vectors(len(records)))
        for _ in range(300):
            where = some(2)
            expected = {record.id for record in records if matches(parse(where), record)}
            found_some += 0 < len(expected) < len(records)
            assert {hit.id for hit in store.search(vectors(1)[0], 200, where)} == expected, where
        assert found_some > 100  # the filters tell records apart
        assert store.has([record.id for record in records]) == {record.id for record in records}
        assert store.delete([record.id for record in records]) == len(records)


def test_nothing_that_a_user_writes_reaches_sql() -> None:
    for odd in ODD:
        for where in ({odd: odd}, {"k": {"$in": [odd, "x"]}}, {odd: {"$gt": 1}}, {odd: {"$contains": odd}}):
            sql = str(to_sql(parse(where)))
            for literal in re.findall(r"'([^']*)'", sql):
                assert re.fullmatch(r"[A-Za-z0-9_.:=@ #\[-]*", literal), sql
            outside = re.sub(r"'[^']*'", "", sql)
            assert re.fullmatch(r"[A-Za-z_()\[\], >0-9.]*", outside), sql
