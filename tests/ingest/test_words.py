"""The words on picture files: a serial number on a photo is found, and its picture is not embedded again for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
from ingest_helpers import Counting

from abc_rag import ChromaStore, Record
from abc_rag.ingest.documents import DocumentLimits, DocumentOptions
from abc_rag.ingest.paths import index_paths

pytest.importorskip("rapidocr", reason="the extra ocr is not installed")

OCR = DocumentOptions(ocr=True)


def photo(path: Path, *lines: tuple[tuple[int, int], str], size: tuple[int, int] = (800, 600)) -> Path:
    picture = PIL.Image.new("RGB", size, (200, 190, 180))
    for place, words in lines:
        PIL.ImageDraw.Draw(picture).text(place, words, fill="black", font=PIL.ImageFont.load_default(size[0] // 25))
    picture.save(path)
    return path


def record_of(store: ChromaStore, path: Path) -> Record:
    (found,) = [record for record in store.records() if record.source == str(path)]
    return found


def test_a_serial_number_on_a_photo_is_found_whenever_it_was_stored(folder: Path, store: ChromaStore) -> None:
    old = photo(folder / "old.png", ((100, 100), "Serial MX-4471-B"), ((300, 500), "Made in Ulm"))
    plain = photo(folder / "plain.png")
    assert index_paths([folder], Counting(), store).added == 2
    before = store.vectors([record_of(store, old).id])
    # A large one, which is read smaller: boxes are in its own pixels.
    new = photo(folder / "new.jpg", ((300, 900), "Serial QT-9035-K"), size=(2400, 1800))
    embedder = Counting()
    report = index_paths([folder], embedder, store, documents=OCR)
    assert (report.added, report.unchanged, report.failed, embedder.embedded) == (1, 2, [], 1)

    (hit,) = store.search_words("MX-4471-B", k=5)
    assert (hit.record.source, hit.record.modality) == (str(old), "image")
    assert hit.text.split("\n\n") == ["Serial MX-4471-B", "Made in Ulm"]
    assert all(score > 0.9 for score in hit.record.metadata["confidences"])  # type: ignore[union-attr]
    assert hit.record.metadata["boxes"] == pytest.approx([100, 105, 350, 135, 300, 505, 475, 530], abs=14)
    assert (store.vectors([hit.id])[hit.id] == before[hit.id]).all()
    (hit,) = store.search_words("QT-9035-K", k=5)
    assert hit.record.source == str(new)
    assert hit.record.metadata["boxes"] == pytest.approx([300, 915, 1060, 1005], abs=50)
    assert "boxes" not in record_of(store, plain).metadata

    # What has been read, with words or without, is not read again.
    for path in (old, plain):
        record = record_of(store, path)
        store.add([replace(record, text="by hand")], [store.vectors([record.id])[record.id]])
    report = index_paths([folder], embedder, store, documents=OCR)
    assert (report.added, report.unchanged, embedder.embedded) == (0, 3, 1)
    assert {record_of(store, path).text for path in (old, plain)} == {"by hand"}


def test_words_that_cannot_be_read_cost_only_themselves_and_are_tried_again(folder: Path, store: ChromaStore) -> None:
    path = photo(folder / "a.png", ((100, 100), "Serial MX-4471-B"), ((300, 500), "Made in Ulm"))
    (folder / "b.png").write_bytes(b"no picture")
    few = DocumentOptions(ocr=True, limits=DocumentLimits(max_parts=1))
    report = index_paths([folder], Counting(), store, documents=few)
    assert (report.added, record_of(store, path).text) == (1, "")
    (_, first), (name, second) = report.failed
    assert first.startswith("indexed without the words on it: has more parts than DocumentLimits.max_parts=1")
    assert name == str(folder / "b.png")
    assert "words" not in second
    assert index_paths([folder], Counting(), store, documents=OCR).added == 0
    assert record_of(store, path).text == "Serial MX-4471-B\n\nMade in Ulm"
