"""What is acknowledged survives kills, full disks, and damaged or changed files."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from store_helpers import NO_TELEMETRY, ONE, Elsewhere, finish, texts, vectors
from store_killing import kill_while_writing, write_often

from abc_rag.errors import StoreError
from abc_rag.store.chroma import collections
from abc_rag.store.chroma.journal import Journal, index_folders
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.types import Record

COUNT = 150
PICTURE = Record("p", "image", "a caption", "p.png", {"page": 7})


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of passages and a picture with a facet, whose index files have been written."""
    monkeypatch.setattr(collections, "_LEAST_BETWEEN", 10)
    with ChromaStore(tmp_path / "store", fingerprint=ONE) as store:
        store.add(texts(COUNT), vectors(COUNT))
        store.add([PICTURE], vectors(1, seed=1))
        store.add_facets(["p"], "what is on the left?", vectors(1, seed=2))
        assert store.check() == []
    return tmp_path / "store"


def assert_whole(folder: Path) -> None:
    with ChromaStore(folder, fingerprint=ONE) as store:
        assert store.count() == len(list(store.ids())) == COUNT + 1
        assert list(store.records()) == [*texts(COUNT), PICTURE]
        hits = store.search_many(vectors(COUNT), 1)
        assert [hit.id for (hit,) in hits] == [record.id for record in texts(COUNT)]
        (hit,) = store.search(vectors(1, seed=2)[0], 1, {"page": 7}, modality="image")
        assert (hit.record, hit.facet) == (PICTURE, "what is on the left?")
        assert store.check() == []


def largest_index(folder: Path) -> Path:
    return max(map(Path, index_folders(str(folder))), key=lambda path: (path / "data_level0.bin").stat().st_size)


# -- kills and full disks --------------------------------------------------------------------------


def test_a_writer_killed_while_index_files_change_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_LEAST_BETWEEN", "_GROWTH"):
        monkeypatch.setattr(collections, name, getattr(collections, name))
    write_often()
    rounds, met, wrong = kill_while_writing(tmp_path / "store", 6)
    assert wrong == []
    assert met == 6
    assert rounds > 0


@pytest.mark.parametrize("torn", [False, True])
def test_a_write_that_was_cut_short_is_finished(full: Path, torn: bool) -> None:
    """What the journal has and Chroma has not, whether or not Chroma had begun to write its files."""
    with closing(Journal(str(full))) as journal:
        journal.begin("abc", [(Record("new", "text", "late"), vectors(1, seed=5)[0].astype("f"))], ["p"], None)
    if torn:
        data = largest_index(full) / "data_level0.bin"
        data.write_bytes(data.read_bytes()[:2000] + bytes(data.stat().st_size - 2000))
    with ChromaStore(full, fingerprint=ONE) as store:
        assert store.count() == COUNT + 1
        assert store.has(["new", "p"]) == {"new"}
        assert store.search(vectors(1, seed=5)[0], 1)[0].id == "new"
        assert [hit.id for (hit,) in store.search_many(vectors(COUNT), 1)] == [record.id for record in texts(COUNT)]
        # The journal was told to remove the picture alone; `Store.delete` removes its facets first.
        assert [problem.partition("#")[0] for problem in store.check()] == ["facet 'p"]


def test_a_full_disk_costs_nothing_that_was_acknowledged(full: Path, elsewhere: Elsewhere) -> None:
    code = (
        "import resource\n"
        "from abc_rag.errors import StoreError\n"
        "store = ChromaStore(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "for i in range(200):\n"
        "    try: put(store, 100 * i, 100 * i + 100)\n"
        "    except StoreError as error: print(i); break\n"
    )
    stored = int(finish(elsewhere(code, full)))
    assert stored < 200
    with ChromaStore(full) as store:
        assert store.has(f"i{i}" for i in range(100 * stored)) == {f"i{i}" for i in range(100 * stored)}
        assert store.has(record.id for record in texts(COUNT)) == {record.id for record in texts(COUNT)}
        assert store.check() == []
        # And goes on.
        store.add([Record("more", "text")], vectors(1, seed=9))
        assert store.search(vectors(1, seed=9)[0], 1)[0].id == "more"


# -- damaged files ---------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "ones": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_header_is_noticed_and_mended(full: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    DAMAGES[damage](largest_index(full) / "header.bin")
    with caplog.at_level(logging.WARNING):
        assert_whole(full)
    assert "'abc' was damaged, and is built anew" in caplog.text


@pytest.mark.parametrize("name", ["data_level0.bin", "length.bin", "link_lists.bin"])
def test_another_damaged_file_is_noticed_and_mended(full: Path, name: str) -> None:
    DAMAGES["half"](largest_index(full) / name)
    assert_whole(full)


def test_a_damaged_index_that_nothing_can_mend_is_named(full: Path) -> None:
    DAMAGES["zeros"](largest_index(full) / "header.bin")
    for path in full.glob("abc-records*"):
        path.unlink()
    with pytest.raises(StoreError, match=r"collection 'abc' is damaged \(header.bin has .*index again"):
        ChromaStore(full)


def test_chromas_database_is_made_anew(full: Path) -> None:
    (full / "chroma.sqlite3").write_bytes(b"garbage" * 1000)
    assert_whole(full)
    shutil.rmtree(largest_index(full))
    (full / "chroma.sqlite3").unlink()
    assert_whole(full)


@pytest.mark.parametrize("damage", ["garbage", "missing"])
def test_the_journal_is_made_anew(full: Path, damage: str) -> None:
    journal = full / "abc-records.sqlite3"
    if damage == "missing":
        journal.unlink()
    else:
        journal.write_bytes(b"garbage" * 1000)
    assert_whole(full)
    DAMAGES["zeros"](largest_index(full) / "header.bin")
    assert_whole(full)


def test_a_copied_store_is_not_built_anew(full: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(full, tmp_path / "copy", copy_function=shutil.copy)
    assert_whole(tmp_path / "copy")
    assert caplog.text == ""


# -- the keyword index -----------------------------------------------------------------------------


def words_of(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "abc-records.sqlite3", isolation_level=None)


def assert_words(folder: Path) -> None:
    with ChromaStore(folder, fingerprint=ONE) as store:
        assert [hit.id for hit in store.search_words("caption", 9)] == ["p"]
        assert [hit.id for hit in store.search_words("passage", COUNT)] == [record.id for record in texts(COUNT)]
        assert store.check() == []


def test_a_store_from_before_the_keyword_index_gets_it(full: Path) -> None:
    with closing(words_of(full)) as journal:
        for event in ("insert", "delete", "update"):
            journal.execute(f"DROP TRIGGER words_{event}_1")
        for table in ("words_vocabulary", "words_plain", "words_grams"):
            journal.execute(f"DROP TABLE {table}")
        journal.execute("DROP VIEW words")
        journal.execute("DELETE FROM rows WHERE id = 'nobody'")
    assert_words(full)


def test_an_index_without_its_triggers_is_made_anew(full: Path) -> None:
    """As whoever has no FTS5 leaves it, and then writes."""
    with closing(words_of(full)) as journal:
        journal.execute("DROP TRIGGER words_update_1")
        journal.execute("UPDATE rows SET record = replace(record, 'a caption', 'elsewhere') WHERE id = 'p'")
    with ChromaStore(full, fingerprint=ONE) as store:
        assert [hit.id for hit in store.search_words("elsewhere", 9)] == ["p"]
        assert store.search_words("caption", 9) == []
        assert store.check() == []


@pytest.mark.parametrize("index", ["words_plain", "words_grams"])
def test_a_damaged_keyword_index_is_made_anew(full: Path, index: str, caplog: pytest.LogCaptureFixture) -> None:
    with closing(words_of(full)) as journal:
        journal.execute(f"UPDATE {index}_data SET block = x'ffffffffffffffff'")
    assert_words(full)
    assert "the keyword index was damaged" in caplog.text


def test_a_keyword_index_that_is_damaged_while_open_is_made_anew(full: Path) -> None:
    with ChromaStore(full, fingerprint=ONE) as store:
        store.search_words("caption")
        with closing(words_of(full)) as journal:
            journal.execute("UPDATE words_plain_data SET block = x'ffffffffffffffff' WHERE id > 10")
        store.add([Record("more", "text", "a passage")], vectors(1, seed=9))
        assert {hit.id for hit in store.search_words("passage", COUNT + 9)} == {r.id for r in texts(COUNT)} | {"more"}
        assert store.check() == []


def test_a_keyword_index_that_lacks_something_is_told_and_repaired(full: Path) -> None:
    with closing(words_of(full)) as journal:
        record = journal.execute("SELECT key, record FROM rows WHERE id = 'p'").fetchone()
        assert record is not None
        journal.execute(
            "INSERT INTO words_plain (words_plain, rowid, said, file) VALUES ('delete', ?, 'a caption  ', 'p.png  ')",
            record[:1],
        )
    with ChromaStore(full, fingerprint=ONE) as store:
        (problem,) = store.check()
        assert problem.startswith("the keyword index 'words_plain' does not fit to the records")
        assert store.repair() == COUNT + 1
    assert_words(full)


# -- what other programs do ------------------------------------------------------------------------


def test_what_plain_chroma_has_done_meanwhile_is_taken_over(full: Path, caplog: pytest.LogCaptureFixture) -> None:
    with chromadb.PersistentClient(str(full), settings=Settings(**NO_TELEMETRY)) as client:
        collection = client.get_collection("abc", embedding_function=None)
        collection.delete(ids=["t00000"])
        collection.update(ids=["t00001"], metadatas=[{"page": 99}])
        collection.update(ids=["t00002"], metadatas=[{"abc:source": 5}])
        collection.add(ids=["theirs"], embeddings=vectors(1, seed=7), documents=["words"])
    with ChromaStore(full, fingerprint=ONE) as store:
        assert store.has(["t00000", "t00001", "t00002", "theirs"]) == {"t00001", "theirs"}
        assert store.get(["t00001"])[0].metadata == {"page": 99}
        assert store.search(vectors(1, seed=7)[0], 1)[0].record == Record("theirs", "text", "words")
        assert len(store.search(vectors(1)[0], COUNT)) == len(store.search(vectors(1)[0], 2 * COUNT)) == COUNT
        assert store.count() == COUNT
    assert "record 't00002': source must be a str, not int" in caplog.text


def test_check_tells_what_cannot_be_found_and_repair_mends_it(full: Path) -> None:
    with chromadb.PersistentClient(str(full), settings=Settings(**NO_TELEMETRY)) as client:
        client.get_collection("abc", embedding_function=None).delete(ids=["t00000", "t00009"])
    with closing(Journal(str(full))) as journal:
        journal.done()  # as if nobody had written: the records are lost in silence
    with ChromaStore(full, fingerprint=ONE) as store:
        assert store.check() == [f"record {id_!r} is not found by its own vector" for id_ in ("t00000", "t00009")]
        assert store.repair() == COUNT + 1
        assert store.check() == []
    assert_whole(full)


def test_a_server_repairs_itself(server_url: str) -> None:
    with ChromaStore(url=server_url, collection="not-ours-to-repair") as store:
        assert store.check() == []
        with pytest.raises(StoreError, match="keeps its own files"):
            store.repair()


# -- how often Chroma writes its index -------------------------------------------------------------


def test_the_index_is_written_in_step_with_its_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collections, "_LEAST_BETWEEN", 20)
    written: set[int] = set()
    with ChromaStore(tmp_path) as store:
        for start in range(0, 1000, 10):
            rows = np.random.default_rng(start).standard_normal((10, 8))
            store.add([Record(f"r{start + i}", "text") for i in range(10)], rows)
            written.update(p.stat().st_mtime_ns for p in tmp_path.glob("*-*/header.bin"))
        assert store.check() == []
    # Every 20 records that would be 50 times; in step with the growth it is once each fifth to tenth.
    assert len(written) < 30
    assert collections.threshold(200_000, 192) == 40_000
    assert collections.threshold(200_000, 4096) == 4096
    assert collections.threshold(50, 4096) == 20
