"""Markdown, by markdown-it: what it looks like as HTML, read as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator

from abc_rag.ingest.documents.html import markup_parts
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.parts import Part
from abc_rag.ingest.documents.reader import Reader
from abc_rag.ingest.documents.text import decoded, is_text

__all__ = ["MarkdownReader"]

_SUFFIXES = frozenset({".md", ".markdown"})
# A heading with signs or underlined, or a picture. A text without any has nothing that a text file has not.
_STRUCTURE = re.compile(
    rb"^ {0,3}#{1,6}[ \t]+\S|^ {0,3}\S.*\n {0,3}(?:={3,}|-{3,})[ \t]*$|!\[[^\]]*\]\(|<img\s", re.MULTILINE
)
_FRONT = re.compile(r"\A---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*\n", re.DOTALL)


class MarkdownReader(Reader):
    """Markdown files with headings or pictures; pictures are files in the same folder or below it."""

    name = "Markdown"
    modules = ("markdown_it", "lxml")

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """By name, and by a heading or a picture at its start or its end: any text is Markdown."""
        if suffix not in _SUFFIXES or not is_text(head):
            return False
        return suffix != ".md" or any(
            _STRUCTURE.search(data.replace(b"\r\n", b"\n")) is not None for data in (head, tail)
        )

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        from markdown_it import MarkdownIt

        text = _FRONT.sub("", decoded(data).replace("\r\n", "\n"), count=1)
        yield from markup_parts(MarkdownIt("commonmark").enable("table").render(text), options)
