"""Shorter vectors of a store: a projection onto the principal axes of what it holds (PCA).

The axes are those of the vectors' second moments, without subtracting the mean: they keep products best, and products
are what a search compares. With the mean subtracted, less was found (`docs/scale.md`). A reduced store's fingerprint
names its projection, so it takes no vectors of the model itself; its matrix is in a file beside it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from abc_rag.errors import FingerprintMismatchError, InputError, StoreError
from abc_rag.files import refused_as, write
from abc_rag.store.base import Store
from abc_rag.store.copying import CopyReport, copy_changed
from abc_rag.types import Vectors

__all__ = ["Projection", "Shortening", "fit_projection", "kept_projection", "mismatch", "reduce_store", "reduced_from"]

_MOST = 100_000
_MARK = re.compile(r"\+pca=[0-9]+:([0-9a-f]{16})")


@dataclass(frozen=True, eq=False)
class Projection:
    """Axes onto which vectors of a model are projected.

    Attributes:
        axes: float32 ``(dim, dims)``, orthonormal columns, the most important one first.
        of: The fingerprint of the vectors that it takes.
    """

    axes: npt.NDArray[np.float32]
    of: str

    def __call__(self, rows: Vectors) -> Vectors:
        """Unit vectors ``(n, dims)`` of vectors ``(n, dim)``."""
        # In float64, so that a vector hardly depends on how many are multiplied together.
        short = rows.astype(np.float64) @ self.axes.astype(np.float64)
        found: Vectors = (short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        return found

    @property
    def dims(self) -> int:
        """Length of the vectors that it gives."""
        return int(self.axes.shape[1])

    @cached_property
    def key(self) -> str:
        """A hash of it: 16 hexadecimal digits."""
        return hashlib.sha256(self.of.encode() + np.ascontiguousarray(self.axes).tobytes()).hexdigest()[:16]

    @property
    def mark(self) -> str:
        """What it adds to the revision of a fingerprint."""
        return f"+pca={self.dims}:{self.key}"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the vectors that it gives."""
        # As `abc_rag.Fingerprint` writes the revision: before the resolution.
        head, mark, resolution = self.of.rpartition(" (")
        return f"{head}{self.mark}{mark}{resolution}" if mark else f"{self.of}{self.mark}"


class Shortening:
    """Vectors as a store takes them: those of the model are projected if the store was reduced, all others kept.

    Which is which, their length tells: a projection makes them shorter.

    Args:
        store: Opened without a fingerprint, or with that of its projection.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: tuple[str | None, Projection | None] = (None, None)

    def __call__(self, vectors: npt.ArrayLike) -> npt.ArrayLike:
        """Vectors ``(n, dim)``, or one ``(dim,)``, for the store, which says what is wrong with those that are none.

        Raises:
            StoreError: The file with the projection is missing or damaged.
        """
        held = self._store.fingerprint
        if held != self._read[0]:
            # Once, as the file may have megabytes.
            self._read = held, kept_projection(self._store)
        projection = self._read[1]
        if projection is None:
            return vectors
        try:
            rows = np.asarray(vectors, dtype=np.float32)
        except (TypeError, ValueError):
            return vectors
        if rows.ndim not in (1, 2) or rows.shape[-1] != len(projection.axes):
            return vectors
        return projection(rows) if rows.ndim == 2 else projection(rows[None])[0]


def reduced_from(fingerprint: str | None) -> str | None:
    """The fingerprint of the vectors from which those of ``fingerprint`` were reduced; None if they were not."""
    found = None if fingerprint is None else _MARK.search(fingerprint)
    return None if found is None else found.string[: found.start()] + found.string[found.end() :]


def mismatch(place: str, held: str, wanted: str, instead: str) -> FingerprintMismatchError:
    """The error for a store that holds vectors of ``held`` where those of ``wanted`` would go in and out.

    Args:
        place: The store, for the message.
        held: Its fingerprint.
        wanted: That of the model.
        instead: What to do.
    """
    if reduced_from(held) == wanted:
        instead = "they were reduced from these: open it without a fingerprint, and what goes in is projected"
    return FingerprintMismatchError(
        f"{place} holds vectors of {held}, which cannot be compared with those of {wanted}; {instead}"
    )


def fit_projection(store: Store, dims: int) -> Projection:
    """The principal axes of a store's vectors, facets included.

    Vectors are read once, some at a time; of a store with more than 100,000 records, every n-th. Memory is bounded by
    the square of their length: 0.1 GB for 3,584 dimensions, and three times that at the end.

    Args:
        store: An original store.
        dims: The length of the shorter vectors.

    Raises:
        InputError: ``dims`` is not between 1 and the length of the vectors, or the store has too few vectors, is of no
            model, or was reduced itself.
        StoreError: It cannot be read.
    """
    dim, of = store.dim, store.fingerprint
    if dim is None:
        raise InputError(f"{store!r} is empty; index something first")
    if of is None or _MARK.search(of):
        raise InputError(f"{store!r} is {'of no model' if of is None else 'reduced already'}; reduce an original store")
    if type(dims) is not int or not 1 <= dims < dim:
        raise InputError(f"dims must be from 1 to {dim - 1}, as the vectors have {dim}, not {dims!r}")
    every, moments, seen = -(-store.count() // _MOST), np.zeros((dim, dim)), 0
    first = 0
    for _, rows in store.pages():
        some = rows[-first % every :: every].astype(np.float64)
        moments += some.T @ some
        first, seen = first + len(rows), seen + len(some)
    for _, _, rows in store.facet_pages():
        some = rows.astype(np.float64)
        moments += some.T @ some
        seen += len(some)
    if seen < dims:
        raise InputError(f"{store!r} has {seen} vectors, which do not fill {dims} dimensions; use fewer")
    axes = np.linalg.eigh(moments)[1][:, ::-1][:, :dims]
    return Projection(np.ascontiguousarray(axes, dtype=np.float32), of)


def kept_projection(store: Store) -> Projection | None:
    """The projection of a reduced store; None for any other.

    Raises:
        StoreError: Its file is missing or damaged.
    """
    found = _MARK.search(store.fingerprint or "")
    if found is None:
        return None
    file = _file(store, found[1])
    try:
        with safe_open(file, framework="numpy") as opened:
            projection = Projection(opened.get_tensor("axes"), (opened.metadata() or {}).get("of", ""))
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(f"{file}: the projection of {store!r} cannot be read ({error}); restore this file") from error
    if projection.fingerprint != store.fingerprint:
        raise StoreError(f"{file}: is not the projection of {store!r}; restore this file")
    return projection


def reduce_store(
    source: Store, target: Store, projection: Projection, *, progress: Callable[[int], object] | None = None
) -> CopyReport:
    """Copy a store with shorter vectors, and the projection into a file beside the target; then compare both.

    Facets, kept pictures and everything else are as `copy_store` copies them; a copy that was interrupted goes on.

    Args:
        source: The original.
        target: Opened with `Projection.fingerprint`.
        projection: From `fit_projection`.
        progress: Called with the number of records that are done.

    Raises:
        FingerprintMismatchError: One of them holds other vectors.
        StoreError: One of them fails, or the file cannot be written.
    """
    for store, wanted in ((source, projection.of), (target, projection.fingerprint)):
        if store.fingerprint != wanted:
            raise FingerprintMismatchError(
                f"{store!r} is for vectors of {store.fingerprint}, not of {wanted}; open it with that fingerprint, or "
                "use another place"
            )
    file = _file(target, projection.key)
    with refused_as(StoreError, f"{file}: the projection cannot be written", "make its folder writable"):
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, save({"axes": projection.axes}, metadata={"of": projection.of}))
    return copy_changed(source, target, projection, progress=progress)


def _file(store: Store, key: str) -> Path:
    """In the store's folder or, where it has none, in the user's state folder on this machine."""
    return store.notes_file.with_name(f"abc-projection-{key}.safetensors")
