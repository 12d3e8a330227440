"""The encoded bytes of a picture from a file, a URL or a data URI, and never more of them than allowed."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import urllib.parse

from abc_rag._fetch import fetch
from abc_rag._image_limits import ImageLimits, _refuse
from abc_rag.errors import ImageError, ImageFetchError, ImageFormatError, InputError
from abc_rag.types import URL, DataURI

_CHUNK = 1 << 20  # bytes read at a time
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
        _refuse(name, f"{status.st_size:,} bytes", "max_bytes", limits)


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
    if "%" in payload:
        payload = urllib.parse.unquote(payload, errors="replace")
    payload = "".join(payload.split())
    size = len(payload.rstrip("=")) * 3 // 4
    if size > limits.max_bytes:
        _refuse(name, f"{size:,} bytes", "max_bytes", limits)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageFormatError(name, f"is not valid base64 ({error}); encode the bytes again") from error
