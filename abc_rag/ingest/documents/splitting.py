"""Paragraphs into passages: along headings, paragraphs and sentences, in this order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from abc_rag.errors import InputError
from abc_rag.ingest.documents.layout import union
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.parts import Part, Passage

__all__ = ["passages", "split_text"]

_BETWEEN = "\n\n"
_MOST_TOGETHER = 200  # paragraphs that are cut at one go: a book may be without any heading
# After a sentence; Chinese and Japanese put no space there.
_SENTENCE = re.compile("(?<=[.!?…])[\"'\u201d\u2019)\\]]*\\s+|(?<=[。\uff01\uff1f])")


def split_text(text: str, *, max_chars: int = 1000) -> list[str]:
    """Cut a text into passages: whole paragraphs where they fit, else lines, sentences, words.

    Args:
        text: Paragraphs with an empty line between them.
        max_chars: Maximum characters of a passage.

    Returns:
        Passages in order; together they hold every word of the text.
    """
    return [piece for piece in _packed(text, max_chars, 0) if piece]


def _packed(text: str, most: int, level: int) -> Iterator[str]:
    text = text.strip()
    if len(text) <= most:
        yield text
        return
    if level == len(_LEVELS):
        yield from (text[start : start + most] for start in range(0, len(text), most))
        return
    pattern, between = _LEVELS[level]
    packed = ""
    for part in filter(None, (part.strip() for part in pattern.split(text))):
        if packed and len(packed) + len(between) + len(part) <= most:
            packed += between + part
        else:
            if packed:
                yield packed
            packed = ""
            if len(part) <= most:
                packed = part
            else:
                yield from _packed(part, most, level + 1)
    if packed:
        yield packed


_LEVELS = (
    (re.compile(r"\n\s*\n"), _BETWEEN),
    (re.compile(r"\n"), "\n"),
    (_SENTENCE, " "),
    (re.compile(r"\s+"), " "),
)


def passages(parts: Iterable[Part], options: DocumentOptions) -> Iterator[Part]:
    """The same parts, with the paragraphs that stand together cut into passages.

    What stands together has one page, one path of headings and one kind. A passage's box is around the paragraphs that
    it has words of.

    Args:
        parts: As a reader yields them.
        options: The splitter, or the maximum length.

    Raises:
        InputError: The splitter does not return a list of str.
    """
    together: list[Passage] = []
    for part in parts:
        few = len(together) < _MOST_TOGETHER
        if isinstance(part, Passage) and few and (not together or _place(part) == _place(together[0])):
            together.append(part)
            continue
        yield from _cut(together, options)
        together = []
        if isinstance(part, Passage):
            together.append(part)
        else:
            yield part
    yield from _cut(together, options)


def _place(passage: Passage) -> tuple[object, ...]:
    return passage.document, passage.page, passage.heading, passage.kind


def _cut(together: Sequence[Passage], options: DocumentOptions) -> Iterator[Passage]:
    if not together:
        return
    text = _BETWEEN.join(passage.text for passage in together)
    pieces = (options.splitter or partial(split_text, max_chars=options.max_chars))(text)
    if isinstance(pieces, str) or not all(isinstance(piece, str) for piece in pieces):
        raise InputError("DocumentOptions.splitter must return a list of str; pass the method split_text of a splitter")
    at = 0
    for piece in pieces:
        if not piece.strip():
            continue
        own, at = _own(piece, text, at, together)
        boxes = [passage.box for passage in own if passage.box is not None]
        box = union(boxes) if boxes and len(boxes) == len(own) else None
        confidence = min((one.confidence for one in own if one.confidence is not None), default=None)
        yield replace(own[0], text=piece.strip(), box=box, confidence=confidence)


def _own(piece: str, text: str, at: int, together: Sequence[Passage]) -> tuple[Sequence[Passage], int]:
    """The paragraphs that a piece has words of, and where the search for the next piece begins."""
    start = text.find(piece, at)
    end = start + len(piece)
    if start < 0:
        # Splitters may change white space, and let pieces overlap: words are looked up, at the start and at the end.
        words = piece.split()
        known = len(words) < 5000 and text.find(words[0], at) >= 0
        found = re.compile(r"\s+".join(map(re.escape, words))).search(text, at) if known else None
        if found is None:
            return together, at
        start, end = found.span()
    own, begins = [], 0
    for passage in together:
        ends = begins + len(passage.text)
        if begins < end and start < ends:
            own.append(passage)
        begins = ends + len(_BETWEEN)
    return own or together, start + 1
