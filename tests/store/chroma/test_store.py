"""The store, against a real embedded Chroma and a real Chroma server on loopback."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from helpers import MakeStore

import abc_rag
from abc_rag.errors import FingerprintMismatchError, InputError, StoreError, StoreLockedError
from abc_rag.store.base import image_id, text_id
from abc_rag.store.chroma.records import _batches
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.types import Fingerprint, Record

ROOT = str(Path(next(iter(abc_rag.__path__))).parent)
ONE = Fingerprint("abc", "one", 4, 64)
TWO = Fingerprint("abc", "two", 4, 64)
NO_TELEMETRY = {"anonymized_telemetry": False}


def unit(*values: float) -> np.ndarray:
    return np.array(values) / np.linalg.norm(values)


def vectors(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def texts(n: int, prefix: str = "t") -> list[Record]:
    return [Record(f"{prefix}{i:05}", "text", f"passage {i}", metadata={"page": i}) for i in range(n)]


@pytest.fixture
def elsewhere() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python code in another process; it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        header = (
            "import sys, numpy as np\nfrom abc_rag.store import ChromaStore\nfrom abc_rag.types import Record\n"
            "def put(store, first, last):\n"
            "    rows = np.random.default_rng(first).standard_normal((last - first, 8))\n"
            "    store.add([Record(f'i{i}', 'text', 'x') for i in range(first, last)], rows)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", header + code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ROOT},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), err
    return out


HOLD = "store = ChromaStore(sys.argv[1]); put(store, 0, 20); print('held', flush=True); sys.stdin.read()"


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
    assert list(store.records()) == records
    assert list(store.ids()) == ["a", "b", "c"]
    assert store.has(["a", "zzz"]) == {"a"}
    assert (store.count(), store.dim) == (3, 4)


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
        {"a": 1, "b": 2},
        {"$and": [{"a": 1}]},
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
def test_bad_vectors_are_refused(tmp_path: Path, rows: object, message: str) -> None:
    with ChromaStore(tmp_path) as store:
        with pytest.raises(InputError, match=message):
            store.add(texts(2), rows)
        assert store.count() == 0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"k": math.nan}, "nan"),
        ({"k": math.inf}, "inf"),
        ({"k": None}, "NoneType"),
        ({"k": ["a"]}, "list"),
        ({"k": {"a": 1}}, "dict"),
        ({"k": np.float32(1)}, "float32"),
        ({"k": 2**63}, "64 bits"),
        ({"k": "\udcff"}, "Unicode"),
        ({"": 1}, "non-empty"),
        ({3: 1}, "str"),
        ({"abc:modality": "text"}, "reserved"),
        ({"chroma:document": "x"}, "reserved"),
    ],
)
def test_bad_metadata_is_refused_by_name(tmp_path: Path, metadata: dict[str, object], message: str) -> None:
    with ChromaStore(tmp_path) as store:
        with pytest.raises(InputError, match=message) as caught:
            store.add([*texts(1), Record("bad", "text", metadata=metadata)], vectors(2))
        assert "'bad'" in str(caught.value)
        assert repr(next(iter(metadata))) in str(caught.value)
        assert store.count() == 0


def test_bad_records_are_refused(tmp_path: Path) -> None:
    bad: list[object] = [
        Record("", "text"),
        Record(3, "text"),
        Record("\ud800", "text"),
        Record("a", "audio"),
        Record("a", "text", "\ud800"),
        Record("a", "text", None),
        Record("a", "image", "", Path("a.png")),
    ]
    with ChromaStore(tmp_path) as store:
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
    with pytest.raises(InputError, match=r"8.*3"):
        make().add([Record("x", "text")], np.eye(1, 3))


def test_where_the_store_is_must_be_said_once(tmp_path: Path) -> None:
    for arguments in (
        {},
        {"path": tmp_path, "url": "http://localhost:1"},
        {"path": ""},
        {"path": tmp_path, "headers": {"a": "b"}},
        {"path": tmp_path, "collection": "a"},
        {"path": tmp_path, "collection": "no spaces"},
        {"url": "localhost:8000"},
        {"url": "http://localhost:8000/api"},
        {"url": "http://localhost:port"},
        {"url": "http://me:secret@localhost:8000"},
    ):
        with pytest.raises(InputError) as caught:
            ChromaStore(**arguments)
        assert "secret" not in str(caught.value)


def test_an_unusable_place_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(StoreError, match=r"file.*another") as caught:
            ChromaStore(path)
        assert isinstance(caught.value.__cause__, OSError)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "chroma.sqlite3").write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError, match=r"damaged.*index again") as caught:
        ChromaStore(damaged)
    assert caught.value.__cause__ is not None


def test_an_unreachable_server_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(StoreError, match="chroma run") as caught:
            ChromaStore(url=url)
    assert url in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_closed_store_says_so(make: MakeStore) -> None:
    store = make()
    store.add(texts(1), vectors(1))
    store.close()
    store.close()
    for use in (store.count, lambda: store.add(texts(1), vectors(1)), lambda: store.search(vectors(1)[0])):
        with pytest.raises(StoreError, match="closed"):
            use()


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


def test_a_collection_made_otherwise(tmp_path: Path) -> None:
    with chromadb.PersistentClient(str(tmp_path), settings=Settings(**NO_TELEMETRY)) as client:
        client.create_collection("squared", embedding_function=None)
        client.create_collection("older", embedding_function=None, metadata={"hnsw:space": "cosine", "note": "mine"})
        other = client.create_collection("other", metadata={"hnsw:space": "cosine"})
        other.add(ids=["p", "t"], embeddings=np.eye(2), uris=["a.png", "b.png"], documents=["", "words"])
    with pytest.raises(StoreError, match=r"'l2'.*cosine"):
        ChromaStore(tmp_path, collection="squared")
    with ChromaStore(tmp_path, collection="older", fingerprint=ONE) as store:
        store.add(texts(2), [unit(1, 0), unit(0, 1)])
    with ChromaStore(tmp_path, collection="older", fingerprint=ONE) as store:
        assert [hit.score for hit in store.search([5.0, 0.0])] == pytest.approx([1.0, 0.5], abs=1e-6)
    with ChromaStore(tmp_path, collection="other") as store:
        assert list(store.records()) == [Record("p", "image", "", "a.png"), Record("t", "text", "words", "b.png")]


def test_plain_chroma_can_read_it(tmp_path: Path) -> None:
    with ChromaStore(tmp_path) as store:
        store.add([Record("a", "image", "a caption", "a.png", {"page": 1})], [[1.0, 0.0]])
    with chromadb.PersistentClient(str(tmp_path), settings=Settings(**NO_TELEMETRY)) as client:
        row = client.get_collection("abc").get(include=["documents", "uris", "metadatas"])
    assert (row["documents"], row["uris"]) == (["a caption"], ["a.png"])
    assert row["metadatas"] == [{"page": 1, "abc:modality": "image", "abc:source": "a.png"}]


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


def test_sixteen_threads_open_and_close(tmp_path: Path) -> None:
    def work(thread: int) -> None:
        for _ in range(3):
            with ChromaStore(tmp_path, fingerprint=ONE) as store:
                store.add([Record(f"r{thread}", "text")], vectors(1, seed=thread))
                assert store.has([f"r{thread}"])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    with ChromaStore(tmp_path) as store:
        assert store.count() == 16


def test_stores_of_one_process_share_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("store")
    first, second = ChromaStore("store"), ChromaStore(tmp_path / "store")
    third, other = ChromaStore("./link"), ChromaStore("store", collection="other")
    first.add(texts(5), vectors(5))
    second.add(texts(5, "s"), vectors(5, seed=1))
    third.delete(["t00000"])
    other.add(texts(1), vectors(1, dim=3))
    assert [store.count() for store in (first, second, third, other)] == [9, 9, 9, 1]
    first.close()
    assert len(second.search(vectors(1)[0], 20)) == 9
    for store in (second, third, other):
        store.close()


def test_another_process_that_writes_is_named(tmp_path: Path, elsewhere: Callable[..., subprocess.Popen[str]]) -> None:
    holder = elsewhere(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with ChromaStore(tmp_path) as store:
        assert len(store.search(vectors(1)[0], 100)) == 20
        for write in (lambda: store.add(texts(1), vectors(1)), lambda: store.delete(["i0"])):
            with pytest.raises(StoreLockedError) as caught:
                write()
            assert f"pid {holder.pid} on {socket.gethostname()}" in str(caught.value)
            assert "chroma run" in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        store.add(texts(1), vectors(1))
        assert store.count() == 21
        assert len(store.search(vectors(1)[0], 100)) == 21


def test_an_unknown_holder_is_said_to_be_unknown(
    tmp_path: Path, elsewhere: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = elsewhere(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for note in ("not json", "[]", json.dumps({"mark": 3})):
        (tmp_path / "abc-writer.json").write_text(note)
        with ChromaStore(tmp_path) as store, pytest.raises(StoreLockedError, match="unknown"):
            store.add(texts(1), vectors(1))


def test_a_write_can_wait_for_the_other_process(
    tmp_path: Path, elsewhere: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = elsewhere(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    with ChromaStore(tmp_path, lock_timeout_s=60) as store, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.add, texts(1), vectors(1))
        holder.stdin.close()
        assert waiting.result(60) == ["t00000"]
        assert store.count() == 21


def test_closing_hands_the_directory_over(tmp_path: Path, elsewhere: Callable[..., subprocess.Popen[str]]) -> None:
    other = "with ChromaStore(sys.argv[1]) as store: put(store, *map(int, sys.argv[2:]))"
    reader = ChromaStore(tmp_path)
    with ChromaStore(tmp_path) as store:
        store.add(texts(5), vectors(5))
        process = elsewhere(other, tmp_path, 0, 5)
        assert "StoreLockedError" in process.communicate()[1]
    # The reader keeps the directory open; the right to write went with the store that had it.
    finish(elsewhere(other, tmp_path, 0, 5))
    assert len(reader.search(vectors(1)[0], 100)) == 10
    reader.close()


def test_nothing_is_lost_when_processes_take_turns(
    tmp_path: Path, elsewhere: Callable[..., subprocess.Popen[str]]
) -> None:
    """A store that was open while another process wrote must not save its old index over the new one."""
    turn = "with ChromaStore(sys.argv[1]) as store: put(store, *map(int, sys.argv[2:]))"
    early = ChromaStore(tmp_path)
    early.add(texts(1500), vectors(1500))
    early.close()
    early = ChromaStore(tmp_path)
    assert len(early.search(vectors(1)[0], 9000)) == 1500
    finish(elsewhere(turn, tmp_path, 0, 3000))
    assert len(early.search(vectors(1)[0], 9000)) == 4500
    early.add(texts(1500, "u"), vectors(1500, seed=1))
    assert len(early.search(vectors(1)[0], 9000)) == 6000
    early.close()
    finish(elsewhere(turn, tmp_path, 3000, 3010))
    with ChromaStore(tmp_path) as fresh:
        assert fresh.count() == len(fresh.search(vectors(1)[0], 9000)) == 6010


def test_reading_while_another_process_writes(tmp_path: Path, elsewhere: Callable[..., subprocess.Popen[str]]) -> None:
    """With plain Chroma this ends in a store that crashes every process that opens it."""
    writer = elsewhere(
        "store = ChromaStore(sys.argv[1])\n"
        "for i in range(0, 2400, 60): put(store, i, i + 60)\n"
        "print(len(store.search(np.ones(8), 9000)))",
        tmp_path,
    )
    searched = 0
    while writer.poll() is None:
        with ChromaStore(tmp_path) as store:
            for _ in range(3):
                found = len(store.search(np.ones(8), 9000))
                assert found % 60 == 0
                assert found >= searched
                searched = found
    assert finish(writer) == "2400\n"
    with ChromaStore(tmp_path) as store:
        assert store.count() == len(store.search(np.ones(8), 9000)) == 2400


def test_processes_may_open_a_new_directory_at_once(
    tmp_path: Path, elsewhere: Callable[..., subprocess.Popen[str]]
) -> None:
    code = "with ChromaStore(sys.argv[1], lock_timeout_s=60) as store: put(store, *map(int, sys.argv[2:]))"
    for process in [elsewhere(code, tmp_path / "new", 10 * i, 10 * i + 10) for i in range(4)]:
        finish(process)
    with ChromaStore(tmp_path / "new") as store:
        assert len(store.search(np.ones(8), 100)) == 40


def test_a_forked_child_neither_hangs_nor_unlocks(
    tmp_path: Path, elsewhere: Callable[..., subprocess.Popen[str]]
) -> None:
    code = (
        "import os\n"
        "from abc_rag.errors import StoreError\n"
        "def fork(work):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        work(); sys.exit(0)\n"  # unlike os._exit, runs every finaliser
        "    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "def early():\n"
        "    with ChromaStore(sys.argv[1]) as own: put(own, 0, 10); assert len(own.search(np.ones(8), 100)) == 10\n"
        "fork(early)\n"
        "store = ChromaStore(sys.argv[1]); put(store, 10, 20); assert len(store.search(np.ones(8), 100)) == 20\n"
        "def late():\n"
        "    for use in (store.count, lambda: put(store, 20, 30), lambda: ChromaStore(sys.argv[1])):\n"
        "        try: use()\n"
        "        except StoreError as error: assert 'spawn' in str(error), error\n"
        "        else: raise AssertionError('the child used it')\n"
        "    store.close()\n"
        "fork(late)\n"
        "print('forked', flush=True); sys.stdin.readline()\n"
        "put(store, 20, 30); assert len(store.search(np.ones(8), 100)) == 30\n"
    )
    parent = elsewhere(code, tmp_path)
    assert parent.stdout is not None
    assert parent.stdin is not None
    assert parent.stdout.readline() == "forked\n", finish(parent)
    with ChromaStore(tmp_path) as store:
        # The child has ended; its parent's lock must have outlived it.
        with pytest.raises(StoreLockedError, match=f"pid {parent.pid} "):
            store.add(texts(1), vectors(1))
        parent.stdin.write("\n")
        finish(parent)
        assert len(store.search(np.ones(8), 100)) == 30


def test_a_forked_child_uses_the_server(server_url: str, elsewhere: Callable[..., subprocess.Popen[str]]) -> None:
    code = (
        "import os\n"
        "store = ChromaStore(url=sys.argv[1], collection=sys.argv[2]); put(store, 0, 5)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    put(store, 5, 10); store.close(); os._exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "print(store.count()); store.close()\n"
    )
    assert finish(elsewhere(code, server_url, f"c-{uuid.uuid4().hex}")) == "10\n"


def test_a_directory_can_be_deleted_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for closed in (True, False, False):
        store = ChromaStore(path, fingerprint=ONE)
        store.add(texts(3), vectors(3))
        assert len(store.search(vectors(1)[0], 10)) == 3
        if closed:
            store.close()
        shutil.rmtree(path)
        if not closed:
            with pytest.raises(StoreError, match="deleted"):
                store.search(vectors(1)[0])
    with ChromaStore(path, fingerprint=TWO) as new:
        assert new.count() == 0
        new.add(texts(1), vectors(1, dim=3))
        assert len(new.search(vectors(1, dim=3)[0], 10)) == 1


def test_a_collection_deleted_behind_the_back_is_made_anew(server_url: str) -> None:
    name = f"c-{uuid.uuid4().hex}"
    with ChromaStore(url=server_url, collection=name, fingerprint=ONE) as store:
        store.add(texts(3), vectors(3))
        address = f"{server_url}/api/v2/tenants/default_tenant/databases/default_database/collections/{name}"
        urllib.request.urlopen(urllib.request.Request(address, method="DELETE")).close()
        assert store.count() == 0
        store.add(texts(1), vectors(1, dim=3))
        assert (store.count(), store.dim, store.fingerprint) == (1, 3, str(ONE))


# -- smaller things ------------------------------------------------------------------------------


def test_batches_keep_to_number_and_bytes() -> None:
    def cut(sizes: list[int], most: int, most_bytes: int) -> list[list[int]]:
        return [sizes[part] for part in _batches(sizes, most, most_bytes)]

    assert cut([], 3, 10) == []
    assert cut([1] * 7, 3, 100) == [[1] * 3, [1] * 3, [1]]
    assert cut([4, 4, 4, 2, 4], 100, 10) == [[4, 4], [4, 2, 4]]
    assert cut([50, 1, 50, 50], 100, 10) == [[50], [1], [50], [50]]
    assert cut([10, 10], 100, 10) == [[10], [10]]


def test_ids_of_contents() -> None:
    assert text_id("a") == text_id("a") == "text-" + "ca978112ca1bbdcafac231b39a23dc4d"
    assert text_id("a") != text_id("b")
    assert text_id("\ud800").startswith("text-")
    assert image_id("AB" * 32) == "image-" + "ab" * 16
    for bad in ("ab", "zz" * 32, None):
        with pytest.raises(InputError, match="64"):
            image_id(bad)


def test_importing_it_is_light_and_using_it_is_quiet(
    tmp_path: Path, elsewhere: Callable[..., subprocess.Popen[str]]
) -> None:
    code = (
        "import logging; logging.basicConfig(level=logging.WARNING)\n"
        "assert not {'chromadb', 'torch', 'PIL', 'httpx'} & set(sys.modules)\n"
        "with ChromaStore(sys.argv[1]) as store: put(store, 0, 5); store.search(np.ones(8)); store.delete(['i0'])\n"
    )
    assert finish(elsewhere(code, tmp_path)) == ""
