"""PDF files with known content, read in this process."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
from pdf_helpers import PDFPage, manual, pdf

from abc_rag.errors import InputError
from abc_rag.ingest.documents.options import DocumentLimits, DocumentOptions
from abc_rag.ingest.documents.parts import Figure, PagePicture, Part, Passage, Unread
from abc_rag.ingest.documents.pdf import PDFReader


def read(data: bytes, **options: object) -> list[Part]:
    return [part for part in PDFReader().parts(data, DocumentOptions(**options), 1) if not isinstance(part, int)]


def texts(parts: list[Part]) -> list[str]:
    return [part.text for part in parts if isinstance(part, Passage)]


def picture(part: Part) -> PIL.Image.Image:
    assert isinstance(part, (PagePicture, Figure))
    return PIL.Image.open(io.BytesIO(part.data))


def test_pages_figures_passages_with_their_places() -> None:
    parts = read(manual())
    assert [(type(part).__name__, part.page, part.label, part.heading) for part in parts] == [
        ("PagePicture", 1, "i", ("Starting",)),
        ("Passage", 1, "i", ("Starting",)),
        ("Passage", 1, "i", ("Starting",)),
        ("PagePicture", 2, "ii", ("Cleaning",)),
        ("Figure", 2, "ii", ("Cleaning",)),
        ("Passage", 2, "ii", ("Cleaning",)),
        ("Passage", 2, "ii", ("Cleaning",)),
        ("Passage", 2, "ii", ("Cleaning",)),
    ]
    figure = parts[4]
    assert isinstance(figure, Figure)
    assert figure.caption == "Figure 1: The filter."
    # From the bottom left corner of 600 points to the top left one.
    assert figure.box == (50, 180, 200, 300)
    assert np.asarray(picture(figure).convert("RGB"))[60, 75].tolist() == [200, 30, 30]
    assert parts[0].box == (0, 0, 400, 600)
    assert picture(parts[0]).size == (612, 917)  # 400 and 600 points at 110 dpi, rounded up
    words = parts[2].box
    assert words is not None
    assert words[0] == pytest.approx(50, abs=1)
    assert 600 - 500 - 12 < words[1] < words[3] < 600 - 500 + 5


def test_the_resolution_is_that_which_is_asked() -> None:
    assert picture(read(manual(), dpi=72)[0]).size == (400, 600)
    small = picture(read(manual(), dpi=72, limits=DocumentLimits(max_pixels=60_000))[0]).size
    assert 50_000 < small[0] * small[1] <= 60_000


def test_two_columns_are_read_one_after_the_other() -> None:
    left = [f"left column line number {n}" for n in range(6)]
    right = [f"right column line number {n}" for n in range(6)]
    lines = [(40, 500 - 14 * n, 10, text) for n, text in enumerate(left)]
    lines += [(220, 500 - 14 * n, 10, text) for n, text in enumerate(right)]
    # In the order of a program that writes row by row.
    rows = sorted(lines, key=lambda line: -line[1])
    title = (40, 560, 16, "A title above both of the columns of this page")
    assert texts(read(pdf([PDFPage([title, *rows])]))) == [title[3], " ".join(left), " ".join(right)]


def test_a_table_is_read_row_by_row() -> None:
    rows = [(50 + 120 * column, 500 - 14 * row, 10, f"c{row}{column}") for row in range(5) for column in range(3)]
    (table,) = [part for part in read(pdf([PDFPage(rows)])) if isinstance(part, Passage)]
    assert table.kind == "table"
    assert table.text == "\n".join(" | ".join(f"c{row}{column}" for column in range(3)) for row in range(5))


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_boxes_are_those_of_the_page_as_it_is_shown(rotate: int) -> None:
    page = PDFPage([], [(20, 500, 80, 60, (0, 0, 255))], rotate=rotate)
    shown, figure = read(pdf([page]), dpi=72)
    turned = {0: (20, 40, 100, 100), 90: (500, 20, 560, 100), 180: (300, 500, 380, 560), 270: (40, 300, 100, 380)}
    assert figure.box == turned[rotate]
    pixels = np.asarray(picture(shown).convert("RGB")).astype(int)
    blue = np.argwhere((pixels[..., 2] > 200) & (pixels[..., 0] < 50))
    (top, left), (bottom, right) = blue.min(axis=0), blue.max(axis=0) + 1
    assert (left, top, right, bottom) == turned[rotate]


def test_annotations_are_drawn() -> None:
    note = "<< /Type /Annot /Subtype /Square /Rect [100 100 200 200] /C [1 0 0] /IC [1 0 0] /F 4 /AP << /N {} 0 R >> >>"
    plain = read(pdf([PDFPage()]), dpi=72)[0]
    noted = read(pdf([PDFPage(annotations=[note.replace("/AP << /N {} 0 R >>", "")])]), dpi=72)[0]
    assert np.asarray(picture(plain)).min() == 255
    assert np.asarray(picture(noted).convert("RGB"))[450, 150].tolist() == [255, 0, 0]


def test_headings_come_from_sizes_where_there_is_no_outline() -> None:
    page = PDFPage(
        [(50, 550, 20, "One"), *((50, 520 - 40 * n, 10, f"A sentence of usual size, number {n}.") for n in range(4))]
    )
    assert {part.heading for part in read(pdf([page])) if isinstance(part, Passage)} == {("One",)}


def test_a_cyclic_outline_ends() -> None:
    data = pdf([PDFPage([(50, 500, 10, "words")])], outline=[("One", 0, 500), ("Two", 0, 400)], cyclic=True)
    assert texts(read(data)) == ["words"]


def test_pages_beyond_the_limit_are_reported() -> None:
    parts = read(pdf([PDFPage([(50, 500, 10, f"page {n}")]) for n in range(5)]), limits=DocumentLimits(max_pages=2))
    assert texts(parts) == ["page 0", "page 1"]
    assert isinstance(parts[-1], Unread)
    assert "max_pages=2" in parts[-1].reason


def test_a_bad_page_costs_that_page() -> None:
    data = pdf([PDFPage([(50, 500, 10, f"page {n}")]) for n in range(3)])
    # The second page's dictionary is no dictionary any more.
    begin = data.index(b"/Type /Page /Parent", data.index(b"/Type /Page /Parent") + 1)
    parts = read(data[:begin] + b"/Type /Pagx )Parent" + data[begin + 19 :])
    assert texts(parts)[0] == "page 0"
    assert texts(parts)[-1] == "page 2"


@pytest.mark.parametrize("data", [b"%PDF-1.7", b"%PDF-1.7 and so on", manual()[:200]])
def test_a_damaged_file_says_so(data: bytes) -> None:
    with pytest.raises(InputError, match=r"damaged|has no pages"):
        read(data)
