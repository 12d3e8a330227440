"""Opening pictures that nobody vetted.

`open_image` takes a picture from a path, a URL, a data URI, bytes or a PIL image, and returns it
decoded, upright and in RGB, or raises an `abc_rag.errors.ImageError` that says why not. What a
picture may cost is set by `ImageLimits`; sizes are read from the header before any pixel is decoded.

How pixels become RGB:

*   As in the published ABC pipeline, by ``image.convert("RGB")``: transparency is dropped, not
    blended with a background, and an animation or a document is its first frame or page.
*   Unlike it, camera photos come out upright: cameras store them as the sensor lay, with a note in
    the EXIF data of how to turn them, and the published pipeline ignores that note. ``exif=False``
    is exactly the published behaviour. Pictures without the note (PNG files, nearly all benchmark
    pictures) are the same either way. Pillow itself turns TIFF files, so both ways turn those.
*   Unlike it, 16-bit grayscale is scaled to 8 bits (its high byte is kept, which is what Pillow does
    to 16-bit colour), where ``convert`` alone would turn all but the darkest pixels white. 32-bit
    integer and floating-point pictures are clipped to 0..255, as ``convert`` does.

Pillow's own limit, ``PIL.Image.MAX_IMAGE_PIXELS``, stands beside ``max_pixels``: a picture of more
than twice that many pixels is refused as well, and the error says which limit it was. Nothing here
changes Pillow's settings, and ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` does not let truncated
pictures through.

Everything here may be called from several threads at once.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import PIL.Image
from PIL import BmpImagePlugin, GifImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.WebPImagePlugin import WebPImageFile

from abc_rag.errors import ImageError, ImageFormatError, ImageLimitError
from abc_rag.images.headers import _FRAME_COUNTERS, _webp_size
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits, _refuse
from abc_rag.images.read import _check_bytes, describe_source, read_bytes
from abc_rag.types import ImageSource

__all__ = ["DEFAULT_LIMITS", "ImageLimits", "OpenedImage", "content_hash", "mime_type_of", "open_image", "open_pixels"]


_Change = Callable[[PIL.Image.Image], PIL.Image.Image]


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Does nothing: a malformed EXIF block must not matter before it is asked for."""


# The classes are named, not looked up by PIL.Image.open, so that no other plug-in ever sees the bytes.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": _Jpeg,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImageFile,
}
_SIGNATURES = (
    *((signature, "TIFF") for signature in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP")),
    *((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG")),
)
_MIME = {kind: f"image/{kind.lower()}" for kind in _READERS}
_MOST_JPEG_SCANS = 500  # an encoder makes about ten; each costs a pass over all pixels, however small it is
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_RAISE_PILLOWS_LIMIT = (
    "raise PIL.Image.MAX_IMAGE_PIXELS or set it to None, so that ImageLimits.max_pixels alone decides"
)
# Pillow is not safe when two threads load one lazily opened image.
_LOADING = threading.Lock()


@dataclass(frozen=True, eq=False)
class OpenedImage:
    """A picture, decoded.

    Attributes:
        image: The pixels, mode ``"RGB"``, without metadata. The caller's to keep or to change.
        sha256: Hex hash of the encoded bytes; for a PIL image of its mode, size, palette, EXIF
            orientation and pixels. Does not depend on ``exif``.
        source: What to call it: its path, its URL, ``"bytes (123 KB)"``, ``"data URI"`` or ``"PIL image"``.
        mime_type: What the bytes are, whatever their name or sender says; None for a PIL image made in memory.
    """

    image: PIL.Image.Image
    sha256: str
    source: str
    mime_type: str | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, after turning it upright."""
        return self.image.size


def open_image(
    source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS, exif: bool = True, name: str | None = None
) -> OpenedImage:
    """Opens a picture: decoded in full, upright, in RGB.

    Args:
        source: A path (``str`` or path object), `URL`, `DataURI`, ``bytes``, or a PIL image, which is
            not changed (only loaded, where it was opened lazily) and gives the frame it stands at.
        limits: What it may cost.
        exif: Whether to turn it as its EXIF orientation says. False is the published behaviour.
        name: What it is called in messages, where the source's own description says less.

    Returns:
        The picture, its hash and its name.

    Raises:
        ImageLimitError: It exceeds a limit.
        ImageFormatError: It is corrupt, truncated, empty, or of a format that is not read.
        ImageFetchError: It could not be read or fetched, or fetching is not allowed.
        InputError: ``source`` is none of the above.
    """
    name = describe_source(source) if name is None else name
    if isinstance(source, PIL.Image.Image):
        copy, orientation = _copy_pil(source, name, limits)
        mime = _MIME.get(getattr(source, "format", None) or "")
        return OpenedImage(_to_rgb(copy, orientation if exif else 1, name), _hash_pil(copy, orientation), name, mime)
    data = read_bytes(source, limits=limits)
    kind = _identify(data, name, limits)
    return OpenedImage(_decoded(data, kind, name, limits, exif), hashlib.sha256(data).hexdigest(), name, _MIME[kind])


def open_pixels(
    source: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    name: str | None = None,
    first: _Change | None = None,
) -> PIL.Image.Image:
    """The picture that `open_image` gives, without its hash.

    Args:
        source: As for `open_image`.
        limits: As for `open_image`.
        name: As for `open_image`.
        first: What is done to the decoded picture before it is converted to RGB and turned upright.

    Returns:
        The pixels, mode ``"RGB"``, upright.

    Raises:
        ImageError: As `open_image` does.
        InputError: As `open_image` does.
    """
    name = describe_source(source) if name is None else name
    if isinstance(source, PIL.Image.Image):
        return _to_rgb(*_copy_pil(source, name, limits), name, first)
    data = read_bytes(source, limits=limits)
    return _decoded(data, _identify(data, name, limits), name, limits, True, first)


def content_hash(source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS) -> str:
    """The hash that `open_image` gives, without decoding: same bytes, same hash, whatever they are called.

    Args:
        source: As for `open_image`.
        limits: As for `open_image`; those that need the header of encoded bytes are not checked.

    Returns:
        SHA-256 in hex digits.

    Raises:
        ImageError: As `open_image` does.
        InputError: As `open_image` does.
    """
    if isinstance(source, PIL.Image.Image):
        return _hash_pil(*_copy_pil(source, describe_source(source), limits))
    return hashlib.sha256(read_bytes(source, limits=limits)).hexdigest()


def mime_type_of(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS, name: str | None = None) -> str:
    """What a picture's bytes are, from their signature and header; nothing is decoded.

    Args:
        data: Encoded bytes.
        limits: What the picture may cost; all of them are checked, as far as the header tells.
        name: What it is called in messages, where ``"bytes (123 KB)"`` says less.

    Returns:
        Such as ``"image/png"``.

    Raises:
        ImageLimitError: It exceeds a limit.
        ImageFormatError: It is empty, of a format that is not read, or its header is corrupt.
    """
    name = describe_source(data) if name is None else name
    _check_bytes(data, name, limits)
    kind = _identify(data, name, limits)
    _begin(data, kind, name, limits)
    return _MIME[kind]


def _identify(data: bytes, name: str, limits: ImageLimits) -> str:
    kind = next((kind for signature, kind in _SIGNATURES if data.startswith(signature)), None)
    if kind is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "WEBP"
    if kind is None:
        hint = "it begins like a web page, SVG or XML; " if data.lstrip()[:1] == b"<" else ""
        hint = "it begins like HEIC, AVIF or a film; " if data[4:8] == b"ftyp" else hint
        formats = ", ".join(sorted(limits.formats))
        raise ImageFormatError(name, f"is not of a format that is read ({formats}); {hint}convert it to PNG or JPEG")
    if kind not in limits.formats:
        remedy = f"add it to ImageLimits.formats={sorted(limits.formats)} to allow it"
        raise ImageFormatError(name, f"is a {kind} picture, which the limits do not allow; {remedy}")
    return kind


def _begin(data: bytes, kind: str, name: str, limits: ImageLimits) -> tuple[ImageFile.ImageFile, _Stream]:
    """A picture whose header has been read and checked, and the bytes that it is decoded from."""
    try:
        # WebP decoders allocate their canvas when made, so its size is read before one is.
        if kind == "WEBP":
            _check_size(_webp_size(data), name, limits)
        if kind == "JPEG" and data.count(b"\xff\xda") > _MOST_JPEG_SCANS:
            raise ImageFormatError(name, f"has over {_MOST_JPEG_SCANS} scans, as no encoder makes; save it anew")
        frames = 1
        if kind in _FRAME_COUNTERS:
            frames = _FRAME_COUNTERS[kind](data, limits.max_frames + 1)
        stream = _Stream(data)
        image = _READERS[kind](stream)
        _check_size(image.size, name, limits)
        if kind in ("PNG", "WEBP"):
            frames = getattr(image, "n_frames", 1)
        if frames > limits.max_frames:
            _refuse(name, f"at least {frames:,} frames", "max_frames", limits)
    except Exception as error:
        _raise_for(error, name, f"cannot be decoded as {kind}")
    return image, stream


def _decode(data: bytes, kind: str, name: str, limits: ImageLimits) -> ImageFile.ImageFile:
    image, stream = _begin(data, kind, name, limits)
    try:
        if kind == "PNG":
            # Pillow checks no checksum of pixel data while decoding, and bears a missing end.
            PngImagePlugin.PngImageFile(io.BytesIO(data)).verify()
        stream.ends_in_error = ImageFile.LOAD_TRUNCATED_IMAGES
        image.load()
    except Exception as error:
        _raise_for(error, name, f"cannot be decoded as {kind}")
    return image


def _raise_for(error: Exception, name: str, what: str) -> NoReturn:
    """Decoders raise whatever they like: OSError, SyntaxError, struct.error, OverflowError, MemoryError..."""
    if isinstance(error, ImageError):
        raise error
    if isinstance(error, (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)):
        raise ImageLimitError(name, f"{str(error).rstrip('.')}; {_RAISE_PILLOWS_LIMIT}") from error
    reason = f"{what} ({type(error).__name__}: {str(error)[:200]})"
    raise ImageFormatError(name, f"{reason}; it is corrupt or truncated: fetch or save it anew") from error


def _check_size(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageFormatError(name, f"is {width} x {height}, without pixels; pass a picture that has some")
    pixels = width * height
    if pixels > limits.max_pixels:
        _refuse(name, f"{width} x {height} = {pixels:,} pixels", "max_pixels", limits)
    ratio = max(size) / min(size)
    if ratio > limits.max_aspect_ratio:
        _refuse(name, f"{width} x {height}, an aspect ratio of {ratio:,.1f},", "max_aspect_ratio", limits)
    pillows = PIL.Image.MAX_IMAGE_PIXELS
    if pillows is not None and pixels > 2 * pillows:
        measured = f"{width} x {height} = {pixels:,} pixels exceed Pillow's own limit of {2 * pillows:,}, although not"
        raise ImageLimitError(name, f"{measured} ImageLimits.max_pixels={limits.max_pixels:,}; {_RAISE_PILLOWS_LIMIT}")


def _decoded(
    data: bytes, kind: str, name: str, limits: ImageLimits, exif: bool, first: _Change | None = None
) -> PIL.Image.Image:
    decoded = _decode(data, kind, name, limits)
    return _to_rgb(decoded, _orientation(decoded) if exif else 1, name, first)


def _copy_pil(source: PIL.Image.Image, name: str, limits: ImageLimits) -> tuple[PIL.Image.Image, int]:
    """A copy to work on, and its EXIF orientation."""
    _check_size(source.size, name, limits)
    try:
        with _LOADING:
            return source.copy(), _orientation(source)
    except Exception as error:
        _raise_for(error, name, "cannot be loaded")


def _hash_pil(image: PIL.Image.Image, orientation: int) -> str:
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} {orientation}\n".encode())
    if image.mode in ("P", "PA"):
        digest.update(bytes(image.getpalette("RGB") or ()))
    digest.update(image.tobytes())
    return digest.hexdigest()


def _orientation(image: PIL.Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        return orientation if orientation in _TURNS else 1
    except Exception:  # a malformed note must not lose the picture
        return 1


def _to_rgb(image: PIL.Image.Image, orientation: int, name: str, first: _Change | None = None) -> PIL.Image.Image:
    try:
        # Pillow warns where it drops transparency from a palette, even when asked to.
        image.info.pop("transparency", None)
        if image.mode.startswith("I;16"):
            image = image.convert("I").point(lambda value: value * (1 / 256))
        image = image if first is None else first(image)
        rgb = image.convert("RGB")
        if orientation in _TURNS:
            rgb = rgb.transpose(_TURNS[orientation])
    except Exception as error:
        _raise_for(error, name, f"of mode {image.mode} cannot be converted to RGB")
    # An orientation left in the metadata would turn the picture again, further on.
    rgb.info = {}
    return rgb


class _Stream(io.BytesIO):
    """Bytes whose end can be made an error, for PIL.ImageFile.LOAD_TRUNCATED_IMAGES makes Pillow ignore it."""

    ends_in_error = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.ends_in_error and not data and size != 0:
            raise OSError("image file is truncated")
        return data
