"""What documents consist of: page pictures, figures and passages, each with its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "Attached",
    "Box",
    "Figure",
    "Linked",
    "PagePicture",
    "Part",
    "Passage",
    "PassageKind",
    "Scan",
    "Unread",
    "part_as_json",
    "part_of_json",
]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in points (1/72 inch).

They are counted from the top left corner of the page as it is shown, after rotation: x to the right, y down.
"""
PassageKind = Literal["text", "table", "note"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a document. Parts come in reading order; the picture of a page comes before what stands on it.

    Attributes:
        document: The name under which the document was read, such as its path.
        page: The page's number, slide's or sheet's, counted from 1; None in a document without pages.
        label: What the document calls that page, such as ``"iv"``; empty in a document without pages.
        box: Where the part is on the page; None where that is not known, or in a document without pages.
        heading: The headings above it, the highest one first.
        time: Of a video, the seconds from its start; None in anything else.
    """

    document: str = ""
    page: int | None = None
    label: str = ""
    box: Box | None = None
    heading: tuple[str, ...] = ()
    time: float | None = None


@dataclass(frozen=True, kw_only=True)
class PagePicture(Part):
    """A whole page as a picture.

    Attributes:
        data: The encoded picture.
        mime_type: Its type, such as ``"image/png"``.
    """

    data: bytes
    mime_type: str = "image/png"


@dataclass(frozen=True, kw_only=True)
class Figure(Part):
    """A picture within a document.

    Attributes:
        data: The encoded picture.
        mime_type: Its type.
        caption: The text that stands next to it, or its alternative text; may be empty.
    """

    data: bytes
    mime_type: str = "image/png"
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Passage(Part):
    """A paragraph, a table or a speaker's note; after splitting, a few paragraphs together.

    Attributes:
        text: The words; of a table, a line for each row, with ``" | "`` between cells.
        kind: What it is.
        confidence: Of what was read from a picture (OCR), in [0, 1]; None for what is text in the document.
    """

    text: str
    kind: PassageKind = "text"
    confidence: float | None = None


@dataclass(frozen=True, kw_only=True)
class Unread(Part):
    """A page or a part that could not be read; all others are.

    Attributes:
        reason: Why, and what to do.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class Scan(Part):
    """A page without text, for OCR; no other process gets to see it.

    Attributes:
        picture: All of ``box``, as a PIL picture.
    """

    picture: Any


@dataclass(frozen=True, kw_only=True)
class Linked(Part):
    """A picture beside the document, named by it: a reader opens no file, so it passes the name on.

    Attributes:
        target: The name, as the document has it; it may be anything.
        caption: See `Figure`.
    """

    target: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Attached(Part):
    """A whole file within the document, which its own reader reads, or a picture.

    Attributes:
        data: The file.
        name: What the document calls it.
    """

    data: bytes
    name: str


_KINDS: dict[str, type[Part]] = {
    kind.__name__: kind for kind in (PagePicture, Figure, Passage, Unread, Linked, Attached)
}


def part_as_json(part: Part) -> tuple[dict[str, Any], bytes]:
    """A part for another process: a header, and the bytes of its picture."""
    header = {**part.__dict__, "part": type(part).__name__}
    data: bytes = header.pop("data", b"")
    return header, data


def part_of_json(header: dict[str, Any], data: bytes, document: str) -> Part:
    """A part that another process sent, which may lie: every value is checked.

    Args:
        header: What `part_as_json` made.
        data: The bytes of its picture.
        document: Its document.

    Raises:
        ValueError: It is no part.
    """
    values = dict(header)
    kind = _KINDS.get(str(values.pop("part", "")))
    if kind is None:
        raise ValueError("an unknown kind of part")
    page, box, heading = values.get("page"), values.get("box"), values.get("heading", ())
    numbers = [values.get("confidence"), values.get("time")]
    others = ("page", "box", "heading", "confidence", "time")
    texts = [value for name, value in values.items() if name not in others]
    sound = (
        (page is None or (type(page) is int and page >= 1))
        and (box is None or (len(box) == 4 and all(type(side) in (int, float) for side in box)))
        and all(number is None or type(number) is float for number in numbers)
        and all(type(text) is str for text in (*texts, *heading))
    )
    if not sound:
        raise ValueError("a part with values of other types")
    values.update(document=document, box=None if box is None else tuple(box), heading=tuple(heading))
    if kind in (PagePicture, Figure, Attached):
        values["data"] = data
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"a part with other fields ({error})") from error
