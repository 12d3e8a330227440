"""Opening untrusted pictures.

`open_image` takes a picture from a path, a URL, a data URI, bytes or a PIL image, and returns it
decoded, upright and in RGB, or raises an `abc_rag.errors.ImageError` that says why not. What a
picture may cost is set by `ImageLimits`; its structure and its header are checked before any pixel is decoded.

How pixels become RGB:

*   As in the published ABC pipeline, by ``image.convert("RGB")``: transparency is dropped, not
    blended with a background, and an animation or a document is its first frame or page. The first
    picture that loses something logs a warning; `Rendering` keeps transparency or depth.
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
import os
import threading
from dataclasses import dataclass

import PIL.Image

from abc_rag.images.decode import check_header, check_size, decode, identify, raise_for
from abc_rag.images.formats import MIME_TYPES
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.pixels import PUBLISHED, TURNS, Change, Rendering, orientation_of, to_rgb
from abc_rag.images.read import check_bytes, describe_source, read_bytes
from abc_rag.types import ImageSource

__all__ = ["OpenedImage", "as_png", "content_hash", "mime_type_of", "open_image", "open_pixels", "rendered"]

# Modes that a PNG file holds without loss.
_IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
# Pillow is not safe when two threads load one lazily opened image.
_LOADING = threading.Lock()
if hasattr(os, "register_at_fork"):  # the child would find it taken for good
    os.register_at_fork(before=_LOADING.acquire, after_in_parent=_LOADING.release, after_in_child=_LOADING.release)


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
    source: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    exif: bool = True,
    rendering: Rendering = PUBLISHED,
    name: str | None = None,
) -> OpenedImage:
    """Opens a picture: decoded in full, upright, in RGB.

    Args:
        source: A path (``str`` or path object), `URL`, `DataURI`, ``bytes``, or a PIL image, which is
            not changed (only loaded, where it was opened lazily) and gives the frame it stands at.
        limits: What it may cost.
        exif: Whether to turn it as its EXIF orientation says. False is the published behaviour.
        rendering: What becomes of transparency and of more than eight bits.
        name: What it is called in messages, where the source's own description says less.

    Returns:
        The picture, its hash and its name.

    Raises:
        ImageLimitError: It exceeds a limit.
        ImageFormatError: It is corrupt, truncated, empty, or of a format that is not read.
        ImageFetchError: It could not be read or fetched, or fetching is not allowed.
        InputError: ``source`` has another type.
    """
    name = describe_source(source) if name is None else name
    if isinstance(source, PIL.Image.Image):
        image, orientation = _copy_pil(source, name, limits)
        sha256 = _hash_pil(image, orientation)
        mime_type = MIME_TYPES.get(getattr(source, "format", None) or "")
    else:
        data = read_bytes(source, limits=limits)
        kind = identify(data, name, limits)
        image = decode(data, kind, name, limits)
        orientation = orientation_of(image)
        sha256 = hashlib.sha256(data).hexdigest()
        mime_type = MIME_TYPES[kind]
    return OpenedImage(to_rgb(image, orientation if exif else 1, name, rendering=rendering), sha256, name, mime_type)


def open_pixels(
    source: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    name: str | None = None,
    rendering: Rendering = PUBLISHED,
    first: Change | None = None,
) -> PIL.Image.Image:
    """The pixels that `open_image` gives (mode ``"RGB"``, upright), without their hash; its arguments, and its errors.

    ``first`` is done to the decoded picture before it is converted to RGB and turned upright.
    """
    name = describe_source(source) if name is None else name
    if isinstance(source, PIL.Image.Image):
        image, orientation = _copy_pil(source, name, limits)
    else:
        data = read_bytes(source, limits=limits)
        image = decode(data, identify(data, name, limits), name, limits)
        orientation = orientation_of(image)
    return to_rgb(image, orientation, name, rendering=rendering, first=first)


def rendered(source: ImageSource, *, limits: ImageLimits, rendering: Rendering, name: str | None = None) -> ImageSource:
    """What `open_pixels` makes the pixels of a rendering of; the source itself for the published one."""
    return source if rendering == PUBLISHED else open_pixels(source, limits=limits, rendering=rendering, name=name)


def content_hash(source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS) -> str:
    """The hash that `open_image` gives, without decoding: equal bytes have equal hashes, whatever their name.

    Takes what `open_image` takes and raises what it raises, but does not check limits that need the header of encoded
    bytes. SHA-256 in hex digits.
    """
    if isinstance(source, PIL.Image.Image):
        return _hash_pil(*_copy_pil(source, describe_source(source), limits))
    return hashlib.sha256(read_bytes(source, limits=limits)).hexdigest()


def mime_type_of(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS, name: str | None = None) -> str:
    """What a picture's bytes are, from their signature and header; nothing is decoded.

    Args:
        data: Encoded bytes.
        limits: What the picture may cost; all limits are checked, without decoding.
        name: What it is called in messages, where ``"bytes (123 KB)"`` says less.

    Returns:
        Such as ``"image/png"``.

    Raises:
        ImageLimitError: It exceeds a limit.
        ImageFormatError: It is empty, of a format that is not read, or its header is corrupt.
    """
    name = describe_source(data) if name is None else name
    check_bytes(data, name, limits)
    kind = identify(data, name, limits)
    check_header(data, kind, name, limits)
    return MIME_TYPES[kind]


def as_png(source: PIL.Image.Image, *, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """A PIL image as a PNG file of the same pixels, upright, from which `open_pixels` makes what it makes of the image.

    Raises:
        ImageError: It exceeds a limit, or cannot be loaded or written.
    """
    name = describe_source(source)
    image, orientation = _copy_pil(source, name, limits)
    if image.mode not in _IN_PNG:
        image, orientation = to_rgb(image, orientation, name), 1
    out = io.BytesIO()
    try:
        transparency = image.info.get("transparency")
        upright = image.transpose(TURNS[orientation]) if orientation in TURNS else image
        more = {} if transparency is None else {"transparency": transparency}
        upright.info = {}
        upright.save(out, "PNG", compress_level=1, **more)
    except Exception as error:
        raise_for(error, name, "cannot be written as PNG")
    return out.getvalue()


def _copy_pil(source: PIL.Image.Image, name: str, limits: ImageLimits) -> tuple[PIL.Image.Image, int]:
    """A copy to work on, and its EXIF orientation."""
    check_size(source.size, name, limits)
    try:
        with _LOADING:
            return source.copy(), orientation_of(source)
    except Exception as error:
        raise_for(error, name, "cannot be loaded")


def _hash_pil(image: PIL.Image.Image, orientation: int) -> str:
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} {orientation}\n".encode())
    if image.mode in ("P", "PA"):
        digest.update(bytes(image.getpalette("RGB") or ()))
    digest.update(image.tobytes())
    return digest.hexdigest()
