"""Files that would cost a decoder minutes or gigabytes are refused by their structure; ordinary files are not."""

from __future__ import annotations

import io
import random
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
from PIL import PngImagePlugin, TiffImagePlugin

import abc_rag
from abc_rag.errors import ImageError, ImageFormatError, ImageLimitError
from abc_rag.images.decode import decode
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import mime_type_of, open_image
from abc_rag.images.structure import check_structure, exif_is_sound
from abc_rag.types import DataURI


def picture(size: tuple[int, int] = (64, 64)) -> PIL.Image.Image:
    noise = PIL.Image.frombytes("RGB", (16, 16), random.Random(1).randbytes(16 * 16 * 3))
    return noise.resize(size, PIL.Image.Resampling.BICUBIC)


def encode(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


JPEG = encode(picture(), "JPEG")
PROGRESSIVE = encode(picture(), "JPEG", progressive=True)
PNG = encode(picture(), "PNG")
GIF = encode(picture().convert("P"), "GIF")
LAST_SCAN = PROGRESSIVE.rfind(b"\xff\xda")


def segment(marker: int, data: bytes = b"") -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def resized(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG file whose header claims another size."""
    found = re.search(rb"\xff[\xc0\xc2]..\x08", jpeg, re.DOTALL)
    assert found is not None
    at = found.start() + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def scans(count: int, side: int, padding: int = 470_000) -> bytes:
    more = PROGRESSIVE[LAST_SCAN:-2] * count
    return resized(PROGRESSIVE[:LAST_SCAN], side, side) + more + b"\xff\xd9" + bytes(padding)


def tiff(*tags: tuple[int, int, int, bytes | int], extra: bytes = b"") -> bytes:
    """A little-endian TIFF file of these (tag, type, count, value); bytes are put behind, an int into the entry."""
    at = 8 + 2 + 12 * len(tags) + 4
    out, behind = b"II*\0" + struct.pack("<IH", 8, len(tags)), b""
    for tag, kind, count, value in tags:
        if isinstance(value, int):
            out += struct.pack("<HHII", tag, kind, count, value)
        else:
            out += struct.pack("<HHII", tag, kind, count, at + len(behind))
            behind += value
    return out + bytes(4) + behind + extra


def strips(count: int) -> bytes:
    ones = struct.pack("<I", 8) * count
    return tiff(
        *((256, 4, 1, 6000), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
        *((273, 4, count, ones), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, count, ones)),
    )


def bmp_runs() -> bytes:
    data = bytearray(encode(picture().convert("P"), "BMP"))
    struct.pack_into("<ii", data, 18, 10_000, 10_000)
    struct.pack_into("<I", data, 30, 1)
    return bytes(data) + bytes(20_000)


def webp(side: int) -> bytes:
    return b"RIFF\x16\0\0\0WEBPVP8L\x09\0\0\0\x2f" + struct.pack("<I", side - 1 | side - 1 << 14) + bytes(9)


def jpeg_in_tiff() -> bytes:
    stream = scans(2000, 4000)
    return tiff(
        *((256, 4, 1, 4000), (257, 4, 1, 4000), (258, 3, 3, struct.pack("<3H", 8, 8, 8)), (259, 3, 1, 7)),
        *((262, 3, 1, 6), (273, 4, 1, 150), (277, 3, 1, 3), (278, 4, 1, 4000), (279, 4, 1, len(stream))),
        extra=stream,
    )


ATTACKS: dict[str, tuple[Callable[[], bytes], type[ImageError], str]] = {
    "490 scans of 100 Mpx": (lambda: scans(490, 10_000), ImageLimitError, "max_scan_pixels"),
    "490 scans of 16 Mpx": (lambda: scans(490, 4_000), ImageLimitError, "max_scan_pixels"),
    "scans within a TIFF file": (jpeg_in_tiff, ImageLimitError, "max_scan_pixels"),
    "40 MB of FF": (lambda: JPEG[:2] + b"\xff" * 40_000_000 + JPEG[2:], ImageFormatError, "between its segments"),
    "40 MB of FF without an end": (lambda: JPEG[:2] + b"\xff" * 40_000_000, ImageFormatError, "between its segments"),
    "40 MB of nothing": (lambda: JPEG[:20] + bytes(40_000_000), ImageFormatError, "between its segments"),
    "restart markers": (lambda: JPEG[:2] + b"\xff\xd0" * 20_000_000, ImageFormatError, "between its segments"),
    "a million APP segments": (lambda: JPEG[:2] + segment(0xE5) * 10**6 + JPEG[2:], ImageLimitError, "max_parts"),
    "a million markers": (lambda: JPEG[:2] + b"\xff\xd8" * 10**6 + JPEG[2:], ImageLimitError, "max_parts"),
    "700 quantisation tables": (
        lambda: JPEG[:2] + segment(0xDB, bytes(65_000)) * 700 + JPEG[2:],
        ImageFormatError,
        "quantisation tables",
    ),
    "700 EXIF blocks": (
        lambda: JPEG[:2] + segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 700 + JPEG[2:],
        ImageFormatError,
        "EXIF blocks",
    ),
    "Photoshop's resources": (
        lambda: JPEG[:2] + segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 16_000) * 700 + JPEG[2:],
        ImageLimitError,
        "max_parts",
    ),
    "two frames": (lambda: JPEG[:2] + segment(0xC0, bytes(65_000)) * 2 + JPEG[2:], ImageFormatError, "frame headers"),
    "a million PNG chunks": (lambda: PNG[:33] + chunk(b"prVt") * 10**6 + PNG[33:], ImageLimitError, "max_parts"),
    "a million IDAT chunks": (lambda: PNG[:33] + chunk(b"IDAT") * 10**6 + PNG[33:], ImageLimitError, "max_parts"),
    "a million strips": (lambda: strips(10**6), ImageLimitError, "max_parts"),
    "tags over the same bytes": (
        lambda: tiff(*((60_000 + n, 1, 10**7, 0) for n in range(200)), extra=bytes(10**7)),
        ImageFormatError,
        "more bytes than the file",
    ),
    "a huge tile": (
        lambda: tiff(
            *((256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 5), (262, 3, 1, 1), (277, 3, 1, 1)),
            *((322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 8), (325, 4, 1, 64)),
        ),
        ImageLimitError,
        "max_memory",
    ),
    "a WebP file of 10,000 x 10,000": (lambda: webp(10_000), ImageFormatError, "more pixels a byte"),
    "the same, padded": (lambda: webp(10_000) + bytes(20_000), ImageLimitError, "max_memory"),
    "a million WebP chunks": (
        lambda: b"RIFF\0\0\0\0WEBP" + b"VP8X\x0a\0\0\0\0\0\0\0\x07\0\0\x07\0\0" + b"XXXX\0\0\0\0" * 10**6,
        ImageLimitError,
        "max_parts",
    ),
    "GIF comments": (
        lambda: GIF[:781] + (b"!\xfe\xff" + b"c" * 255 + b"\0") * 100_000 + GIF[781:],
        ImageFormatError,
        "before its first frame",
    ),
    "a run-length encoded BMP file": (bmp_runs, ImageFormatError, "run-length"),
}


@pytest.mark.parametrize("what", ATTACKS)
def test_a_costly_file_is_refused_before_it_costs_anything(what: str) -> None:
    make, kind, message = ATTACKS[what]
    data = make()
    for use in (open_image, mime_type_of):
        tracemalloc.start()
        before = time.process_time()
        with pytest.raises(kind, match=message):
            use(data)
        spent = time.process_time() - before
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # Of processor time, which a busy machine does not stretch; each took 13 to 50 s before.
        assert spent < 6
        # Pillow's reader may hold one copy of the bytes.
        assert peak < 2 * len(data) + 2**24


def test_all_of_them_together_fit_into_little_memory() -> None:
    script = """
import resource, sys
sys.path[:0] = sys.argv[1:]
from images.test_structure import ATTACKS
from abc_rag.errors import ImageError
from abc_rag.images.open import open_image
files = [make() for make, _, _ in ATTACKS.values() if len(make()) < 30_000_000]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in files:
    try:
        open_image(data)
    except ImageError:
        pass
    else:
        sys.exit("opened")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    tests = Path(__file__).parents[1]
    roots = [str(Path(abc_rag.__file__).parents[1]), str(tests)]
    done = subprocess.run([sys.executable, "-c", script, *roots], capture_output=True, encoding="utf-8", check=True)
    assert int(done.stdout) < 200_000  # KB


@pytest.mark.parametrize("escape", ["%41", "%2B", "A%0D%0A"])
def test_a_long_data_uri_is_refused_without_a_multiple_of_its_memory(escape: str) -> None:
    uri = DataURI("data:image/png;base64," + escape * 5_000_000)
    tracemalloc.start()
    before = time.process_time()
    with pytest.raises(ImageError):
        open_image(uri, limits=ImageLimits(max_bytes=2**20))
    with pytest.raises(ImageError):
        open_image(uri)
    spent = time.process_time() - before
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 10
    assert peak < 8 * len(uri.uri)


@pytest.mark.parametrize("bad", ["%", "%4", "%zz", "ab%=4"])
def test_a_malformed_escape_in_a_data_uri_is_an_error(bad: str) -> None:
    with pytest.raises(ImageFormatError, match="two hexadecimal digits"):
        open_image(DataURI("data:image/png;base64," + bad))


# --- Ordinary files ---------------------------------------------------------------------------------------


def camera() -> bytes:
    """As a phone writes it: EXIF, an ICC profile and extended XMP in many segments, and a second picture behind."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 1
    file = io.BytesIO()
    picture((1200, 900)).save(
        file, "MPO", save_all=True, append_images=[picture((160, 120))], exif=exif, icc_profile=bytes(300_000)
    )
    data = file.getvalue()
    xmp = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_400))
    return data[:2] + xmp * 300 + data[2:]


def multi_strip(compression: str) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[278] = 16
    image = picture((600, 4000)).convert("1") if compression == "group4" else picture((600, 4000))
    return encode(image, "TIFF", compression=compression, tiffinfo=info)


def with_many_chunks() -> bytes:
    info = PngImagePlugin.PngInfo()
    for number in range(2000):
        info.add_text(f"key {number}", "some text")
    return encode(picture(), "PNG", pnginfo=info)


ORDINARY: dict[str, Callable[[], bytes]] = {
    "a progressive JPEG file": lambda: encode(picture((2000, 1500)), "JPEG", progressive=True),
    "a camera's JPEG file": camera,
    "a JPEG file with restart markers": lambda: encode(picture((640, 480)), "JPEG", restart_marker_blocks=1),
    "a JPEG file with padding": lambda: JPEG[:2] + b"\xff" * 50 + JPEG[2:],
    "a CMYK JPEG file": lambda: encode(picture().convert("CMYK"), "JPEG"),
    "a PNG file with many chunks": with_many_chunks,
    "raw strips": lambda: multi_strip("raw"),
    "LZW strips": lambda: multi_strip("tiff_lzw"),
    "deflated strips": lambda: multi_strip("tiff_adobe_deflate"),
    "JPEG strips": lambda: multi_strip("jpeg"),
    "fax strips": lambda: multi_strip("group4"),
    "an animated WebP file": lambda: encode(
        picture(), "WEBP", save_all=True, append_images=[picture().rotate(n) for n in range(50)]
    ),
    "a GIF file with comments": lambda: encode(picture().convert("P"), "GIF", comment=b"words " * 2000),
    "a plain PNG file of 16 Mpx": lambda: encode(PIL.Image.new("1", (4000, 4000)), "PNG"),
}


@pytest.mark.parametrize("what", ORDINARY)
def test_an_ordinary_file_opens(what: str) -> None:
    data = ORDINARY[what]()
    with PIL.Image.open(io.BytesIO(data)) as expected:
        assert open_image(data).image.tobytes() == expected.convert("RGB").tobytes()


def test_scans_are_those_of_the_first_picture() -> None:
    assert 5 <= check_structure(PROGRESSIVE, "JPEG", "x", DEFAULT_LIMITS).passes <= 12
    assert check_structure(JPEG, "JPEG", "x", DEFAULT_LIMITS).passes == 1
    # What stands behind the end of a picture, and a thumbnail in its EXIF data, is not decoded.
    thumbnail = segment(0xE1, b"Exif\0\0" + JPEG)
    several = JPEG[:2] + thumbnail + JPEG[2:] + PROGRESSIVE * 3
    assert check_structure(several, "JPEG", "x", DEFAULT_LIMITS).passes == 1


def test_each_limit_can_be_raised() -> None:
    data = encode(picture((1000, 1000)), "JPEG", progressive=True)
    for limit, value in (("max_scan_pixels", 5_000_000), ("max_parts", 10), ("max_memory", 10_000_000)):
        with pytest.raises(ImageLimitError, match=rf"ImageLimits\.{limit}={value:,}; .*ImageLimits\({limit}=\.\.\.\)"):
            open_image(data, limits=ImageLimits(**{limit: value}))
        assert open_image(data, limits=ImageLimits(**{limit: 10 * value})).size == (1000, 1000)


def test_an_exif_block_that_reads_the_same_bytes_over_and_over_is_not_read() -> None:
    plain = tiff((0x0112, 3, 1, 6))
    assert exif_is_sound(plain)
    assert exif_is_sound(b"Exif\0\0" + plain)
    over = tiff((0x0112, 3, 1, 6), *((40_000 + n, 1, 60_000, 0) for n in range(5000)))
    assert not exif_is_sound(over)
    assert not exif_is_sound(b"II*\0")
    image = decode(JPEG[:2] + segment(0xE1, b"Exif\0\0" + plain) + JPEG[2:], "JPEG", "x", DEFAULT_LIMITS)
    assert isinstance(image.info["exif"], bytes)
