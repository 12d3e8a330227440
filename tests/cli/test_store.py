"""``abc-rag store check`` and ``abc-rag store repair``."""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import chromadb
import pytest
from chromadb.config import Settings
from store_helpers import NO_TELEMETRY, texts, vectors

from abc_rag.cli.main import main
from abc_rag.cli.options import StoreFlags
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import FingerprintMismatchError
from abc_rag.store import ChromaStore, open_store
from abc_rag.store.chroma.journal import Journal


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_a_sound_store_and_one_that_lost_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "s")
    with ChromaStore(place) as store:
        store.add(texts(30), vectors(30))
    assert run(capsys, "store", "check", "--store", place) == (0, "30 records, all are found\n", "")
    with chromadb.PersistentClient(place, settings=Settings(**NO_TELEMETRY)) as client:
        client.get_collection("abc", embedding_function=None).delete(ids=["t00007"])
    with closing(Journal(place)) as journal:
        journal.done()  # as if nobody had written
    status, out, _ = run(capsys, "store", "check", "--store", place)
    assert (status, out) == (1, "record 't00007' is not found by its own vector\n30 records, 1 problems\n")
    status, out, _ = run(capsys, "store", "check", "--store", place, "--json")
    problems = ["record 't00007' is not found by its own vector"]
    assert json.loads(out) == {"records": 30, "dim": 8, "fingerprint": None, "problems": problems}
    assert run(capsys, "store", "repair", "--store", place)[:2] == (0, "30 records, the index is built anew\n")
    assert run(capsys, "store", "check", "--store", place)[:2] == (0, "30 records, all are found\n")


@pytest.mark.parametrize("command", ["check", "repair"])
def test_a_folder_that_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, err = run(capsys, "store", command, "--store", str(tmp_path))
    assert (status, out) == (2, "")
    assert "no store here" in err
    assert list(tmp_path.iterdir()) == []


def test_a_server_with_its_keyword_index_here(
    tmp_path: Path, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["--url", server_url, "--collection", "check-words"]
    with ChromaStore(url=server_url, collection="check-words") as store:
        store.add(texts(3), vectors(3))
    assert "keeps its own files" in run(capsys, "store", "repair", *here)[2]
    here += ["--keyword-index", str(tmp_path / "words")]
    assert run(capsys, "store", "check", *here) == (0, "3 records, all are found\n", "")
    with ChromaStore(url=server_url, collection="check-words") as store:
        store.add([replace(texts(1)[0], text="changed")], vectors(1))
    assert run(capsys, "store", "check", *here)[:2] == (
        1,
        "the keyword index is behind: record 't00000'\n3 records, 1 problems\n",
    )
    assert run(capsys, "store", "repair", *here)[:2] == (0, "3 records, the index is built anew\n")
    assert run(capsys, "store", "check", *here)[0] == 0


def test_a_store_becomes_a_lake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Chroma to Lance, its index, its check and its export; what is for Lance alone is refused elsewhere."""
    place, lake = str(tmp_path / "s"), f"lance://{tmp_path / 'lake'}"
    with ChromaStore(place) as store:
        store.add(texts(300), vectors(300))
    assert "no store here" in run(capsys, "store", "copy", lake, place)[2]
    assert run(capsys, "store", "copy", place, lake, "--dtype", "float16") == (
        0,
        f"300 copied, 0 unchanged, 0 facets copied, 0 problems; 300 in {lake}\n",
        "",
    )
    copied = json.loads(run(capsys, "store", "copy", place, lake, "--json")[1])
    assert copied == {"copied": 0, "unchanged": 300, "facets": 0, "problems": [], "total": 300}
    assert run(capsys, "store", "index", "--store", lake)[1] == "300 records and 0 facets are indexed\n"
    assert run(capsys, "store", "check", "--store", lake) == (0, "300 records, all are found\n", "")
    assert run(capsys, "store", "compact", "--store", lake, "--keep-hours", "0")[1].endswith(" MB freed\n")
    assert run(capsys, "store", "export", str(tmp_path / "e.parquet"), "--store", str(tmp_path / "lake"))[:1] == (0,)
    assert json.loads(run(capsys, "stats", "--store", lake, "--json")[1])["kinds"] == {"text": 300}
    for command in (["index"], ["compact"]):
        assert "this is for Lance stores" in run(capsys, "store", *command, "--store", place)[2]


def test_a_store_goes_to_an_object_store_and_back(
    tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place, lake, back = str(tmp_path / "s"), f"{bucket}/copied", str(tmp_path / "back")
    with ChromaStore(place, fingerprint="m") as store:
        store.add(texts(30), vectors(30))
    for source, target in ((place, lake), (lake, back)):
        status, out, _ = run(capsys, "store", "copy", source, target)
        assert (status, out) == (
            0,
            f"30 copied, 0 unchanged, 0 facets copied, 0 problems; 30 in {target}\n",
        )
        status, out, _ = run(capsys, "store", "check", "--store", target, "--json")
        assert json.loads(out) == {"records": 30, "dim": 8, "fingerprint": "m", "problems": []}
    assert "is empty" in run(capsys, "store", "check", "--store", f"{bucket}/nothing")[2]
    with open_store(lake) as one, open_store(back) as other:
        assert list(one.records()) == list(other.records())


def test_a_store_is_reduced_and_opened_for_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedder = FakeEmbedder(dim=16)
    place, short = str(tmp_path / "s"), f"lance://{tmp_path / 'short'}"
    with ChromaStore(place, fingerprint=embedder.fingerprint) as store:
        store.add(texts(30), embedder.embed_texts([f"passage {n}" for n in range(30)]))
    command = ["store", "reduce", place, short, "--dims", "8"]
    done = f"copied, {{}} unchanged, 0 facets copied, 0 problems; 30 in {short}\n"
    assert run(capsys, *command)[:2] == (0, "30 " + done.format(0))
    assert run(capsys, *command)[:2] == (0, "0 " + done.format(30))
    own, opened = StoreFlags(store=short).open_for(embedder)
    with opened:
        assert (own.dim, opened.dim, opened.fingerprint) == (8, 8, str(own.fingerprint))
        assert opened.search(own.embed_texts(["passage 5"])[0], 1)[0].id == "t00005"
    with StoreFlags(store=place).open_for(embedder)[1] as whole:
        assert whole.dim == 16
    with pytest.raises(FingerprintMismatchError):
        StoreFlags(store=place).open_for(FakeEmbedder(model="other"))
    assert "holds vectors of" in run(capsys, "store", "reduce", place, short, "--dims", "4")[2]


def test_a_store_in_shards_of_a_server(tmp_path: Path, server_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    place, name = str(tmp_path / "s"), f"shards-{uuid.uuid4().hex}"
    embedder = FakeEmbedder(dim=16)
    with ChromaStore(place, fingerprint=embedder.fingerprint) as store:
        store.add(texts(30), embedder.embed_texts([f"passage {n}" for n in range(30)]))
    there = ["--url", server_url, "--collection"]
    to = ["--to-collection", name]
    copied = f"copied, {{}} unchanged, 0 facets copied, 0 problems; 30 in {server_url}\n"
    assert run(capsys, "store", "copy", place, server_url, *to, "--shards", "3")[:2] == (0, "30 " + copied.format(0))
    # How many there are need not be said again, and cannot be changed.
    assert run(capsys, "store", "copy", place, server_url, *to)[:2] == (0, "0 " + copied.format(30))
    assert "open it with shards=3" in run(capsys, "store", "copy", place, server_url, *to, "--shards", "2")[2]
    assert run(capsys, "store", "check", *there, name)[:2] == (0, "30 records, all are found\n")
    to = ["--collection", name, "--to-collection", f"{name}-short", "--dims", "8", "--shards", "2"]
    assert run(capsys, "store", "reduce", server_url, server_url, *to)[:2] == (0, "30 " + copied.format(0))
    with ChromaStore(url=server_url, collection=f"{name}-short", shards=2) as short:
        assert (short.count(), short.dim) == (30, 8)
    wrong = ["store", "copy", server_url, place, "--collection", name, "--shards", "2"]
    assert "shards are for a Chroma server" in run(capsys, *wrong)[2]


def test_shards_are_filled_and_asked(tmp_path: Path, server_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--url", server_url, "--collection", f"shards-{uuid.uuid4().hex}", "--model", "abc-mini"]
    for n, text in enumerate(("A pig rolls in mud.", "A rose has thorns.", "A tram waits.")):
        (tmp_path / f"{n}.md").write_text(text)
    assert run(capsys, "index", str(tmp_path), *there, "--shards", "2")[0] == 0
    status, out, _ = run(capsys, "ask", "A rose has thorns.", *there, "--json")
    assert (status, json.loads(out)["hits"][0]["text"]) == (0, "A rose has thorns.")
    assert "open it with shards=2" in run(capsys, "index", str(tmp_path), *there, "--shards", "4")[2]


def test_the_server_serves_no_lake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "serve", "keys", "list", "--store", f"lance://{tmp_path}")
    assert (status, "the server serves Chroma's stores" in err) == (2, True)
