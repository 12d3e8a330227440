"""Opening untrusted pictures; `abc_rag.images.open` says how pixels become RGB."""

from __future__ import annotations

from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import OpenedImage, content_hash, mime_type_of, open_image, open_pixels
from abc_rag.images.pixels import Rendering
from abc_rag.images.read import describe_source, read_bytes
from abc_rag.images.share import share_image

__all__ = [
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
