"""``abc-rag store check`` and ``abc-rag store repair``."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import chromadb
import pytest
from chromadb.config import Settings
from store_helpers import NO_TELEMETRY, texts, vectors

from abc_rag.cli.main import main
from abc_rag.store import ChromaStore
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
    assert json.loads(out) == {"records": 30, "problems": ["record 't00007' is not found by its own vector"]}
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
