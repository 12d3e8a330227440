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

__all__ = ["Projection", "fit_projection", "kept_projection", "reduce_store"]

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
    def key(self) -> str:
        """A hash of it: 16 hexadecimal digits."""
        return hashlib.sha256(self.of.encode() + np.ascontiguousarray(self.axes).tobytes()).hexdigest()[:16]

    @property
    def mark(self) -> str:
        """What it adds to the revision of a fingerprint."""
        return f"+pca={self.axes.shape[1]}:{self.key}"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the vectors that it gives."""
        # As `abc_rag.Fingerprint` writes the revision: before the resolution.
        head, mark, resolution = self.of.rpartition(" (")
        return f"{head}{self.mark}{mark}{resolution}" if mark else f"{self.of}{self.mark}"


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
