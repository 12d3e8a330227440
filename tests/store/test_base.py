"""The contract of a store, over every store: Chroma in a directory, on a server on loopback, in shards there; Lance."""

import datetime as dt
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import MakeStore
from store_helpers import ONE, TWO, texts, unit, vectors

from abc_rag.errors import FingerprintMismatchError, InputError, StoreError
from abc_rag.store import Store
from abc_rag.store.filters import matches, parse
from abc_rag.types import Record

# -- records in, records out ---------------------------------------------------------------------


def test_what_goes_in_comes_out(make: MakeStore) -> None:
    records = [
        Record("a", "text", "a passage\nwith two lines", "doc.pdf", {"page": 3, "share": 1.0, "new": True, "x": "ü"}),
        Record("b", "image", "", "https://example.org/b.png"),
        Record("c", "image", "a caption"),
    ]
    store = make()
    assert store.add(records, np.eye(3, 4)) == ["a", "b", "c"]
    assert store.get(["c", "missing", "a", "b", "a"]) == [records[2], records[0], records[1], records[0]]
    (back,) = store.get(["a"])
    assert [type(back.metadata[key]) for key in ("page", "share", "new")] == [int, float, bool]
    assert sorted(store.records(), key=lambda record: record.id) == records
    assert sorted(store.ids()) == ["a", "b", "c"]
    assert store.has(["a", "zzz"]) == {"a"}
    assert (store.count(), store.dim) == (3, 4)


def test_lists_and_numpy_scalars_come_back_as_pythons(make: MakeStore) -> None:
    store = make()
    given = {"tags": ["red", "ü"], "sizes": [1, 2], "shares": [0.5], "flags": [True, False], "n": np.int64(3)}
    given |= {"x": np.float32(0.5), "yes": np.bool_(True), "s": np.str_("word"), "mixed": [np.int8(1), 2]}
    store.add([Record("a", "text", metadata=given)], [[1.0, 0.0]])
    (back,) = store.get(["a"])
    assert back.metadata == {**given, "mixed": [1, 2]}
    assert {type(value) for value in back.metadata.values()} == {list, int, float, bool, str}
    assert back == store.search([1.0, 0.0])[0].record


DATED = {"old": "2020-01-01", "new": "2024-05-06", "noon": "2024-05-06T12:00:00+02:00", "word": "yesterday"}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"p": 1, "q": "x"}, "a"),
        ({"p": {"$gte": 1, "$lte": 2}}, "a b c"),
        ({"p": {"$gt": 1, "$lt": 2}}, "c"),
        ({"$and": [{"p": 1}]}, "a b"),
        ({"$or": [{"p": 1, "q": "y"}, {"p": 1.5}]}, "b c"),
        ({"p": 1.0}, "a b"),
        ({"p": True}, "d"),
        ({"p": {"$in": [1, 1.5, "1", True]}}, "a b c d"),
        ({"p": {"$nin": [1, 1.5]}}, "d e old new noon word"),
        ({"p": np.int64(1)}, "a b"),
        ({"tags": {"$contains": "red"}}, "a b"),
        ({"tags": {"$not_contains": "red"}}, "c d e old new noon word"),
        ({"sizes": {"$contains": 2}}, "a"),
        ({"sizes": {"$contains": 2.0}}, "a"),
        ({"shares": {"$contains": 1}}, "a"),
        ({"day": {"$gte": "2022-01-01"}}, "new noon"),
        ({"day": {"$gte": dt.date(2022, 1, 1), "$lt": dt.date(2024, 5, 7)}}, "new noon"),
        ({"day": {"$lt": "2024-05-06T10:00:01Z", "$gt": dt.datetime(2024, 5, 6, 9)}}, "noon"),
        ({"day": "2024-05-06"}, "new"),
        ({"day": dt.date(2024, 5, 6)}, "new"),
        ({"day": {"$in": [dt.date(2020, 1, 1), "yesterday"]}}, "old word"),
        ({"day": {"$ne": dt.date(2020, 1, 1)}}, "a b c d e new noon word"),
        ({"missing": {"$ne": 1}}, "a b c d e old new noon word"),
        ({"abc:modality": "image"}, "e"),
        ({"abc:source": "e.png", "abc:modality": {"$ne": "text"}}, "e"),
    ],
)
def test_what_filters_let_through(make: MakeStore, where: dict[str, object], expected: str) -> None:
    """The same by the store's own search and by the rules over records."""
    store = make()
    records = [
        Record("a", "text", metadata={"p": 1, "q": "x", "tags": ["red", "sale"], "sizes": [1, 2], "shares": [1.0]}),
        Record("b", "text", metadata={"p": 1, "q": "y", "tags": ["red"], "sizes": [3]}),
        Record("c", "text", metadata={"p": 1.5, "tags": ["blue"]}),
        Record("d", "text", metadata={"p": True}),
        Record("e", "image", "", "e.png"),
        *(Record(name, "text", metadata={"day": day}) for name, day in DATED.items()),
    ]
    store.add(records, vectors(len(records)))
    assert {hit.id for hit in store.search(vectors(1)[0], 20, where)} == set(expected.split())
    assert {record.id for record in store.records(where)} == set(expected.split())
    assert {record.id for record in records if matches(parse(where), record)} == set(expected.split())


@pytest.mark.parametrize("wanted", [1.5, -1.5, 0.5, 1, 1.0, -2])
def test_numbers_with_and_without_a_fraction_compare_as_numbers(make: MakeStore, wanted: float) -> None:
    numbers: list[float] = [1, 2, 1.0, 1.5, 2.0, -1, -2, -1.5, 0, 0.5, -0.5]
    store = make()
    store.add([Record(f"n{i}", "text", metadata={"n": n}) for i, n in enumerate(numbers)], vectors(len(numbers)))
    comparisons: dict[str, Callable[[float], bool]] = {
        "$eq": lambda n: n == wanted,
        "$ne": lambda n: n != wanted,
        "$gt": lambda n: n > wanted,
        "$gte": lambda n: n >= wanted,
        "$lt": lambda n: n < wanted,
        "$lte": lambda n: n <= wanted,
    }
    for name, holds in comparisons.items():
        expected = {f"n{i}" for i, n in enumerate(numbers) if holds(n)}
        assert {hit.id for hit in store.search(vectors(1)[0], 20, {"n": {name: wanted}})} == expected, name
    for name, inside in (("$in", True), ("$nin", False)):
        expected = {f"n{i}" for i, n in enumerate(numbers) if (n in (wanted, 2)) == inside}
        assert {hit.id for hit in store.search(vectors(1)[0], 20, {"n": {name: [wanted, 2]}})} == expected, name


def test_an_empty_store_answers(make: MakeStore) -> None:
    store = make()
    assert store.search([1.0, 0.0]) == []
    assert store.search_many(np.eye(2), modality="image") == [[], []]
    assert store.search_many([]) == []
    assert (store.count(), store.dim, store.fingerprint) == (0, None, None)
    assert (list(store.ids()), list(store.records()), store.get(["a"]), store.has(["a"])) == ([], [], [], set())
    assert (store.vectors(["a"]), store.delete(["a"]), store.delete([]), store.add([], [])) == ({}, 0, 0, [])


def test_records_survive_reopening(make: MakeStore) -> None:
    with make(fingerprint=ONE) as store:
        store.add(texts(3), vectors(3))
    with make(fingerprint=ONE) as again:
        assert again.get(["t00001"]) == [texts(3)[1]]
        assert again.search(vectors(3)[1], 1)[0].record.id == "t00001"


def test_adding_again_replaces_the_whole_record(make: MakeStore) -> None:
    store = make()
    store.add([Record("a", "image", "old", "old.png", {"gone": 1, "kept": 1})], [[1.0, 0.0]])
    new = Record("a", "text", "", "", {"kept": 2})
    store.add([new], [[0.0, 1.0]])
    assert store.get(["a"]) == [new]
    np.testing.assert_allclose(store.vectors(["a"])["a"], [0.0, 1.0])
    assert store.search([0.0, 1.0], where={"gone": 1}) == []
    assert store.count() == 1


def test_of_equal_ids_in_one_call_the_last_counts(make: MakeStore) -> None:
    store = make()
    pair = [Record("a", "text", "first", metadata={"x": 1}), Record("a", "text", "last")]
    assert store.add(pair, np.eye(2)) == ["a", "a"]
    assert store.get(["a"]) == [pair[1]]
    np.testing.assert_allclose(store.vectors(["a"])["a"], [0.0, 1.0])


def test_vectors_are_kept_with_unit_length(make: MakeStore) -> None:
    store = make()
    store.add(texts(3), [[3.0, 4.0], [1e200, 0.0], [0.0, 1e-200]])
    found = store.vectors(["t00002", "t00000", "t00001", "zzz"])
    assert found.keys() == {"t00000", "t00001", "t00002"}
    np.testing.assert_allclose(found["t00000"], [0.6, 0.8], rtol=1e-6)
    assert found["t00000"].dtype == np.float32


def test_six_thousand_at_once(make: MakeStore) -> None:
    store = make()
    rows = vectors(6000)
    assert len(store.add(texts(6000), rows)) == 6000
    assert store.count() == 6000
    for i in (0, 5461, 5999):
        assert store.search(rows[i], 1)[0].record.id == f"t{i:05}"
    assert len(store.search(rows[0], 10_000)) == 6000
    # More ids than one SQLite statement takes.
    assert len(store.has([f"t{i:05}" for i in range(40_000)])) == 6000
    assert len(set(store.ids())) == 6000
    assert store.delete([f"t{i:05}" for i in range(3000, 9000)]) == 3000
    assert store.count() == 3000


def test_deleting_counts_what_was_there(make: MakeStore) -> None:
    store = make()
    store.add(texts(4), vectors(4))
    assert store.delete(["t00000", "zzz", "t00000", "t00003"]) == 2
    assert store.delete(["t00000"]) == 0
    assert sorted(store.ids()) == ["t00001", "t00002"]
    assert {hit.record.id for hit in store.search(vectors(4)[0], 10)} == {"t00001", "t00002"}
    store.delete(["t00001", "t00002"])
    assert store.search(vectors(4)[0], 10) == []


# -- searching -----------------------------------------------------------------------------------


def test_scores_and_order(make: MakeStore) -> None:
    store = make()
    names = ["same", "near", "across", "opposite"]
    rows = [unit(1, 0), unit(1, 1), unit(0, 1), unit(-1, 0)]
    store.add([Record(name, "text", name) for name in names], rows)
    hits = store.search([2.0, 0.0], 4)
    assert [hit.record.id for hit in hits] == names
    expected = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, 0.0]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-6)
    assert all(0.0 <= hit.score <= 1.0 for hit in hits)
    assert [hit.record.id for hit in store.search([2.0, 0.0], 2)] == names[:2]
    assert len(store.search([2.0, 0.0], 100)) == 4
    assert len(store.search([2.0, 0.0], 5000)) == 4


def test_searching_many_is_searching_each(make: MakeStore) -> None:
    store = make()
    store.add(texts(50), vectors(50))
    queries = vectors(300, seed=1)
    many = store.search_many(queries, 3)
    assert len(many) == 300
    for i in (0, 17, 299):
        alone = store.search(queries[i], 3)
        assert [hit.record for hit in many[i]] == [hit.record for hit in alone]
        np.testing.assert_allclose([h.score for h in many[i]], [h.score for h in alone], atol=1e-6)


def test_equal_scores_come_in_the_order_of_ids(make: MakeStore) -> None:
    store = make()
    names = [f"n{i:02}" for i in np.random.default_rng(0).permutation(40)]
    store.add([Record("best", "text"), *(Record(n, "text") for n in names)], [unit(1, 0), *[unit(1, 1)] * 40])
    assert [hit.record.id for hit in store.search([1.0, 0.0], 5)] == ["best", "n00", "n01", "n02", "n03"]
    assert [hit.record.id for hit in store.search([1.0, 0.0], 41)] == ["best", *sorted(names)]


def test_equal_vectors_hide_nothing(make: MakeStore) -> None:
    """An index of neighbours alone would return fewer than there are."""
    store = make()
    same = [Record(f"n{i:03}", "text", str(i)) for i in range(300)]
    other = [Record(f"o{i}", "image", "", f"{i}.png", {"page": i}) for i in range(3)]
    rows = np.concatenate([np.tile(unit(1, 1, 0, 0), (300, 1)), np.eye(3, 4)])
    store.add([*same, *other], rows)
    hits = store.search([0.0, 0.0, 1.0, 0.0], 1000)
    assert len({hit.record.id for hit in hits}) == 303
    assert hits[0].record == other[2]
    assert hits[0].score == pytest.approx(1.0)
    assert store.search(unit(1, 1, 0, 0), 10, {"page": 2})[0].record == other[2]
    assert {hit.record.id for hit in store.search(unit(1, 1, 0, 0), 10, modality="image")} == {"o0", "o1", "o2"}


def test_filters(make: MakeStore) -> None:
    store = make()
    pictures = [Record(f"p{i}", "image", "", f"{i}.png", {"page": i}) for i in range(5)]
    store.add([*texts(5), *pictures], vectors(10))
    query = vectors(1, seed=3)[0]

    def found(*args: object, **kwargs: object) -> set[str]:
        return {hit.record.id for hit in store.search(query, 10, *args, **kwargs)}

    assert found({"page": 2}) == {"t00002", "p2"}
    assert found({"page": {"$gte": 3}}, modality="image") == {"p3", "p4"}
    assert found({"$or": [{"page": 0}, {"page": 1}]}, modality="text") == {"t00000", "t00001"}
    assert found(modality="text") == {f"t{i:05}" for i in range(5)}
    assert found({"abc:source": "3.png"}) == {"p3"}
    assert found({"page": 77}) == set()
    assert len(found({})) == 10


@pytest.mark.parametrize(
    "where",
    [
        {"page": {"$nope": 1}},
        {"$and": []},
        {"$not": {"a": 1}},
        {"a": {}},
        {"a": ["x", "y"]},
        {"a": {"$gte": "x"}},
        {"page": None},
        {"page": math.nan},
        {"page": {"$in": []}},
        {1: 2},
        {"page": "\ud800"},
        "page = 1",
    ],
)
def test_a_broken_filter_is_refused(make: MakeStore, where: object) -> None:
    store = make()
    store.add(texts(2), vectors(2))
    with pytest.raises(InputError, match=r"filter|where"):
        store.search(vectors(1)[0], where=where)


def test_a_broken_search_is_refused(make: MakeStore) -> None:
    store = make()
    store.add(texts(2), vectors(2))
    for k in (0, -1, 1.5, True, "4"):
        with pytest.raises(InputError, match="k must be"):
            store.search(vectors(1)[0], k)
    with pytest.raises(InputError, match=r"3 dimensions.* 8"):
        store.search([1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="shape"):
        store.search(vectors(2))
    with pytest.raises(InputError, match="zero"):
        store.search(np.zeros(8))
    with pytest.raises(InputError, match="NaN"):
        store.search([math.nan] * 8)
    with pytest.raises(InputError, match="modality"):
        store.search(vectors(1)[0], modality="audio")


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 0.0]], "2 records but 1 vectors"),
        ([1.0, 0.0], "shape"),
        ([[1.0], [1.0, 2.0]], "shape"),
        ([[1.0, 0.0], [math.nan, 0.0]], "'t00001'.*NaN"),
        ([[1.0, 0.0], [0.0, math.inf]], "'t00001'.*infinity"),
        ([[0.0, 0.0], [0.0, 1.0]], "'t00000'.*zero"),
        (np.zeros((2, 0)), "shape"),
        ([["a", "b"], ["c", "d"]], "array"),
    ],
)
def test_bad_vectors_are_refused(make: MakeStore, rows: object, message: str) -> None:
    with make() as store:
        with pytest.raises(InputError, match=message):
            store.add(texts(2), rows)
        assert store.count() == 0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"k": math.nan}, "nan"),
        ({"k": math.inf}, "inf"),
        ({"k": None}, "NoneType"),
        ({"k": []}, "list must hold values"),
        ({"k": ["a", 1]}, "all of one type"),
        ({"k": [1, math.nan]}, r"\[1\]: nan"),
        ({"k": [["a"]]}, r"\[0\].*not list"),
        ({"k": ("a",)}, "not tuple"),
        ({"k": np.array([1, 2])}, "ndarray"),
        ({"k": np.float64("nan")}, "nan"),
        ({"k": np.datetime64("2024-01-01")}, "isoformat"),
        ({"k": dt.date(2024, 1, 1)}, "isoformat"),
        ({"k": dt.datetime(2024, 1, 1)}, "isoformat"),
        ({"k": pd.NaT}, "NaT.*leave the key out"),
        ({"k": {"a": 1}}, "dict"),
        ({"k": 2**63}, "64 bits"),
        ({"k": "\udcff"}, "Unicode"),
        ({"": 1}, "non-empty"),
        ({3: 1}, "str"),
        ({"abc:modality": "text"}, "reserved"),
        ({"chroma:document": "x"}, "reserved"),
    ],
)
def test_bad_metadata_is_refused_by_name(make: MakeStore, metadata: dict[str, object], message: str) -> None:
    with make() as store:
        with pytest.raises(InputError, match=message) as caught:
            store.add([*texts(1), Record("bad", "text", metadata=metadata)], vectors(2))
        assert "'bad'" in str(caught.value)
        assert repr(next(iter(metadata))) in str(caught.value)
        assert store.count() == 0


def test_bad_records_are_refused(make: MakeStore) -> None:
    bad: list[object] = [
        Record("", "text"),
        Record(3, "text"),
        Record("\ud800", "text"),
        Record("a", "audio"),
        Record("a", "text", "\ud800"),
        Record("a", "text", None),
        Record("a", "image", "", Path("a.png")),
    ]
    with make() as store:
        for record in bad:
            with pytest.raises(InputError):
                store.add([record], vectors(1))
        with pytest.raises(InputError, match="list"):
            store.get("t00000")
        with pytest.raises(InputError, match="non-empty"):
            store.delete(["a", ""])


def test_another_dimension_is_refused(make: MakeStore) -> None:
    store = make()
    store.add(texts(2), vectors(2))
    with pytest.raises(InputError, match=r"3 dimensions.* 8"):
        store.add([Record("x", "text")], np.eye(1, 3))
    # Chroma remembers the dimension when nothing is left to show it.
    store.delete(["t00000", "t00001"])
    with pytest.raises(InputError, match=r"8.*3|3.*8"):
        make().add([Record("t00000", "text")], np.eye(1, 3))


def test_a_closed_store_says_so(make: MakeStore) -> None:
    store = make()
    store.add(texts(1), vectors(1))
    store.close()
    store.close()
    for use in (
        store.count,
        lambda: store.add(texts(1), vectors(1)),
        lambda: store.search(vectors(1)[0]),
        lambda: store.search_words("a"),
    ):
        with pytest.raises(StoreError, match="closed"):
            use()


# -- words ---------------------------------------------------------------------------------------

WORDY = [
    Record("bolt", "text", "Fit the MX-4471-B bolt behind the oil filter.", "manual.pdf", {"page": 1}),
    Record("pump", "text", "The MX-4471-C pump: façade, Öl, café. The filter is for water.", "manual.pdf", {"page": 2}),
    Record("plan", "image", "Figure 7: an exploded view of the gearbox", "scans/IMG_2041.jpg", {"page": 2}),
    Record("tokyo", "text", "東京の天気は晴れ。 🚗", "wetter.txt", {"page": 3}),
    Record("osaka", "text", "明日は大阪と東京へ", "wetter.txt", {"page": 4}),
    Record("nothing", "image", "", ""),
]


def wordy(make: MakeStore) -> Store:
    store = make()
    store.add(WORDY, vectors(len(WORDY)))
    return store


FOUND = {
    "MX-4471-B": "bolt",
    "mx 4471 b": "bolt pump",
    "4471-C": "pump",
    "X-44": "bolt pump",
    "facade OL cafe": "pump",
    "gearboxes": "",
    "where is the exploded view?": "plan",
    "IMG_2041.jpg": "plan",
    "img_2041": "plan",
    "wetter": "osaka tokyo",
    "東京": "osaka tokyo",
    "大": "osaka",
    "東京の天気": "tokyo",
    "🚗": "tokyo",
    '"oil filter"': "bolt",
    '"filter oil"': "",
    'the filter "for water"': "pump",
    '"東京へ"': "osaka",
    "filter -pump": "bolt",
    'filter -"oil filter"': "pump",
    "filter -MX-4471-B": "pump",
    "-oil filter": "pump",
    "東京 -大阪": "tokyo",
    "": "",
    "absent": "",
}


def test_words_phrases_and_what_must_not_be_there(make: MakeStore) -> None:
    store = wordy(make)
    for query, expected in FOUND.items():
        assert sorted(hit.id for hit in store.search_words(query, 10)) == expected.split(), query


def test_a_query_is_data(make: MakeStore) -> None:
    store = wordy(make)
    long = [
        "x" * 10**5,
        "oil " * 10**5,
        "東" * 10**5,
        '"' * 10**5,
        '"' + "a " * 10**5 + '"',
        "-a " * 10**5,
        "4-" * 10**5,
    ]
    odd = [
        '"',
        '""',
        "*",
        "oil*",
        "NEAR(oil, 5)",
        "said:oil",
        "{said}: oil",
        "^oil",
        "oil AND (",
        "NOT",
        "- - -",
        "' OR 1",
    ]
    for query in [*long, *odd, "a\0b", "\ud800", "%_\\", "\u200d", "🏳️‍🌈", '-"', '-"', "oil -", '(-"oil")', "\n\t"]:
        hits = store.search_words(query, 3)
        assert all(0.0 <= hit.score < 1.0 for hit in hits), query
        assert store.allowed_by(query, ["bolt", "missing"]) <= {"bolt"}, query
    assert store.search_words("said:oil", 9)[0].id == store.search_words("oil*", 9)[0].id == "bolt"


def test_hits_of_words_are_ranked_and_cut(make: MakeStore) -> None:
    store = make()
    filler = [Record(f"f{i}", "text", "nothing of the kind in here") for i in range(20)]
    often = [
        Record("twice", "text", "wrench wrench"),
        Record("b", "text", "wrench spanner"),
        Record("a", "text", "wrench spanner"),
    ]
    store.add([*filler, *often], vectors(23))
    hits = store.search_words("wrench", 10)
    assert [hit.id for hit in hits] == ["twice", "a", "b"]
    assert 1.0 > hits[0].score > hits[1].score == hits[2].score > 0.0
    assert [hit.id for hit in store.search_words("wrench", 2)] == ["twice", "a"]
    assert hits[1].record == often[2]


def test_filters_hold_for_words(make: MakeStore) -> None:
    store = wordy(make)
    assert [hit.id for hit in store.search_words("filter", 9, {"page": {"$gte": 2}})] == ["pump"]
    assert [hit.id for hit in store.search_words("manual gearbox", 9, modality="image")] == ["plan"]
    assert store.search_words("filter", 9, {"page": 9}) == []
    # One that passes far behind those that do not.
    store.add([Record(f"n{i:04}", "text", "screw", metadata={"page": 0}) for i in range(1200)], vectors(1200))
    store.add(
        [Record("z", "text", "screw and so many other words that it comes last", metadata={"page": 7})], vectors(1)
    )
    assert [hit.id for hit in store.search_words("screw", 2, {"page": 7})] == ["z"]


def test_what_phrases_and_exclusions_allow(make: MakeStore) -> None:
    store = wordy(make)
    ids = [record.id for record in WORDY]
    assert store.allowed_by("filter", ids) == set(ids)
    assert store.allowed_by('"oil filter" -pump', ids) == {"bolt"}
    assert store.allowed_by("engine -filter", [*ids, "missing"]) == {"plan", "tokyo", "osaka", "nothing"}


def test_words_are_gone_with_their_records(make: MakeStore) -> None:
    store = wordy(make)
    store.add([Record("bolt", "text", "A washer.", "other.txt")], vectors(1))
    assert [hit.id for hit in store.search_words("bolt filter manual", 9)] == ["pump"]
    assert [hit.id for hit in store.search_words("washer", 9)] == ["bolt"]
    store.delete(["pump", "plan"])
    assert store.search_words("pump gearbox filter", 9) == []
    store.add_facets(["nothing"], "what is on the left?", vectors(1))
    assert store.search_words("left", 9) == []
    assert store.check() == []


def test_another_store_sees_the_words_at_once(make: MakeStore) -> None:
    one, two = make(), make()
    one.add([Record("a", "text", "first")], vectors(1))
    assert [hit.id for hit in two.search_words("first")] == ["a"]
    one.add([Record("b", "text", "second")], vectors(1))
    one.delete(["a"])
    assert [hit.id for hit in two.search_words("first second")] == ["b"]


def test_a_broken_search_for_words_is_refused(make: MakeStore) -> None:
    store = wordy(make)
    with pytest.raises(InputError, match="k must be a positive int"):
        store.search_words("oil", 0)
    with pytest.raises(InputError, match="must be a str, not int"):
        store.search_words(5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no operator"):
        store.search_words("oil", 1, {"page": {"$like": 1}})
    assert make().has_words


# -- whose vectors -------------------------------------------------------------------------------


def test_another_fingerprint_is_refused(make: MakeStore) -> None:
    with make(fingerprint=ONE) as store:
        store.add(texts(1), vectors(1))
        assert store.fingerprint == str(ONE)
    with pytest.raises(FingerprintMismatchError) as caught:
        make(fingerprint=TWO)
    assert str(ONE) in str(caught.value)
    assert str(TWO) in str(caught.value)
    assert "another collection" in str(caught.value)
    with make() as anyone:
        assert (anyone.count(), anyone.fingerprint) == (1, str(ONE))


def test_the_first_to_write_marks_an_empty_collection(make: MakeStore) -> None:
    first, second = make(fingerprint=ONE), make(fingerprint=TWO)
    first.add(texts(1), vectors(1))
    with pytest.raises(FingerprintMismatchError):
        second.add(texts(1), vectors(1))
    with pytest.raises(FingerprintMismatchError):
        second.search(vectors(1)[0])


def test_unmarked_vectors_are_not_adopted(make: MakeStore) -> None:
    with make() as store:
        store.add(texts(1), vectors(1))
        with pytest.raises(FingerprintMismatchError, match="without a fingerprint"):
            make(fingerprint=ONE)
        store.delete(["t00000"])
        with make(fingerprint=ONE) as other:
            other.add(texts(1), vectors(1))
        assert make(fingerprint=ONE).fingerprint == str(ONE)


# -- many at once --------------------------------------------------------------------------------


def test_sixteen_threads(make: MakeStore) -> None:
    store = make(fingerprint=ONE)
    rows = vectors(16 * 40)
    start = threading.Barrier(16)

    def work(thread: int) -> None:
        start.wait()
        for step in range(4):
            first = thread * 40 + step * 10
            records = [Record(f"r{i}", "text", str(i)) for i in range(first, first + 10)]
            store.add(records, rows[first : first + 10])
            assert store.search(rows[first], 1)[0].record.id == f"r{first}"
            assert store.get([f"r{first}"]) == records[:1]
        assert store.delete([f"r{thread * 40}"]) == 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert store.count() == 16 * 39
    assert len(store.search(rows[0], 1000)) == 16 * 39
