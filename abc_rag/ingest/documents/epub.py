"""EPUB: the chapters of a book in their order, each read as HTML, with the pictures that are in the book."""

from __future__ import annotations

import io
import posixpath
import urllib.parse
import zipfile
from collections.abc import Iterator
from dataclasses import replace

from abc_rag.errors import InputError
from abc_rag.ingest.documents.html import markup_parts, markup_text
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.packed import check_packed, has_member, parsed_xml, picture_type
from abc_rag.ingest.documents.parts import Figure, Linked, Part, Unread
from abc_rag.ingest.documents.reader import Reader

__all__ = ["EPUBReader"]

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_MARK = b"mimetypeapplication/epub+zip"
_TEXTS = frozenset({"application/xhtml+xml", "text/html", "application/xml", "text/x-oeb1-document"})


class EPUBReader(Reader):
    """Electronic books, which have no pages: headings say where a part is."""

    name = "EPUB"
    modules = ("lxml",)

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """By its first member, which says so, or by the member that names the book."""
        return head[30 : 30 + len(_MARK)] == _MARK or has_member(head, tail, _CONTAINER.encode())

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        check_packed(data, options.limits, (".opf", _CONTAINER, _ENCRYPTION))
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            title, chapters, cover = _book(packed)
            above = (title,) if title else ()
            used: set[str] = set()
            if cover and options.figures:
                yield from _picture(packed, Figure(heading=above, data=b"", caption=title), cover, used)
            for number, name in enumerate(chapters, 1):
                try:
                    yield from _chapter(packed, name, above, options, used)
                except MemoryError:
                    raise
                except Exception as error:
                    why = f"chapter {number} ({name}) cannot be read ({type(error).__name__}: {error}); save it anew"
                    yield Unread(reason=why)


def _book(packed: zipfile.ZipFile) -> tuple[str, list[str], str]:
    """The title, the members that are its chapters, in their order, and the one that is its cover."""
    names = set(packed.namelist())
    try:
        root = parsed_xml(packed.read(_CONTAINER)).find(".//{*}rootfile")
        place = "" if root is None else str(root.get("full-path"))
        book = parsed_xml(packed.read(place))
    except KeyError as error:
        raise InputError("does not say where its chapters are; save it anew") from error
    folder = posixpath.dirname(place)
    items = {str(item.get("id")): item for item in book.iterfind("{*}manifest/{*}item")}
    chapters, seen = [], set()
    for entry in book.iterfind("{*}spine/{*}itemref"):
        item = items.get(str(entry.get("idref")))
        name = "" if item is None else _member(folder, str(item.get("href")))
        if item is not None and item.get("media-type") in _TEXTS and name in names and name not in seen:
            seen.add(name)
            chapters.append(name)
    if not chapters:
        raise InputError("has no chapters; save it anew")
    if _ENCRYPTION in names:
        locked = {str(one.get("URI")) for one in parsed_xml(packed.read(_ENCRYPTION)).iterfind(".//{*}CipherReference")}
        if any(name in locked for name in chapters):
            raise InputError("is encrypted by its seller and cannot be read; get it without that")
    title = " ".join((book.findtext("{*}metadata/{*}title") or "").split())[:300]
    covers = [item for item in items.values() if "cover-image" in str(item.get("properties"))]
    return title, chapters, _member(folder, str(covers[0].get("href"))) if covers else ""


def _member(folder: str, target: str) -> str:
    """The member that a reference from a folder of the book means; what leads out of the book is in none."""
    parts = urllib.parse.urlsplit(target)
    if parts.scheme or parts.netloc:
        return ""
    return posixpath.normpath(posixpath.join(folder, urllib.parse.unquote(parts.path)))


def _chapter(
    packed: zipfile.ZipFile, name: str, above: tuple[str, ...], options: DocumentOptions, used: set[str]
) -> Iterator[Part]:
    for part in markup_parts(markup_text(packed.read(name)), options, above):
        if isinstance(part, Linked):
            figure = Figure(heading=part.heading, data=b"", caption=part.caption)
            yield from _picture(packed, figure, _member(posixpath.dirname(name), part.target), used)
        else:
            yield part


def _picture(packed: zipfile.ZipFile, figure: Figure, name: str, used: set[str]) -> Iterator[Figure]:
    """A picture of the book, once."""
    if name in used or name not in packed.NameToInfo:
        return
    used.add(name)
    data = packed.read(name)
    if mime_type := picture_type(data):
        yield replace(figure, data=data, mime_type=mime_type)
