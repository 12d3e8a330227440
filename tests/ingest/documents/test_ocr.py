"""OCR of a page that is drawn: its words, where they stand, how sure that is; and of figures."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
from document_helpers import ReadParts
from pdf_helpers import manual

from abc_rag import ChromaStore
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import MissingExtraError
from abc_rag.ingest.documents import DocumentOptions, Passage
from abc_rag.ingest.paths import index_paths

pytest.importorskip("rapidocr", reason="the extra ocr is not installed")

LINES = {60: "The serial number is MX-4471-B.", 340: "Rinse the filter with water."}


def drawn() -> PIL.Image.Image:
    picture = PIL.Image.new("RGB", (700, 460), "white")
    for top, line in LINES.items():
        PIL.ImageDraw.Draw(picture).text((100, top), line, fill="black", font=PIL.ImageFont.load_default(30))
    return picture


def scan(path: Path) -> Path:
    drawn().save(path, "PDF", resolution=144)  # two pixels are a point
    return path


def passages(parts: list[object]) -> list[Passage]:
    return [part for part in parts if isinstance(part, Passage)]


def test_a_scanned_page_becomes_text_with_places(tmp_path: Path, read_parts: ReadParts) -> None:
    (found,) = passages(read_parts(scan(tmp_path / "scan.pdf"), ocr=True))
    assert found.text.split("\n\n") == list(LINES.values())
    assert found.page == 1
    assert found.confidence is not None
    assert 0.9 < found.confidence <= 1
    assert found.box is not None
    left, top, right, bottom = found.box
    assert (left, top) == (pytest.approx(50, abs=8), pytest.approx(32, abs=8))
    assert 200 < right < 350
    assert bottom == pytest.approx(188, abs=8)


def test_figures_are_read_and_pages_with_text_are_left_as_they_are(tmp_path: Path, read_parts: ReadParts) -> None:
    out = io.BytesIO()
    drawn().save(out, "PNG")
    (tmp_path / "a.html").write_bytes(
        b"<p>words<img src='data:image/png;base64," + base64.b64encode(out.getvalue()) + b"'>"
    )
    words, figure = passages(read_parts(tmp_path / "a.html", ocr=True))
    assert (words.text, words.confidence) == ("words", None)
    assert "MX-4471-B" in figure.text
    (tmp_path / "manual.pdf").write_bytes(manual())
    parts = read_parts(tmp_path / "manual.pdf", ocr=True)
    assert [part.confidence for part in passages(parts)] == [None, None]


def test_what_was_read_is_found_by_its_words(tmp_path: Path, folder: Path, store: ChromaStore) -> None:
    scan(folder / "scan.pdf")
    assert index_paths([folder], FakeEmbedder(), store).added == 1
    report = index_paths([folder], FakeEmbedder(), store, documents=DocumentOptions(ocr=True))
    assert (report.added, report.unchanged) == (1, 1)
    (hit,) = store.search_words("MX-4471-B", k=5)
    assert (hit.page, hit.record.metadata["part"]) == (1, "passage")
    assert hit.record.metadata["confidence"] > 0.9  # type: ignore[operator]


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-rag\[ocr\]'"):
        DocumentOptions(ocr=True)
