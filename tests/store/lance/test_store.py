"""What is particular to a Lance store: commits, versions, several processes, kills."""

from __future__ import annotations

import os
import pickle
import signal
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from store_helpers import ONE, TWO, Elsewhere, finish, texts, vectors

from abc_rag.errors import FingerprintMismatchError, InputError, StoreError
from abc_rag.store import LanceStore
from abc_rag.types import Record


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_places_and_names_that_cannot_be(tmp_path: Path) -> None:
    for arguments, message in (
        (("",), "place is empty"),
        (("ftp://host/x",), "object store"),
    ):
        with pytest.raises(InputError, match=message):
            LanceStore(*arguments)
    for name in ("", "-a", "a/b", "a.facets", "x" * 300):
        with pytest.raises(InputError, match="collection"):
            LanceStore(tmp_path / "s", collection=name)
    with pytest.raises(InputError, match="dtype"):
        LanceStore(tmp_path / "s", dtype="int8")
    with pytest.raises(InputError, match="offset"):
        LanceStore(tmp_path / "s", as_of=datetime(2024, 1, 1))
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file"):
        LanceStore(tmp_path / "file")


def test_opening_makes_no_dataset(place: Path) -> None:
    with LanceStore(place) as store:
        assert (store.count(), store.versions(), store.build_index()) == (0, [], {"records": 0, "facets": 0})
    assert list(place.iterdir()) == []


def test_settings_travel(place: Path) -> None:
    with LanceStore(place, fingerprint=ONE, dtype="float16") as store:
        store.add(texts(2), vectors(2))
        with pickle.loads(pickle.dumps(store)) as again:
            assert (again.count(), again.fingerprint) == (2, str(ONE))


def test_half_precision_keeps_facets_and_finds_by_own_vectors(place: Path) -> None:
    rows = vectors(20, 16)
    with LanceStore(place, dtype="float16") as store:
        pictures = [Record(f"p{i}", "image", "", f"{i}.png") for i in range(20)]
        store.add(pictures, rows)
        store.add_facets(["p3"], "what is on the left?", rows[:1])
        store.add(pictures, rows)  # the same vectors, but for rounding
        assert store.facet_names(["p3"]) == {"p3": {"what is on the left?"}}
        assert [found[0].id for found in store.search_many(rows[1:], 1)] == [f"p{i}" for i in range(1, 20)]
        np.testing.assert_allclose(store.vectors(["p5"])["p5"], rows[5], atol=1e-3)
        assert store.check() == []


def test_looking_back(place: Path) -> None:
    with LanceStore(place) as store:
        store.add(texts(3), vectors(3))
        before = datetime.now(timezone.utc)
        store.add(texts(5, "n"), vectors(5))
        assert len(store.versions()) == 4  # made, set up, and two writes
        assert store.versions()[-1] >= before
        with LanceStore(place, as_of=before) as past:
            assert (past.count(), store.count()) == (3, 8)
            assert not past.has_words
            with pytest.raises(StoreError, match="without as_of to write"):
                past.add(texts(1), vectors(1))
            with pytest.raises(StoreError, match="without as_of"):
                past.search_words("passage")
        with LanceStore(place, as_of=before - timedelta(days=1)) as nothing:
            assert nothing.count() == 0


def test_compacting_keeps_everything_and_removes_old_versions(place: Path) -> None:
    rows = vectors(90)
    with LanceStore(place) as store:
        for i, record in enumerate(texts(90)):  # more than are left as fragments of their own
            store.add([record], rows[i : i + 1])
        store.delete(["t00003"])
        assert store.search_words("passage 7", 1)[0].id == "t00007"
        with pytest.raises(InputError, match="negative"):
            store.compact(timedelta(days=-1))
        assert store.compact(timedelta(0)) > 0
        assert len(store.versions()) == 1
        assert store.count() == 89
        assert [found[0].id for found in store.search_many(rows[4:], 1)] == [f"t{i:05}" for i in range(4, 90)]
        store.add([Record("t00007", "text", "another")], rows[7:8])
        assert [hit.id for hit in store.search_words("another", 9)] == ["t00007"]
        assert store.search_words('"passage 7"', 9) == []
        assert store.check() == []


def test_a_forked_child_is_refused(place: Path) -> None:
    with LanceStore(place) as store:
        store.add(texts(1), vectors(1))
        store._records_table.handle._pid += 1  # as a child would see it
        with pytest.raises(StoreError, match="spawn"):
            store.count()


WRITE = """
from abc_rag.store import LanceStore
store = LanceStore(sys.argv[1]); me = int(sys.argv[2])
sys.stdin.readline()
for step in range(12):
    put(store, 0, 10)                              # the same ids as the others
    put(store, 1000 * (me + 1) + 5 * step, 1000 * (me + 1) + 5 * step + 5)
    store.delete([f"i{1000 * (me + 1) + 5 * step}"])
"""


def test_three_processes_write_at_once(place: Path, elsewhere: Elsewhere) -> None:
    writers = [elsewhere(WRITE, place, number) for number in range(3)]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        finish(writer)
    with LanceStore(place) as store:
        expected = [f"i{i}" for i in range(10)]
        expected += [f"i{1000 * (me + 1) + i}" for me in range(3) for i in range(60) if i % 5]
        ids = list(store.ids())
        assert sorted(ids) == sorted(expected)
        assert store.check() == []


KILLED = """
from abc_rag.store import LanceStore
store = LanceStore(sys.argv[1]); number = int(sys.argv[2])
while True:
    rows = np.random.default_rng(number).standard_normal((5, 8))
    ids = [f"r{number}-{i}" for i in range(5)]
    store.add([Record(id_, "image", f"round{number:04}", f"{id_}.png", {"number": number}) for id_ in ids], rows)
    store.add_facets(ids[:2], "what is on the left?", -rows[:2])
    store.delete(ids[-1:])
    print(number, flush=True)
    number += 1
"""


def test_kills_lose_nothing_and_leave_nothing_half(place: Path, elsewhere: Elsewhere) -> None:
    rng, number, acknowledged = np.random.default_rng(0), 0, []
    for _ in range(3):
        writer = elsewhere(KILLED, place, number)
        assert writer.stdout is not None
        acknowledged += [int(writer.stdout.readline()) for _ in range(rng.integers(2, 6))]
        os.kill(writer.pid, signal.SIGKILL)  # somewhere within the next round
        acknowledged += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        number = acknowledged[-1] + 2  # the round that was cut short may be there or not
        with LanceStore(place) as store:
            assert store.check() == []
            ids = list(store.ids())
            assert len(ids) == len(set(ids)) == store.count()
            counts = {i: sum(id_.startswith(f"r{i}-") for id_ in ids) for i in range(number)}
            assert {counts[i] for i in acknowledged} == {4}
            assert {counts[i] for i in counts.keys() - set(acknowledged)} <= {0, 4, 5}  # whole, or not at all
            for i in acknowledged:
                rows = np.random.default_rng(i).standard_normal((5, 8))
                assert store.search(rows[0], 1)[0].id == f"r{i}-0"
                assert store.search(-rows[1], 1)[0].facet == "what is on the left?"
                assert len(store.search_words(f"round{i:04}", 9)) == 4


def test_by_url_as_on_an_object_store(tmp_path: Path) -> None:
    """Nothing beside the datasets, and keywords on this machine if asked for."""
    place = f"file://{tmp_path}/lake"
    with LanceStore(place, fingerprint=ONE) as store:
        store.add(texts(3), vectors(3))
        assert (store.keeps_pictures, store.has_words) == (False, False)
        with pytest.raises(StoreError, match="keywords=FOLDER"):
            store.search_words("passage")
    with LanceStore(place, fingerprint=ONE, keywords=tmp_path / "here", pictures=tmp_path / "pictures") as store:
        assert store.keeps_pictures
        assert [hit.id for hit in store.search_words('"passage 2"')] == ["t00002"]
    assert sorted(path.name for path in (tmp_path / "lake").iterdir()) == ["abc.lance"]


def test_an_object_store_is_a_place_like_any_other(bucket: str, tmp_path: Path) -> None:
    """Commits, facets, versions, an index of neighbours, and a keyword index on this machine."""
    place, rows = f"{bucket}/lake", vectors(300)
    with LanceStore(place, fingerprint=ONE, keywords=tmp_path / "words") as store:
        assert (store.count(), store.versions(), store.keeps_pictures) == (0, [], False)
        pictures = [Record(f"p{i}", "image", f"caption {i}", f"s3://pictures/{i}.png") for i in range(300)]
        store.add(pictures, rows)
        store.add_facets(["p7"], "left?", -rows[7:8])
        before = datetime.now(timezone.utc)
        assert store.delete(["p1"]) == 1
        assert store.search(rows[3], 1)[0].record == pictures[3]
        assert store.search(-rows[7], 1)[0].facet == "left?"
        assert [hit.id for hit in store.search_words('"caption 250"')] == ["p250"]
        assert store.build_index("int8")["records"] == 299
        assert store.search(rows[5], 1)[0].id == "p5"
        assert store.check() == []
        with LanceStore(place, as_of=before) as past:
            assert past.count() == 300
        store.compact(timedelta(0))
        assert (store.count(), len(store.versions())) == (299, 1)
    with pytest.raises(FingerprintMismatchError):
        LanceStore(place, fingerprint=TWO)


def test_many_write_to_an_object_store_at_once(bucket: str, elsewhere: Elsewhere) -> None:
    """Each commit is a conditional write of the next version: none is lost, and none is there twice."""
    code = (
        "from abc_rag.store import LanceStore\n"
        "with LanceStore(sys.argv[1]) as store:\n"
        "    first = int(sys.argv[2])\n"
        "    for at in range(first, first + 12, 3): put(store, at, at + 3)\n"
    )
    for process in [elsewhere(code, f"{bucket}/many", first) for first in (0, 12)]:
        finish(process)
    with LanceStore(f"{bucket}/many") as store:
        assert sorted(store.ids()) == sorted(f"i{n}" for n in range(24))
        assert store.check() == []


def test_what_an_object_store_refuses(bucket: str) -> None:
    with pytest.raises(StoreError, match=r"^s3://no-such-bucket/x: .*create the bucket"):
        LanceStore("s3://no-such-bucket/x").add(texts(1), vectors(1))
    options = {"endpoint": "http://127.0.0.1:1", "client_max_retries": "0"}
    with pytest.raises(StoreError, match="check the address and the network"):
        LanceStore(f"{bucket}/x", storage_options=options)
