"""PDF, by PDFium: page pictures, figures with their captions, and paragraphs in reading order."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from abc_rag.errors import InputError
from abc_rag.ingest.documents.layout import Block, Line, blocks_of, union
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.outline import Headings, Outline
from abc_rag.ingest.documents.parts import Box, Figure, PagePicture, Part, Passage, PassageKind, Scan, Unread
from abc_rag.ingest.documents.pictures import encoded
from abc_rag.ingest.documents.reader import Reader
from abc_rag.ingest.documents.underscores import Underscores

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

__all__ = ["PDFReader"]

_POINTS = 72
_FORMS_DEEP = 4  # pictures in forms in forms
_MOST_FIGURES = 50
_LEAST_SIDE = 24.0  # points; smaller pictures are rules, icons and bullets
_MOST_SHARE = 0.85  # of the page; larger pictures are scans or backgrounds, which the page picture shows
_FIGURE_SIDE = 768  # pixels that the longer side of a figure has at least, up to _FIGURE_DPI
_FIGURE_DPI = 300
_OCR_DPI = 200  # type of 8 points has letters of 15 pixels then
_CAPTION = re.compile(r"(fig(ure|\.)?|abb(ildung|\.)|table|tab\.|plate|photo|图|圖|図)\s*[\dA-Z(]", re.IGNORECASE)
_HYPHENS = {0x02: "\u00ad", 0xAD: "\u00ad", 0xFFFE: "\u00ad"}
_DAMAGED = "is damaged and cannot be opened as PDF; save it anew"
_WRONG_PASSWORD = 4


class PDFReader(Reader):
    """Pages, figures and paragraphs of PDF files."""

    name = "PDF"
    version = 2
    modules = ("pypdfium2",)

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """By its first kilobyte, as PDF allows bytes before the header."""
        return b"%PDF-" in head[:1024]

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        import pypdfium2

        try:
            document = pypdfium2.PdfDocument(data, password=options.password)
        except pypdfium2.PdfiumError as error:
            if error.err_code == _WRONG_PASSWORD:
                told = "is encrypted" if options.password is None else "is encrypted, and this is not its password"
                raise InputError(f"{told}; pass DocumentOptions(password=...)") from error
            raise InputError(_DAMAGED) from error
        try:
            yield from _pages(document, options, start)
        finally:
            document.close()


def _pages(document: PdfDocument, options: DocumentOptions, start: int) -> Iterator[Part | int]:
    if document.get_formtype():
        document.init_forms()
    count = len(document)
    if not count:
        raise InputError("has no pages; save it anew")
    outline = Outline(list(_entries(document, options.limits.max_depth)))
    headings = Headings()
    most = options.limits.max_pages
    for number in range(start, min(count, most) + 1):
        yield number
        label = document.get_page_label(number - 1) or str(number)
        try:
            yield from _page(document, number, label, outline, headings, options)
        except MemoryError:
            raise
        except Exception as error:
            yield Unread(page=number, label=label, reason=f"cannot be read ({error}); save the document anew")
    if count > most:
        reason = f"{count:,} pages exceed DocumentLimits.max_pages={most:,}; the rest is left out"
        yield Unread(page=most + 1, reason=reason)


def _entries(document: PdfDocument, depth: int) -> Iterator[tuple[int, str, int, float | None]]:
    """Level, title, page from 1 and height on it, of each entry of the outline; PDFium leaves circles out."""
    import pypdfium2.raw as pdfium

    for entry in document.get_toc(max_depth=min(depth, 15)):
        target = entry.get_dest()
        index = None if target is None else target.get_index()
        title = " ".join(_clean(entry.get_title() or "").split())
        if target is None or index is None or index < 0 or not title:
            continue
        has = [ctypes.c_int() for _ in range(3)]
        at = [ctypes.c_float() for _ in range(3)]
        to = [ctypes.byref(value) for value in has] + [ctypes.byref(value) for value in at]
        known = pdfium.FPDFDest_GetLocationInPage(target.raw, *to)
        yield entry.level, title[:300], index + 1, at[1].value if known and has[1].value else None


@dataclass
class _Place:
    """The page's own coordinates into those of `Box`, in which the page is turned as it is shown."""

    page: Any
    width: float
    height: float
    _affine: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        import pypdfium2.raw as pdfium

        # PDFium answers in whole pixels: a thousand of them a point.
        raw = self.page.raw
        wide, high = round(self.width * 1000), round(self.height * 1000)

        def shown(x: float, y: float) -> tuple[float, float]:
            to = ctypes.c_int(), ctypes.c_int()
            pdfium.FPDF_PageToDevice(raw, 0, 0, wide, high, 0, x, y, *(ctypes.byref(value) for value in to))
            return to[0].value / 1000, to[1].value / 1000

        (x0, y0), (x1, y1), (x2, y2) = shown(0, 0), shown(100, 0), shown(0, 100)
        self._affine = (x0, (x1 - x0) / 100, (x2 - x0) / 100, y0, (y1 - y0) / 100, (y2 - y0) / 100)

    def shown(self, x: float, y: float) -> tuple[float, float]:
        x0, xx, xy, y0, yx, yy = self._affine
        return x0 + xx * x + xy * y, y0 + yx * x + yy * y

    def box(self, left: float, bottom: float, right: float, top: float) -> Box:
        (xa, ya), (xb, yb) = self.shown(left, bottom), self.shown(right, top)
        return min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)

    def clipped(self, box: Box) -> Box | None:
        """What of a box is on the page."""
        left, top = max(0.0, box[0]), max(0.0, box[1])
        right, bottom = min(self.width, box[2]), min(self.height, box[3])
        return (left, top, right, bottom) if left < right and top < bottom else None


def _page(
    document: PdfDocument, number: int, label: str, outline: Outline, headings: Headings, options: DocumentOptions
) -> Iterator[Part]:
    page = document[number - 1]
    try:
        place = _Place(page, page.get_width(), page.get_height())
        blocks = blocks_of(list(_lines(page, place)))
        paths = outline.paths(number, blocks, lambda y: place.shown(0, y)[1]) if outline else headings.paths(blocks)
        before = outline.before(number) if outline else headings.before
        if options.page_pictures:
            box = (0.0, 0.0, round(place.width, 1), round(place.height, 1))
            data, mime_type = encoded(_drawn(page, place, box, options.dpi, options))
            path = paths[0] if paths else before
            yield PagePicture(page=number, label=label, box=box, heading=path, data=data, mime_type=mime_type)
        if options.figures:
            for box in _figures(page, place):
                caption, path = _caption(box, blocks, paths)
                longer = max(box[2] - box[0], box[3] - box[1]) / _POINTS
                dpi = max(options.dpi, min(_FIGURE_DPI, round(_FIGURE_SIDE / longer)))
                data, mime_type = encoded(_drawn(page, place, box, dpi, options))
                yield Figure(
                    page=number,
                    label=label,
                    box=_rounded(box),
                    heading=path or before,
                    data=data,
                    mime_type=mime_type,
                    caption=caption,
                )
        if options.ocr and not blocks:
            box = (0.0, 0.0, place.width, place.height)
            drawn = _drawn(page, place, box, max(_OCR_DPI, options.dpi), options)
            yield Scan(page=number, label=label, box=box, heading=before, picture=drawn)
        for block, path in zip(blocks, paths, strict=True):
            kind: PassageKind = "table" if " | " in block.text and "\n" in block.text else "text"
            box = _rounded(block.box)
            yield Passage(page=number, label=label, box=box, heading=path, text=block.text, kind=kind)
    finally:
        page.close()


def _rounded(box: Box) -> Box:
    left, top, right, bottom = (round(side, 1) for side in box)
    return left, top, right, bottom


def _drawn(page: PdfPage, place: _Place, box: Box, dpi: int, options: DocumentOptions) -> Any:  # noqa: ANN401
    """A part of a page as a picture, with its forms and annotations, and no larger than allowed."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    scale = min(dpi / _POINTS, math.sqrt(options.limits.max_pixels / max(area, 1.0)) * 0.99)
    sides = (box[0], place.height - box[3], place.width - box[2], box[1])
    crop = tuple(math.floor(max(0.0, side) * scale) / scale for side in sides)
    return page.render(scale=scale, crop=crop, rev_byteorder=True).to_pil().convert("RGB")


def _lines(page: PdfPage, place: _Place) -> Iterator[Line]:
    import pypdfium2.raw as pdfium

    text = page.get_textpage()
    try:
        raw, rect = text.raw, pdfium.FS_RECTF()
        unicode_of, box_of, to = pdfium.FPDFText_GetUnicode, pdfium.FPDFText_GetLooseCharBox, ctypes.byref(rect)
        count = text.count_chars()
        run = _Run(Underscores(page, place.box) if count else None)
        for index in range(count):
            code = unicode_of(raw, index)
            if code in (0x0A, 0x0D):
                yield from run.line(place)
                continue
            if code <= 0x20 and code not in _HYPHENS:
                run.space()
            elif box_of(raw, index, to):
                box = place.box(rect.left, rect.bottom, rect.right, rect.top)
                if not run.goes_on(box):
                    yield from run.line(place)
                run.add(_HYPHENS.get(code) or _clean(chr(code) if code <= 0x10FFFF else "\ufffd"), box)
        yield from run.line(place)
    finally:
        text.close()


class _Run:
    """Characters that become a line."""

    def __init__(self, underscores: Underscores | None) -> None:
        self._underscores = underscores
        self._text: list[str] = []
        self._boxes: list[Box] = []

    def space(self) -> None:
        if self._text and self._text[-1] != " ":
            self._text.append(" ")

    def add(self, character: str, box: Box) -> None:
        drawn = self._underscores and self._underscores.between(
            self._boxes[-1] if self._boxes else None, character, box
        )
        if drawn:
            if self._text and self._text[-1] == " ":
                self._text.pop()
            self._text.append(drawn)
        self._text.append(character)
        self._boxes.append(box)

    def goes_on(self, box: Box) -> bool:
        """Whether a character belongs to this line, horizontal or vertical."""
        if not self._boxes:
            return True
        last = self._boxes[-1]
        size = max(min(last[3] - last[1], box[3] - box[1]), 1.0)
        if abs((last[1] + last[3]) - (box[1] + box[3])) < size:
            return -3 * size < box[0] - last[2] < 1.2 * size
        return abs((last[0] + last[2]) - (box[0] + box[2])) < size and abs(box[1] - last[1]) < 1.5 * size

    def line(self, place: _Place) -> Iterator[Line]:
        text, boxes = "".join(self._text).strip(), self._boxes
        self._text, self._boxes = [], []
        if text and boxes:
            box = place.clipped(union(boxes))
            if box is not None:
                heights = sorted(one[3] - one[1] for one in boxes)
                yield Line(text, box, max(heights[len(heights) // 2], 0.1))


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def _figures(page: PdfPage, place: _Place) -> list[Box]:
    """The pictures on a page, from top to bottom; those that touch are one."""
    import pypdfium2.raw as pdfium

    found: list[Box] = []
    for image in page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=_FORMS_DEEP):
        left, bottom, right, top = image.get_bounds()
        around = image.container
        while around is not None:
            matrix = around.get_matrix()
            corners = [matrix.on_point(x, y) for x in (left, right) for y in (bottom, top)]
            left, right = min(x for x, _ in corners), max(x for x, _ in corners)
            bottom, top = min(y for _, y in corners), max(y for _, y in corners)
            around = around.container
        box = place.clipped(place.box(left, bottom, right, top))
        if box is not None:
            found.append(box)
        if len(found) >= 40 * _MOST_FIGURES:
            break
    area = place.width * place.height
    fine = [
        box
        for box in _joined(found)
        if min(box[2] - box[0], box[3] - box[1]) >= _LEAST_SIDE
        and (box[2] - box[0]) * (box[3] - box[1]) <= _MOST_SHARE * area
    ]
    return sorted(fine, key=lambda box: (box[1], box[0]))[:_MOST_FIGURES]


def _joined(boxes: Sequence[Box]) -> list[Box]:
    """Boxes that touch become one: many programs cut a picture into strips."""
    joined: list[Box] = []
    for box in sorted(boxes, key=lambda box: (box[1], box[0])):
        merged = box
        while touching := [one for one in joined if _touch(one, merged)]:
            joined = [one for one in joined if one not in touching]
            merged = union([merged, *touching])
        joined.append(merged)
    return joined


def _touch(one: Box, other: Box) -> bool:
    return (
        one[0] <= other[2] + 1 and other[0] <= one[2] + 1 and one[1] <= other[3] + 1 and other[1] <= one[3] + 1
    )  # fmt: skip


def _caption(box: Box, blocks: Sequence[Block], paths: Sequence[tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    """The text next to a picture that looks like its caption, and the headings there."""
    best: tuple[float, str] = (math.inf, "")
    path: tuple[str, ...] = ()
    for block, headings in zip(blocks, paths, strict=True):
        if block.box[1] <= box[1] + block.size or not path:
            path = headings
        overlap = min(box[2], block.box[2]) - max(box[0], block.box[0])
        if overlap < 0.5 * min(box[2] - box[0], block.box[2] - block.box[0]) or len(block.text) > 1500:
            continue
        named = _CAPTION.match(block.text) is not None
        below, above = block.box[1] - box[3], box[1] - block.box[3]
        near = below if below >= -block.size else above if named and above >= -block.size else math.inf
        # One that says "Figure 3" may stand further away; any other text has to stand close, and be short.
        if near > (6 if named else 2) * block.size or (not named and len(block.text) > 300):
            continue
        best = min(best, (near - (1000 if named else 0), block.text))
    return best[1], path
