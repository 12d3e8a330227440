"""Underscores that a PDF draws as lines, as TeX does in many of its fonts: ``asn1_node`` would be read as two words."""

from __future__ import annotations

import bisect
import ctypes
from typing import TYPE_CHECKING, Any

from abc_rag.ingest.documents.parts import Box

if TYPE_CHECKING:
    from collections.abc import Callable

    from pypdfium2 import PdfPage

__all__ = ["Underscores"]

_MOST_OBJECTS = 20_000  # of a page that are looked at; maps and plots have more
_MOST_RULES = 2_000
# In heights of the text next to it.
_WIDE = (0.12, 0.75)
_THICK = 0.13
_NEAR = 0.2
# Where the baseline may be, from the bottom of a character's box.
_BASELINE = (-0.12, 0.42)
_TALLEST = 60.0  # points of the largest type


class Underscores:
    """The short horizontal lines on a page, and which of them are underscores.

    Args:
        page: The page.
        box: The page's own coordinates (left, bottom, right, top) into those of `Box`.
    """

    def __init__(self, page: PdfPage, box: Callable[[float, float, float, float], Box]) -> None:
        found = (box(*bounds) for bounds in _paths(page.raw))
        fine = [one for one in found if _WIDE[0] < one[2] - one[0] < _WIDE[1] * _TALLEST and _flat(one)]
        self._rules = sorted(fine[:_MOST_RULES], key=lambda one: one[1])
        self._tops = [one[1] for one in self._rules]

    def between(self, before: Box | None, character: str, after: Box) -> str | None:
        """What to write between two characters that follow each other on a line; None where no underscore is drawn.

        Args:
            before: The box of the character before; None at the beginning of a line.
            character: The character after. Lines before anything but letters and digits are others, as of fractions.
            after: Its box.
        """
        if not self._rules or not (character.isascii() and character.isalnum()):
            return None
        size = after[3] - after[1]
        left = after[0] - size if before is None else before[2]
        gap = after[0] - left
        if size <= 0 or not _WIDE[0] * size < gap < 3 * size:
            return None
        top, bottom = after[3] - _BASELINE[1] * size, after[3] - _BASELINE[0] * size
        first, last = bisect.bisect_left(self._tops, top), bisect.bisect_right(self._tops, bottom)
        slack = 0.1 * size
        rules = sorted(
            rule
            for rule in self._rules[first:last]
            if left - slack <= rule[0]
            and rule[2] <= after[0] + slack
            and _WIDE[0] * size < rule[2] - rule[0] < _WIDE[1] * size
            and rule[3] - rule[1] < _THICK * size
        )
        if not rules:
            return None
        joins_before = before is not None and rules[0][0] - before[2] < _NEAR * size
        joins_after = after[0] - rules[-1][2] < _NEAR * size
        if not joins_before and not joins_after:
            return None
        return f"{'' if joins_before or before is None else ' '}{'_' * len(rules)}{'' if joins_after else ' '}"


def _flat(box: Box) -> bool:
    return box[3] - box[1] < _THICK * _TALLEST and box[3] - box[1] < 0.5 * (box[2] - box[0])


def _paths(page: Any) -> list[tuple[float, float, float, float]]:  # noqa: ANN401
    """Left, bottom, right and top of the lines and shapes that a page draws itself."""
    import pypdfium2.raw as pdfium

    sides = [ctypes.c_float() for _ in range(4)]
    to = [ctypes.byref(side) for side in sides]
    found = []
    for index in range(min(pdfium.FPDFPage_CountObjects(page), _MOST_OBJECTS)):
        drawn = pdfium.FPDFPage_GetObject(page, index)
        if pdfium.FPDFPageObj_GetType(drawn) == pdfium.FPDF_PAGEOBJ_PATH and pdfium.FPDFPageObj_GetBounds(drawn, *to):
            found.append((sides[0].value, sides[1].value, sides[2].value, sides[3].value))
    return found
