"""The encoded bytes of a picture from a file, a URL or a data URI, and never more of them than allowed."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import string

import PIL.Image

from abc_rag.errors import ImageError, ImageFetchError, ImageFormatError, InputError
from abc_rag.images.fetch import fetch
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits, refuse
from abc_rag.types import URL, DataURI, ImageSource

__all__ = ["check_bytes", "describe_source", "read_bytes"]


_CHUNK = 1 << 20  # bytes read at a time
_MOST_SPACE = 2  # times as many characters as base64 needs
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DATA_URI = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+-]+);base64", re.ASCII | re.IGNORECASE)


def _read_file(path: str, name: str, limits: ImageLimits) -> bytes:
    flags = os.O_RDONLY
    for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, flag, 0)  # not every platform has each
    try:
        # Looked at before opening, for opening a device can have effects; and after, for it may have changed.
        _require_file(os.stat(path), name, limits)
        with open(os.open(path, flags), "rb") as file:
            _require_file(os.fstat(file.fileno()), name, limits)
            data = bytearray()
            while chunk := file.read(min(_CHUNK, limits.max_bytes + 1 - len(data))):
                data += chunk
            return bytes(data)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        remedy = "check the path"
        if path[:5].lower() == "data:":
            remedy = "a str is always a path; wrap a data URI as abc_rag.DataURI(...)"
        elif re.match("https?://", path, re.IGNORECASE):
            remedy = "a str is always a path; wrap a URL as abc_rag.URL(...)"
        elif isinstance(error, PermissionError):
            remedy = "make it readable for this user"
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageFetchError(name, f"cannot be read ({reason}); {remedy}") from error


def _require_file(status: os.stat_result, name: str, limits: ImageLimits) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageFetchError(name, "is a directory; pass the path of one picture in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageFetchError(name, "is not a regular file but a device, a pipe or a socket; pass a file or bytes")
    if status.st_size > limits.max_bytes:
        refuse(name, f"{status.st_size:,} bytes", "max_bytes", limits)


def _read_url(source: URL, name: str, limits: ImageLimits) -> bytes:
    if not isinstance(source.url, str):
        raise InputError(f"URL.url must be a str, not {type(source.url).__name__}")
    if not limits.allow_urls:
        remedy = "pass limits=ImageLimits(allow_urls=True) to allow it, or download it yourself and pass its path"
        raise ImageFetchError(name, f"fetching pictures from URLs is off; {remedy}")
    return fetch(
        source.url,
        source=name,
        max_bytes=limits.max_bytes,
        timeout_s=limits.url_timeout_s,
        max_redirects=limits.max_redirects,
    )


def _read_data_uri(source: DataURI, name: str, limits: ImageLimits) -> bytes:
    if not isinstance(source.uri, str):
        raise InputError(f"DataURI.uri must be a str, not {type(source.uri).__name__}")
    header, comma, payload = source.uri.partition(",")
    match = _DATA_URI.fullmatch(header.strip()) if comma else None
    if match is None:
        raise ImageFormatError(name, "is not of the form data:image/...;base64,...; encode it as that, or pass bytes")
    if not match["mime"].lower().startswith("image/"):
        raise ImageFormatError(name, f"holds {match['mime'][:60]}, not a picture; pass a data:image/... URI")
    # Before anything is copied: an escape is three characters for one, and white space is rare.
    if len(payload) - 2 * payload.count("%") > _MOST_SPACE * (limits.max_bytes * 4 // 3 + 4):
        refuse(name, f"about {len(payload) * 3 // 4:,} bytes of base64", "max_bytes", limits)
    try:
        encoded = _unescaped(payload.encode("ascii")).translate(None, delete=string.whitespace.encode())
    except ValueError as error:
        raise ImageFormatError(name, f"is not valid base64 ({error}); encode the bytes again") from error
    size = len(encoded.rstrip(b"=")) * 3 // 4
    if size > limits.max_bytes:
        refuse(name, f"{size:,} bytes", "max_bytes", limits)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageFormatError(name, f"is not valid base64 ({error}); encode the bytes again") from error


def _unescaped(payload: bytes) -> bytes:
    """Percent escapes resolved, in memory of a few times the payload's size; `urllib` needs a hundred times as much."""
    if b"%" not in payload:
        return payload
    if _BAD_ESCAPE.search(payload):
        raise ValueError("a percent sign is not followed by two hexadecimal digits")
    # Quoted-printable is the same with another sign.
    return binascii.a2b_qp(payload.replace(b"=", b"=3D").replace(b"%", b"="))


def describe_source(source: ImageSource) -> str:
    """A picture's name for messages: one line, at most 300 characters, without passwords.

    Args:
        source: As for `open_image`.

    Returns:
        Its path, its URL, ``"bytes (123 KB)"``, ``"data URI"`` or ``"PIL image"``.

    Raises:
        InputError: ``source`` is none of these.
    """
    if isinstance(source, PIL.Image.Image):
        return "PIL image"
    if isinstance(source, bytes):
        size = len(source)
        return f"bytes ({size} B)" if size < 1000 else f"bytes ({size / 1000:,.0f} KB)"
    if isinstance(source, DataURI):
        return "data URI"
    if isinstance(source, URL):
        name = re.sub(r"//[^/?#]*@", "//...@", str(source.url))
    elif isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
    else:
        what = "a path, abc_rag.URL, abc_rag.DataURI, bytes or a PIL image"
        raise InputError(f"a picture's source must be {what}, not {type(source).__name__}")
    name = name if name.isprintable() else repr(name)[1:-1]
    return name if len(name) <= 300 else f"{name[:200]}...{name[-80:]}"


def read_bytes(source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The encoded bytes of a picture, from wherever they are.

    Args:
        source: As for `open_image`, but no PIL image, which has no encoded bytes.
        limits: Of these, ``max_bytes`` and what concerns URLs.

    Returns:
        1 to ``max_bytes`` bytes.

    Raises:
        ImageLimitError: There are more than ``max_bytes``.
        ImageFormatError: There are none, or the data URI is malformed.
        ImageFetchError: They could not be read or fetched, or fetching is not allowed.
        InputError: ``source`` is none of the above.
    """
    name = describe_source(source)
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, DataURI):
        data = _read_data_uri(source, name, limits)
    elif isinstance(source, URL):
        data = _read_url(source, name, limits)
    elif isinstance(source, (str, os.PathLike)):
        data = _read_file(os.fsdecode(source), name, limits)
    else:
        raise InputError(f"{name} has no encoded bytes; save it, or use open_image")
    check_bytes(data, name, limits)
    return data


def check_bytes(data: bytes, name: str, limits: ImageLimits) -> None:
    """Check how many encoded bytes there are.

    Raises:
        ImageLimitError: There are more than ``max_bytes``.
        ImageFormatError: There are none.
    """
    if len(data) > limits.max_bytes:
        refuse(name, f"{len(data):,} bytes", "max_bytes", limits)
    if not data:
        raise ImageFormatError(name, "is empty (0 bytes); pass a picture's encoded bytes")
