"""PPTX, by python-pptx: the texts, tables, pictures and notes of slides."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.packed import check_packed, has_member, picture_type
from abc_rag.ingest.documents.parts import Box, Figure, Part, Passage, Unread
from abc_rag.ingest.documents.reader import Reader

__all__ = ["PPTXReader"]

_EMU = 12_700  # of PowerPoint's units a point


class PPTXReader(Reader):
    """Slides of PowerPoint's PPTX files; a slide is a page; LibreOffice makes its picture."""

    name = "PPTX"
    modules = ("pptx",)
    printed_as = ".pptx"

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """By the member that every one has."""
        return has_member(head, tail, b"ppt/presentation.xml")

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        import pptx

        check_packed(data, options.limits)
        slides = pptx.Presentation(io.BytesIO(data)).slides
        most = options.limits.max_pages
        for number in range(start, min(len(slides), most) + 1):
            yield number
            try:
                yield from _slide(slides[number - 1], number, options)
            except MemoryError:
                raise
            except Exception as error:
                reason = f"cannot be read ({type(error).__name__}: {error}); save the document anew"
                yield Unread(page=number, label=str(number), reason=reason)
        if len(slides) > most:
            reason = f"{len(slides):,} slides exceed DocumentLimits.max_pages={most:,}; the rest is left out"
            yield Unread(page=most + 1, reason=reason)


def _slide(slide: Any, number: int, options: DocumentOptions) -> Iterator[Part]:  # noqa: ANN401
    title = slide.shapes.title
    named = "" if title is None else " ".join(title.text_frame.text.split())
    heading = (named,) if named else ()
    label = str(number)
    shapes = list(_flat(slide.shapes, options.limits.max_depth))
    for shape in sorted(shapes, key=lambda shape: (shape is not title, shape.top or 0, shape.left or 0)):
        box = _box(shape)
        if getattr(shape, "has_table", False):
            rows = [" | ".join(" ".join(cell.text.split()) for cell in row.cells) for row in shape.table.rows]
            yield Passage(page=number, label=label, box=box, heading=heading, text="\n".join(rows), kind="table")
        elif shape.has_text_frame and shape.text_frame.text.strip():
            text = "\n".join(paragraph.text for paragraph in shape.text_frame.paragraphs).strip()
            yield Passage(page=number, label=label, box=box, heading=heading, text=text)
        elif options.figures and (data := _picture(shape)) and (mime_type := picture_type(data)):
            caption = str(shape._element._nvXxPr.cNvPr.get("descr") or "").strip()
            yield Figure(
                page=number, label=label, box=box, heading=heading, data=data, mime_type=mime_type, caption=caption
            )
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        notes = slide.notes_slide.notes_text_frame.text.strip()
        if notes:
            yield Passage(page=number, label=label, heading=heading, text=notes, kind="note")


def _flat(shapes: Iterable[Any], depth: int) -> Iterator[Any]:
    """Shapes, and those in groups."""
    for shape in shapes:
        inner = getattr(shape, "shapes", None)
        if inner is None:
            yield shape
        elif depth > 0:
            yield from _flat(inner, depth - 1)


def _picture(shape: Any) -> bytes:  # noqa: ANN401
    try:
        data: bytes = shape.image.blob
    except (AttributeError, KeyError, ValueError):  # no picture, or one that is only linked
        return b""
    return data


def _box(shape: Any) -> Box | None:  # noqa: ANN401
    sides = (shape.left, shape.top, shape.width, shape.height)
    if any(side is None for side in sides):
        return None
    left, top, width, height = (side / _EMU for side in sides)
    return round(left, 1), round(top, 1), round(left + width, 1), round(top + height, 1)
