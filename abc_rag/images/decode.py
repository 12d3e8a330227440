"""Decode untrusted bytes to pixels, within the limits."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NoReturn

import PIL.Image
from PIL import BmpImagePlugin, GifImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.WebPImagePlugin import WebPImageFile

from abc_rag.errors import ImageError, ImageFormatError, ImageLimitError
from abc_rag.images.formats import Format, format_of
from abc_rag.images.limits import ImageLimits, refuse
from abc_rag.images.structure import Structure, check_png, check_structure, webp_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_header", "check_size", "decode", "identify", "raise_for"]

_RAISE_PILLOWS_LIMIT = (
    "raise PIL.Image.MAX_IMAGE_PIXELS or set it to None, so that ImageLimits.max_pixels alone decides"
)
# Bytes that a pixel needs while it is decoded and converted to RGB, at Pillow's four bytes a pixel and copy. A JPEG
# with several scans keeps the coefficients of all its components; WebP's and AVIF's decoders hand over further copies.
_DECODED = 8
_BYTES_PER_PIXEL: dict[Format, int] = {"WEBP": 20, "AVIF": 20, "HEIC": 20}
_SCANS_KEPT = 8
# A plain picture compresses to next to nothing. A large one that is smaller than this is refused before memory for its
# pixels is allocated: deflate cannot do it, and no photograph and no scan of a page does.
_MOST_PIXELS_PER_BYTE = 10_000
_LARGE = 1 << 24


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Does nothing: a malformed EXIF block must not matter before it is asked for."""


# The classes are named, not looked up by PIL.Image.open, so that no other plug-in ever sees the bytes.
_READERS: dict[Format, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": _Jpeg,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImageFile,
}


def identify(data: bytes, name: str, limits: ImageLimits) -> Format:
    """The format of an encoded picture, by its first bytes.

    Raises:
        ImageFormatError: It is none that is read, or one that the limits exclude.
    """
    kind = format_of(data)
    if kind is None:
        hint = "it begins like a web page, SVG or XML; " if data[:256].lstrip()[:1] == b"<" else ""
        hint = "it begins like a film; " if data[4:8] == b"ftyp" else hint
        formats = ", ".join(sorted(limits.formats))
        raise ImageFormatError(name, f"is not of a format that is read ({formats}); {hint}convert it to PNG or JPEG")
    if kind not in limits.formats:
        remedy = f"add it to ImageLimits.formats={sorted(limits.formats)} to allow it"
        raise ImageFormatError(name, f"is a {kind} picture, which the limits do not allow; {remedy}")
    return kind


def check_header(data: bytes, kind: Format, name: str, limits: ImageLimits) -> None:
    """Check everything that can be checked without decoding.

    Raises:
        ImageLimitError: The picture exceeds a limit.
        ImageFormatError: Its header or its structure is corrupt.
    """
    _begin(data, kind, name, limits)


def decode(data: bytes, kind: Format, name: str, limits: ImageLimits) -> ImageFile.ImageFile:
    """Decode an encoded picture, in the mode that it is stored in.

    Raises:
        ImageLimitError: It exceeds a limit.
        ImageFormatError: It is corrupt or truncated.
    """
    image, stream = _begin(data, kind, name, limits)
    try:
        if kind == "PNG":
            check_png(data)
        stream.ends_in_error = ImageFile.LOAD_TRUNCATED_IMAGES
        image.load()
    except Exception as error:
        raise_for(error, name, f"cannot be decoded as {kind}")
    return image


def _begin(data: bytes, kind: Format, name: str, limits: ImageLimits) -> tuple[ImageFile.ImageFile, _Stream]:
    """A picture whose header has been read and checked, and the bytes that it is decoded from."""
    try:
        structure = check_structure(data, kind, name, limits)
        _check_frames(structure.frames, name, limits)
        # WebP decoders allocate their canvas when made, so its size is read before one is.
        if kind == "WEBP":
            _check_cost(webp_size(data), data, kind, structure, name, limits)
        stream = _Stream(data)
        image = _reader(kind, name)(stream)
        if kind in ("AVIF", "HEIC", "WEBP"):
            _check_frames(getattr(image, "n_frames", 1), name, limits)
        _check_cost(image.size, data, kind, structure, name, limits)
    except Exception as error:
        raise_for(error, name, f"cannot be decoded as {kind}")
    return image, stream


def _reader(kind: Format, name: str) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    if kind == "HEIC":
        try:
            from pillow_heif import HeifImageFile
        except ImportError as error:
            remedy = "pip install 'abc-rag[heif]', or convert it to PNG or JPEG"
            raise ImageFormatError(name, f"is a HEIC picture, which needs a further package; {remedy}") from error
        reader: Callable[[io.BytesIO], ImageFile.ImageFile] = HeifImageFile
        return reader
    if kind == "AVIF":
        from PIL import features

        if not features.check("avif"):
            remedy = "pip install --upgrade pillow, or convert it to PNG or JPEG"
            raise ImageFormatError(name, f"is an AVIF picture, which this Pillow cannot read; {remedy}")
        from PIL.AvifImagePlugin import AvifImageFile

        return AvifImageFile
    return _READERS[kind]


def _check_frames(frames: int, name: str, limits: ImageLimits) -> None:
    if frames > limits.max_frames:
        refuse(name, f"at least {frames:,} frames", "max_frames", limits)


def check_size(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    """Check width and height.

    Raises:
        ImageLimitError: They exceed a limit, or Pillow's own.
        ImageFormatError: One of them is zero.
    """
    width, height = size
    if min(size) < 1:
        raise ImageFormatError(name, f"is {width} x {height}, without pixels; pass a picture that has some")
    pixels = width * height
    if pixels > limits.max_pixels:
        refuse(name, f"{width} x {height} = {pixels:,} pixels", "max_pixels", limits)
    ratio = max(size) / min(size)
    if ratio > limits.max_aspect_ratio:
        refuse(name, f"{width} x {height}, an aspect ratio of {ratio:,.1f},", "max_aspect_ratio", limits)
    pillows = PIL.Image.MAX_IMAGE_PIXELS
    if pillows is not None and pixels > 2 * pillows:
        measured = f"{width} x {height} = {pixels:,} pixels exceed Pillow's own limit of {2 * pillows:,}, although not"
        raise ImageLimitError(name, f"{measured} ImageLimits.max_pixels={limits.max_pixels:,}; {_RAISE_PILLOWS_LIMIT}")


def _check_cost(
    size: tuple[int, int], data: bytes, kind: Format, structure: Structure, name: str, limits: ImageLimits
) -> None:
    """Check what decoding will cost; pixels by pixels, so that the message names what is exceeded first."""
    check_size(size, name, limits)
    width, height = size
    pixels = width * height
    if pixels > _LARGE and pixels > _MOST_PIXELS_PER_BYTE * len(data):
        few = f"is {width} x {height} in {len(data):,} bytes"
        raise ImageFormatError(name, f"{few}, more pixels a byte than a photograph or a scan has; save it as PNG")
    if structure.passes * pixels > limits.max_scan_pixels:
        measured = f"{width} x {height} pixels in {structure.passes:,.0f} scans"
        refuse(name, measured, "max_scan_pixels", limits)
    needed = pixels * _BYTES_PER_PIXEL.get(kind, _DECODED)
    if kind == "JPEG" and structure.passes > 1:
        needed += pixels * _SCANS_KEPT
    needed += 4 * structure.largest_tile
    if needed > limits.max_memory:
        refuse(
            name, f"{width} x {height} as {kind}, which needs about {needed:,} bytes of memory,", "max_memory", limits
        )


def raise_for(error: Exception, name: str, what: str) -> NoReturn:
    """Make an error of ours of whatever a decoder raised: OSError, SyntaxError, struct.error, OverflowError...

    Raises:
        ImageLimitError: Pillow's own limit is exceeded.
        ImageError: Always.
    """
    if isinstance(error, ImageError):
        raise error
    if isinstance(error, (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)):
        raise ImageLimitError(name, f"{str(error).rstrip('.')}; {_RAISE_PILLOWS_LIMIT}") from error
    reason = f"{what} ({type(error).__name__}: {str(error)[:200]})"
    raise ImageFormatError(name, f"{reason}; it is corrupt or truncated: fetch it or save it again") from error


class _Stream(io.BytesIO):
    """Bytes whose end can be made an error, for PIL.ImageFile.LOAD_TRUNCATED_IMAGES makes Pillow ignore it."""

    ends_in_error = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.ends_in_error and not data and size != 0:
            raise OSError("image file is truncated")
        return data
