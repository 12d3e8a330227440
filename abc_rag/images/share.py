"""A picture for somebody else's eyes: its pixels, and nothing that stands beside them in the file."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable

import PIL.Image

from abc_rag.errors import InputError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import open_image
from abc_rag.images.read import describe_source, read_bytes
from abc_rag.types import ImageSource

__all__ = ["share_image"]

_QUALITY = 92
# What all of today's chat models take; everything else becomes PNG.
_KINDS = {"image/jpeg": "JPEG", "image/webp": "WEBP", "image/avif": "JPEG", "image/heic": "JPEG"}

# With the most bytes of each.
_PNG_CHUNKS = {b"IHDR": 13, b"PLTE": 768, b"tRNS": 256, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"IEND": 0}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 6: 4}  # gray, RGB, palette, RGBA
# Tables and frames, without which nothing is decoded: DQT, SOF0 to SOF2, DHT, DRI.
_JPEG_SEGMENTS = frozenset({0xDB, 0xC0, 0xC1, 0xC2, 0xC4, 0xDD})
_JFIF = re.compile(rb"JFIF\0\x01[\0-\x02][\0-\x02].{4}\0\0", re.DOTALL)  # no thumbnail
_ADOBE = re.compile(rb"Adobe.{7}", re.DOTALL)
# Decoders pass over what stands behind the last coded pixel. Coded pixels look like noise, and noise seldom like this.
_WORDS = re.compile(rb"[\x20-\x7e]{16}")


def share_image(
    source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS, max_side: int | None = None, name: str | None = None
) -> tuple[bytes, str]:
    """A picture's file with its pixels only: encoded again, upright and in RGB, unless it contains nothing else.

    Files carry more than pixels: where a photo was taken, who took it, a thumbnail of what was cut away, comments,
    whatever was appended. No such thing is passed on, in whichever segment or chunk it hides, because a file passes
    as it is only if every part of it is known to be needed for its pixels.

    Args:
        source: As for `abc_rag.images.open_image`.
        limits: What the picture may cost.
        max_side: Maximum pixels of the longer side; a larger picture is shrunk.
        name: What errors call it.

    Returns:
        The bytes of a JPEG, PNG or WebP file, and their MIME type.

    Raises:
        ImageError: It cannot be opened.
        InputError: ``max_side`` is not a positive number of pixels.
    """
    if max_side is not None and (isinstance(max_side, bool) or not isinstance(max_side, int) or max_side < 1):
        raise InputError(f"max_side must be a positive number of pixels or None, not {max_side!r}")
    name = describe_source(source) if name is None else name
    data = None if isinstance(source, PIL.Image.Image) else read_bytes(source, limits=limits)
    opened = open_image(source if data is None else data, limits=limits, name=name)
    image, mime_type = opened.image, opened.mime_type or ""
    fits = max_side is None or max(image.size) <= max_side
    if data is not None and fits and _is_bare(data, mime_type):
        return data, mime_type
    if max_side is not None and not fits:
        image.thumbnail((max_side, max_side), PIL.Image.Resampling.LANCZOS)
    # What was a photo stays one: as PNG it would be many times larger.
    kind = _KINDS.get(mime_type, "PNG")
    stream = io.BytesIO()
    image.save(stream, kind, **({} if kind == "PNG" else {"quality": _QUALITY}))
    return stream.getvalue(), f"image/{kind.lower()}"


def _is_bare(data: bytes, mime_type: str) -> bool:
    """Whether a file that was decoded has nothing but one still picture, in colours that every viewer knows."""
    look = _LOOKS.get(mime_type)
    try:
        return look is not None and look(data)
    except (struct.error, IndexError, zlib.error):
        return False


def _is_bare_png(data: bytes) -> bool:
    position, coded = 8, bytearray()
    width, height, depth, colour, interlaced = struct.unpack_from(">IIBBxxB", data, 16)
    if depth != 8 or colour not in _PNG_CHANNELS or interlaced:
        return False
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        content = data[position + 8 : position + 8 + size]
        if kind == b"IDAT":
            coded += content
        elif size > _PNG_CHUNKS.get(kind, -1) or _WORDS.search(content):
            return False
        position += 12 + size
        if kind == b"IEND":
            break
    if position != len(data):
        return False
    # As many compressed pixels as there are, and nothing behind them.
    size = height * (1 + width * _PNG_CHANNELS[colour])
    stream = zlib.decompressobj()
    pixels = stream.decompress(bytes(coded), size + 1)
    return len(pixels) == size and stream.eof and not stream.unused_data


def _is_bare_webp(data: bytes) -> bool:
    size, kind, coded = struct.unpack_from("<4xI4x4sI", data)
    whole = size + 8 == len(data) == 20 + coded + coded % 2
    return kind in (b"VP8 ", b"VP8L") and whole and not _WORDS.search(data, 20)


def _is_bare_jpeg(data: bytes) -> bool:
    position = 2
    while True:
        while data[position + 1] == 0xFF:  # fill bytes
            position += 1
        if data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker == 0xD9:
            return position + 2 == len(data)
        (size,) = struct.unpack_from(">H", data, position + 2)
        content = data[position + 4 : position + 2 + size]
        if not _is_needed(marker, content):
            return False
        position += 2 + size
        if marker == 0xDA:
            start = position
            # Within coded pixels, FF is followed by 00, or by the number of a restart.
            while data[position] != 0xFF or data[position + 1] == 0 or 0xD0 <= data[position + 1] <= 0xD7:
                position = data.index(0xFF, position + 1) if data[position] != 0xFF else position + 2
            if _WORDS.search(data, start, position):
                return False


def _is_needed(marker: int, content: bytes) -> bool:
    if marker in (0xC0, 0xC1, 0xC2):
        # Gray or colour: CMYK looks different in each viewer.
        return len(content) == 6 + 3 * content[5] and content[5] in (1, 3)
    if marker == 0xDA:
        return len(content) == 4 + 2 * content[0]
    if marker == 0xE0:
        return _JFIF.fullmatch(content) is not None
    if marker == 0xEE:
        return _ADOBE.fullmatch(content) is not None
    if marker == 0xDB:
        return len(content) % 65 == 0 or len(content) % 129 == 0
    if marker == 0xC4:
        return _tables(content)
    return marker in _JPEG_SEGMENTS and (marker != 0xDD or len(content) == 2)


def _tables(content: bytes) -> bool:
    """Whether a segment of Huffman tables ends with the last of them."""
    position = 0
    while position < len(content):
        position += 17 + sum(content[position + 1 : position + 17])
    return position == len(content)


_LOOKS: dict[str, Callable[[bytes], bool]] = {
    "image/jpeg": _is_bare_jpeg,
    "image/png": _is_bare_png,
    "image/webp": _is_bare_webp,
}
