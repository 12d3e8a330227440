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
from abc_rag.search.neighbours import page_of
from abc_rag.store.base import Store
from abc_rag.store.roots import Roots
from abc_rag.types import URL, Record

__all__ = ["Pictures"]

# Bytes of pictures that are held at a time.
_MOST_BYTES = 256 * 2**20
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
        self._store = store
        self._roots = (Roots() if store is None else store.roots).including(roots)

    def page_of(self, part: Record) -> Record | None:
        """The picture of the page that a part of a document is on; see `abc_rag.search.neighbours.page_of`.

        Returns:
            None where there is none, and without a store.

        Raises:
            StoreError: The store cannot be read, such as after it was closed.
        """
        return None if self._store is None else page_of(self._store, part)

    def read(self, record: Record) -> bytes:
        """The encoded bytes of a record's picture, exactly as they were indexed.

        Raises:
            ImageError: It may not be opened, cannot be read, or is not what was indexed; the message says what to do.
        """
        ((result,),) = self.batches([record])
        if isinstance(result, ImageError):
            raise result
        return result

    def batches(
        self, records: Sequence[Record], *, most_bytes: int = _MOST_BYTES
    ) -> Iterator[list[bytes | ImageError]]:
        """`read` for several records: the bytes of each, or its error, in order.

        Args:
            records: Whose pictures are read.
            most_bytes: A batch ends with the picture that reaches this many bytes.
        """
        paths = [record.source for record in records if record.source_type == "path"]
        outside = self._roots.outside([path for path in paths if isinstance(path, str)])
        refusals = [self._refusal(record, outside) for record in records]
        batch: list[bytes | ImageError] = []
        held = 0
        for record, refusal in zip(records, refusals, strict=True):
            place = URL(record.source) if record.source_type == "url" else record.source
            try:
                if refusal is not None:
                    raise refusal
                data = read_bytes(place, limits=self.limits)
                if hashlib.sha256(data).hexdigest() != record.sha256:
                    reason = "holds another picture than the one that was indexed; index it again"
                    raise ImageFetchError(describe_source(place), reason)
            except ImageError as error:
                batch.append(error)
            else:
                batch.append(data)
                held += len(data)
            if held >= most_bytes:
                yield batch
                batch, held = [], 0
        if batch:
            yield batch

    def _refusal(self, record: Record, outside: set[str]) -> ImageError | None:
        """Why a picture is not even read."""
        source, sha256 = record.source, record.sha256
        if not isinstance(source, str) or not isinstance(sha256, str):
            return ImageError(record.id, "has a damaged record: its source or its hash is not a text; index it again")
        if not source:
            return ImageError(record.id, "was stored without a source; store it with one, or keep a copy")
        if record.source_type not in ("path", "url"):
            reason = "was kept in the store's folder; open the store with pictures=FOLDER"
        # Where nothing is fetched anyway, that is the thing to say.
        elif not _SHA256.fullmatch(sha256) and (record.source_type == "path" or self.limits.allow_urls):
            reason = "was stored without a hash that tells whether it is still the same; index it again"
        elif record.source_type == "path" and source in outside:
            reason = (
                "is not in a folder that was indexed into this store on this machine, so it is not opened; index it "
                "here, or name the folder: roots=[...]"
            )
        else:
            return None
        return ImageFetchError(describe_source(URL(source) if record.source_type == "url" else source), reason)

    def share(self, record: Record, *, max_side: int | None = None) -> tuple[bytes, str]:
        """A record's picture for a page or a chat model: bytes and MIME type; see `abc_rag.images.share_image`.

        Raises:
            ImageError: As `read` does; or it cannot be decoded.
        """
        return share_image(
            self.read(record), limits=self.limits, max_side=max_side, name=str(record.source) or record.id
        )
