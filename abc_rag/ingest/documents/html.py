"""HTML, by lxml: paragraphs under their headings, tables, pictures with alternative text and captions.

The text is read as a stream of tags and never becomes a tree, so neither depth nor length costs memory.
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.packed import picture_type
from abc_rag.ingest.documents.parts import Figure, Linked, Part, Passage
from abc_rag.ingest.documents.reader import Reader
from abc_rag.ingest.documents.text import decoded, is_text

__all__ = ["HTMLReader", "markup_parts", "markup_text"]

_SUFFIXES = frozenset({".htm", ".html", ".xht", ".xhtml"})
_START = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.{0,2000}?-->\s*)*<(?:!doctype\s+html|html|head|body)[\s>]",
    re.IGNORECASE | re.DOTALL,
)
_CHARSET = re.compile(rb"<(?:meta[^>]{0,200}?charset|\?xml[^>]{0,100}?encoding)\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.I)
_CHUNK = 1 << 16
# XHTML closes these at once; an HTML parser would take all that follows for their text.
_CLOSED = re.compile(
    r"<(title|script|style|textarea|iframe|noscript|noframes|noembed|template)(\s[^<>]*)?/>", re.IGNORECASE
)
_BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure footer form "
    "h1 h2 h3 h4 h5 h6 header hr html li main ol p pre section summary table tbody td tfoot th thead tr ul".split()
)
_SKIPPED = frozenset("button head iframe nav noscript object script select style svg template textarea".split())
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_SMALLEST = 24  # pixels, where a picture's sides are given: smaller ones are icons and counters
_MOST_ROWS = 50_000  # characters of a table that become one part


class HTMLReader(Reader):
    """Web pages that were saved, and other HTML and XHTML files."""

    name = "HTML"
    modules = ("lxml",)

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """By a document type or an outer element at the start; or by its name, if it is a text with a tag."""
        if _START.match(head) is not None:
            return True
        return suffix in _SUFFIXES and is_text(head) and b"<" in head

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        yield from markup_parts(markup_text(data), options)


def markup_text(data: bytes, declared: str = "") -> str:
    """HTML or XHTML as a str, by what its container or the text itself declares."""
    found = _CHARSET.search(data[:2048])
    return decoded(data, declared or (found[1].decode("ascii", "replace") if found else ""))


def markup_parts(text: str, options: DocumentOptions, heading: Sequence[str] = ()) -> Iterator[Part]:
    """The parts of HTML, as they come. Nothing is fetched, no entity is defined, no script is run.

    Args:
        text: HTML or XHTML.
        options: How documents are read.
        heading: The headings above all of it.

    Yields:
        `Passage` and `Figure`; `Linked` for a picture that is not in the text itself.
    """
    import lxml.etree

    target = _Target(options, tuple(heading))
    parser = lxml.etree.HTMLParser(target=target, no_network=True, huge_tree=True)
    text = _CLOSED.sub(r"<\1\2></\1>", text)
    for at in range(0, len(text), _CHUNK):
        parser.feed(text[at : at + _CHUNK])
        while target.ready:
            yield target.ready.popleft()
    if text.strip():
        parser.close()
    yield from target.ready


@dataclass
class _Table:
    """A table that is being read.

    Attributes:
        rows: Its rows so far.
        cells: Those of the last row.
        words: What the cell that is being read holds; None between cells.
        chars: About how many characters ``rows`` have.
        for_layout: It holds headings or tables: its cells are read like a page.
    """

    rows: list[list[str]] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    words: list[str] | None = None
    chars: int = 0
    for_layout: bool = False


class _Target:
    """Receives tags and characters from lxml; ``ready`` holds the parts that are finished."""

    def __init__(self, options: DocumentOptions, heading: tuple[str, ...]) -> None:
        self.ready: deque[Part] = deque()
        self._figures = options.figures
        self._above = heading
        self._stack: list[tuple[int, str]] = []
        self._words: list[str] = []
        self._skipped = 0  # elements that are open within one that is skipped, and that one
        self._in_head = False
        self._preformatted = 0
        self._title: list[str] | None = None
        self._heading: tuple[int, list[str]] | None = None
        self._tables: list[_Table] = []
        self._framed: list[tuple[list[Figure | Linked], list[str]]] = []  # pictures and captions of open figures
        self._captions = 0
        self._inline: list[Figure | Linked] = []  # pictures in the paragraph that is being read

    # -- what lxml calls -------------------------------------------------------------------------

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "title" and self._skipped == self._in_head and not self._stack:
            self._title = []
        if self._skipped or tag in _SKIPPED or _is_hidden(attributes):
            self._in_head |= not self._skipped and tag == "head"
            self._skipped += 1
            return
        if tag == "img":
            self._picture(attributes)
        elif tag == "br":
            self._words.append("\n")
        elif tag in _BLOCKS:
            self._flush()
            self._open(tag)

    def end(self, tag: str) -> None:
        if tag == "title" and self._title is not None:
            title = " ".join("".join(self._title).split())[:300]
            self._stack, self._title = [(0, title)] if title and (title,) != self._above[-1:] else [], None
        if self._skipped:
            self._skipped -= 1
            self._in_head &= self._skipped > 0
        elif tag in _BLOCKS:
            self._flush()
            self._close(tag)

    def data(self, text: str) -> None:
        if self._title is not None:
            self._title.append(text)
        elif not self._skipped:
            self._words.append(text if self._preformatted else re.sub(r"\s+", " ", text))

    def comment(self, text: str) -> None:
        """Comments say nothing."""

    def close(self) -> None:
        self._flush()
        while self._tables:
            self._rows(self._tables.pop())
        while self._framed:
            self._pictures(*self._framed.pop())

    # -- structure -------------------------------------------------------------------------------

    def _open(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._heading = _HEADINGS[tag], []
            self._laid_out()
        elif tag == "pre":
            self._preformatted += 1
        elif tag == "figure":
            self._framed.append(([], []))
        elif tag == "figcaption":
            self._captions += 1
        elif tag == "table":
            self._laid_out()
            self._tables.append(_Table())
        elif self._tables and tag == "tr":
            self._row()
        elif self._tables and tag in ("td", "th"):
            self._cell()
            self._tables[-1].words = []

    def _close(self, tag: str) -> None:
        if tag in _HEADINGS and self._heading is not None:
            level, words = self._heading
            self._heading = None
            if text := " ".join(words):
                above = [(other, name) for other, name in self._stack if other < level]
                # A page's title is often its first heading again.
                same = len(above) == 1 and above[0] == (0, text)
                self._stack = [*([] if same else above), (level, text[:300])]
                self._say(text)
        elif tag == "pre":
            self._preformatted = max(0, self._preformatted - 1)
        elif tag == "figcaption":
            self._captions = max(0, self._captions - 1)
        elif tag == "figure" and self._framed:
            self._pictures(*self._framed.pop())
        elif tag == "table" and self._tables:
            self._row()
            self._rows(self._tables.pop())
        elif self._tables and tag in ("td", "th"):
            self._cell()
        elif self._tables and tag == "tr":
            self._row()

    def _flush(self) -> None:
        """What was read since the last tag that begins or ends a paragraph."""
        self._flush_words()
        self.ready += self._inline
        self._inline = []

    def _flush_words(self) -> None:
        words, self._words = "".join(self._words), []
        lines = words.split("\n")
        text = "\n".join(line.rstrip() if self._preformatted else line.strip() for line in lines).strip("\n")
        if not text.strip():
            return
        if self._heading is not None:
            self._heading[1].append(" ".join(text.split()))
            return
        if self._captions and self._framed:
            self._framed[-1][1].append(" ".join(text.split()))
        if self._tables and self._tables[-1].words is not None and not self._tables[-1].for_layout:
            self._tables[-1].words.append(" ".join(text.split()))
        else:
            self._say(text)

    @property
    def _path(self) -> tuple[str, ...]:
        return (*self._above, *(name for _, name in self._stack))

    def _say(self, text: str) -> None:
        self.ready.append(Passage(heading=self._path, text=text))

    # -- tables ----------------------------------------------------------------------------------

    def _laid_out(self) -> None:
        """The tables around are there for the layout alone."""
        if self._tables and not self._tables[-1].for_layout:  # those around it are, already
            self._row()
            self._rows(self._tables[-1])
            self._tables[-1].for_layout = True

    def _cell(self) -> None:
        table = self._tables[-1]
        if table.words is not None:
            table.cells.append(" ".join(table.words))
            table.words = None

    def _row(self) -> None:
        table = self._tables[-1]
        self._cell()
        if any(table.cells):
            table.rows.append(table.cells)
            table.chars += sum(map(len, table.cells))
        table.cells = []
        if table.chars > _MOST_ROWS:
            self._rows(table)

    def _rows(self, table: _Table) -> None:
        rows, table.rows, table.chars = table.rows, [], 0
        if not rows:
            return
        text = "\n".join(" | ".join(row) for row in rows)
        columns = max(len([cell for cell in row if cell]) for row in rows)
        self.ready.append(Passage(heading=self._path, text=text, kind="table" if columns > 1 else "text"))

    # -- pictures --------------------------------------------------------------------------------

    def _picture(self, attributes: Mapping[str, str]) -> None:
        source = attributes.get("src", "").strip()
        sides = [int(side) for name in ("width", "height") if (side := attributes.get(name, "").strip()).isdecimal()]
        if not self._figures or not source or (sides and min(sides) < _SMALLEST):
            return
        caption = " ".join((attributes.get("alt") or attributes.get("title") or "").split())
        found: Figure | Linked | None = Linked(heading=self._path, target=source, caption=caption)
        if source[:5].lower() == "data:":
            data = _within(source)
            mime_type = picture_type(data)
            found = Figure(heading=self._path, data=data, mime_type=mime_type, caption=caption) if mime_type else None
        if found is not None:
            (self._framed[-1][0] if self._framed else self._inline).append(found)

    def _pictures(self, pictures: Sequence[Figure | Linked], captions: Sequence[str]) -> None:
        caption = " ".join(captions)
        self.ready += [replace(picture, caption=caption or picture.caption) for picture in pictures]


def _is_hidden(attributes: Mapping[str, str]) -> bool:
    style = attributes.get("style", "")
    return "hidden" in attributes or re.search(r"display\s*:\s*none", style, re.IGNORECASE) is not None


def _within(source: str) -> bytes:
    """The bytes of a data URI; empty if it is malformed."""
    told, comma, data = source.partition(",")
    try:
        if told.lower().endswith(";base64"):
            return base64.b64decode("".join(urllib.parse.unquote(data).split()), validate=True)
    except (binascii.Error, ValueError):
        return b""
    return urllib.parse.unquote_to_bytes(data) if comma else b""
