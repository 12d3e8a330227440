"""Opening the pictures of stored records again: whether they may be, and whether they are still what was indexed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from abc_rag.errors import ImageError, ImageFetchError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.read import describe_source, read_bytes
from abc_rag.images.share import share_image
from abc_rag.store.base import Store
from abc_rag.store.roots import Roots
from abc_rag.types import URL, Record

__all__ = ["Pictures"]

_SHA256 = re.compile("[0-9a-f]{64}")


class Pictures:
    """Reads the pictures that records refer to.

    Anybody who can write into a store can make a record refer to any file or address. So a file is opened only where
    it was indexed on this machine, where the store keeps its own copies, or in a folder that the caller names; an
    address is fetched only where the limits allow it, and from public addresses alone. Whatever is read is used only if
    its hash is the one that was stored.

    Args:
        store: Whose records they are. If not given: pictures indexed on this machine into any store.
        roots: Further files and folders from which pictures may be opened, such as those of a store that was indexed
            on another machine.
        limits: Which pictures are read, and whether their URLs are fetched.

    Raises:
        InputError: ``roots`` is not a list of paths.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        roots: Iterable[str | os.PathLike[str]] = (),
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        self.limits = limits
        self._roots = (Roots() if store is None else store.roots).including(roots)

    def read(self, record: Record) -> bytes:
        """The encoded bytes of a record's picture, exactly as they were indexed.

        Raises:
            ImageError: It may not be opened, cannot be read, or is not what was indexed; the message says what to do.
        """
        (result,) = self.each([record])
        if isinstance(result, ImageError):
            raise result
        return result

    def each(self, records: Sequence[Record]) -> Iterator[bytes | ImageError]:
        """`read` for several records: the bytes of each, or its error, in order and read one at a time."""
        outside = self._roots.outside(
            record.source for record in records if record.source_type == "path" and isinstance(record.source, str)
        )
        for record in records:
            try:
                result: bytes | ImageError = self._bytes(record, outside)
            except ImageError as error:
                result = error
            yield result

    def _bytes(self, record: Record, outside: set[str]) -> bytes:
        source, sha256 = record.source, record.sha256
        if not isinstance(source, str) or not isinstance(sha256, str):
            raise ImageError(record.id, "has a damaged record: its source or its hash is not a text; index it again")
        if not source:
            raise ImageError(record.id, "was stored without a source; store it with one, or keep a copy")
        place: str | URL = URL(source) if record.source_type == "url" else source
        refusal = None
        if record.source_type not in ("path", "url"):
            refusal = "was kept in the store's folder; open the store with pictures=FOLDER"
        # Where nothing is fetched anyway, that is the thing to say.
        elif not _SHA256.fullmatch(sha256) and (isinstance(place, str) or self.limits.allow_urls):
            refusal = "was stored without a hash that tells whether it is still the same; index it again"
        elif isinstance(place, str) and place in outside:
            refusal = (
                "is not in a folder that was indexed into this store on this machine, so it is not opened; index it "
                "here, or name the folder: roots=[...]"
            )
        if refusal is not None:
            raise ImageFetchError(describe_source(place), refusal)
        data = read_bytes(place, limits=self.limits)
        if hashlib.sha256(data).hexdigest() != sha256:
            reason = "holds another picture than the one that was indexed; index it again"
            raise ImageFetchError(describe_source(place), reason)
        return data

    def share(self, record: Record, *, max_side: int | None = None) -> tuple[bytes, str]:
        """A record's picture for a page or a chat model: bytes and MIME type; see `abc_rag.images.share_image`.

        Raises:
            ImageError: As `read` does; or it cannot be decoded.
        """
        return share_image(
            self.read(record), limits=self.limits, max_side=max_side, name=str(record.source) or record.id
        )
