"""Copies of pictures in a folder beside the vectors, named by their content."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from abc_rag.errors import InputError, StoreError
from abc_rag.files import refused_as, write
from abc_rag.types import Record

__all__ = ["KEPT", "KeptPictures"]

KEPT = "kept"
"""The source type, in the database only, of a picture that the store holds a copy of."""

_SUFFIXES = {
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/gif": ".gif",
    "image/heic": ".heic",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/tiff": ".tiff",
    "image/webp": ".webp",
}

# Where a copy is, within the folder.
_COPY = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.[a-z]+")


class KeptPictures:
    """The folder of kept pictures. The database has paths relative to it, so that a store can be moved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def keep(self, data: bytes, mime_type: str) -> str:
        """Copy encoded bytes into the folder; return the path.

        Raises:
            InputError: The type is not that of a picture that is read.
            StoreError: The copy cannot be written.
        """
        suffix = _SUFFIXES.get(mime_type)
        if suffix is None:
            raise InputError(f"pictures of type {mime_type!r} cannot be kept; these can: {', '.join(_SUFFIXES)}")
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.folder / sha256[:2] / f"{sha256}{suffix}"
        if path.is_file() and path.stat().st_size == len(data):
            return str(path)
        with refused_as(StoreError, f"{path}: the picture cannot be kept", "free some space or make it writable"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, data)
        return str(path)

    def forget(self, source: str) -> None:
        """Remove one copy; ``source`` as the database has it."""
        if _COPY.fullmatch(source):
            with contextlib.suppress(OSError):
                (self.folder / source).unlink()

    def problems(self, records: Iterable[Record]) -> Iterator[str]:
        """A line for each copy that is missing, damaged or no record's.

        Args:
            records: All, as the database has them.
        """
        expected: set[str] = set()
        for record in records:
            if record.source_type != KEPT or record.source in expected or not _COPY.fullmatch(record.source):
                continue
            expected.add(record.source)
            try:
                found = hashlib.sha256((self.folder / record.source).read_bytes()).hexdigest()
            except OSError:
                yield f"record {record.id!r}: its copy {record.source} is missing"
                continue
            if found != Path(record.source).stem:
                yield f"record {record.id!r}: its copy {record.source} is damaged"
        for path in sorted(self.folder.glob("??/*")):
            name = path.relative_to(self.folder).as_posix()
            if _COPY.fullmatch(name) and name not in expected:
                yield f"the copy {name} belongs to no record"

    def to_stored(self, record: Record) -> Record:
        """The record as the database has it: a copy's path is relative to the folder."""
        source = record.source
        if record.modality == "image" and record.source_type == "path" and isinstance(source, str):
            inside = Path(*Path(source).parts[-2:]).as_posix()
            # Only copies: whatever else somebody has in that folder is not the store's to delete.
            if _COPY.fullmatch(inside) and Path(source) == self.folder / inside:
                return replace(record, source=inside, source_type=KEPT)  # type: ignore[arg-type]
        return record

    def to_public(self, record: Record) -> Record:
        """The record of a copy as callers see it: with the whole path. What is no copy's name stays as it is."""
        if not isinstance(record.source, str) or not _COPY.fullmatch(record.source):
            return record
        return replace(record, source=str(self.folder / record.source), source_type="path")
