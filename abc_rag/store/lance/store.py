"""`LanceStore`: records and vectors in Lance datasets, in a folder or on an object store."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

from abc_rag.errors import InputError
from abc_rag.store.base import Store
from abc_rag.store.lance.client import import_lance, translated
from abc_rag.store.lance.handle import Opening
from abc_rag.store.lance.neighbours import IndexKind, build, checked_kind, refresh
from abc_rag.store.lance.rows import Dtype, dataset_uri
from abc_rag.store.lance.table import LanceTable
from abc_rag.store.lance.words import WordIndex
from abc_rag.store.pictures import KeptPictures
from abc_rag.store.roots import Roots
from abc_rag.types import Fingerprint

__all__ = ["LanceStore"]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_SCHEMES = ("s3://", "gs://", "az://", "file://")


class LanceStore(Store):
    """Pictures and passages in Lance datasets, in cosine space; needs the extra ``lance``.

    A write is a commit: it is there as a whole, or not at all, and a process that is killed at any moment loses nothing
    that was acknowledged. Many processes may read and write at once: a write that another one overtook is repeated.
    Every search sees what any process has committed before it. Old versions stay for a day (``as_of``, `compact`).
    Lance does not flush to the disk: of a local folder, a power cut may take the last seconds.

    Every search is exact until `build_index` has made an index of neighbours, which pays from about a hundred thousand
    records on. Up to 256 MiB of vectors are kept in memory; more are read from the disk for each search.

    Safe to use from many threads. A child that was forked cannot use its parent's store (Lance's threads are gone,
    this raises `StoreError`): start processes by ``spawn``. A collection is made by the first `add`, so opening a store
    to read changes nothing. Its datasets, ``COLLECTION.lance`` and ``COLLECTION.facets.lance``, are plain Lance.

    Args:
        place: A folder, or an object store: ``s3://BUCKET/FOLDER``, ``gs://...`` or ``az://...``.
        collection: Name of the collection: 1 to 200 characters of ``[a-zA-Z0-9._-]``, not ending in ``.facets``.
        fingerprint: Whose vectors go in and out, as for `abc_rag.ChromaStore`.
        dtype: How vectors are kept where a dataset is made: ``"float32"``, or ``"float16"`` in half the space.
        storage_options: What the object store needs, such as a region or a token.
        pictures: Folder of the pictures that `keep_picture` copies. If not given: ``pictures`` within a local
            ``place``; on an object store, none.
        keywords: Folder on this machine for the keyword index, which follows the dataset. If not given: a local
            ``place`` itself; on an object store, none.
        as_of: Read what there was at this time, with its offset, and write nothing. There is no keyword index then.

    Raises:
        InputError: An argument is unusable.
        FingerprintMismatchError: The collection holds another model's vectors.
        MissingExtraError: The extra ``lance`` is not installed.
        StoreError: The place cannot be used; the message says what to do.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        collection: str = "abc",
        fingerprint: Fingerprint | str | None = None,
        dtype: Dtype = "float32",
        storage_options: Mapping[str, str] | None = None,
        pictures: str | os.PathLike[str] | None = None,
        keywords: str | os.PathLike[str] | None = None,
        as_of: datetime | None = None,
    ) -> None:
        given = os.fspath(place)
        if not given:
            raise InputError("place is empty: name a folder or an object store such as s3://BUCKET/FOLDER")
        if not re.fullmatch(r"[a-zA-Z0-9](?:[a-zA-Z0-9._-]{0,198}[a-zA-Z0-9])?", collection):
            raise InputError(
                f"collection {collection!r}: a name has 1 to 200 characters of [a-zA-Z0-9._-] "
                "and begins and ends with a letter or a digit"
            )
        if collection.endswith(".facets"):
            raise InputError(f"collection {collection!r}: names ending in '.facets' are reserved; use another")
        if dtype not in ("float32", "float16"):
            raise InputError(f"dtype must be 'float32' or 'float16', not {dtype!r}")
        if as_of is not None and (not isinstance(as_of, datetime) or as_of.tzinfo is None):
            raise InputError("as_of must be a datetime with its offset, such as datetime.now(timezone.utc)")
        remote = _SCHEME.match(given) is not None
        if remote and not given.lower().startswith(_SCHEMES):
            raise InputError(f"place {given!r}: give a folder, or an object store: s3://, gs:// or az://")
        self._place = given
        self._settings: dict[str, Any] = {
            "place": given.rstrip("/") if remote else os.path.abspath(given),
            "collection": collection,
            "fingerprint": fingerprint,
            "dtype": dtype,
            "storage_options": None if storage_options is None else dict(storage_options),
            "pictures": None if pictures is None else os.path.abspath(os.fspath(pictures)),
            "keywords": None if keywords is None else os.path.abspath(os.fspath(keywords)),
            "as_of": as_of,
        }
        import_lance()
        where = self._settings["place"]
        if not remote:
            with translated(given):
                os.makedirs(where, exist_ok=True)
        self._wanted = None if fingerprint is None else str(fingerprint)
        how = Opening(self._wanted, dtype, self._settings["storage_options"], as_of)
        folder = self._settings["keywords"] or (None if remote else where)
        # A local store may be moved with its index.
        name = f"{where}#{collection}" if remote or keywords is not None else collection
        open_words = None if folder is None else partial(WordIndex, folder, name)
        self._records_table = LanceTable(dataset_uri(where, collection), given, how, words=open_words)
        self._facets_table = LanceTable(dataset_uri(where, collection, facets=True), given, how, facets=True)
        if pictures is None and not remote:
            pictures = Path(where, "pictures")
        kept = None if pictures is None else Path(pictures, collection)
        # Links on the way to the store are followed, but none that whoever filled the store put in the folder's place.
        real = where if remote else os.path.realpath(where)
        folders = [one for one in (kept, None if remote else Path(real, "pictures", collection)) if one is not None]
        super().__init__(
            self._records_table,
            self._facets_table,
            None if kept is None else KeptPictures(kept),
            Roots(f"{real}#{collection}", own=folders),
        )
        try:
            for table in self._tables:
                table.fingerprint()
        except BaseException:
            self.close()
            raise

    @property
    def _tables(self) -> tuple[LanceTable, LanceTable]:
        return self._records_table, self._facets_table

    def __repr__(self) -> str:
        return f"LanceStore({self._place!r}, collection={self._settings['collection']!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(LanceStore, **self._settings), ()

    def like(self, **settings: Any) -> LanceStore:  # noqa: ANN401
        """Open the same place with other settings, named as for the class."""
        return LanceStore(**{**self._settings, **settings})

    @property
    def fingerprint(self) -> str | None:
        """The mark of the collection; before there is one, the mark it will get, if any."""
        return self._records_table.fingerprint() or self._wanted

    @property
    def notes_file(self) -> Path:
        """Where `abc_rag.ingest.index_paths` notes which files it has read: in the store's folder, if it has one."""
        where = self._settings["place"]
        return super().notes_file if _SCHEME.match(where) else Path(where, "abc-files.sqlite3")

    def close(self) -> None:
        """Let go of the datasets and the keyword index. Idempotent."""
        for table in self._tables:
            table.close()

    # -- looking after it ----------------------------------------------------------------------

    def build_index(self, kind: IndexKind | None = None) -> dict[str, int]:
        """Build the index of neighbours, and those of ids and of fields for filters; or bring what there is up to date.

        Where there is an index of this kind already, rows that came since are added to it; after the rows have doubled,
        it is built anew. Until the next call, further rows are compared with one by one, so nothing is missed.

        Args:
            kind: What stands for a vector in the index: ``"int8"`` (a byte a dimension), ``"binary"`` (a bit),
                ``"pq"`` (a byte for 8 dimensions) or ``"hnsw"`` (a graph over bytes). Candidates are compared by their
                own vectors in any case. If not given: ``"binary"`` from 256 dimensions on, else ``"int8"``.

        Returns:
            By table (``"records"``, ``"facets"``), how many rows the index has; 0 where there are too few for one.

        Raises:
            InputError: There is no such kind.
            StoreError: It cannot be written.
        """
        kind = checked_kind(kind, self.dim or 0)
        built = {}
        for name, table in zip(("records", "facets"), self._tables, strict=True):
            dataset = table.handle.current()
            built[name] = 0
            if dataset is None or not table.count():
                continue
            with translated(self._place):
                own = table.handle.writable(dataset.schema.field("vector").type.list_size)
                built[name] = build(own, kind)
        return built

    def indexes(self) -> list[dict[str, Any]]:
        """The indexes there are: ``table``, ``name`` of the column, Lance's ``kind``, ``rows`` and ``bytes``."""
        found = []
        for name, table in zip(("records", "facets"), self._tables, strict=True):
            dataset = table.handle.current()
            with translated(self._place):
                for one in () if dataset is None else dataset.describe_indices():
                    facts = {"kind": one.index_type, "rows": one.num_rows_indexed, "bytes": one.total_size_bytes}
                    found.append({"table": name, "name": one.field_names[0], **facts})
        return found

    def repair(self) -> int:
        """Build the keyword index, and an index of neighbours if there is one, anew; return how many records there are.

        Raises:
            StoreError: It cannot be written.
        """
        self._records_table.rebuild_words()
        for table in self._tables:
            dataset = table.handle.current()
            if dataset is not None:
                with translated(self._place):
                    refresh(table.handle.writable(dataset.schema.field("vector").type.list_size))
        return self.count()

    def compact(self, keep: timedelta = timedelta(days=1)) -> int:
        """Join small files, drop what was deleted, bring indexes up to date, and remove old versions.

        Args:
            keep: Versions that are younger stay, for `as_of` and for processes that read them at this moment.

        Returns:
            How many bytes were freed by removing old versions.

        Raises:
            InputError: ``keep`` is negative.
            StoreError: It cannot be written.
        """
        if keep < timedelta(0):
            raise InputError(f"keep must not be negative, not {keep}")
        freed = 0
        for table in self._tables:
            dataset = table.handle.current()
            if dataset is None:
                continue
            with translated(self._place):
                own = table.handle.writable(dataset.schema.field("vector").type.list_size)
                own.optimize.compact_files()
                own.optimize.optimize_indices()
                removed = own.cleanup_old_versions(older_than=keep, error_if_tagged_old_versions=False)
                freed += int(removed.bytes_removed)
        return freed

    def versions(self) -> list[datetime]:
        """When each version of the records that is still there was committed, the oldest first; see ``as_of``."""
        dataset = self._records_table.handle.current()
        if dataset is None:
            return []
        with translated(self._place):
            return [one["timestamp"].astimezone(timezone.utc) for one in dataset.versions()]
