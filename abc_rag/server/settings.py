"""What a server may be asked for at once, and where it keeps its files."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits

__all__ = ["DEFAULT_LIMITS", "ServerSettings", "is_loopback"]

_POSITIVE = (
    *("max_body_bytes", "max_upload_bytes", "max_received_bytes", "max_inputs", "max_text_characters"),
    *("max_requests", "max_connections", "max_jobs", "blob_bytes"),
)
_SECONDS = ("body_timeout_s", "stop_timeout_s")


DEFAULT_LIMITS = ImageLimits(max_bytes=32 * 2**20, max_pixels=50_000_000, max_memory=2**29)
"""Less than in a user's own process: strangers ask, and many at once."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits and places of a server. A request over a limit gets 413, 429 or 503, the last two with ``Retry-After``.

    Attributes:
        host: Address to listen on. Any but a loopback address needs API keys.
        port: Port to listen on; 0 takes a free one.
        folder: Where jobs, uploads, keys and the store are; None serves no collections and no keys.
        names: Names under which clients may ask for the model, besides its own; the first is the one in answers.
        max_body_bytes: Maximum bytes of a request's body, but for uploads.
        max_upload_bytes: Maximum bytes of one upload, which is kept on disk.
        max_received_bytes: Maximum bytes of bodies in memory, over all requests.
        max_inputs: Maximum inputs of one request.
        max_text_characters: Maximum characters of all texts of one request.
        max_requests: Maximum requests in progress, waiting ones included.
        max_connections: Maximum open connections.
        max_jobs: Maximum unfinished jobs of one collection.
        blob_bytes: Disk space for pictures that clients sent ahead of their requests.
        body_timeout_s: Seconds in which a body must have arrived.
        stop_timeout_s: Seconds that requests in progress get to end when the server stops.
        image_limits: Which pictures are accepted, and whether addresses are fetched; the embedder should have the same.

    Raises:
        InputError: A setting is unusable.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    folder: Path | None = None
    names: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 2**20
    max_upload_bytes: int = 2 * 2**30
    max_received_bytes: int = 512 * 2**20
    max_inputs: int = 2048
    max_text_characters: int = 4_000_000
    max_requests: int = 256
    max_connections: int = 1024
    max_jobs: int = 32
    blob_bytes: int = 2 * 2**30
    body_timeout_s: float = 60.0
    stop_timeout_s: float = 30.0
    image_limits: ImageLimits = DEFAULT_LIMITS

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def __post_init__(self) -> None:
        """Checks every setting."""
        if not isinstance(self.host, str) or not self.host:
            raise InputError(f"host must be an address such as '127.0.0.1', not {self.host!r}")
        if type(self.port) is not int or not 0 <= self.port < 65536:
            raise InputError(f"port must be a number in [0, 65535], not {self.port!r}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"ServerSettings.{name} must be an int of at least 1, not {value!r}")
        for name in _SECONDS:
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise InputError(f"ServerSettings.{name} must be a number of seconds above 0, not {value!r}")


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone. A name other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
