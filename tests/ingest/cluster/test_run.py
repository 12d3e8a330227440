"""Whole runs on a real cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import threading
import warnings
from pathlib import Path
from typing import Any

import cluster_helpers
import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_helpers import Noting, nodes_of, noted, until
from ingest_helpers import passage, picture
from object_store import put
from typer.testing import CliRunner

from abc_rag.cli.main import app
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import FingerprintMismatchError, InputError
from abc_rag.ingest import index_paths
from abc_rag.ingest.cluster import Engines, index_on_cluster
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


def test_a_node_is_lost_and_another_joins(folder: Path, tmp_path: Path, nodes: Any, on_cluster: Any) -> None:
    filled(folder, 60)
    notes = tmp_path / "notes"
    notes.mkdir()
    reports = []
    engines = Engines(least=3, most=4, batch=4, cpus=1.5, reader_cpus=0.25)
    run = threading.Thread(
        target=lambda: reports.append(on_cluster(folder, embedder=Noting(notes, wait_after=0), engines=engines))
    )
    run.start()
    first = {node.node_id: node for node in nodes.worker_nodes}
    until(lambda: bool(nodes_of(notes) & set(first)))
    lost = sorted(nodes_of(notes) & set(first))[0]
    nodes.remove_node(first[lost])
    late = nodes.add_node(**cluster_helpers.NODE)
    until(lambda: late.node_id in nodes_of(notes))
    (notes / "go").touch()
    run.join(cluster_helpers.PATIENCE_S)
    assert [report.added for report in reports] == [60]
    with lake_of(tmp_path) as lake:
        assert lake.count() == len({record.id for record in lake.records()}) == 60


def test_a_killed_driver_goes_on_where_it_stopped(folder: Path, tmp_path: Path, nodes: Any, on_cluster: Any) -> None:
    filled(folder)
    notes = tmp_path / "notes"
    notes.mkdir()
    arguments = [nodes.address, str(folder), f"lance://{tmp_path / 'lake'}", str(notes)]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, cluster_helpers.__file__, *arguments], stdout=log, stderr=subprocess.STDOUT
        )
    with lake_of(tmp_path) as lake:
        until(lambda: lake.count() > 0 or driver.poll() is not None)
        assert driver.poll() is None, (tmp_path / "log").read_text()
        driver.kill()
        driver.wait()
        kept = {record.id for record in lake.records()}
        assert 8 <= len(kept) < 40
        before = noted(notes)
        (notes / "go").touch()
        report = on_cluster(folder, embedder=Noting(notes))
        assert (report.added, report.unchanged) == (40 - len(kept), len(kept))
        assert lake.count() == len({record.id for record in lake.records()}) == 40
    assert all(noted(notes)[id_] == before[id_] for id_ in kept)


def test_what_does_not_fit_is_refused(folder: Path, on_cluster: Any) -> None:
    filled(folder, 1)
    assert on_cluster(folder).added == 1
    with pytest.raises(FingerprintMismatchError, match="cannot be compared"):
        on_cluster(folder, embedder=FakeEmbedder(model="other"))
    with pytest.raises(InputError, match="no such file or folder"):
        on_cluster(folder / "nothing")
    pq.write_table(pa.table({"photo": [b"?"]}), folder / "table.parquet")
    with pytest.raises(InputError, match="it has no column 'image'; it has photo"):
        on_cluster(folder / "table.parquet")


def test_the_command_gives_what_a_single_process_does(folder: Path, tmp_path: Path, nodes: Any, mini: Embedder) -> None:
    """With a real model, whose sums depend on the batch in the last digits."""
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        picture(folder / f"{name}.png", colour, (60, 40))
    command = ["index", str(folder), "--model", "abc-mini", "--device", "cpu", "--facet", FACETS[0], "--json"]
    command += ["--ray", nodes.address, "--out", f"lance://{tmp_path / 'lake'}", "--engines", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert {"added": 3, "facets": 3, "total": 3}.items() <= json.loads(done.stdout).items()
    with (
        LanceStore(tmp_path / "single", fingerprint=mini.fingerprint) as single,
        LanceStore(tmp_path / "lake", fingerprint=mini.fingerprint) as lake,
    ):
        index_paths([folder], mini, single, facets=FACETS[:1])
        ids = [record.id for record in single.records()]
        for one, other in (
            (single.vectors(ids), lake.vectors(ids)),
            (single.facet_vectors(ids, FACETS[0]), lake.facet_vectors(ids, FACETS[0])),
        ):
            np.testing.assert_allclose([one[id_] for id_ in ids], [other[id_] for id_ in ids], atol=1e-5)
    for wrong, message in ((["--watch"], "is not for --ray"), (["--out", "lake"], "needs --out lance://FOLDER")):
        refused = CliRunner().invoke(app, [*command, *wrong])
        assert isinstance(refused.exception, InputError)
        assert message in str(refused.exception)


def test_from_an_object_store_into_an_object_store(folder: Path, bucket: str, nodes: Any, tmp_path: Path) -> None:
    """Over plain objects, an archive and a table; the second time over what has come since."""
    filled(folder, 6)
    files = sorted(folder.iterdir())
    for file in files[:2]:
        put(f"{bucket}/pictures/{file.name}", file.read_bytes())
    put(f"{bucket}/pictures/broken.png", b"no picture")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(files[2], "a.png")
    put(f"{bucket}/pictures/a.tar", (tmp_path / "a.tar").read_bytes())
    rows = pa.table({"image": [file.read_bytes() for file in files[3:5]]})
    pq.write_table(rows, tmp_path / "b.parquet")
    put(f"{bucket}/pictures/b.parquet", (tmp_path / "b.parquet").read_bytes())
    lance.write_dataset(rows.slice(1), f"{bucket}/table.lance")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        for sources, done in ((["pictures"], (5, 0)), (["pictures/*.png", "table.lance"], (1, 3))):
            report = index_on_cluster(
                [f"{bucket}/{source}" for source in sources], FakeEmbedder(), f"{bucket}/indexed", facets=FACETS
            )
            assert (report.added, report.unchanged) == done
            assert [place for place, _ in report.failed] == [f"{bucket}/pictures/broken.png"]
            if not report.unchanged:
                put(f"{bucket}/pictures/{files[5].name}", files[5].read_bytes())
