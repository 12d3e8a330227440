"""A passage in Markdown as HTML for a page: headings, lists, quotes, code and emphasis, and nothing that is fetched.

A small part of Markdown, on purpose: everything is escaped first, and what is not known stays as it was written.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

__all__ = ["render_markdown"]

# What is longer is shown as it is written: looking for pairs of marks takes time that grows with the square.
_LONGEST = 10_000
_FENCE = re.compile(r" {0,3}(```|~~~)")
_HEADING = re.compile(r" {0,3}#{1,6} +(.*)")
_ITEM = re.compile(r" *(?:[-*+]|\d{1,9}[.)]) +(.*)")
_QUOTE = re.compile(r" {0,3}> ?(.*)")
_CODE = re.compile(r"(`+)(.+?)\1")
# What was escaped before holds no quotation marks and no angle brackets.
_PICTURE = re.compile(r"!\[([^\[\]]*)\]\([^()\s]*\)")
_LINK = re.compile(r"\[([^\[\]]+)\]\((https?://[^()\s]+)\)")
_STRONG = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_EMPHASIS = re.compile(r"(?<![\w*])([*_])(?=\S)([^*_]+?)(?<=\S)\1(?![\w*])")


def render_markdown(text: str) -> str:
    """HTML of a passage; no element of it runs, and none loads anything.

    Args:
        text: Markdown, or any text.
    """
    if len(text) > _LONGEST:
        return f'<p class="text">{html.escape(text)}</p>'
    return "".join(_blocks(text.splitlines()))


def _blocks(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if fence := _FENCE.match(line):
            end = next((i for i in range(at + 1, len(lines)) if lines[i].strip().startswith(fence[1])), len(lines))
            yield f"<pre>{html.escape(chr(10).join(lines[at + 1 : end]))}</pre>"
            at = end + 1
        elif heading := _HEADING.fullmatch(line):
            yield f"<p><strong>{_inline(heading[1].rstrip(' #'))}</strong></p>"
            at += 1
        else:
            kind = next((one for one in (_ITEM, _QUOTE) if one.fullmatch(line)), None)
            end = at + 1
            while end < len(lines) and lines[end].strip() and _kind(lines[end]) is kind:
                end += 1
            if line.strip():
                yield _block(kind, lines[at:end])
            at = end if line.strip() else at + 1


def _kind(line: str) -> re.Pattern[str] | None:
    """The pattern of a block that a line belongs to; None is a paragraph."""
    return next((one for one in (_FENCE, _HEADING, _ITEM, _QUOTE) if one.match(line)), None)


def _block(kind: re.Pattern[str] | None, lines: list[str]) -> str:
    if kind is None:
        return f"<p>{_inline(' '.join(line.strip() for line in lines))}</p>"
    inside = [found[1] for line in lines if (found := kind.fullmatch(line))]
    if kind is _QUOTE:
        return f"<blockquote>{_inline(' '.join(inside))}</blockquote>"
    return f"<ul>{''.join(f'<li>{_inline(one)}</li>' for one in inside)}</ul>"


def _inline(text: str) -> str:
    """One line, with what lies between backticks left as it is."""
    pieces, at = [], 0
    for code in _CODE.finditer(text):
        pieces += [_emphasised(text[at : code.start()]), f"<code>{html.escape(code[2])}</code>"]
        at = code.end()
    return "".join([*pieces, _emphasised(text[at:])])


def _emphasised(text: str) -> str:
    text = _PICTURE.sub(r"\1", html.escape(text))
    parts = _LINK.split(text)
    made = [_marked(parts[0])]
    for label, address, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        made += [f'<a rel="noreferrer noopener" href="{address}">{_marked(label)}</a>', _marked(after)]
    return "".join(made)


def _marked(text: str) -> str:
    return _EMPHASIS.sub(r"<em>\2</em>", _STRONG.sub(r"<strong>\2</strong>", text))
