from __future__ import annotations

import base64
import hashlib
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL.Image
import pytest
from PIL import ImageFile, ImageOps

import abc_rag.images
from abc_rag.errors import ImageError, ImageFetchError, ImageFormatError, ImageLimitError, InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import content_hash, mime_type_of, open_image
from abc_rag.images.read import describe_source, read_bytes
from abc_rag.types import URL, DataURI

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30), seed: int = 0) -> PIL.Image.Image:
    """Coarse noise: it compresses, yet every part of the file matters."""
    noise = random.Random(seed).randbytes(8 * 6 * 4)
    return PIL.Image.frombytes("RGBA", (8, 6), noise).resize(size, PIL.Image.Resampling.NEAREST).convert(mode)


def encode(image: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *more: bytes, data: bytes = b"") -> bytes:
    """A PNG file of a given header; its pixels are what they are."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def gif(*frames: bytes, width: int = 2, height: int = 2) -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + b"".join(frames) + b";"
    )


def gif_frame(width: int = 2, height: int = 2) -> bytes:
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x0a\x00"


def test_public_names() -> None:
    assert abc_rag.images.__all__ == [
        "DEFAULT_LIMITS",
        "ImageLimits",
        "OpenedImage",
        "Rendering",
        "content_hash",
        "describe_source",
        "mime_type_of",
        "open_image",
        "open_pixels",
        "read_bytes",
        "share_image",
    ]


def test_import_is_light() -> None:
    code = "import sys, abc_rag.images; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'chromadb')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str) -> None:
    data = encode(picture(), kind)
    opened = open_image(data)
    assert opened.image.tobytes() == PIL.Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert (opened.image.mode, opened.size, opened.mime_type) == ("RGB", (40, 30), f"image/{kind.lower()}")
    assert opened.sha256 == hashlib.sha256(data).hexdigest() == content_hash(data)
    with pytest.raises(ImageFormatError, match=r"ImageLimits\.formats"):
        open_image(data, limits=ImageLimits(formats=frozenset(FORMATS) - {kind}))


def test_other_formats_never_reach_their_plug_in() -> None:
    for data, hint in [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PNG or JPEG"),
        (encode(picture(), "PPM"), "PNG or JPEG"),
        (encode(picture(), "ICO"), "PNG or JPEG"),
        (b"  <!doctype html><html>", "web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
    ]:
        with pytest.raises(ImageFormatError, match=hint):
            open_image(data)


@pytest.mark.filterwarnings("ignore:Palette images")  # from the test's own convert
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F"])
def test_modes_become_rgb_as_convert_does(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "I", "F") else "PNG"
    data = encode(picture(mode), kind)
    expected = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    assert open_image(data).image.tobytes() == expected.tobytes()
    assert open_image(picture(mode)).image.tobytes() == picture(mode).convert("RGB").tobytes()


def test_alpha_is_dropped_not_blended() -> None:
    assert open_image(PIL.Image.new("RGBA", (1, 1), (200, 100, 50, 0))).image.getpixel((0, 0)) == (200, 100, 50)
    palette = PIL.Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    for transparency in (1, b"\x80\x00"):  # Pillow warns about the second
        opened = open_image(encode(palette, "PNG", transparency=transparency))
        assert opened.image.getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grayscale_keeps_its_high_byte(kind: str) -> None:
    image = PIL.Image.frombytes("I;16", (4, 1), struct.pack("<4H", 0, 255, 0x8001, 0xFFFF))
    for source in (image, encode(image, kind)):
        assert open_image(source).image.tobytes() == bytes([0, 0, 0, 0, 0, 0, 128, 128, 128, 255, 255, 255])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), kind, exif=exif)
    with PIL.Image.open(io.BytesIO(data)) as plain:
        upright = ImageOps.exif_transpose(plain).convert("RGB")
        published = plain.convert("RGB")
    opened = open_image(data)
    assert opened.size == ((30, 40) if orientation >= 5 else (40, 30))
    assert opened.image.tobytes() == upright.tobytes()
    assert opened.image.getexif().get(0x0112) is None
    if kind != "TIFF":  # Pillow turns TIFF files while loading them
        assert open_image(data, exif=False).size == (40, 30)
        assert open_image(data, exif=False).image.tobytes() == published.tobytes()
    with PIL.Image.open(io.BytesIO(data)) as lazy:
        assert open_image(lazy).image.tobytes() == upright.tobytes()


def test_malformed_exif_does_not_lose_the_picture() -> None:
    data = encode(picture(), "JPEG")
    for block in (
        b"",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\x09\0garbage",
        random.Random(1).randbytes(300),
    ):
        payload = b"Exif\0\0" + block
        malformed = data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]
        assert open_image(malformed).image.tobytes() == open_image(data).image.tobytes()


def test_too_many_bytes(tmp_path: Path) -> None:
    data = encode(picture())
    path = tmp_path / "a.png"
    path.write_bytes(data)
    limits = ImageLimits(max_bytes=len(data) - 1)
    for source in (data, path, DataURI("data:image/png;base64," + base64.b64encode(data).decode())):
        with pytest.raises(
            ImageLimitError, match=rf"{len(data)} bytes .*ImageLimits\.max_bytes={len(data) - 1};"
        ) as info:
            open_image(source, limits=limits)
        assert info.value.source == describe_source(source)
        with pytest.raises(ImageLimitError):
            content_hash(source, limits=limits)
        assert open_image(source, limits=ImageLimits(max_bytes=len(data))).size == (40, 30)


def test_a_file_that_hides_its_size_is_read_no_further_than_the_limit() -> None:
    endless = Path("/proc/self/environ")
    if not endless.exists() or not endless.read_bytes():
        pytest.skip("needs Linux and an environment")
    assert endless.stat().st_size == 0
    with pytest.raises(ImageLimitError, match="max_bytes"):
        read_bytes(endless, limits=ImageLimits(max_bytes=1))


def test_bombs_are_refused_by_their_header() -> None:
    webp = encode(picture(), "WEBP", lossless=True)
    bits = struct.unpack_from("<I", webp, 21)[0] | 0x0FFFFFFF
    big_bmp = bytearray(encode(picture(), "BMP"))
    struct.pack_into("<ii", big_bmp, 18, 50_000, 50_000)
    bombs = [
        png(50_000, 50_000),
        bytes(big_bmp),
        gif(gif_frame(50_000, 50_000)),
        gif(gif_frame(), width=50_000, height=50_000),
        webp[:21] + struct.pack("<I", bits) + webp[25:],
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2 + bytes(20),
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (12_000).to_bytes(3, "little") * 2 + bytes(20),
    ]
    for bomb in bombs:
        with pytest.raises(ImageLimitError, match=r"ImageLimits\.max_pixels"):
            open_image(bomb)
    with pytest.raises(ImageLimitError, match="50000 x 50000 = 2,500,000,000 pixels"):
        open_image(bombs[0])


def test_pixels_at_the_limit_pass_and_above_it_do_not() -> None:
    for source in (encode(picture()), picture()):
        assert open_image(source, limits=ImageLimits(max_pixels=1200)).size == (40, 30)
        with pytest.raises(ImageLimitError, match=r"40 x 30 = 1,200 pixels exceed ImageLimits\.max_pixels=1,199;"):
            open_image(source, limits=ImageLimits(max_pixels=1199))


def test_pillows_own_limit_is_named_and_left_alone() -> None:
    before = PIL.Image.MAX_IMAGE_PIXELS
    for bomb in (png(50_000, 50_000), gif(gif_frame(50_000, 50_000))):
        with pytest.raises(ImageLimitError, match=r"PIL\.Image\.MAX_IMAGE_PIXELS"):
            open_image(bomb, limits=ImageLimits(max_pixels=10**10))
    # Between Pillow's warning and its error, no warning gets in the way: this one fails for its missing pixels.
    with pytest.raises(ImageFormatError):
        open_image(png(9_600, 10_000))
    assert before == PIL.Image.MAX_IMAGE_PIXELS


def test_aspect_ratio() -> None:
    for size in ((402, 2), (2, 402)):
        source = encode(picture("L", size))
        for given in (source, picture("L", size)):
            with pytest.raises(ImageLimitError, match=r"aspect ratio of 201\.0.*ImageLimits\.max_aspect_ratio=200"):
                open_image(given)
        assert open_image(source, limits=ImageLimits(max_aspect_ratio=201)).size == size
    assert open_image(picture("L", (400, 2))).size == (400, 2)
    with pytest.raises(ImageFormatError, match="without pixels"):
        open_image(PIL.Image.new("L", (0, 5)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_frames(kind: str) -> None:
    frames = [picture("RGB", seed=seed) for seed in range(5)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert open_image(data, limits=ImageLimits(max_frames=5)).image.tobytes() == (
        PIL.Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    )
    with pytest.raises(ImageLimitError, match=r"ImageLimits\.max_frames=4"):
        open_image(data, limits=ImageLimits(max_frames=4))


def test_counting_frames_stops() -> None:
    with pytest.raises(ImageLimitError, match="at least 1,001 frames"):
        open_image(gif(gif_frame() * 100_000))
    with pytest.raises(ImageLimitError, match="2,000,000,000 frames"):
        open_image(png(2, 2, chunk(b"acTL", struct.pack(">II", 2_000_000_000, 0))))
    with pytest.raises(ImageFormatError, match="data blocks"):
        open_image(gif(b"!\xfe" + b"\x01a" * 100_000 + b"\0", gif_frame()))
    tiff = bytearray(encode(picture(), "TIFF"))
    (first,) = struct.unpack_from("<I", tiff, 4)
    (entries,) = struct.unpack_from("<H", tiff, first)
    struct.pack_into("<I", tiff, first + 2 + 12 * entries, first)  # the next page is this page
    assert open_image(bytes(tiff)).size == (40, 30)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_files_are_errors(kind: str, lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # a user's own setting
    for data in (encode(picture(), kind), encode(picture(size=(300, 200)), kind)):
        for part in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
            with pytest.raises(ImageFormatError):
                open_image(data[: int(len(data) * part)])
        assert open_image(data).size in ((40, 30), (300, 200))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_progressive_and_interlaced_files_truncated(tmp_path: Path) -> None:
    data = encode(picture(size=(300, 200)), "JPEG", progressive=True)
    assert open_image(data).size == (300, 200)
    path = tmp_path / "cut.jpg"
    for part in (0.5, 0.8, 0.99):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(ImageFormatError, match="truncated"):
            open_image(path)


def test_a_flipped_bit_in_a_png_is_an_error() -> None:
    data = encode(picture(), compress_level=0)
    for at in range(60, len(data) - 20, 101):
        flipped = bytearray(data)
        flipped[at] ^= 1
        with pytest.raises(ImageFormatError, match="PNG"):
            open_image(bytes(flipped))
    with pytest.raises(ImageFormatError, match="PNG"):
        open_image(data[:-12])  # all pixels are there, but not the end


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it mends
def test_corrupt_files_raise_nothing_but_image_errors(kind: str) -> None:
    rng = random.Random(kind)
    limits = ImageLimits(max_pixels=100_000)
    clean = [encode(picture(mode), kind) for mode in ("RGB", "L")]
    opened = 0
    for _ in range(300):
        data = bytearray(rng.choice(clean))
        for _ in range(rng.choice((1, 1, 3, 30))):
            data[rng.randrange(rng.choice((60, len(data)))) % len(data)] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            result = open_image(bytes(data), limits=limits)
        except ImageError:
            continue
        opened += 1
        assert result.image.mode == "RGB"
    assert 0 < opened < 300


def test_decoding_errors_keep_their_cause() -> None:
    with pytest.raises(ImageFormatError) as info:
        open_image(encode(picture(), "JPEG")[:200])
    assert isinstance(info.value.__cause__, Exception)
    assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)


def test_the_callers_pil_image_is_unchanged() -> None:
    for mode in ("RGB", "P", "RGBA"):
        source = picture(mode)
        source.info["transparency"] = 3
        before = (source.mode, source.tobytes(), dict(source.info))
        opened = open_image(source)
        assert (source.mode, source.tobytes(), dict(source.info)) == before
        opened.image.putpixel((0, 0), (1, 2, 3))
        assert source.tobytes() == before[1]
    assert (opened.source, opened.mime_type) == ("PIL image", None)


def test_pil_images_that_cannot_be_used() -> None:
    closed = picture()
    closed.close()
    data = encode(picture(size=(300, 200)), "JPEG")
    for source in (closed, PIL.Image.open(io.BytesIO(data[: len(data) // 2]))):
        with pytest.raises(ImageFormatError, match="PIL image: cannot be loaded"):
            open_image(source)
    with pytest.raises(InputError, match="open_image"):
        read_bytes(picture())


def test_hashes_of_pil_images() -> None:
    flat = PIL.Image.new("P", (2, 2), 1)
    other = flat.copy()
    flat.putpalette([0, 0, 0, 1, 1, 1])
    other.putpalette([0, 0, 0, 2, 2, 2])
    turned = picture()
    turned.getexif()[0x0112] = 6
    distinct = [flat, other, picture(), picture(seed=1), turned, picture("L")]
    distinct += [PIL.Image.new("L", (2, 8)), PIL.Image.new("L", (8, 2))]
    hashes = [content_hash(image) for image in distinct]
    assert len(set(hashes)) == len(distinct)
    assert hashes == [open_image(image).sha256 for image in distinct]
    assert content_hash(picture()) == content_hash(picture())
    with pytest.raises(ImageLimitError):
        content_hash(picture(), limits=ImageLimits(max_pixels=10))


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "a picture.bin"
    path.write_bytes(encode(picture()))
    assert open_image(path).sha256 == open_image(str(path)).sha256
    assert open_image(path).source == str(path)
    assert open_image(path).mime_type == "image/png"


def test_unreadable_paths(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    with pytest.raises(ImageFormatError, match="empty"):
        open_image(empty)
    with pytest.raises(ImageFormatError, match="empty"):
        open_image(b"")
    with pytest.raises(ImageFetchError, match="directory"):
        open_image(tmp_path)
    for missing in (tmp_path / "no.png", "", "a\0b", "x" * 5000):
        with pytest.raises(ImageFetchError, match="check the path") as info:
            open_image(missing)
        assert len(str(info.value)) < 600


def test_strings_are_paths_and_never_sniffed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageFetchError, match=r"abc_rag\.URL"):
        open_image("http://example.com/a.png")
    with pytest.raises(ImageFetchError, match=r"abc_rag\.DataURI") as info:
        open_image("data:image/png;base64," + "A" * 100_000)
    assert len(str(info.value)) < 600
    folder = tmp_path / "http:" / "example.com"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(encode(picture()))
    assert open_image("http://example.com/a.png").size == (40, 30)


def test_permission_denied(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture()))
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything; nobody may not
        with pytest.raises(ImageFetchError, match="readable"):
            open_image(path)
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    refused: list[BaseException] = []

    def attempt(path: Path) -> None:
        try:
            open_image(path)
        except ImageFetchError as error:
            refused.append(error)

    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero")):
        thread = threading.Thread(target=attempt, args=(path,), daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()
    assert len(refused) == 3
    assert all("not a regular file" in str(error) for error in refused)


def test_data_uris() -> None:
    data = encode(picture())
    text = base64.b64encode(data).decode()
    spaced = "\n".join(text[i : i + 40] for i in range(0, len(text), 40))
    for uri in (
        f"data:image/png;base64,{text}",
        f"DATA:Image/PNG;Base64,{text}",
        f"data:image/png;base64,\n{spaced}\n",
        "data:image/png;base64," + text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    ):
        opened = open_image(DataURI(uri))
        assert (opened.sha256, opened.source) == (hashlib.sha256(data).hexdigest(), "data URI")
    for uri, reason in [
        (f"data:text/html;base64,{text}", "text/html"),
        (f"data:image/png,{text}", "form"),
        (f"data:;base64,{text}", "form"),
        (f"image/png;base64,{text}", "form"),
        (f"data:image/png;base64{text}", "form"),
        ("data:image/png;base64," + text[:-3], "base64"),
        ("data:image/png;base64,!!!!" + text, "base64"),
        ("data:image/png;base64,\xe9\xe9\xe9\xe9", "base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,aGVsbG8=", "format"),
    ]:
        with pytest.raises(ImageFormatError, match=reason):
            open_image(DataURI(uri))


def test_urls_are_off() -> None:
    url = URL("https://user:secret@example.com/a.png")
    with pytest.raises(ImageFetchError, match=r"limits=ImageLimits\(allow_urls=True\)") as info:
        open_image(url)
    assert "secret" not in str(info.value)
    with pytest.raises(ImageFetchError):
        content_hash(url)


def test_descriptions() -> None:
    assert describe_source(b"x" * 70) == "bytes (70 B)"
    assert describe_source(b"x" * 123_456) == "bytes (123 KB)"
    assert describe_source(picture()) == "PIL image"
    assert describe_source(Path("a") / "ü.png") == os.path.join("a", "ü.png")
    assert describe_source("a\n\x1b[31m.png") == r"a\n\x1b[31m.png"
    assert describe_source(URL("https://a:b@c.d/e?f=@g")) == "https://...@c.d/e?f=@g"
    assert len(describe_source(URL("https://c.d/" + "e" * 5000))) < 300


@pytest.mark.parametrize("source", [None, 3, bytearray(b"x"), io.BytesIO(b"x"), ["a.png"]])
def test_other_types_are_refused(source: object) -> None:
    for function in (open_image, content_hash, describe_source, read_bytes):
        with pytest.raises(InputError, match=type(source).__name__):
            function(source)  # type: ignore[operator]
    for wrapped in (URL(source), DataURI(source)):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="must be a str"):
            open_image(wrapped)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_bytes": 0},
        {"max_bytes": 1.5},
        {"max_pixels": True},
        {"max_pixels": -1},
        {"max_frames": 0},
        {"max_aspect_ratio": 0.5},
        {"max_aspect_ratio": float("nan")},
        {"max_aspect_ratio": "9"},
        {"formats": frozenset()},
        {"formats": frozenset({"EPS"})},
        {"formats": {"PNG"}},
        {"allow_urls": 1},
        {"url_timeout_s": 0},
        {"url_timeout_s": float("inf")},
        {"max_redirects": -1},
    ],
)
def test_limits_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"ImageLimits\.{next(iter(wrong))}"):
        ImageLimits(**wrong)  # type: ignore[arg-type]


def test_threads() -> None:
    sources = [encode(picture(seed=seed), kind) for kind in FORMATS for seed in range(3)]
    expected = [open_image(source).image.tobytes() for source in sources]
    lazy = PIL.Image.open(io.BytesIO(sources[0]))
    with ThreadPoolExecutor(8) as pool:
        assert [opened.image.tobytes() for opened in pool.map(open_image, sources)] == expected
        assert {opened.sha256 for opened in pool.map(open_image, [lazy] * 16)} == {content_hash(lazy)}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_mime_type_is_told_by_the_bytes_without_decoding(kind: str) -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), "red").save(buffer, kind)
    data = buffer.getvalue()
    assert mime_type_of(data) == open_image(data).mime_type == f"image/{kind.lower()}"
    for limits, said in (
        (ImageLimits(max_pixels=1000), "max_pixels"),
        (ImageLimits(max_bytes=10), "max_bytes"),
        (ImageLimits(max_aspect_ratio=1.1), "max_aspect_ratio"),
        (ImageLimits(formats=frozenset({"PNG"} if kind != "PNG" else {"JPEG"})), "formats"),
    ):
        with pytest.raises(ImageError, match=rf"^a\.x: .*{said}"):
            mime_type_of(data, limits=limits, name="a.x")
    for bad, said in ((b"", "0 bytes"), (b"<html>", "web page"), (data[:12], "corrupt or truncated")):
        with pytest.raises(ImageFormatError, match=rf"^bytes \(\d+ B\): .*{said}"):
            mime_type_of(bad)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_avif(mode: str) -> None:
    data = encode(picture(mode, (64, 48)), "AVIF", quality=100)
    opened = open_image(data)
    assert (opened.size, opened.mime_type) == ((64, 48), "image/avif")
    with PIL.Image.open(io.BytesIO(data)) as expected:
        assert opened.image.tobytes() == expected.convert("RGB").tobytes()
    with pytest.raises(ImageLimitError, match="max_pixels"):
        open_image(data, limits=ImageLimits(max_pixels=3000))
    for part in (0.1, 0.5, 0.9):
        with pytest.raises(ImageFormatError):
            open_image(data[: int(len(data) * part)])


def test_heic() -> None:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(picture("RGB", (64, 48))).save(file, format="HEIF", quality=100)
    opened = open_image(file.getvalue())
    assert (opened.size, opened.mime_type) == ((64, 48), "image/heic")
    means = [sum(image.resize((1, 1)).getpixel((0, 0))) for image in (opened.image, picture("RGB", (64, 48)))]
    assert abs(means[0] - means[1]) < 12
    with pytest.raises(ImageLimitError, match="max_pixels"):
        open_image(file.getvalue(), limits=ImageLimits(max_pixels=3000))


def test_a_heic_picture_names_the_extra_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageFormatError, match=r"pip install 'abc-rag\[heif\]'"):
        open_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
