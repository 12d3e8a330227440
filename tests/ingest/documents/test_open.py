"""Documents into a store: every part once, with its place; again for nothing; after a kill, and after a move."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ingest_helpers import Counting, Index, counts, passage
from pdf_helpers import PDFPage, encrypted, manual, pdf

from abc_rag import ChromaStore, Retriever
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.ingest.documents import DocumentOptions
from abc_rag.ingest.paths import index_paths
from abc_rag.search.pictures import Pictures

OLD = 1_700_000_000_000_000_000


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_pages_figures_and_passages_become_records(folder: Path, store: ChromaStore, index: Index) -> None:
    path = write(folder / "manual", manual())  # by its content, not by its name
    passage(folder / "notes.txt", "a note")
    report, embedded = index()
    assert (counts(report), embedded) == ((6, 0, 0, 0), 6)
    parts = sorted((r for r in store.records() if r.document), key=lambda r: r.metadata["order"])
    assert [(r.modality, r.metadata["part"], r.page, r.metadata["page_label"]) for r in parts] == [
        ("image", "page", 1, "i"),
        ("text", "passage", 1, "i"),
        ("image", "page", 2, "ii"),
        ("image", "figure", 2, "ii"),
        ("text", "passage", 2, "ii"),
    ]
    assert {r.document for r in parts} == {str(path)}
    assert parts[3].box == (50, 180, 200, 300)
    assert parts[3].text == "Figure 1: The filter."
    assert parts[4].metadata["heading"] == ["Cleaning"]
    assert [r.page for r in store.records() if not r.document] == [None]
    hits = store.search(FakeEmbedder().embed([])[0:0].sum(axis=0) + 1, k=9, where={"page": 2, "part": "figure"})
    assert [(hit.document, hit.page, hit.box) for hit in hits] == [(str(path), 2, (50, 180, 200, 300))]


def test_page_pictures_can_be_opened_again(folder: Path, store: ChromaStore, index: Index) -> None:
    path = write(folder / "manual.pdf", manual())
    index()
    path.unlink()  # they are kept in the store
    pictures = [record for record in store.records() if record.modality == "image"]
    for record in pictures:
        assert Pictures(store).read(record).startswith(b"\x89PNG")
    answer = Retriever(FakeEmbedder(), store).search("filter", modality="image", rerank=True, trace=True)
    assert [hit.trace.second is not None for hit in answer if hit.trace] == [True] * 3


def test_again_embeds_nothing_and_reads_nothing(
    folder: Path, store: ChromaStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "manual.pdf", manual())
    index()
    before = {record.id: record for record in store.records()}
    monkeypatch.setattr("sys.executable", "/nowhere")  # no process can be started
    report, embedded = index()
    assert (counts(report), embedded) == ((0, 5, 0, 0), 0)
    assert {record.id: record for record in store.records()} == before


def test_an_unchanged_document_is_not_opened_but_to_verify(folder: Path, store: ChromaStore) -> None:
    path = write(folder / "manual.pdf", manual())
    os.utime(path, ns=(OLD, OLD))
    index_paths([folder], Counting(), store)
    size = path.stat().st_size
    write(path, b"x" * size)  # whoever opens it notices
    os.utime(path, ns=(OLD, OLD))
    for _ in range(2):
        report = index_paths([folder], Counting(), store)
        assert (counts(report), report.left_out) == ((0, 5, 0, 0), {})
    assert index_paths([folder], Counting(), store, verify=True).left_out


def test_a_document_with_another_content_of_the_same_size_and_time_is_found_to_verify(
    folder: Path, store: ChromaStore
) -> None:
    words = [pdf([PDFPage(texts=[(50, 500, 12, word)])]) for word in ("one", "two")]
    assert len(words[0]) == len(words[1])
    for data, verify, found in zip(
        (words[0], words[1], words[1]), (False, False, True), ("one", "one", "two"), strict=True
    ):
        path = write(folder / "a.pdf", data)
        os.utime(path, ns=(OLD, OLD))
        index_paths([folder], Counting(), store, verify=verify)
        assert {record.text for record in store.records() if record.text} == {found}
    os.utime(path, ns=(OLD + 1, OLD + 1))  # another time of the same content: it is read, and nothing else
    embedder = Counting()
    assert counts(index_paths([folder], embedder, store)) == (0, 2, 0, 0)
    assert embedder.embedded == 0


def test_what_the_store_lost_of_an_unchanged_document_is_read_again(folder: Path, store: ChromaStore) -> None:
    path = write(folder / "manual.pdf", manual())
    os.utime(path, ns=(OLD, OLD))
    index_paths([folder], Counting(), store)
    assert store.delete([next(record.id for record in store.records() if record.page == 1)]) == 1
    assert counts(index_paths([folder], Counting(), store)) == (1, 4, 0, 0)
    facets = index_paths([folder], Counting(), store, facets=["what is at the top?"])
    assert (counts(facets), facets.facets) == ((0, 5, 0, 0), 3)
    assert counts(index_paths([folder], Counting(), store, documents=DocumentOptions(dpi=40)))[0] > 0


_KILLED = """
import os, signal, sys
from abc_rag import ChromaStore
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.ingest.documents import DocumentOptions
from abc_rag.ingest import paths, run

class Dies(ChromaStore):
    left = 5

    def add(self, records, vectors):
        added = super().add(records, vectors)
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return added

run._MOST_ITEMS = 1
embedder = FakeEmbedder()
with Dies(sys.argv[2], fingerprint=embedder.fingerprint) as store:
    paths.index_paths([sys.argv[1]], embedder, store, documents=DocumentOptions(dpi=20))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_killed_run_goes_on_and_doubles_nothing(folder: Path, tmp_path: Path) -> None:
    write(folder / "book.pdf", pdf([PDFPage([(50, 500, 10, f"page {n}")]) for n in range(8)]))
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", _KILLED, str(folder), str(tmp_path / "store")]
    assert subprocess.run(command, env=path).returncode == -signal.SIGKILL
    with ChromaStore(path=tmp_path / "store", fingerprint=FakeEmbedder().fingerprint) as store:
        some = store.count()
        assert some == 5
        embedder = Counting()
        report = index_paths([folder], embedder, store, documents=DocumentOptions(dpi=20))
        assert (counts(report), embedder.embedded) == ((16 - some, some, 0, 0), 16 - some)
        assert sorted(record.metadata["order"] for record in store.records()) == list(range(16))
        assert index_paths([folder], embedder, store, documents=DocumentOptions(dpi=20)).unchanged == 16


def test_a_moved_document_keeps_its_vectors(folder: Path, store: ChromaStore, index: Index) -> None:
    path = write(folder / "old.pdf", manual())
    index()
    new = path.rename(folder / "new.pdf")
    report, embedded = index()
    assert (counts(report), embedded) == ((0, 5, 0, 0), 0)
    assert {record.document for record in store.records()} == {str(new)}
    assert {record.source for record in store.records() if record.modality == "text"} == {str(new)}
    assert counts(index()[0]) == (0, 5, 0, 0)


def test_equal_documents_are_stored_once(folder: Path, store: ChromaStore, index: Index) -> None:
    shutil.copy(write(folder / "a.pdf", manual()), folder / "b.pdf")
    assert index()[1] == 5
    assert index()[1] == 0
    assert {record.document for record in store.records()} == {str(folder / "a.pdf")}


def test_a_changed_document_takes_the_place_of_the_old_one(folder: Path, store: ChromaStore, index: Index) -> None:
    path = write(folder / "a.pdf", manual())
    index()
    before = {
        record.page: store.vectors([record.id])[record.id] for record in store.records() if record.modality == "text"
    }
    write(path, manual(words="Press the green button."))
    # The second page is as before: its picture, its figure and its words are not embedded again.
    report, embedded = index()
    assert (counts(report), embedded) == ((2, 3, 5, 0), 2)
    after = {
        record.page: store.vectors([record.id])[record.id] for record in store.records() if record.modality == "text"
    }
    np.testing.assert_allclose(before[2], after[2], atol=1e-6)
    assert np.abs(before[1] - after[1]).max() > 0.01
    assert counts(index()[0]) == (0, 5, 0, 0)
    for record in store.records():
        if record.modality == "image":
            assert Pictures(store).read(record).startswith(b"\x89PNG")
    assert any("green" in record.text for record in store.records())
    assert len(list((store._pictures.folder).rglob("*.png"))) == 3  # the old copies are gone


def test_facets_of_what_did_not_change_are_kept(folder: Path, store: ChromaStore) -> None:
    path = write(folder / "a.pdf", manual())
    index_paths([folder], Counting(), store, facets=["what is drawn?"])
    write(path, manual(words="Press the green button."))
    assert index_paths([folder], Counting(), store, facets=["what is drawn?"]).facets == 1
    names = store.facet_names(record.id for record in store.records())
    assert list(names.values()) == [{"what is drawn?"}] * 3


def test_other_options_read_a_document_again(folder: Path, store: ChromaStore) -> None:
    write(folder / "a.pdf", manual())
    index_paths([folder], Counting(), store)
    report = index_paths([folder], Counting(), store, documents=DocumentOptions(page_pictures=False))
    assert (counts(report), store.count()) == ((0, 3, 2, 0), 3)
    assert counts(index_paths([folder], Counting(), store, documents=DocumentOptions(page_pictures=False)))[0] == 0


def test_facets_of_pages_and_figures(folder: Path, store: ChromaStore) -> None:
    write(folder / "a.pdf", manual())
    index_paths([folder], Counting(), store)
    assert index_paths([folder], Counting(), store, facets=["what is drawn?"]).facets == 3
    assert index_paths([folder], Counting(), store, facets=["what is drawn?"]).facets == 0


def test_a_deleted_document_is_pruned(folder: Path, store: ChromaStore) -> None:
    write(folder / "a.pdf", manual())
    for name in ("b.txt", "c.txt"):
        passage(folder / name, name)
    index_paths([folder], Counting(), store)
    (folder / "a.pdf").unlink()
    assert index_paths([folder], Counting(), store, prune=True).removed == 5


def test_what_cannot_be_read_is_named_and_costs_the_others_nothing(
    folder: Path, store: ChromaStore, index: Index
) -> None:
    write(folder / "bad.pdf", b"%PDF-1.7")
    write(folder / "empty.pdf", pdf([]))
    write(folder / "locked.pdf", encrypted("letmein"))
    write(folder / "manual.pdf", manual())
    report, _ = index()
    assert report.added == 5
    reasons = {Path(file).name: reason for file, reason in report.failed}
    assert list(reasons) == ["bad.pdf", "empty.pdf", "locked.pdf"]
    assert reasons["locked.pdf"] == "is encrypted; pass DocumentOptions(password=...)"
    options = DocumentOptions(password="letmein")
    assert index_paths([folder / "locked.pdf"], Counting(), store, documents=options).added == 2


def test_a_part_that_the_model_refuses_costs_that_part(folder: Path, store: ChromaStore, index: Index) -> None:
    write(folder / "a.pdf", manual())
    report = index_paths([folder], Counting(refuse="pump"), store)
    assert (report.added, len(report.failed)) == (4, 1)
    report, embedded = index()  # it is tried again
    assert (counts(report), embedded) == ((1, 4, 0, 0), 1)
    assert index()[1] == 0
