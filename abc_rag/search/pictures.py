"""Opening the pictures of stored records again."""

from __future__ import annotations

import hashlib

from abc_rag.errors import ImageError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.read import read_bytes
from abc_rag.types import URL, Record

__all__ = ["Pictures"]


class Pictures:
    """Reads the pictures that records refer to, if they are still those that were indexed.

    Args:
        limits: Which pictures are read, and whether their URLs are fetched.
    """

    def __init__(self, *, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits

    def read(self, record: Record) -> bytes:
        """The encoded bytes of a record's picture.

        Raises:
            ImageError: It cannot be read, or is not what was indexed; the message says what to do.
        """
        source = record.source
        if not source:
            raise ImageError(record.id, "was stored without a source; store it with one, or keep a copy")
        if record.source_type not in ("path", "url"):
            raise ImageError(source, "was kept in the store's folder; open the store with pictures=FOLDER")
        data = read_bytes(URL(source) if record.source_type == "url" else source, limits=self.limits)
        if record.sha256 and hashlib.sha256(data).hexdigest() != record.sha256:
            raise ImageError(source, "holds another picture than the one that was indexed; index it again")
        return data
