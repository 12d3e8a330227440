"""Whole runs on a real cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import pytest
from cluster_helpers import Noting
from ingest_helpers import passage, picture

from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import FingerprintMismatchError, InputError
from abc_rag.ingest import index_paths
from abc_rag.ingest.cluster import Engines
from abc_rag.store import LanceStore, Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning")
FACETS = ["what is on the left?", "which colour?"]


def filled(folder: Path, count: int = 40) -> Path:
    for number in range(count):
        picture(folder / f"p{number:03}.png", f"#{number * 6151 % 2**24:06x}")
    return folder


def content(store: Store) -> tuple[object, ...]:
    """Everything that is stored, vectors bit for bit."""
    records = {record.id: record for record in store.records()}
    vectors = {id_: vector.tobytes() for id_, vector in store.vectors(records).items()}
    facets = [
        {id_: vector.tobytes() for id_, vector in store.facet_vectors(records, facet).items()} for facet in FACETS
    ]
    assert store.check() == []
    return records, vectors, facets


def lake_of(tmp_path: Path) -> LanceStore:
    return LanceStore(tmp_path / "lake", fingerprint=FakeEmbedder().fingerprint)


def test_equal_to_a_single_process_and_grows(folder: Path, tmp_path: Path, on_cluster: Any) -> None:
    embedder = FakeEmbedder()
    filled(folder)
    passage(folder / "words.txt", "A pig.\n\nA car.\n")
    picture(folder / "z" / "again.png", "#000000")  # the same content as p000.png
    whole = (folder / "p001.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[:60])
    with LanceStore(tmp_path / "single", fingerprint=embedder.fingerprint) as single, lake_of(tmp_path) as lake:
        for unchanged in (0, 42):
            expected = index_paths([folder], embedder, single, facets=FACETS)
            report = on_cluster(folder, facets=FACETS)
            assert (report.added, report.facets, report.failed) == (expected.added, expected.facets, expected.failed)
            assert report.unchanged == unchanged
            assert content(lake) == content(single)
            failed = lance.dataset(str(tmp_path / "lake" / "abc.failed.lance")).to_table().to_pylist()
            assert [(row["place"], row["reason"]) for row in failed] == report.failed
            # The source grows, and the broken file is mended.
            (folder / "broken.png").write_bytes(picture(folder / "new.png", "#fffffe").read_bytes())
            passage(folder / "words.txt", "A pig.\n\nA car.\n\nA rose.\n")
        assert failed == []


def test_a_killed_worker_costs_nothing(folder: Path, tmp_path: Path, on_cluster: Any) -> None:
    filled(folder)
    notes = tmp_path / "notes"
    notes.mkdir()
    assert on_cluster(folder, embedder=Noting(notes, die=True), engines=Engines(most=2, batch=8)).added == 40
    assert (notes / "died").exists()
    with lake_of(tmp_path) as lake:
        assert lake.count() == len({record.id for record in lake.records()}) == 40


def test_another_model_is_refused(folder: Path, on_cluster: Any) -> None:
    filled(folder, 1)
    assert on_cluster(folder).added == 1
    with pytest.raises(FingerprintMismatchError, match="cannot be compared"):
        on_cluster(folder, embedder=FakeEmbedder(model="other"))
    with pytest.raises(InputError, match="no such file or folder"):
        on_cluster(folder / "nothing")
