"""XLSX, by openpyxl: sheets as tables, with the names of their columns, and the pictures on them."""

from __future__ import annotations

import io
import posixpath
import zipfile
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from abc_rag.errors import InputError
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.packed import check_packed, has_member, parsed_xml, picture_type
from abc_rag.ingest.documents.parts import Figure, Part, Passage, Unread
from abc_rag.ingest.documents.reader import Reader
from abc_rag.ingest.documents.rows import row_texts

__all__ = ["XLSXReader"]

_EMBEDDED = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}embed"
_BLIP = "{http://schemas.openxmlformats.org/drawingml/2006/main}blip"
_DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/spreadsheetDrawing}"


class XLSXReader(Reader):
    """Excel's XLSX files; a sheet is a page, and its name a heading. Formulas are read as their last results."""

    name = "XLSX"
    modules = ("openpyxl", "lxml")

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """By the member that every one has."""
        return has_member(head, tail, b"xl/workbook.xml")

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        import openpyxl

        check_packed(data, options.limits)
        # Links to other workbooks are kept by openpyxl as names, and never opened.
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
        most = options.limits.max_pages
        with closing(book), zipfile.ZipFile(io.BytesIO(data)) as packed:
            sheets = book.worksheets
            for number in range(start, min(len(sheets), most) + 1):
                yield number
                sheet = sheets[number - 1]
                try:
                    yield from _sheet(sheet, number, packed, options)
                except MemoryError:
                    raise
                except Exception as error:
                    reason = f"cannot be read ({type(error).__name__}: {error}); save the document anew"
                    yield Unread(page=number, label=sheet.title, reason=reason)
        if len(sheets) > most:
            reason = f"{len(sheets):,} sheets exceed DocumentLimits.max_pages={most:,}; the rest is left out"
            yield Unread(page=most + 1, reason=reason)


def _sheet(sheet: Any, number: int, packed: zipfile.ZipFile, options: DocumentOptions) -> Iterator[Part]:  # noqa: ANN401
    heading = (str(sheet.title),)
    if options.figures:
        for data, mime_type, caption in _pictures(packed, sheet._worksheet_path):
            yield Figure(
                page=number, label=sheet.title, heading=heading, data=data, mime_type=mime_type, caption=caption
            )
    # What a file says of its own size may be wrong, and makes rows of empty cells.
    sheet.reset_dimensions()
    rows = ([_text(value) for value in row] for row in sheet.iter_rows(values_only=True))
    for text in row_texts(rows):
        yield Passage(page=number, label=sheet.title, heading=heading, text=text, kind="table")


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.15g}"
    # Dates without a time of day are stored as midnight.
    return str(value).removesuffix(" 00:00:00")


def _pictures(packed: zipfile.ZipFile, sheet: str) -> Iterator[tuple[bytes, str, str]]:
    """The bytes, type and alternative text of the pictures on a sheet."""
    for drawing in _related(packed, sheet).values():
        if "/drawings/drawing" not in drawing or drawing not in packed.namelist():
            continue
        targets = _related(packed, drawing)
        for picture in parsed_xml(packed.read(drawing)).iter(f"{_DRAWING}pic"):
            told = picture.find(f"{_DRAWING}nvPicPr/{_DRAWING}cNvPr")
            for blip in picture.iter(_BLIP):
                name = targets.get(blip.get(_EMBEDDED), "")
                data = packed.read(name) if name in packed.namelist() else b""
                if mime_type := picture_type(data):
                    yield data, mime_type, "" if told is None else str(told.get("descr") or "").strip()


def _related(packed: zipfile.ZipFile, member: str) -> dict[str, str]:
    """Id -> member, of what a member refers to within the file."""
    folder, name = posixpath.split(member.lstrip("/"))
    rels = f"{folder}/_rels/{name}.rels"
    if rels not in packed.namelist():
        return {}
    try:
        found = list(parsed_xml(packed.read(rels)))
    except InputError:
        return {}
    return {
        str(one.get("Id")): posixpath.normpath(posixpath.join("/" + folder, str(one.get("Target")))).lstrip("/")
        for one in found
        if one.get("TargetMode") != "External"
    }
