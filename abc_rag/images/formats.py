"""Which formats are read, and how a file's first bytes tell what it is."""

from __future__ import annotations

from typing import Literal

__all__ = ["FORMATS", "HEAD_BYTES", "MIME_TYPES", "Format", "format_of", "kind_of_file"]

Format = Literal["AVIF", "BMP", "GIF", "HEIC", "JPEG", "PNG", "TIFF", "WEBP"]

FORMATS: frozenset[Format] = frozenset({"AVIF", "BMP", "GIF", "HEIC", "JPEG", "PNG", "TIFF", "WEBP"})
MIME_TYPES: dict[str, str] = {kind: f"image/{kind.lower()}" for kind in sorted(FORMATS)}

HEAD_BYTES = 64
"""First bytes of a file that are enough for `format_of` and `kind_of_file`."""

_SIGNATURES: tuple[tuple[bytes, Format], ...] = (
    *((signature, "TIFF") for signature in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP")),
    *((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG")),
)
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_OTHERS = (
    *((b"%PDF-", "PDF"), (b"PK\x03\x04", "ZIP archive or office document"), (b"\x1f\x8b", "gzip archive")),
    *((b"Rar!", "RAR archive"), (b"7z\xbc\xaf", "7-Zip archive"), (b"\x7fELF", "program"), (b"MZ", "program")),
    *((b"SQLite format 3\0", "database"), (b"8BPS", "Photoshop picture"), (b"\x1aE\xdf\xa3", "film")),
    *(
        (b"\0\0\0\x0cJXL ", "JPEG XL picture"),
        (b"\xff\x0a", "JPEG XL picture"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000 picture"),
    ),
    *((b"FUJIFILMCCD-RAW", "camera raw picture"), (b"IIRO", "camera raw picture"), (b"IIU\0", "camera raw picture")),
    *((b"ID3", "sound"), (b"OggS", "sound or film"), (b"fLaC", "sound"), (b"%!PS", "PostScript")),
)


def format_of(head: bytes) -> Format | None:
    """The picture format that a file's first bytes announce; None for anything else.

    Args:
        head: The file's bytes, or its first `HEAD_BYTES`.
    """
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            # Two letters are not much: a text may begin with them. The zeros are a BMP's reserved fields.
            return None if kind == "BMP" and head[6:10] != b"\0\0\0\0" else kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        length = min(int.from_bytes(head[:4], "big"), HEAD_BYTES)
        brands = {head[at : at + 4] for at in (8, *range(16, length - 3, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & _HEIC_BRANDS:
            return "HEIC"
    return None


def kind_of_file(head: bytes) -> str:
    """What a file is that is no picture of a readable format, in words: ``"PDF"``, ``"film"``, ``"text"``.

    Args:
        head: The file's first `HEAD_BYTES`.

    Returns:
        A noun; ``"file of unknown kind"`` where the bytes say nothing.
    """
    for signature, kind in _OTHERS:
        if head.startswith(signature):
            return kind
    if head[4:8] == b"ftyp":
        return "film"
    if head[:4] == b"RIFF":
        return "sound or film"
    if not head:
        return "empty file"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:5].lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doc", b"<html")):
        return "web page, SVG or XML"
    if b"\0" not in head and all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in head):
        return "text"
    return "file of unknown kind"
