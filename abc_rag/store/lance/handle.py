"""A dataset that is opened when it is needed, and followed from version to version."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from abc_rag.errors import InputError, StoreError
from abc_rag.store.lance.client import import_lance, is_missing, translated
from abc_rag.store.lance.rows import FINGERPRINT, Dtype, check, create, dim_of

if TYPE_CHECKING:
    import lance

__all__ = ["Handle", "Opening"]

# What Lance keeps of an index and of its files' descriptions, from one version to the next.
_INDEX_BYTES = 2**30
_METADATA_BYTES = 2**28


class Opening(NamedTuple):
    """How the datasets of a store are opened.

    Attributes:
        wanted: The fingerprint of the vectors; None opens whatever there is, and marks nothing.
        dtype: Of the vectors, where a dataset is made.
        storage_options: For an object store.
        as_of: Look at what there was at that time, and write nothing; None for what there is now.
    """

    wanted: str | None = None
    dtype: Dtype = "float32"
    storage_options: dict[str, str] | None = None
    as_of: datetime | None = None


class Handle:
    """One dataset. Safe to use from many threads; every read sees what any process has committed before.

    Args:
        uri: Where it is.
        place: The store's name, for messages.
        how: How it is opened.
    """

    def __init__(self, uri: str, place: str, how: Opening) -> None:
        self.uri = uri
        self._place = place
        self._how = how
        self._lock = threading.Lock()
        self._known: lance.LanceDataset | None = None
        self._session: lance.Session | None = None
        self._pid = os.getpid()
        self._closed = False

    def close(self) -> None:
        """Let go of the dataset. Idempotent."""
        self._closed, self._known, self._session = True, None, None

    def current(self) -> lance.LanceDataset | None:
        """The dataset at its latest version, which stays as it is; None while there is none.

        Raises:
            FingerprintMismatchError: It holds another model's vectors.
            StoreError: This was closed, or the dataset cannot be read.
        """
        if self._closed:
            raise StoreError(f"{self._place}: this store has been closed; open a new one")
        if os.getpid() != self._pid:
            raise StoreError(
                f"{self._place}: Lance's threads do not survive a fork; open the store in the child itself, or start "
                "it by spawn"
            )
        with translated(self._place):
            known = self._known
            if known is not None and self._how.as_of is not None:
                return known
            if known is not None:
                with suppress(OSError, ValueError):
                    if known.latest_version == known.version:
                        return known
            with self._lock:
                self._known = None
                dataset = self._opened()
                if dataset is not None:
                    check(dataset, self._place, self._how.wanted)
                else:
                    self._session = None  # one that is made here later is another, with the same versions
                self._known = dataset
            return dataset

    def _opened(self) -> lance.LanceDataset | None:
        lance = import_lance()
        moment = self._how.as_of
        # Lance compares with local time.
        asof = None if moment is None else moment.astimezone().replace(tzinfo=None)
        try:
            if self._session is None:
                self._session = lance.Session(
                    index_cache_size_bytes=_INDEX_BYTES, metadata_cache_size_bytes=_METADATA_BYTES
                )
            return lance.dataset(self.uri, asof=asof, storage_options=self._how.storage_options, session=self._session)
        except (OSError, ValueError) as error:
            if is_missing(error) or (moment is not None and moment <= datetime.now(timezone.utc)):
                return None
            raise

    def writable(self, dim: int) -> lance.LanceDataset:
        """The dataset for a write, which changes it in place: made and marked if need be, for vectors of this length.

        Raises:
            InputError: Its vectors have another length.
            FingerprintMismatchError: It holds another model's vectors.
            StoreError: It cannot be written to.
        """
        how = self._how
        if how.as_of is not None:
            raise StoreError(f"{self._place}: opened as of {how.as_of}, which is past; open it without as_of to write")
        if self.current() is None:
            self._known = None
            create(self.uri, dim, dtype=how.dtype, fingerprint=how.wanted, storage_options=how.storage_options)
            self.current()  # whoever made it may have another model
        dataset = self._opened()
        if dataset is None:
            raise StoreError(f"{self._place}: the dataset was deleted while it was written to; try again")
        have = dim_of(dataset.schema)
        if have != dim:
            raise InputError(
                f"{self._place}: the vectors have {dim} dimensions, but those in {os.path.basename(self.uri)} have "
                f"{have}; use the model that made them, or another collection"
            )
        if how.wanted is not None and FINGERPRINT not in dataset.schema_metadata:
            dataset.update_schema_metadata({FINGERPRINT: how.wanted})
            check(dataset, self._place, how.wanted)
        return dataset
