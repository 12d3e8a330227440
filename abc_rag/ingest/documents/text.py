"""Bytes of a text into a str: what encoding they are in, and whether they are text at all."""

from __future__ import annotations

import codecs
from contextlib import suppress

__all__ = ["decoded", "is_text"]

_MARKS = (
    *((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be")),
    *((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")),
)
# What browsers take where nothing is declared and the bytes are no UTF-8.
_FALLBACK = "cp1252"


def decoded(data: bytes, declared: str = "") -> str:
    """A text, by its byte order mark, as it declares, as UTF-8, or as Windows' Latin letters; never fails.

    Args:
        data: The bytes.
        declared: What the text or its container says that the encoding is; may be nonsense.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace").replace("\0", "")
    for encoding in (declared, "utf-8"):
        # Only what Python calls a text encoding: "zip" and "rot13" are codecs as well.
        with suppress(LookupError, ValueError):
            if encoding:
                return data.decode(encoding).replace("\0", "")
    return data.decode(_FALLBACK, "replace").replace("\0", "")


def is_text(head: bytes) -> bool:
    """Whether a file's first bytes are those of a text."""
    if any(head.startswith(mark) for mark, _ in _MARKS):
        return True
    return bool(head) and all(byte >= 0x20 or byte in b"\t\r\n\f\x1b" for byte in head)
