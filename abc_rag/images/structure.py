"""What an encoded picture is made of, before anything is decoded: segments, chunks, scans, strips, frames.

Decoders trust the structure of a file. A small file can cost them minutes or gigabytes: hundreds of empty scans over
all pixels, a million empty segments, tags that all refer to the same bytes. `check_structure` walks over the structure
in bounded time and memory. It refuses what no encoder writes and what exceeds `ImageLimits`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from abc_rag.errors import ImageFormatError
from abc_rag.images.formats import Format
from abc_rag.images.limits import ImageLimits, refuse

__all__ = ["Structure", "check_png", "check_structure", "exif_is_sound", "webp_size"]

# A JPEG marker that is neither a restart marker nor an escaped byte of the compressed data.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_JPEG_BARE = frozenset({0x01, 0xD8, 0xD9})  # markers without a length
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_MOST_JPEG_JUNK = 1 << 16  # bytes between segments, each of which costs the header's reader a step
_MOST_JPEG_TABLES = 64  # quantisation tables and EXIF blocks, which are copied again and again
_MOST_GIF_BLOCKS = 4096  # of extensions before the first frame, which are concatenated one by one
_MOST_RLE = 1 << 24  # pixels and bytes of a run-length encoded BMP, whose decoder is written in Python
# Bytes of one value, by TIFF's number of its type.
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_PLAIN = frozenset({1, 2, 6, 7})  # types that are kept as bytes
_TIFF_JPEG = frozenset({6, 7})
_SPARE = 2**20


class Structure(NamedTuple):
    """What was found.

    Attributes:
        frames: Frames or pages, as far as they were counted: one more than the limit is enough.
        passes: How often the decoder passes over all pixels; the scans of a JPEG file.
        largest_tile: Pixels of a TIFF file's tile, which may be larger than the picture.
    """

    frames: int = 1
    passes: float = 1
    largest_tile: int = 0


class _Parts:
    """Counts the parts of one picture, up to the limit."""

    def __init__(self, what: str, name: str, limits: ImageLimits) -> None:
        self.limits = limits
        self._what = what
        self._name = name
        self._count = 0

    def add(self, count: int = 1) -> None:
        self._count += count
        if self._count > self.limits.max_parts:
            refuse(self._name, f"over {self.limits.max_parts:,} {self._what}", "max_parts", self.limits)

    def check(self, count: int) -> None:
        """Refuse more of one kind than there may be parts."""
        if count > self.limits.max_parts:
            refuse(self._name, f"{count:,} {self._what}", "max_parts", self.limits)

    def odd(self, reason: str) -> NoReturn:
        raise ImageFormatError(self._name, f"{reason}, which no encoder writes; save it again")


def check_structure(data: bytes, kind: Format, name: str, limits: ImageLimits) -> Structure:
    """Walk over a picture's structure.

    Args:
        data: The encoded picture.
        kind: Its format.
        name: What it is called in messages.
        limits: How many parts and frames it may have.

    Returns:
        What was found; of AVIF and HEIC nothing, whose parsers have limits of their own.

    Raises:
        ImageLimitError: It has too many parts.
        ImageFormatError: No encoder would write such a file.
        ValueError: It is corrupt; as are IndexError and struct.error.
    """
    walk, what = _WALKS.get(kind, (None, ""))
    return Structure() if walk is None else walk(data, _Parts(what, name, limits))


# --- JPEG -------------------------------------------------------------------------------------------------


def _walk_jpeg(data: bytes, parts: _Parts) -> Structure:
    at, scans, junk, tables, frames = 2, 0, 0, 0, 0
    while (found := _JPEG_MARKER.search(data, at)) is not None:
        parts.add()
        marker = found[1][0]
        if not scans:
            junk += found.start() - at
            if junk > _MOST_JPEG_JUNK:
                parts.odd(f"has over {_MOST_JPEG_JUNK:,} bytes between its segments")
        at = found.end()
        if marker in _JPEG_BARE:
            if marker == 0xD9 and scans:
                break
            continue
        end = at + max(2, int.from_bytes(data[at : at + 2], "big"))
        if marker == 0xDA:
            scans += 1
        elif not scans:
            frames += marker in _JPEG_FRAMES
            tables += marker == 0xDB or (marker == 0xE1 and data[at + 2 : at + 6] == b"Exif")
            if frames > 1:
                parts.odd("has several frame headers")
            if tables > _MOST_JPEG_TABLES:
                parts.odd(f"has over {_MOST_JPEG_TABLES} quantisation tables and EXIF blocks")
            if marker == 0xED:  # Photoshop's resources, which are read one by one
                parts.add(data.count(b"8BIM", at, end))
        at = end
    else:
        # No more markers: what is left may still be stepped over one byte at a time.
        if not scans and junk + len(data) - at > _MOST_JPEG_JUNK:
            parts.odd(f"has over {_MOST_JPEG_JUNK:,} bytes between its segments")
    return Structure(passes=max(1, scans))


# --- PNG --------------------------------------------------------------------------------------------------


def _walk_png(data: bytes, parts: _Parts) -> Structure:
    at, frames = 8, 1
    while at + 8 <= len(data):
        parts.add()
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"acTL" and at + 12 <= len(data):
            frames = struct.unpack_from(">I", data, at + 8)[0]
        elif kind == b"IEND":
            break
        at += 12 + length
    return Structure(frames=frames)


def check_png(data: bytes) -> None:
    """Compare the checksums of a PNG file. Pillow compares none of the pixels', and bears a missing end.

    Raises:
        ValueError: A checksum is wrong, or the end is missing.
    """
    at, view = 8, memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ValueError(f"wrong checksum of chunk {kind!r}")
        at = end
    raise ValueError("truncated before its end")


# --- WebP -------------------------------------------------------------------------------------------------


def _walk_webp(data: bytes, parts: _Parts) -> Structure:
    at, frames = 12, 0
    while at + 8 <= len(data):
        parts.add()
        kind, length = struct.unpack_from("<4sI", data, at)
        frames += kind == b"ANMF"
        at += 8 + length + (length & 1)
    return Structure(frames=max(1, frames))


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by the header: Pillow's reader allocates the canvas before it can be asked.

    Raises:
        struct.error: The header is truncated.
    """
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return width + 1, height + 1
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


# --- GIF --------------------------------------------------------------------------------------------------


def _walk_gif(data: bytes, parts: _Parts) -> Structure:
    frames, inside, extensions = 0, False, 0
    at = 13 + _gif_palette_bytes(data[10])
    for _ in range(10_000 + len(data) // 16):  # encoders fill blocks to 255 bytes
        if frames > parts.limits.max_frames or at >= len(data) or (data[at] == 0x3B and not inside):
            return Structure(frames=frames)
        if inside:
            inside, at = data[at] > 0, at + 1 + data[at]
        elif data[at] == 0x21:
            inside, at = True, at + 2
        elif data[at] == 0x2C:
            frames, inside, at = frames + 1, True, at + 11 + _gif_palette_bytes(data[at + 9])
        else:
            at += 1
        extensions += not frames
        if extensions > _MOST_GIF_BLOCKS:
            parts.odd(f"has over {_MOST_GIF_BLOCKS:,} data blocks before its first frame")
    parts.odd("has more data blocks than its size calls for")


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


# --- BMP --------------------------------------------------------------------------------------------------


def _walk_bmp(data: bytes, parts: _Parts) -> Structure:
    if int.from_bytes(data[14:18], "little") >= 40:
        width, height = struct.unpack_from("<ii", data, 18)
        run_length_encoded = int.from_bytes(data[30:34], "little") in (1, 2)
        if run_length_encoded and abs(width * height) + len(data) > _MOST_RLE:
            parts.odd(f"has over {_MOST_RLE:,} pixels and bytes of run-length encoding")
    return Structure()


# --- TIFF -------------------------------------------------------------------------------------------------


class _Tag(NamedTuple):
    type: int
    length: int
    at: int  # of the values, wherever they are


class _Tiff:
    """As much of a TIFF structure as it takes to find out what it costs; EXIF blocks are TIFF structures, too."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = "<" if data[:1] == b"I" else ">"
        self.big = 43 in data[2:4]
        self._number, self._entry, self._offset = ("Q", 20, "Q") if self.big else ("H", 12, "I")
        self.first = self._unpack(self._offset, 8 if self.big else 4)

    def _unpack(self, code: str, at: int) -> int:
        value: int = struct.unpack_from(self.order + code, self.data, at)[0]
        return value

    def entries(self, at: int) -> int:
        return self._unpack(self._number, at)

    def following(self, at: int) -> int:
        """Where the next page is; 0 after the last."""
        return self._unpack(self._offset, at + struct.calcsize(self._number) + self.entries(at) * self._entry)

    def tags(self, at: int) -> dict[int, _Tag]:
        """The tags of one page. Their number must have been checked."""
        inline = struct.calcsize(self._offset)
        found = {}
        for number in range(self.entries(at)):
            entry = at + struct.calcsize(self._number) + number * self._entry
            if entry + self._entry > len(self.data):
                break
            tag, type_, count = struct.unpack_from(f"{self.order}HH{self._offset}", self.data, entry)
            values = entry + self._entry - inline
            if count * _TIFF_BYTES.get(type_, 0) > inline:
                values = self._unpack(self._offset, values)
            found[tag] = _Tag(type_, count, values)
        return found

    def values(self, tag: _Tag | None) -> tuple[int, ...]:
        code = {3: "H", 4: "I", 13: "I", 16: "Q"}.get(tag.type) if tag is not None else None
        if tag is None or code is None:
            return ()
        return struct.unpack_from(f"{self.order}{tag.length}{code}", self.data, tag.at)

    def claimed(self, tags: dict[int, _Tag]) -> int:
        """Bytes of all values, each of which is read on its own, wherever it lies."""
        return sum(tag.length * _TIFF_BYTES.get(tag.type, 0) for tag in tags.values())


def _walk_tiff(data: bytes, parts: _Parts) -> Structure:
    tiff = _Tiff(data)
    parts.add(tiff.entries(tiff.first))
    tags = tiff.tags(tiff.first)
    for tag in tags.values():
        if tag.type not in _TIFF_PLAIN:
            parts.check(tag.length)
    if tiff.claimed(tags) > len(data) + _SPARE:
        parts.odd("has tags that hold more bytes than the file")
    pages: set[int] = set()  # the chain of pages may bite its own tail
    at = tiff.first
    while at and at not in pages and len(pages) <= parts.limits.max_frames:
        pages.add(at)
        at = tiff.following(at)
    sides = [tiff.values(tags.get(tag)) for tag in (322, 323)]
    tile = max(sides[0]) * max(sides[1]) if all(sides) else 0
    passes = _tiff_scans(tiff, tags, parts) if set(tiff.values(tags.get(259))) & _TIFF_JPEG else 1.0
    return Structure(frames=len(pages), passes=passes, largest_tile=tile)


def _tiff_scans(tiff: _Tiff, tags: dict[int, _Tag], parts: _Parts) -> float:
    """Scans of the JPEG streams in strips or tiles, on average."""
    offsets = tiff.values(tags.get(273)) or tiff.values(tags.get(324))
    lengths = tiff.values(tags.get(279)) or tiff.values(tags.get(325))
    if sum(lengths) > 4 * len(tiff.data) + _SPARE:
        parts.odd("has strips or tiles that hold more bytes than the file")
    scans = sum(tiff.data.count(b"\xff\xda", at, at + length) for at, length in zip(offsets, lengths, strict=False))
    return max(1.0, scans / max(1, len(offsets)))


def exif_is_sound(block: bytes) -> bool:
    """Whether an EXIF block can be read without reading the same bytes over and over."""
    try:
        tiff = _Tiff(block.removeprefix(b"Exif\0\0"))
        return tiff.claimed(tiff.tags(tiff.first)) <= 16 * len(block) + _SPARE
    except (struct.error, IndexError):
        return False


_WALKS: dict[str, tuple[Callable[[bytes, _Parts], Structure], str]] = {
    "BMP": (_walk_bmp, ""),
    "GIF": (_walk_gif, "data blocks"),
    "JPEG": (_walk_jpeg, "segments"),
    "PNG": (_walk_png, "chunks"),
    "TIFF": (_walk_tiff, "tags, strips or tiles"),
    "WEBP": (_walk_webp, "chunks"),
}
