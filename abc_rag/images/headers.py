"""What the headers of encoded pictures say before anything is decoded: WebP sizes, frames of GIF and TIFF files.

The bytes are not trusted: counting stops at the number given, and files without an end are errors.
"""

from __future__ import annotations

import struct


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return width + 1, height + 1
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _count_gif_frames(data: bytes, stop: int) -> int:
    frames, inside = 0, False
    at = 13 + _gif_palette_bytes(data[10])
    for _ in range(10_000 + len(data) // 16):  # encoders fill blocks to 255 bytes
        if frames == stop or at >= len(data) or (data[at] == 0x3B and not inside):
            return frames
        if inside:
            inside, at = data[at] > 0, at + 1 + data[at]
        elif data[at] == 0x21:
            inside, at = True, at + 2
        elif data[at] == 0x2C:
            frames, inside, at = frames + 1, True, at + 11 + _gif_palette_bytes(data[at + 9])
        else:
            at += 1
    raise ValueError("more data blocks than any encoder makes")


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _count_tiff_pages(data: bytes, stop: int) -> int:
    order = "<" if data[:1] == b"I" else ">"
    number, entry, offset, at = ("Q", 20, "Q", 8) if 43 in data[2:4] else ("H", 12, "I", 4)
    seen: set[int] = set()  # the chain of pages may bite its own tail
    at = struct.unpack_from(order + offset, data, at)[0]
    while at and at not in seen and len(seen) < stop:
        seen.add(at)
        entries = struct.unpack_from(order + number, data, at)[0]
        at = struct.unpack_from(order + offset, data, at + struct.calcsize(number) + entries * entry)[0]
    return len(seen)


_FRAME_COUNTERS = {"GIF": _count_gif_frames, "TIFF": _count_tiff_pages}
