"""Copy a store into another one, of the same or of another kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from abc_rag.errors import FingerprintMismatchError, InputError, StoreError
from abc_rag.store.base import Store
from abc_rag.types import Record, Vectors

__all__ = ["CopyReport", "copy_changed", "copy_store"]

_BYTES = 2**25  # of vectors, at once
# Vectors are made unit vectors once more, which may change the last digit.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class CopyReport:
    """What `copy_store` did.

    Attributes:
        copied: Records that were written.
        unchanged: Records that the target had already, with the same vector.
        facets: Facets that were written.
        problems: A line for each record or facet that is not in the target afterwards as it is in the source.
    """

    copied: int
    unchanged: int
    facets: int
    problems: list[str]


def copy_store(source: Store, target: Store, *, progress: Callable[[int], object] | None = None) -> CopyReport:
    """Copy every record with its vector, facets and kept picture; then compare both stores.

    Some thousand records are in memory at a time. What the target has already is not written again, so a copy that was
    interrupted goes on where it stopped. What else the target holds stays. Pictures that may be opened again from where
    they are (`abc_rag.store.Roots`) may be from the target, too. Nobody should write to the source meanwhile.

    Args:
        source: Where from.
        target: Where to; opened with the source's fingerprint.
        progress: Called with the number of records that are done.

    Raises:
        FingerprintMismatchError: The target is bound to another model, or to none.
        InputError: The source keeps copies of pictures, and the target has no folder for them.
        StoreError: One of them fails.
    """
    if target.fingerprint != source.fingerprint:
        raise FingerprintMismatchError(
            f"{target!r} is for vectors of {target.fingerprint}, and {source!r} holds those of {source.fingerprint}; "
            "open the target with the source's fingerprint, or use another one"
        )
    return copy_changed(source, target, lambda rows: rows, progress=progress)


def copy_changed(
    source: Store,
    target: Store,
    change: Callable[[Vectors], Vectors],
    *,
    progress: Callable[[int], object] | None = None,
) -> CopyReport:
    """`copy_store`, with other vectors, and without a look at fingerprints.

    Args:
        source: Where from.
        target: Where to.
        change: Makes the target's vectors ``(n, m)`` of the source's ``(n, dim)``, always the same ones.
        progress: Called with the number of records that are done.
    """
    copied = unchanged = facets = done = 0
    for records, whole in _gathered(source):
        rows = change(whole)
        moved = [_moved(record, source, target) for record in records]
        new = [place for place, same in enumerate(_same(moved, rows, target)) if not same]
        if new:
            target.add([moved[place] for place in new], rows[new])
        copied, unchanged, done = copied + len(new), unchanged + len(records) - len(new), done + len(records)
        if progress is not None:
            progress(done)
    for instruction, ids, whole in source.facet_pages():
        rows = change(whole)
        places = [place for place, same in enumerate(_same_facets(instruction, ids, rows, target)) if not same]
        if places:
            target.add_facets([ids[place] for place in places], instruction, rows[places])
            facets += len(places)
    target.roots.add(source.roots.listed())
    return CopyReport(copied, unchanged, facets, list(_differences(source, target, change)))


def _gathered(source: Store) -> Iterator[tuple[list[Record], Vectors]]:
    records: list[Record] = []
    rows: list[Vectors] = []
    for some, vectors in source.pages():
        records += some
        rows.append(vectors)
        if sum(one.nbytes for one in rows) >= _BYTES:
            yield records, np.concatenate(rows)
            records, rows = [], []
    if records:
        yield records, np.concatenate(rows)


def _moved(record: Record, source: Store, target: Store) -> Record:
    """The record as it is in the target: a kept picture is a copy in the target's own folder."""
    if not source.is_copy(record):
        return record
    if not target.keeps_pictures:
        raise InputError(f"{source!r} keeps copies of pictures; open the target with pictures=FOLDER to keep them too")
    try:
        data = Path(record.source).read_bytes()
    except OSError as error:
        raise StoreError(
            f"record {record.id!r}: its copy {record.source} cannot be read ({error.strerror}); delete the record, or "
            "restore the copy"
        ) from error
    mime_type = record.mime_type or _TYPES.get(Path(record.source).suffix, "")
    return replace(record, source=target.keep_picture(data, mime_type))


_TYPES = {".jpg": "image/jpeg", ".tiff": "image/tiff"} | {
    f".{kind}": f"image/{kind}" for kind in ("avif", "bmp", "gif", "heic", "png", "webp")
}


def _close(rows: Vectors, target: Store) -> float:
    """How far apart numbers of the same vector may be."""
    return _ROUNDING + 2.0 * float(np.abs(target.kept(rows) - rows).max(initial=0.0))


def _same(records: list[Record], rows: Vectors, target: Store) -> list[bool]:
    """Whether the target has each record, with the same vector."""
    ids = [record.id for record in records]
    there = {record.id: record for record in target.get(ids)}
    vectors, close = target.vectors(there), _close(rows, target)
    return [
        there.get(record.id) == record and bool(np.abs(vectors[record.id] - row).max() <= close)
        for record, row in zip(records, rows, strict=True)
    ]


def _same_facets(instruction: str, ids: list[str], rows: Vectors, target: Store) -> list[bool]:
    there, close = target.facet_vectors(ids, instruction), _close(rows, target)
    return [id_ in there and bool(np.abs(there[id_] - row).max() <= close) for id_, row in zip(ids, rows, strict=True)]


def _differences(source: Store, target: Store, change: Callable[[Vectors], Vectors]) -> Iterator[str]:
    for records, rows in source.pages():
        moved = [_moved(record, source, target) for record in records]
        for record, same in zip(moved, _same(moved, change(rows), target), strict=True):
            if not same:
                yield f"record {record.id!r} is not in the target as it is in the source"
    for instruction, ids, rows in source.facet_pages():
        for id_, same in zip(ids, _same_facets(instruction, ids, change(rows), target), strict=True):
            if not same:
                yield f"facet {instruction!r} of {id_!r} is not in the target as it is in the source"
