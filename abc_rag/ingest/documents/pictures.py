"""Pictures that readers make or find: encoded again, or passed on if they are of a format that is read."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

__all__ = ["encoded"]

# A photograph as PNG takes several times as much; from here on it is a JPEG.
_MOST_PNG = 1_000_000


def encoded(picture: PIL.Image.Image) -> tuple[bytes, str]:
    """A picture as PNG, or as JPEG where that would be large; equal pixels give equal bytes.

    Args:
        picture: RGB.

    Returns:
        The bytes, and their type.
    """
    pixels = np.asarray(picture)
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all():
        picture = picture.getchannel(0)
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=3)
    if out.tell() <= _MOST_PNG:
        return out.getvalue(), "image/png"
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90)
    return out.getvalue(), "image/jpeg"
