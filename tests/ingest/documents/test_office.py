"""DOCX and PPTX files that the tests make with the libraries that read them, and bombs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import docx
import PIL.Image
import pptx
import pytest
from ingest_helpers import Index, counts
from pptx.util import Pt

from abc_rag import ChromaStore
from abc_rag.errors import DocumentError
from abc_rag.ingest.documents import DocumentLimits, DocumentOptions, Figure, Passage, read_document


@pytest.fixture(autouse=True)
def without_libreoffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abc_rag.ingest.documents.office._PROGRAMS", ())


def png(colour: str) -> io.BytesIO:
    out = io.BytesIO()
    PIL.Image.new("RGB", (20, 10), colour).save(out, "PNG")
    out.seek(0)
    return out


def letter(path: Path) -> Path:
    document = docx.Document()
    document.add_heading("Pumps", 1)
    document.add_paragraph("A pump moves water.")
    document.add_heading("Filters", 2)
    table = document.add_table(2, 2)
    for place, text in enumerate(["part", "number", "filter", "MX-4471-B"]):
        table.cell(place // 2, place % 2).text = text
    document.add_picture(png("red"))
    document.add_paragraph("Figure 1: A filter.", style="Caption")
    document.save(str(path))
    return path


def deck(path: Path) -> Path:
    made = pptx.Presentation()
    for number in (1, 2):
        slide = made.slides.add_slide(made.slide_layouts[5])
        slide.shapes.title.text = f"Slide {number}"
        slide.shapes.add_textbox(Pt(30), Pt(200), Pt(100), Pt(40)).text_frame.text = f"words {number}"
    picture = slide.shapes.add_picture(png("blue"), Pt(50), Pt(300), Pt(80), Pt(60))
    picture._element._nvXxPr.cNvPr.set("descr", "a blue field")
    slide.notes_slide.notes_text_frame.text = "Say it slowly."
    made.save(str(path))
    return path


def test_word_files(tmp_path: Path) -> None:
    parts = list(read_document(letter(tmp_path / "letter")))
    assert [(part.heading, part.text) for part in parts if isinstance(part, Passage)] == [
        (("Pumps",), "Pumps\n\nA pump moves water."),
        (("Pumps", "Filters"), "Filters"),
        (("Pumps", "Filters"), "part | number\nfilter | MX-4471-B"),
        (("Pumps", "Filters"), "Figure 1: A filter."),
    ]
    (figure,) = [part for part in parts if isinstance(part, Figure)]
    assert (figure.caption, figure.data) == ("Figure 1: A filter.", png("red").read())


def test_slides(tmp_path: Path) -> None:
    parts = list(read_document(deck(tmp_path / "deck")))
    told = [(p.page, p.heading, p.text, p.kind) for p in parts if isinstance(p, Passage)]
    assert told == [
        (1, ("Slide 1",), "Slide 1\n\nwords 1", "text"),
        (2, ("Slide 2",), "Slide 2\n\nwords 2", "text"),
        (2, ("Slide 2",), "Say it slowly.", "note"),
    ]
    (figure,) = [part for part in parts if isinstance(part, Figure)]
    assert (figure.caption, figure.box, figure.page) == ("a blue field", (50, 300, 130, 360), 2)


def test_they_are_indexed_and_again_for_nothing(folder: Path, store: ChromaStore, index: Index) -> None:
    letter(folder / "letter.docx")
    deck(folder / "deck.pptx")
    assert counts(index()[0]) == (9, 0, 0, 0)
    assert counts(index()[0]) == (0, 9, 0, 0)
    assert {record.page for record in store.records()} == {None, 1, 2}


@pytest.mark.parametrize("member", ["word/document.xml", "ppt/presentation.xml"])
def test_bombs_are_refused(member: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(member, b"0" * 2_000_000)
    limits = DocumentLimits(max_unpacked=1_000_000)
    with pytest.raises(DocumentError, match="unpacks to 2,000,000 bytes"):
        list(read_document(path, options=DocumentOptions(limits=limits)))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(member, '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>')
    with pytest.raises(DocumentError, match="defines a document type"):
        list(read_document(path))


@pytest.mark.parametrize("make", [letter, deck])
def test_damaged_ones_are_named(make: object, tmp_path: Path) -> None:
    path = make(tmp_path / "a")  # type: ignore[operator]
    data = path.read_bytes()
    for at in range(200, len(data) - 1500, len(data) // 5):
        path.write_bytes(data[:at] + b"\xff" * 60 + data[at + 60 :])
        try:
            assert {part.document for part in read_document(path)} <= {str(path)}
        except DocumentError as error:
            message = str(error)
        else:
            continue
        assert message.startswith(str(path))
