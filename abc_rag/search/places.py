"""Places on the pages of documents, as pictures: a box drawn on a page, or cut out of it."""

from __future__ import annotations

import math

import PIL.Image
import PIL.ImageDraw

from abc_rag.types import Record

__all__ = ["crop_of", "marked"]

_TINT = (255, 212, 0, 70)
_EDGE = (0, 90, 255, 255)
_MARGIN = 6.0  # points around a place that is cut out


def marked(picture: PIL.Image.Image, page: Record, part: Record) -> PIL.Image.Image:
    """A page with the box of a part drawn on it, as an RGB picture.

    Args:
        picture: The page, of any size.
        page: The record of that picture; its box says how large the page is.
        part: What is on it. Without a box, or with one that is not on the page, nothing is drawn.
    """
    shown = picture.convert("RGB")
    place = _pixels(shown, page, part, 0.0)
    if part.id == page.id or place is None:
        return shown
    # So thick that it is seen where the page is shown small.
    width = max(2, max(shown.size) // 300)
    PIL.ImageDraw.Draw(shown, "RGBA").rectangle(place, fill=_TINT, outline=_EDGE, width=width)
    return shown


def crop_of(picture: PIL.Image.Image, page: Record, part: Record) -> PIL.Image.Image | None:
    """What of a page is within the box of a part, with a little around it, as an RGB picture.

    Args:
        picture: The page, of any size.
        page: The record of that picture.
        part: What is on it.

    Returns:
        None where the part has no box, or one that is not on the page.
    """
    place = _pixels(picture, page, part, _MARGIN)
    if place is None:
        return None
    left, top, right, bottom = place
    return picture.convert("RGB").crop((left, top, right + 1, bottom + 1))


def _pixels(picture: PIL.Image.Image, page: Record, part: Record, margin: float) -> tuple[int, int, int, int] | None:
    """The pixels of a part's place, all four inclusive."""
    whole, box = page.box, part.box
    if whole is None or box is None or not all(map(math.isfinite, (*whole, *box))):
        return None
    wide, high = whole[2] - whole[0], whole[3] - whole[1]
    if wide <= 0 or high <= 0 or box[0] >= box[2] or box[1] >= box[3]:
        return None
    across, down = picture.width / wide, picture.height / high
    left, top = (box[0] - whole[0] - margin) * across, (box[1] - whole[1] - margin) * down
    right, bottom = (box[2] - whole[0] + margin) * across, (box[3] - whole[1] + margin) * down
    if left >= picture.width or top >= picture.height or right <= 0 or bottom <= 0:
        return None
    return (
        max(0, math.floor(left)),
        max(0, math.floor(top)),
        min(picture.width, math.ceil(right)) - 1,
        min(picture.height, math.ceil(bottom)) - 1,
    )
