"""Rows of a table as text: each cell with the name of its column, so that a row says what it is wherever it is cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

__all__ = ["row_texts"]

_NUMBER = re.compile(r"[-+]?[\d.,:/%\s€$£-]*\d[\d.,:/%\s€$£-]*")
_CHARS = 4000  # of a text, about
_WIDEST = 1000  # cells of a row that are read


def row_texts(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Texts of some rows each, a line a row: ``name: value | name: value``; empty cells are left out.

    Args:
        rows: The cells. The first row that has any names the columns, if all of its cells are words and differ.
    """
    filled = (row for row in ([" ".join(cell.split()) for cell in row[:_WIDEST]] for row in rows) if any(row))
    first = list(islice(filled, 2))
    names = first[0] if len(first) == 2 and _are_names(first[0]) else []
    lines: list[str] = []
    chars = 0
    for row in chain(first[bool(names) :], filled):
        cells = []
        for place, cell in enumerate(row):
            if cell:
                name = names[place] if place < len(names) else ""
                cells.append(f"{name}: {cell}" if name else cell)
        lines.append(" | ".join(cells))
        chars += len(lines[-1])
        if chars > _CHARS:
            yield "\n".join(lines)
            lines, chars = [], 0
    if lines:
        yield "\n".join(lines)


def _are_names(row: Sequence[str]) -> bool:
    named = [cell for cell in row if cell]
    return len(named) > 1 and len(set(named)) == len(named) and not any(_NUMBER.fullmatch(cell) for cell in named)
