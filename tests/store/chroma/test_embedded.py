"""Searches behind filters, in a store that is too large to compare with everything."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from store_helpers import NO_TELEMETRY, Elsewhere, finish

from abc_rag.store.chroma import columns, embedded, exact
from abc_rag.store.chroma.journal import Journal
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


@pytest.fixture(params=["journal", "index"])
def store(folder: Path, request: pytest.FixtureRequest) -> Iterator[ChromaStore]:
    """A store that has its journal open alone, or Chroma's index as well, as whoever writes has."""
    with ChromaStore(folder) as opened:
        if request.param == "index":
            opened.delete(["none"])
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


READS = """
with ChromaStore(sys.argv[1]) as store:
    hits = [hit.id for hit in store.search(np.eye(8)[0], 5)]
    assert store.count() == 5400 and len(list(store.records())) == 5400 and store.fingerprint is None
    assert [hit.id for hit in store.search(np.eye(8)[0], 5, {"p": 3})][0] in store.has(["r0003", *store.ids()])
    assert store.has_words and store.search_words("nothing") == [] and store.facet_names(hits) == {}
    before = "chromadb" in sys.modules
    if sys.argv[2] == "more":
        for _ in range(2):
            assert [hit.id for hit in store.search(np.eye(8)[0], 5)] == hits
    print(before, "chromadb" in sys.modules, *hits)
"""


@pytest.mark.parametrize("opens", ["never", "more"])
def test_who_only_reads_needs_no_chroma_until_comparing_takes_longer(
    folder: Path, elsewhere: Elsewhere, opens: str
) -> None:
    records, rows = world()
    order = sorted((round(-row[0], 6), record.id) for record, row in zip(records, rows, strict=True))
    with ChromaStore(folder) as store:
        store.delete(["none"])
    few = "from abc_rag.store.chroma import embedded\nembedded._FEW_COMPARED, embedded._MOST_SPENT = 0, 50_000\n"
    said = finish(elsewhere((few if opens == "more" else "") + READS, folder, opens)).split()
    assert said == ["False", str(opens == "more"), *(id_ for _, id_ in order[:5])]


def test_a_store_that_is_too_large_to_compare_is_searched_by_the_index(folder: Path, elsewhere: Elsewhere) -> None:
    code = "from abc_rag.store.chroma import embedded\nembedded._MOST_COMPARED = 5400 * 8 - 1\n" + READS
    assert finish(elsewhere(code, folder, "once")).split()[:2] == ["True", "True"]


@pytest.mark.parametrize("damage", ["pending", "changed", "unknown"])
def test_chroma_is_opened_where_something_is_left_to_do(tmp_path: Path, damage: str) -> None:
    with ChromaStore(tmp_path) as store:
        store.add([Record("a", "text"), Record("b", "text")], np.eye(2, DIM))
    if damage == "pending":  # a write that was cut short
        with closing(Journal(str(tmp_path))) as journal:
            journal.begin("abc", [(Record("c", "text"), np.eye(3, DIM, dtype=np.float32)[2])], [], None)
    else:
        with chromadb.PersistentClient(str(tmp_path), settings=Settings(**NO_TELEMETRY)) as client:
            if damage == "changed":
                client.get_collection("abc", embedding_function=None).delete(ids=["b"])
            else:
                other = client.create_collection("other", metadata={"hnsw:space": "cosine"}, embedding_function=None)
                other.add(ids=["x"], embeddings=np.eye(1, DIM), documents=["theirs"])
    with ChromaStore(tmp_path, collection="other" if damage == "unknown" else "abc") as store:
        assert set(store.ids()) == {"pending": {"a", "b", "c"}, "changed": {"a"}, "unknown": {"x"}}[damage]
    with chromadb.PersistentClient(str(tmp_path), settings=Settings(**NO_TELEMETRY)) as client:
        there = client.get_collection("abc", embedding_function=None).get(include=[])["ids"]
    assert set(there) == {"pending": {"a", "b", "c"}, "changed": {"a"}, "unknown": {"a", "b"}}[damage]


def test_one_who_reads_goes_on_to_write(tmp_path: Path) -> None:
    with ChromaStore(tmp_path) as store:
        store.add([Record("a", "text")], np.eye(1, DIM))
    with ChromaStore(tmp_path) as reader, ChromaStore(tmp_path) as writer:
        assert reader.search(np.eye(DIM)[0], 5)[0].id == "a"
        writer.add([Record("b", "text")], np.eye(2, DIM)[1:])
        assert [hit.id for hit in reader.search(np.eye(DIM)[1], 5)] == ["b", "a"]
        reader.add([Record("c", "text")], np.eye(3, DIM)[2:])
        assert [hit.id for hit in writer.search(np.eye(DIM)[2], 1)] == ["c"]


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


def test_filters_stay_exact_whoever_writes(
    tmp_path: Path, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_MANY", 10)  # as with thousands of records: arrays of fields, codes of vectors
    monkeypatch.setattr(exact, "_MOST_NUMBERS", 0)
    monkeypatch.setattr(exact, "_WORTH", 0)
    monkeypatch.setattr(embedded, "_FEW", 10)
    wheres: list[dict[str, object]] = [
        {"p": {"$gte": 50}},
        {"p": {"$in": list(range(0, 100, 3))}, "side": "left"},
        {"side": {"$ne": "left"}},
        {"$or": [{"p": {"$lt": 20}}, {"side": "right"}]},
        {"p": 7},
    ]
    there: dict[str, tuple[Record, np.ndarray]] = {}

    def made(numbers: range, seed: int) -> tuple[list[Record], np.ndarray]:
        rows = np.random.default_rng(seed).standard_normal((len(numbers), DIM))
        sides = ["right" if row[0] > 0 else "left" for row in rows]
        records = [
            Record(f"r{i}", "text", metadata={"p": (i + seed) % 100, "side": side})
            for i, side in zip(numbers, sides, strict=True)
        ]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        there.update((record.id, (record, row)) for record, row in zip(records, rows, strict=True))
        return records, rows

    def check() -> None:
        for turn in range(3):
            query = np.random.default_rng(turn).standard_normal(DIM)
            for where in [*wheres, {"p": {"$gte": 50 + turn / 10}}]:
                condition = parse(where)
                far = sorted(
                    (round(-float(row @ query / np.linalg.norm(query)), 6), id_)
                    for id_, (record, row) in there.items()
                    if matches(condition, record)
                )[:5]
                assert [hit.id for hit in store.search(query, 5, where)] == [id_ for _, id_ in far], where

    with ChromaStore(tmp_path, hold_s=0.0) as store:
        store.add(*made(range(400), 0))
        check()
        store.add(*made(range(300, 420), 1))
        check()
        store.delete([f"r{i}" for i in range(410, 420)])
        for i in range(410, 420):
            del there[f"r{i}"]
        store.add(*made(range(500, 503), 2))
        check()
        records, rows = made(range(100, 130), 3)
        np.save(tmp_path / "rows.npy", rows)
        code = (
            "rows = np.load(sys.argv[1] + '/rows.npy')\n"
            "with ChromaStore(sys.argv[1]) as store:\n"
            "    store.add([Record(f'r{i}', 'text', metadata={'p': (i + 3) % 100, 'side': 'right' if row[0] > 0 else"
            " 'left'}) for i, row in zip(range(100, 130), rows)], rows)\n"
            "    store.delete(['r0', 'r7'])\n"
        )
        finish(elsewhere(code, tmp_path))
        del there["r0"], there["r7"]
        assert len(records) == 30
        check()


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
