"""E-mail, by the standard library: who wrote what to whom, its pictures, and what is attached."""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage

from abc_rag.ingest.documents.html import markup_parts, markup_text
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.packed import picture_type
from abc_rag.ingest.documents.parts import Attached, Figure, Linked, Part, Passage
from abc_rag.ingest.documents.reader import Reader
from abc_rag.ingest.documents.text import decoded

__all__ = ["MailReader"]

_SUFFIXES = frozenset({".eml"})
_FIELD = re.compile(rb"([!-9;-~]{1,60}):[ \t]?[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*\r?\n")
_SHOWN = ("Subject", "From", "To", "Cc", "Date")
_MOST_CHARS = 2000  # of a header
_MOST_PARTS = 1000


class MailReader(Reader):
    """Messages as mail programs save them (EML)."""

    name = "e-mail"
    modules = ("lxml",)

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """By the headers that it begins with: a sender, and a date or what only machines write."""
        fields, at = set(), 0
        while (found := _FIELD.match(head, at)) is not None:
            fields.add(found[1].lower())
            at = found.end()
        if b"from" not in fields:
            return False
        by_machine = fields & {b"message-id", b"received", b"mime-version"}
        return bool(by_machine or suffix in _SUFFIXES) and bool(fields & {b"date", b"message-id", b"subject"})

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        message = email.message_from_bytes(data, _class=EmailMessage, policy=email.policy.default)
        headers = {name: value for name in _SHOWN if (value := _header(message, name))}
        heading = (headers["Subject"],) if "Subject" in headers else ()
        if headers:
            yield Passage(heading=heading, text="\n".join(f"{name}: {value}" for name, value in headers.items()))
        body = message.get_body(("html", "plain"))
        pictures = dict(_pictures(message)) if options.figures else {}
        shown: set[str] = set()
        if isinstance(body, EmailMessage):
            for part in _body(body, heading, options):
                if not isinstance(part, Linked):
                    yield part
                elif (found := pictures.get(part.target.removeprefix("cid:"))) and part.target.startswith("cid:"):
                    shown.add(part.target.removeprefix("cid:"))
                    caption = part.caption or found[1]
                    yield Figure(heading=heading, data=found[0], mime_type=picture_type(found[0]), caption=caption)
        for key, (picture, name) in pictures.items():
            if key not in shown:
                yield Figure(heading=heading, data=picture, mime_type=picture_type(picture), caption=name)
        for part_, name in _attached(message, body):
            yield Attached(heading=heading, data=part_, name=name)


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message.get(name, "")).split())[:_MOST_CHARS]
    except Exception:  # the library raises many things on malformed headers
        return ""


def _body(body: EmailMessage, heading: tuple[str, ...], options: DocumentOptions) -> Iterator[Part]:
    data = body.get_payload(decode=True)
    if not isinstance(data, bytes):
        return
    charset = str(body.get_content_charset("") or "")
    if body.get_content_type() == "text/html":
        yield from markup_parts(markup_text(data, charset), options, heading)
        return
    for paragraph in re.split(r"\n\s*\n", decoded(data, charset).replace("\r\n", "\n")):
        if paragraph.strip():
            yield Passage(heading=heading, text=paragraph.strip())


def _leaves(message: EmailMessage) -> Iterator[EmailMessage]:
    """What is in a message, but not what is in messages within it; without recursion."""
    waiting = [message]
    count = 0
    while waiting and count < _MOST_PARTS:
        part = waiting.pop()
        count += 1
        if part.get_content_maintype() == "multipart" and isinstance(inner := part.get_payload(), list):
            waiting += reversed([one for one in inner if isinstance(one, EmailMessage)])
        else:
            yield part


def _pictures(message: EmailMessage) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Content id or place -> bytes and file name."""
    for place, part in enumerate(_leaves(message)):
        data = part.get_payload(decode=True)
        if isinstance(data, bytes) and picture_type(data):
            key = str(part.get("Content-ID", "")).strip().strip("<>")
            yield key or str(place), (data, _name(part))


def _attached(message: EmailMessage, body: object) -> Iterator[tuple[bytes, str]]:
    for part in _leaves(message):
        if part.get_content_type() == "message/rfc822":
            inner = part.get_payload()
            if isinstance(inner, list) and inner and isinstance(inner[0], EmailMessage):
                yield inner[0].as_bytes(), _name(part) or f"{_header(inner[0], 'Subject') or 'message'}.eml"
            continue
        data = part.get_payload(decode=True)
        if part is body or not isinstance(data, bytes) or not data or picture_type(data):
            continue
        if name := _name(part):  # other texts are the same message once more
            yield data, name


def _name(part: EmailMessage) -> str:
    try:
        return " ".join((part.get_filename() or "").split())[:200]
    except Exception:  # as above
        return ""
