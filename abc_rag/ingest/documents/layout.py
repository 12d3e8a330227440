"""Lines on a page into paragraphs in reading order; columns are read one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from abc_rag.ingest.documents.parts import Box

__all__ = ["Block", "Line", "blocks_of", "union"]

# A column of text has lines of so many characters, the middle one; cells of tables are shorter.
_COLUMN_CHARS = 18
_COLUMN_LINES = 3
# Share of a region's lines that may cross the gap between its columns: titles and wide figures do.
_CROSSING = 0.34
_MOST_COLUMNS = 6
_BULLET = re.compile(r"(?:[-\u2013•▪◦*‣·]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s")


@dataclass(frozen=True)
class Line:
    """Characters that follow each other on one line without a wide gap.

    Attributes:
        text: The characters.
        box: Where they are.
        size: Height of the font in points.
    """

    text: str
    box: Box
    size: float

    @property
    def middle(self) -> float:
        """The vertical middle."""
        return (self.box[1] + self.box[3]) / 2


@dataclass
class Block:
    """A paragraph.

    Attributes:
        text: Its words, on one line; rows of a table on a line each.
        box: Where it is.
        size: Height of its font in points.
        lines: How many lines it has.
    """

    text: str
    box: Box
    size: float
    lines: int


def union(boxes: Iterable[Box]) -> Box:
    """The smallest box around boxes."""
    sides = list(zip(*boxes, strict=True))
    return min(sides[0]), min(sides[1]), max(sides[2]), max(sides[3])


def blocks_of(lines: Sequence[Line]) -> list[Block]:
    """The paragraphs of a page in reading order.

    Args:
        lines: The lines of the page, in any order.
    """
    found = [line for line in lines if line.text.strip()]
    return [block for column in _columns(found, _MOST_COLUMNS) for block in _paragraphs(column)]


def _columns(lines: Sequence[Line], most: int) -> Iterator[list[Line]]:
    """Groups of lines that are read one after the other, each from top to bottom."""
    gap = _gap(lines) if most > 1 else None
    if gap is None:
        yield sorted(lines, key=lambda line: (line.box[1], line.box[0]))
        return
    # What crosses the gap ends the columns above it.
    left: list[Line] = []
    right: list[Line] = []
    crossing: list[Line] = []
    for line in sorted(lines, key=lambda line: (line.middle, line.box[0])):
        crosses = line.box[0] < gap < line.box[2]
        if crosses and (left or right):
            yield from _both(left, right, most)
            left, right = [], []
        if not crosses and crossing:
            yield crossing
            crossing = []
        (crossing if crosses else left if line.box[2] <= gap else right).append(line)
    if crossing:
        yield crossing
    yield from _both(left, right, most)


def _both(left: Sequence[Line], right: Sequence[Line], most: int) -> Iterator[list[Line]]:
    for side in (left, right):
        if side:
            yield from _columns(side, most - 1)


def _gap(lines: Sequence[Line]) -> float | None:
    """Where a vertical gap separates two columns of text; None if there is one column."""
    if len(lines) < 2 * _COLUMN_LINES:
        return None
    ends = sorted({round(line.box[2], 1) for line in lines})
    best: tuple[int, float] | None = None
    em = median(line.size for line in lines)
    for end in ends:
        starts = [line.box[0] for line in lines if line.box[0] > end]
        if not starts:
            break
        gap = end + min(0.5 * em, (min(starts) - end) / 2)
        left = [line for line in lines if line.box[2] <= gap]
        right = [line for line in lines if line.box[0] >= gap]
        crossing = len(lines) - len(left) - len(right)
        if crossing > _CROSSING * len(lines) or (best is not None and crossing >= best[0]):
            continue
        if min(starts) - end >= 0.6 * em and _is_column(left) and _is_column(right) and _beside(left, right):
            best = (crossing, gap)
    return None if best is None else best[1]


def _is_column(lines: Sequence[Line]) -> bool:
    return len(lines) >= _COLUMN_LINES and median(len(line.text) for line in lines) >= _COLUMN_CHARS


def _beside(left: Sequence[Line], right: Sequence[Line]) -> bool:
    """Whether two groups stand next to each other rather than one above the other."""
    top = max(min(line.box[1] for line in side) for side in (left, right))
    bottom = min(max(line.box[3] for line in side) for side in (left, right))
    shortest = min(max(line.box[3] for line in side) - min(line.box[1] for line in side) for side in (left, right))
    return bottom - top > 0.3 * shortest


def _paragraphs(lines: Sequence[Line]) -> Iterator[Block]:
    rows = list(_rows(lines))
    if not rows:
        return
    steps = [below.middle - above.middle for (above, _), (below, _) in pairwise(rows)]
    usual = median(steps) if steps else 0.0
    together: list[tuple[Line, bool]] = []
    for row, is_table in rows:
        if together and _begins(row, is_table, together, usual):
            yield _block(together)
            together = []
        together.append((row, is_table))
    yield _block(together)


def _rows(lines: Sequence[Line]) -> Iterator[tuple[Line, bool]]:
    """Lines of the same height become one; with whether there were several."""
    waiting: list[Line] = []
    for line in sorted(lines, key=lambda line: line.middle):
        if waiting and line.middle - waiting[-1].middle > 0.4 * min(line.size, waiting[-1].size):
            yield _row(waiting)
            waiting = []
        waiting.append(line)
    if waiting:
        yield _row(waiting)


def _row(cells: Sequence[Line]) -> tuple[Line, bool]:
    ordered = sorted(cells, key=lambda cell: cell.box[0])
    parts = [ordered[0].text.strip()]
    for before, cell in pairwise(ordered):
        wide = cell.box[0] - before.box[2] > 1.2 * max(cell.size, before.size)
        parts += [" | " if wide else " ", cell.text.strip()]
    line = Line("".join(parts), union(cell.box for cell in cells), max(cell.size for cell in cells))
    return line, " | " in parts


def _begins(row: Line, is_table: bool, above: Sequence[tuple[Line, bool]], usual: float) -> bool:
    """Whether a row begins a paragraph."""
    last, last_is_table = above[-1]
    size = max(last.size, row.size)
    if row.middle - last.middle > max(1.35 * usual, 1.05 * size) and row.box[1] - last.box[3] > 0.35 * size:
        return True
    if row.middle - last.middle > 2.2 * size or abs(row.size - last.size) > 0.15 * size:
        return True
    if is_table != last_is_table:
        return True
    if is_table:
        return False
    indented = row.box[0] - min(one.box[0] for one, _ in above) > 0.8 * size and last.box[0] < row.box[0] - 0.8 * size
    ends = re.search(r"[.!?:;…\u201d\"']\s*$", last.text) is not None
    return (indented and ends) or _BULLET.match(row.text) is not None


def _block(rows: Sequence[tuple[Line, bool]]) -> Block:
    words = ""
    for row, is_table in rows:
        if not words:
            words = row.text
        elif words.endswith("\u00ad"):  # a word that the end of the line cuts
            words = words[:-1] + row.text
        else:
            words += ("\n" if is_table else " ") + row.text
    return Block(
        words.replace("\u00ad", ""), union(row.box for row, _ in rows), median(row.size for row, _ in rows), len(rows)
    )
