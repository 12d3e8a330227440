"""What a picture may cost, and the error for one that costs more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

from abc_rag.errors import ImageLimitError, InputError
from abc_rag.images.formats import FORMATS

__all__ = ["DEFAULT_LIMITS", "ImageLimits", "refuse"]


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost. An error names the limit that was exceeded.

    All limits are checked before a pixel is decoded. Together they bound the time and the memory of every picture that
    is let through, in threads too, where a decoder cannot be interrupted. With the defaults no picture took more than
    a few seconds on one core, or more than `max_memory`.

    Attributes:
        max_bytes: Maximum size of the encoded picture in bytes.
        max_pixels: Maximum of width times height.
        max_memory: Maximum memory in bytes that decoding is estimated to need, by format and pixels.
        max_aspect_ratio: Maximum ratio of the longer side to the shorter one. Qwen2-VL's own limit is 200.
        max_frames: Maximum number of frames or pages of a GIF, PNG, WebP, TIFF, AVIF or HEIC file. Only the first is
            decoded.
        max_parts: Maximum number of segments of a JPEG file, chunks of a PNG or WebP file, and strips or tiles of a
            TIFF file.
        max_scan_pixels: Maximum of pixels times scans in a JPEG file. A progressive one has about ten scans, and each
            costs a pass over all pixels, however small it is.
        formats: Which of AVIF, BMP, GIF, HEIC, JPEG, PNG, TIFF and WEBP are read. HEIC needs the extra ``heif``.
        allow_urls: Whether a `URL` is fetched; only ever from public addresses.
        url_timeout_s: Maximum time of fetching in seconds, redirects included; at most 3600.
        max_redirects: Maximum number of redirects that are followed.

    Raises:
        InputError: A limit makes no sense.
    """

    max_bytes: int = 50 * 2**20
    max_pixels: int = 100_000_000
    max_memory: int = 3 * 2**29
    max_aspect_ratio: float = 200.0
    max_frames: int = 1000
    max_parts: int = 20_000
    max_scan_pixels: int = 1_500_000_000
    formats: frozenset[str] = FORMATS
    allow_urls: bool = False
    url_timeout_s: float = 10.0
    max_redirects: int = 3

    def __post_init__(self) -> None:
        """Checks every limit."""
        positive = ("max_bytes", "max_pixels", "max_memory", "max_frames", "max_parts", "max_scan_pixels")
        for name, least in (*((name, 1) for name in positive), ("max_redirects", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InputError(f"ImageLimits.{name} must be an int of at least {least}, not {value!r}")
        for name, low, high in (("max_aspect_ratio", 1.0, math.inf), ("url_timeout_s", 0.001, 3600.0)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:
                raise InputError(f"ImageLimits.{name} must be a number in [{low:g}, {high:g}], not {value!r}")
        if type(self.allow_urls) is not bool:
            raise InputError(f"ImageLimits.allow_urls must be True or False, not {self.allow_urls!r}")
        if not isinstance(self.formats, frozenset) or not self.formats or not self.formats <= FORMATS:
            raise InputError(f"ImageLimits.formats must be a frozenset out of {sorted(FORMATS)}, not {self.formats!r}")


DEFAULT_LIMITS = ImageLimits()


def refuse(name: str, measured: str, limit: str, limits: ImageLimits) -> NoReturn:
    """Refuse a picture that exceeds a limit.

    Args:
        name: What the picture is called.
        measured: What it has, such as ``"70,000,000 bytes"``.
        limit: The limit's name.
        limits: Where its value stands.

    Raises:
        ImageLimitError: Always.
    """
    exceeded = f"{measured} exceed ImageLimits.{limit}={getattr(limits, limit):,}"
    raise ImageLimitError(name, f"{exceeded}; to allow it, pass limits=ImageLimits({limit}=...)")
