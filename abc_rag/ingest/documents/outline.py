"""The headings above each paragraph: from a document's outline, or from the sizes of its type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from abc_rag.ingest.documents.layout import Block

__all__ = ["Headings", "Outline"]

_LARGER = 1.18  # times the page's usual size
_MOST_LINES = 3
_MOST_CHARS = 150


class Outline:
    """Heading paths by an outline.

    Args:
        entries: Level from 0, title, page from 1, and height on it in the page's own coordinates or None for its top;
            in the order of the outline.
    """

    def __init__(self, entries: Sequence[tuple[int, str, int, float | None]]) -> None:
        self._on: dict[int, list[tuple[float | None, tuple[str, ...]]]] = {}
        stack: list[tuple[int, str]] = []
        self._last: list[tuple[int, tuple[str, ...]]] = []
        for level, title, page, height in entries:
            stack = [*((above, name) for above, name in stack if above < level), (level, title)]
            path = tuple(name for _, name in stack)
            self._on.setdefault(page, []).append((height, path))
            self._last.append((page, path))
        # By page; of those on one page the last one in the outline's own order.
        self._last.sort(key=lambda pair: pair[0])

    def __bool__(self) -> bool:
        return bool(self._on)

    def before(self, page: int) -> tuple[str, ...]:
        """The path at the top of a page."""
        path: tuple[str, ...] = ()
        for at, found in self._last:
            if at >= page:
                break
            path = found
        return path

    def paths(self, page: int, blocks: Sequence[Block], shown: Callable[[float], float]) -> list[tuple[str, ...]]:
        """The path of each paragraph of a page.

        Args:
            page: The page's number.
            blocks: Its paragraphs in reading order.
            shown: A height in the page's own coordinates -> its distance from the top of the page as it is shown.
        """
        waiting = [(0.0 if height is None else shown(height), path) for height, path in self._on.get(page, [])]
        path = self.before(page)
        paths = []
        for block in blocks:
            # The next entry begins where its title stands, in reading order; or else where its height says.
            while waiting and (_same(block.text, waiting[0][1][-1]) or _reached(waiting[0], block, blocks)):
                path = waiting.pop(0)[1]
            paths.append(path)
        return paths


def _same(text: str, title: str) -> bool:
    start = "".join(text[: 2 * len(title) + 20].split()).casefold()
    return len(title) > 3 and "".join(title.split()).casefold() in start


def _reached(entry: tuple[float, tuple[str, ...]], block: Block, blocks: Sequence[Block]) -> bool:
    if any(_same(other.text, entry[1][-1]) for other in blocks):
        return False  # its title stands elsewhere on this page
    return block.box[3] > entry[0] + 0.5 * block.size


class Headings:
    """Heading paths by size, for documents without an outline: short paragraphs in larger type are headings."""

    def __init__(self) -> None:
        self._stack: list[tuple[float, str]] = []

    @property
    def before(self) -> tuple[str, ...]:
        """The path where the last page ended."""
        return tuple(name for _, name in self._stack)

    def paths(self, blocks: Sequence[Block]) -> list[tuple[str, ...]]:
        """The path of each paragraph of the next page."""
        sizes = [block.size for block in blocks for _ in range(max(1, len(block.text) // 40))]
        usual = median(sizes) if sizes else 0.0
        paths = []
        for block in blocks:
            short = block.lines <= _MOST_LINES and 3 <= len(block.text) <= _MOST_CHARS
            if short and block.size >= _LARGER * usual and any(character.isalpha() for character in block.text):
                above = [(size, name) for size, name in self._stack if size > 1.04 * block.size]
                self._stack = [*above, (block.size, block.text)]
            paths.append(self.before)
        return paths
