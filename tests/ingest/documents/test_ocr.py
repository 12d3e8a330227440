"""OCR of a page that is drawn: its words, where they stand, how sure that is; and of figures."""

from __future__ import annotations

import base64
import io
from email.message import EmailMessage
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
from pdf_helpers import manual

from abc_rag import ChromaStore
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import MissingExtraError
from abc_rag.ingest.documents import DocumentOptions
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


def test_scans_and_figures_become_text_with_places_that_a_word_finds(folder: Path, store: ChromaStore) -> None:
    scan(folder / "scan.pdf")
    out = io.BytesIO()
    drawn().save(out, "PNG")
    (folder / "a.html").write_bytes(
        b"<p>words<img src='data:image/png;base64," + base64.b64encode(out.getvalue()) + b"'>"
    )
    (folder / "manual.pdf").write_bytes(manual())  # its pages have text
    letter = EmailMessage()
    letter["From"], letter["Subject"] = "a@example.org", "a scan"
    letter.set_content("See the scan.")
    letter.add_attachment(out.getvalue(), "image", "png", filename="scan.png")
    (folder / "letter.eml").write_bytes(bytes(letter))
    documents = DocumentOptions(ocr=True)
    # One process for all: what reads pictures is loaded once.
    assert index_paths([folder], FakeEmbedder(), store, documents=documents).failed == []
    read = [record for record in store.records() if "confidence" in record.metadata]
    assert sorted(Path(record.document).name for record in read) == ["a.html", "letter.eml", "scan.pdf"]
    assert all(0.9 < record.metadata["confidence"] <= 1 for record in read)  # type: ignore[operator]
    found = {Path(hit.document).name: hit for hit in store.search_words("MX-4471-B", k=5)}
    assert set(found) == {"a.html", "letter.eml", "scan.pdf"}
    assert found["letter.eml"].record.metadata["heading"] == ["a scan"]
    hit = found["scan.pdf"]
    assert (hit.page, hit.record.metadata["part"]) == (1, "passage")
    assert hit.record.text.split("\n\n") == list(LINES.values())
    assert hit.box is not None
    left, top, right, bottom = hit.box
    assert (left, top) == (pytest.approx(50, abs=8), pytest.approx(32, abs=8))
    assert 200 < right < 350
    assert bottom == pytest.approx(188, abs=8)
    assert index_paths([folder], FakeEmbedder(), store, documents=documents).added == 0


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-rag\[ocr\]'"):
        DocumentOptions(ocr=True)
