"""From decoded pixels of any mode to upright RGB.

`image.convert("RGB")` silently drops transparency and the range of pictures with more than eight bits. The published
ABC pipeline converts so, and so does this module by default; it logs one warning per process. `Rendering` changes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import PIL.Image
from PIL import ImageColor

from abc_rag.errors import InputError
from abc_rag.images.decode import raise_for
from abc_rag.images.structure import exif_is_sound

__all__ = ["PUBLISHED", "TURNS", "Change", "Depth", "Rendering", "orientation_of", "to_rgb"]

logger = logging.getLogger(__name__)

Change = Callable[[PIL.Image.Image], PIL.Image.Image]
Depth = Literal["published", "scaled"]

_ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_WARNED: set[str] = set()


@dataclass(frozen=True)
class Rendering:
    """How pixels that RGB cannot hold become RGB.

    Attributes:
        background: A colour behind transparent pixels, as Pillow writes colours: ``"white"``, ``"#ff8800"``. None drops
            transparency, as the published pipeline does: a clear pixel has whatever colour is stored under it.
        depth: What becomes of 16-bit, 32-bit and floating-point greys. ``"published"``: the high byte of 16 bits, and
            0..255 of the others, with everything outside clipped. ``"scaled"``: the range up to the largest value is
            mapped to 0..255, in steps of whole bits (a picture with values up to 4095 has 12 bits); floating-point
            pictures within 0..1 are mapped from 0..1.

    Raises:
        InputError: ``background`` is no opaque colour, or ``depth`` is neither.
    """

    background: str | None = None
    depth: Depth = "published"

    def __post_init__(self) -> None:
        """Checks both."""
        if self.background is not None:
            try:
                colour = ImageColor.getrgb(self.background)
            except (ValueError, AttributeError, TypeError) as error:
                raise InputError(f"background must be a colour such as 'white', not {self.background!r}") from error
            if len(colour) != 3:
                raise InputError(f"background must be an opaque colour, not {self.background!r}")
        if self.depth not in ("published", "scaled"):
            raise InputError(f"depth must be 'published' or 'scaled', not {self.depth!r}")

    def __str__(self) -> str:
        """What differs from the published pipeline; empty where nothing does."""
        parts = [f"background={self.background}"] if self.background is not None else []
        return ",".join([*parts, *([f"depth={self.depth}"] if self.depth != "published" else [])])


PUBLISHED = Rendering()


def orientation_of(image: PIL.Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is malformed."""
    try:
        block = image.info.get("exif")
        if isinstance(block, bytes) and not exif_is_sound(block):
            return 1
        orientation = image.getexif().get(_ORIENTATION, 1)
        return orientation if orientation in TURNS else 1
    except Exception:  # a malformed note must not lose the picture
        return 1


def to_rgb(
    image: PIL.Image.Image,
    orientation: int,
    name: str,
    *,
    rendering: Rendering = PUBLISHED,
    first: Change | None = None,
) -> PIL.Image.Image:
    """Convert a picture to RGB and turn it upright.

    Args:
        image: Decoded pixels, which are given up: they may be changed or freed.
        orientation: As `orientation_of` gives it.
        name: What the picture is called in messages.
        rendering: What becomes of transparency and depth.
        first: What is done to the picture before it is turned upright.

    Returns:
        Mode ``"RGB"``, without metadata: an orientation left there would turn the picture again, further on.

    Raises:
        ImageFormatError: It cannot be converted.
    """
    try:
        image = _flat(image, rendering.background, name)
        image = _eight_bits(image, rendering.depth, name)
        # Pillow warns where it drops transparency from a palette, even when asked to.
        image.info.pop("transparency", None)
        image = image if first is None else first(image)
        rgb = image.convert("RGB")
        if orientation in TURNS:
            image.close()  # frees its pixels before there is a third copy
            rgb = rgb.transpose(TURNS[orientation])
    except Exception as error:
        raise_for(error, name, f"of mode {image.mode} cannot be converted to RGB")
    rgb.info = {}
    return rgb


def _flat(image: PIL.Image.Image, background: str | None, name: str) -> PIL.Image.Image:
    """The picture in front of the background, if it has transparent pixels and there is one."""
    if not image.has_transparency_data or (background is None and "transparency" in _WARNED):
        return image
    alpha = image.convert("RGBA")
    lowest, _ = alpha.getchannel("A").getextrema()
    if lowest == 255:
        return image
    if background is None:
        _warn_once("transparency", name, "has transparent pixels, and transparency is dropped", "background='white'")
        return image
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", alpha.size, background), alpha)


def _eight_bits(image: PIL.Image.Image, depth: Depth, name: str) -> PIL.Image.Image:
    """Greys of more than eight bits in eight; other pictures as they are."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    if image.mode.startswith("I;16"):
        image = image.convert("I")
        published = 1 / 256
    else:
        published = 1.0
    lowest, highest = (float(value) for value in image.getextrema())  # type: ignore[arg-type]  # one band
    if depth == "scaled":
        scale = 255.0 / _full_scale(image.mode, highest)
        return image.convert("F").point(lambda value: value * scale + 0.5).convert("L")
    loses = highest < 4096 if published < 1 else highest <= 1 if image.mode == "F" else highest > 255
    if lowest != highest and loses:
        lost = "has more than 8 bits, of which most are dropped or clipped"
        _warn_once("depth", name, lost, "depth='scaled'")
    return image if published == 1.0 else image.point(lambda value: value * (1 / 256))


def _full_scale(mode: str, highest: float) -> float:
    """The value that becomes 255."""
    if mode == "F" and highest <= 1:
        return 1.0
    return float(2 ** max(8, int(highest).bit_length()) - 1)


def _warn_once(kind: str, name: str, what: str, remedy: str) -> None:
    if kind not in _WARNED:
        _WARNED.add(kind)
        logger.warning(
            "%s %s, as in the published pipeline: pictures that differ in nothing else get one vector. To keep the "
            "difference: load_embedder(..., %s). This is said once.",
            name,
            what,
            remedy,
        )
