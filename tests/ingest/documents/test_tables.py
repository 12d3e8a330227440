"""CSV and XLSX: rows that say what they are, sheets, pictures on sheets, and bombs."""

from __future__ import annotations

import io
import zipfile
from datetime import datetime
from pathlib import Path

import openpyxl
import openpyxl.drawing.image
import PIL.Image
import pytest
from document_helpers import ReadParts
from ingest_helpers import Index, counts

from abc_rag import ChromaStore
from abc_rag.errors import DocumentError
from abc_rag.ingest.documents import Figure, Passage, Unread
from abc_rag.ingest.documents.rows import row_texts


def workbook(path: Path) -> Path:
    book = openpyxl.Workbook()
    parts = book.active
    parts.title = "Parts"
    for row in (["part", "number", "in use since"], ["filter", "MX-4471-B", datetime(2024, 5, 1)], ["seal", 12.5]):
        parts.append(row)
    picture = io.BytesIO()
    PIL.Image.new("RGB", (20, 10), "red").save(picture, "PNG")
    parts.add_image(openpyxl.drawing.image.Image(picture), "E2")
    other = book.create_sheet("Numbers")
    for row in ([1, 2], [], [3, 4]):
        other.append(row)
    book.save(path)
    return path


def told(path: Path, read_parts: ReadParts) -> list[tuple[object, ...]]:
    parts = read_parts(path)
    return [(p.heading, p.page, p.label, p.text) for p in parts if isinstance(p, Passage) and p.kind == "table"]


def test_rows_name_their_columns() -> None:
    assert list(row_texts([[""], ["part", "number"], ["filter", " 4 \n 5 "], ["", ""], ["seal", "", "x"]])) == [
        "part: filter | number: 4 5\npart: seal | x"
    ]
    assert list(row_texts([["1", "2"], ["3", "4"]])) == ["1 | 2\n3 | 4"]
    assert list(row_texts([["only", "names"]])) == ["only | names"]
    assert list(row_texts([])) == []
    texts = list(row_texts([["a", "b"], *([str(n), "x"] for n in range(1000))]))
    assert len(texts) > 2
    assert "\n".join(texts).splitlines() == [f"a: {n} | b: x" for n in range(1000)]


def test_sheets(tmp_path: Path, read_parts: ReadParts) -> None:
    path = workbook(tmp_path / "book")
    assert told(path, read_parts) == [
        (
            ("Parts",),
            1,
            "Parts",
            "part: filter | number: MX-4471-B | in use since: 2024-05-01\npart: seal | number: 12.5",
        ),
        (("Numbers",), 2, "Numbers", "1 | 2\n3 | 4"),
    ]
    (figure,) = [part for part in read_parts(path) if isinstance(part, Figure)]
    assert (figure.page, figure.heading, figure.mime_type) == (1, ("Parts",), "image/png")
    (*_, last) = read_parts(path, limits={"max_pages": 1})
    assert isinstance(last, Unread)
    assert "2 sheets exceed DocumentLimits.max_pages=1" in last.reason


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "part,number\nfilter,MX-4471-B\n"),
        ("a.csv", "part;number\nfilter;MX-4471-B\n"),
        ("a.tsv", "part\tnumber\r\nfilter\tMX-4471-B\r\n"),
        ("a.csv", '\ufeffpart,number\n"filter","MX-4471-B"\n'),
    ],
)
def test_separated_values(name: str, text: str, tmp_path: Path, read_parts: ReadParts) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert told(path, read_parts) == [((), None, "", "part: filter | number: MX-4471-B")]


def test_they_are_indexed_and_again_for_nothing(folder: Path, store: ChromaStore, index: Index) -> None:
    workbook(folder / "book.xlsx")
    (folder / "a.csv").write_text("a,b\n1,2\n")
    (folder / "a.dat").write_text("a,b\n1,2\n")  # commas alone say nothing
    report, _ = index()
    assert (counts(report), report.left_out) == ((4, 0, 0, 0), {"text": 1})
    assert counts(index()[0]) == (0, 4, 0, 0)
    assert {record.page for record in store.records()} == {None, 1, 2}


# --- What was made to do harm -----------------------------------------------------------------------------


def changed(path: Path, member: str, data: bytes) -> Path:
    """A workbook with another member."""
    with zipfile.ZipFile(path) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, old in members.items():
            packed.writestr(name, data if name == member else old)
    return path


SHEET = "xl/worksheets/sheet2.xml"
START = '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><dimension ref="A1:XFD1048576"/>'
ROW = '<row r="1"><c r="A1"><v>1</v></c></row>'
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_that_defines_entities_is_refused(encoding: str, tmp_path: Path, read_parts: ReadParts) -> None:
    path = changed(workbook(tmp_path / "book"), SHEET, BOMB.encode(encoding))
    with pytest.raises(DocumentError, match="defines a document type"):
        list(read_parts(path))


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, read_parts: ReadParts) -> None:
    path = changed(workbook(tmp_path / "book"), SHEET, b" " * 2_000_000)
    with pytest.raises(DocumentError, match="unpacks to"):
        list(read_parts(path, limits={"max_unpacked": 1_000_000}))


def test_a_sheet_that_claims_to_be_huge_is_read_as_far_as_it_goes(tmp_path: Path, read_parts: ReadParts) -> None:
    rows = f'<sheetData>{ROW}<row r="70000"><c r="B70000"><v>2</v></c></row></sheetData>'
    path = changed(workbook(tmp_path / "book"), SHEET, f"{START}{rows}</worksheet>".encode())
    assert told(path, read_parts)[1:] == [(("Numbers",), 2, "Numbers", "1\n2")]


def test_a_damaged_sheet_costs_that_sheet(tmp_path: Path, read_parts: ReadParts) -> None:
    path = changed(workbook(tmp_path / "book"), SHEET, f"{START}<sheetData>{ROW}<row".encode())
    (bad,) = [part for part in read_parts(path) if isinstance(part, Unread)]
    assert bad.page == 2
    assert len(told(path, read_parts)) == 1


def test_a_huge_cell_is_named(tmp_path: Path, read_parts: ReadParts) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"' + "x" * 1_100_000)
    with pytest.raises(DocumentError, match="cannot be read as CSV"):
        list(read_parts(path))
