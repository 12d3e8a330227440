"""What is passed on of a picture: its pixels, whatever else its file holds and wherever that hides."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

import abc_rag
from abc_rag.errors import ImageFormatError, InputError
from abc_rag.images import ImageLimits, open_image, share_image

DEMO = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo"
# Printable, as what somebody would rather keep to themselves is.
MARKER = b"THE-PRIVATE-TEXT-of-48.8584N-2.2945E"


def scene(mode: str = "RGB") -> PIL.Image.Image:
    rows = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)
    return PIL.Image.fromarray(rows).convert(mode)


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    scene(mode).save(stream, kind, **options)
    return stream.getvalue()


def exif() -> bytes:
    made = PIL.Image.Exif()
    made[0x010E] = MARKER.decode()
    return made.tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(kind: bytes, content: bytes, *, last: bool = False) -> bytes:
    """A PNG file with one more chunk, before or after its pixels."""
    data = encoded("PNG")
    at = data.index(b"IEND") - 4 if last else data.index(b"IDAT") - 4
    return data[:at] + chunk(kind, content) + data[at:]


def with_segment(marker: int, content: bytes) -> bytes:
    """A JPEG file with one more segment behind the first."""
    data = encoded("JPEG")
    at = 4 + struct.unpack_from(">H", data, 4)[0]
    return data[:at] + bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content + data[at:]


def with_riff(kind: bytes, content: bytes) -> bytes:
    """A WebP file with one more chunk, of the extended kind that may have some."""
    size, coded = struct.unpack_from("<4xI4x4xI", encoded("WEBP"))
    pixels = encoded("WEBP")[12 : 8 + size]
    padded = content + b"\0" * (len(content) % 2)
    canvas = struct.pack("<I", 0)[:1] + b"\0\0\0" + struct.pack("<I", 63)[:3] + struct.pack("<I", 47)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + pixels + kind + struct.pack("<I", len(content)) + padded
    assert coded
    return b"RIFF" + struct.pack("<I", len(body)) + body


def hidden_in_pixels() -> bytes:
    """A PNG file with text behind the end of its compressed pixels."""
    data = encoded("PNG")
    at = data.index(b"IDAT") - 4
    (size,) = struct.unpack_from(">I", data, at)
    return data[:at] + chunk(b"IDAT", data[at + 8 : at + 8 + size] + MARKER) + data[at + 12 + size :]


def as_text(**fields: str) -> bytes:
    info = PIL.PngImagePlugin.PngInfo()
    for key, value in fields.items():
        info.add_text(key, value)
    return encoded("PNG", pnginfo=info)


def jpeg_tail(extra: bytes) -> bytes:
    data = encoded("JPEG")
    return data[:-2] + extra + data[-2:]


FORMS: dict[str, Callable[[], bytes]] = {
    "jpeg exif": lambda: encoded("JPEG", exif=exif()),
    "jpeg xmp": lambda: with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x>" + MARKER + b"</x>"),
    "jpeg iptc": lambda: with_segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x24" + MARKER),
    "jpeg comment": lambda: encoded("JPEG", comment=MARKER),
    "jpeg colour profile": lambda: encoded("JPEG", icc_profile=b"ICC_PROFILE" + MARKER),
    "jpeg unknown segment": lambda: with_segment(0xE9, MARKER),
    "jpeg jfif thumbnail": lambda: with_segment(0xE0, b"JFXX\0\x10" + MARKER),
    "jpeg long jfif": lambda: with_segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0" + MARKER),
    "jpeg long adobe": lambda: with_segment(0xEE, b"Adobe" + MARKER),
    "jpeg behind its end": lambda: encoded("JPEG") + MARKER,
    "jpeg behind its last pixel": lambda: jpeg_tail(MARKER),
    "jpeg a second picture": lambda: encoded("JPEG") + encoded("JPEG", comment=MARKER),
    "png text": lambda: as_text(Comment=MARKER.decode()),
    "png compressed text": lambda: with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(MARKER, 0)),
    "png xmp": lambda: with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + MARKER),
    "png xmp behind its pixels": lambda: with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + MARKER, last=True),
    "png exif": lambda: encoded("PNG", exif=exif()),
    "png exif behind its pixels": lambda: with_chunk(b"eXIf", exif().removeprefix(b"Exif\0\0"), last=True),
    "png raw profile exif": lambda: as_text(**{"Raw profile type exif": f"\nexif\n 36\n{MARKER.hex()}"}),
    "png raw profile app1": lambda: as_text(**{"Raw profile type APP1": f"\nAPP1\n 36\n{MARKER.decode()}"}),
    "png raw profile iptc": lambda: as_text(**{"Raw profile type iptc": f"\niptc\n 36\n{MARKER.decode()}"}),
    "png unknown chunk": lambda: with_chunk(b"prVt", MARKER),
    "png colour profile": lambda: encoded("PNG", icc_profile=b"ICC" + MARKER),
    "png long gamma": lambda: with_chunk(b"gAMA", b"\0\0\xb1\x8f" + MARKER),
    "png behind its end": lambda: encoded("PNG") + MARKER,
    "png behind its pixels": hidden_in_pixels,
    "webp exif": lambda: encoded("WEBP", exif=exif()),
    "webp xmp": lambda: encoded("WEBP", xmp=MARKER),
    "webp unknown chunk": lambda: with_riff(b"PRIV", MARKER),
    "webp behind its end": lambda: encoded("WEBP") + MARKER,
    "gif comment": lambda: encoded("GIF", "P", comment=MARKER),
    "tiff description": lambda: encoded("TIFF", tiffinfo={270: MARKER.decode()}),
    "bmp behind its end": lambda: encoded("BMP") + MARKER,
}


def holds_marker(data: bytes) -> bool:
    compressed = [data[at:] for at in range(len(data)) if data[at : at + 1] == b"x"]
    inflated = []
    for one in compressed:
        try:
            inflated.append(zlib.decompressobj().decompress(one, 10**6))
        except zlib.error:
            continue
    return any(MARKER in one or MARKER.hex().encode() in one for one in [data, *inflated])


@pytest.mark.parametrize("form", FORMS)
def test_nothing_private_is_passed_on(form: str) -> None:
    data = FORMS[form]()
    assert holds_marker(data)
    shared, mime_type = share_image(data)
    assert not holds_marker(shared)
    assert mime_type in ("image/jpeg", "image/png", "image/webp")
    with PIL.Image.open(io.BytesIO(shared)) as image:
        image.load()
        assert image.size == (64, 48)
        harmless = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi"}  # and how an animation plays
        assert not set(image.info) - harmless - {"background", "duration", "loop", "timestamp"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_file_of_pixels_alone_passes_as_it_is(kind: str, mode: str) -> None:
    data = encoded(kind, mode)
    assert share_image(data) == (data, f"image/{kind.lower()}")


def test_other_files_of_pixels_alone() -> None:
    for data, mime_type in (
        (encoded("JPEG", progressive=True, optimize=True), "image/jpeg"),
        (encoded("PNG", "RGBA"), "image/png"),
        (encoded("WEBP", lossless=True), "image/webp"),
    ):
        assert share_image(data) == (data, mime_type)
    for path in DEMO.glob("*.jpg"):
        assert share_image(path) == (path.read_bytes(), "image/jpeg")


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("PNG", "I;16"), ("PNG", "1"), ("PNG", "LA"), ("GIF", "P")]
)
def test_what_not_every_viewer_knows_is_encoded_anew(kind: str, mode: str) -> None:
    data = encoded(kind, mode)
    shared, mime_type = share_image(data)
    assert shared != data
    assert mime_type == ("image/jpeg" if kind == "JPEG" else "image/png")
    assert open_image(shared).size == (64, 48)


def test_pictures_are_upright_and_no_larger_than_wanted() -> None:
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    shared, _ = share_image(encoded("JPEG", exif=turned.tobytes()))
    with PIL.Image.open(io.BytesIO(shared)) as image:
        assert image.size == (48, 64)
    assert open_image(share_image(encoded("PNG"), max_side=32)[0]).size == (32, 24)
    assert share_image(encoded("PNG"), max_side=64)[0] == encoded("PNG")
    assert open_image(share_image(scene())[0]).size == (64, 48)
    for wrong in (0, True, 1.5, "9"):
        with pytest.raises(InputError, match="max_side must be a positive number of pixels"):
            share_image(encoded("PNG"), max_side=wrong)  # type: ignore[arg-type]


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ImageFormatError, match=r"^my\.png: is not of a format"):
        share_image(b"words", name="my.png")
    with pytest.raises(ImageFormatError, match="do not allow"):
        share_image(encoded("PNG"), limits=ImageLimits(formats=frozenset({"JPEG"})))
