"""A document's parts together with what lies beside it and within it: linked pictures, and attached files."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from abc_rag.errors import DocumentError, InputError
from abc_rag.images.fetch import fetch_page
from abc_rag.ingest.documents.office import is_printed, printed
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.packed import picture_type
from abc_rag.ingest.documents.parts import Attached, Figure, Linked, PagePicture, Part, Passage, Unread
from abc_rag.ingest.documents.process import DocumentProcess
from abc_rag.ingest.documents.reader import HEAD_BYTES, TAIL_BYTES, Reader
from abc_rag.ingest.documents.readers import reader_named, reader_of
from abc_rag.ingest.documents.text import decoded, is_text
from abc_rag.ingest.regular import open_regular
from abc_rag.types import URL

__all__ = ["install_hint", "resolved_parts"]

_MOST_BYTES = 64 * 2**20  # of a linked picture
_MOST_ATTACHED = 200
_MOST_LINKED = 100_000
_MOST_FETCHED = 50
_TEXTS = (".md", ".txt")


def install_hint(reader: Reader, missing: str) -> str:
    """What to say where a reader's library is not installed."""
    return f"reading {reader.name} needs {missing}, which is not installed: pip install 'abc-rag[{reader.extra}]'"


def resolved_parts(
    process: DocumentProcess, data: bytes, reader: Reader, options: DocumentOptions, name: str, place: Path | URL
) -> Generator[Part, None, None]:
    """The parts of a document, as `DocumentProcess.parts` yields them, and those of what it links and holds.

    Pictures of the pages of an office document, which LibreOffice makes, come first, all of them. A linked picture is
    opened only if it is in the document's folder or below. Attached files are read by their own readers, one level
    deep, after everything else; their pages follow on those of the document.

    Args:
        process: Where it is read.
        data: The file.
        reader: What reads it.
        options: How.
        name: Its path or its URL.
        place: The folder or the URL that what it links is relative to.

    Raises:
        DocumentError: It cannot be read, or exceeds a limit; what was yielded before is sound.
    """
    attached: list[Attached] = []
    pages = 0
    linked = 0 if isinstance(place, Path) else _MOST_LINKED - _MOST_FETCHED
    if is_printed(reader, options):
        yield from _printed(process, data, reader, options, name)
    with closing(process.parts(data, reader, options, name)) as parts:
        for part in parts:
            pages = max(pages, part.page or 0)
            if isinstance(part, Attached):
                attached.append(part)
            elif not isinstance(part, Linked):
                yield part
            elif linked < _MOST_LINKED:
                linked += 1
                found = _linked(place, part.target, options)
                if mime_type := picture_type(found):
                    yield _figure(part, found, mime_type)
    for one in attached[:_MOST_ATTACHED]:
        last = pages
        for part in _attached(process, one, options, name):
            if part.page is not None:
                part = replace(part, page=part.page + last, label=f"{one.name} {part.label or part.page}")
                pages = max(pages, part.page or 0)
            yield replace(part, heading=(*one.heading, one.name, *part.heading))
    if len(attached) > _MOST_ATTACHED:
        yield Unread(document=name, reason=f"has more than {_MOST_ATTACHED} attached files; the rest is left out")


def _printed(
    process: DocumentProcess, data: bytes, reader: Reader, options: DocumentOptions, name: str
) -> Iterator[Part]:
    """The pictures of the pages of an office document."""
    try:
        pages = printed(data, reader.printed_as, options.limits)
        with closing(process.parts(pages, reader_named("PDF"), replace(options, figures=False), name)) as parts:
            yield from (part for part in parts if isinstance(part, (PagePicture, Unread)))
    except InputError as error:
        reason = error.reason if isinstance(error, DocumentError) else str(error)
        yield Unread(document=name, reason=f"no pictures of its pages: {reason}")


def _linked(place: Path | URL, target: str, options: DocumentOptions) -> bytes:
    """A linked picture; empty for what is not opened or not there."""
    try:
        if isinstance(place, Path):
            return _beside(place, target)
        url = urllib.parse.urljoin(place.url, target)
        timeout = options.limits.url_timeout_s
        return fetch_page(url, max_bytes=_MOST_BYTES, timeout_s=timeout)[0] if options.allow_web else b""
    except (OSError, ValueError):  # among them: no such file, no such name, no such page
        return b""


def _beside(folder: Path, target: str) -> bytes:
    parts = urllib.parse.urlsplit(target)
    relative = urllib.parse.unquote(parts.path, errors="strict")
    if parts.scheme or parts.netloc or not relative or "\\" in relative or os.path.isabs(relative):
        return b""
    root = os.path.realpath(folder)
    place = os.path.realpath(os.path.join(root, relative))
    if os.path.commonpath((root, place)) != root:
        return b""
    with open(open_regular(Path(place)), "rb") as file:
        data = file.read(_MOST_BYTES + 1)
    return data if len(data) <= _MOST_BYTES else b""


def _figure(part: Linked, data: bytes, mime_type: str) -> Figure:
    fields = {name: value for name, value in part.__dict__.items() if name != "target"}
    return Figure(**fields, data=data, mime_type=mime_type)


def _attached(process: DocumentProcess, one: Attached, options: DocumentOptions, name: str) -> Iterator[Part]:
    data = one.data
    if mime_type := picture_type(data):
        yield Figure(document=name, data=data, mime_type=mime_type, caption=one.name)
        return
    reader = reader_of(data[:HEAD_BYTES], data[-TAIL_BYTES:], one.name)
    if reader is None:
        if one.name.lower().endswith(_TEXTS) and is_text(data[:HEAD_BYTES]):
            yield from (Passage(document=name, text=text) for text in _paragraphs(data))
        return
    if (missing := reader.missing()) is not None:
        yield Unread(document=name, reason=f"{one.name}: {install_hint(reader, missing)}")
        return
    try:
        with closing(process.parts(data, reader, options, name)) as parts:
            for part in parts:
                if isinstance(part, Attached):
                    reason = f"{one.name}: what is attached to it is not read; save it as a file of its own"
                    yield Unread(document=name, reason=reason)
                elif not isinstance(part, Linked):
                    yield part
    except DocumentError as error:
        yield Unread(document=name, reason=f"{one.name}: {error.reason}")


def _paragraphs(data: bytes) -> Sequence[str]:
    text = decoded(data).replace("\r\n", "\n")
    return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
