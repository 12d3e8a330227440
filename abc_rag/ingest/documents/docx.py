"""DOCX, by python-docx: paragraphs and tables under their headings, pictures with their captions."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.packed import check_packed, has_member, picture_type
from abc_rag.ingest.documents.parts import Figure, Part, Passage
from abc_rag.ingest.documents.reader import Reader

__all__ = ["DOCXReader"]

_EMBEDDED = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}embed"
_BLIP = "{http://schemas.openxmlformats.org/drawingml/2006/main}blip"
_TOLD = "{http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing}docPr"


class DOCXReader(Reader):
    """Paragraphs, tables and pictures of Word's DOCX files, which have no pages until they are printed."""

    name = "DOCX"
    modules = ("docx",)
    printed_as = ".docx"

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """By the member that every one has."""
        return has_member(head, tail, b"word/document.xml")

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        import docx
        from docx.table import Table

        check_packed(data, options.limits)
        document = docx.Document(io.BytesIO(data))
        stack: list[tuple[int, str]] = []
        items = list(document.iter_inner_content())
        for item, following in zip(items, [*items[1:], None], strict=True):
            heading = tuple(name for _, name in stack)
            if isinstance(item, Table):
                rows = [" | ".join(" ".join(cell.text.split()) for cell in row.cells) for row in item.rows]
                yield Passage(heading=heading, text="\n".join(rows), kind="table")
                continue
            text = item.text.strip()
            level = _level(item)
            if level is not None and text:
                stack = [*((above, name) for above, name in stack if above < level), (level, text)]
                heading = tuple(name for _, name in stack)
            if options.figures:
                caption = following.text.strip() if _style(following) == "Caption" else ""
                yield from _figures(item, caption, heading)
            if text:
                yield Passage(heading=heading, text=text)


def _style(item: Any) -> str:  # noqa: ANN401
    return str(getattr(getattr(item, "style", None), "name", "") or "")


def _level(paragraph: Any) -> int | None:  # noqa: ANN401
    style = _style(paragraph)
    if style == "Title":
        return 0
    word, _, number = style.partition(" ")
    return int(number) if word == "Heading" and number.isdigit() else None


def _figures(paragraph: Any, caption: str, heading: tuple[str, ...]) -> Iterator[Figure]:  # noqa: ANN401
    told = [str(found.get("descr") or "").strip() for found in paragraph._p.iter(_TOLD)]
    for number, blip in enumerate(paragraph._p.iter(_BLIP)):
        part = paragraph.part.related_parts.get(blip.get(_EMBEDDED))
        mime_type = "" if part is None else picture_type(part.blob)
        if mime_type:
            said = caption or (told[number] if number < len(told) else "")
            yield Figure(heading=heading, data=part.blob, mime_type=mime_type, caption=said)
