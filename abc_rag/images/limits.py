"""What a picture may cost, and the error for one that costs more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

from abc_rag.errors import ImageLimitError, InputError

_FORMATS = frozenset({"BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"})


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost. Each limit's name is in the error raised where it is exceeded.

    Attributes:
        max_bytes: Most bytes of the encoded picture.
        max_pixels: Most pixels, width times height, by the header and before decoding.
        max_aspect_ratio: Most times that the longer side may be the shorter one. Qwen2-VL's own limit is 200.
        max_frames: Most frames or pages of a GIF, PNG, WebP or TIFF file. Only the first is decoded; they
            are counted without decoding, and no further than this.
        formats: Which of BMP, GIF, JPEG, PNG, TIFF and WEBP are read.
        allow_urls: Whether a `URL` is fetched; only ever from public addresses.
        url_timeout_s: Seconds that fetching may take, redirects included; at most 3600.
        max_redirects: Most redirects followed.

    Raises:
        InputError: A limit makes no sense.
    """

    max_bytes: int = 50 * 2**20
    max_pixels: int = 100_000_000
    max_aspect_ratio: float = 200.0
    max_frames: int = 1000
    formats: frozenset[str] = _FORMATS
    allow_urls: bool = False
    url_timeout_s: float = 10.0
    max_redirects: int = 3

    def __post_init__(self) -> None:
        """Checks every limit."""
        for name, least in (("max_bytes", 1), ("max_pixels", 1), ("max_frames", 1), ("max_redirects", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InputError(f"ImageLimits.{name} must be an int of at least {least}, not {value!r}")
        for name, low, high in (("max_aspect_ratio", 1.0, math.inf), ("url_timeout_s", 0.001, 3600.0)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:
                raise InputError(f"ImageLimits.{name} must be a number in [{low:g}, {high:g}], not {value!r}")
        if type(self.allow_urls) is not bool:
            raise InputError(f"ImageLimits.allow_urls must be True or False, not {self.allow_urls!r}")
        if not isinstance(self.formats, frozenset) or not self.formats or not self.formats <= _FORMATS:
            raise InputError(f"ImageLimits.formats must be a frozenset out of {sorted(_FORMATS)}, not {self.formats!r}")


DEFAULT_LIMITS = ImageLimits()


def _refuse(name: str, measured: str, limit: str, limits: ImageLimits) -> NoReturn:
    exceeded = f"{measured} exceed ImageLimits.{limit}={getattr(limits, limit):,}"
    raise ImageLimitError(name, f"{exceeded}; to allow it, pass limits=ImageLimits({limit}=...)")
