"""Stores with shorter vectors: what a projection keeps, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from store_helpers import ONE, TWO, texts, vectors

from abc_rag.errors import FingerprintMismatchError, InputError, StoreError
from abc_rag.store import (
    ChromaStore,
    LanceStore,
    Shortening,
    fit_projection,
    kept_projection,
    open_store,
    reduce_store,
)
from abc_rag.store.projection import reduced_from
from abc_rag.types import Record


def filled(place: Path, rows: np.ndarray) -> LanceStore:
    store = LanceStore(place, fingerprint=ONE)
    pictures = [Record(f"p{i}", "image", f"caption {i}", f"{i}.png", {"n": i % 3}) for i in range(10)]
    store.add([*texts(len(rows) - 20), *pictures], rows[:-10])
    store.add_facets([picture.id for picture in pictures], "left?", rows[-10:])
    return store


def test_what_lies_in_fewer_dimensions_is_found_alike(tmp_path: Path) -> None:
    """Of 16 dimensions, everything lies in 5: a projection onto 5 changes no score, and one onto 4 does."""
    rows = vectors(60, 5) @ np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0][:5]
    with filled(tmp_path / "whole", rows) as whole:
        projection = fit_projection(whole, 5)
        np.testing.assert_allclose(projection.axes.T @ projection.axes, np.eye(5), atol=1e-6)
        with ChromaStore(tmp_path / "short", fingerprint=projection.fingerprint) as short:
            report = reduce_store(whole, short, projection)
            assert (report.copied, report.facets, report.problems) == (50, 10, [])
            assert (short.dim, short.count()) == (5, 50)
            assert short.check() == []
            for query in (*rows[:3], rows[-1], -rows[7]):
                for where in (None, {"n": 1}):
                    there, here = (
                        store.search(row, 12, where)
                        for store, row in ((whole, query), (short, projection(query[None])[0]))
                    )
                    assert [(hit.record, hit.facet) for hit in there] == [(hit.record, hit.facet) for hit in here]
                    np.testing.assert_allclose([h.score for h in there], [h.score for h in here], atol=1e-5)
            again = reduce_store(whole, short, projection)
            assert (again.copied, again.unchanged, again.facets) == (0, 50, 0)
        with open_store(tmp_path / "short") as reopened:
            kept = kept_projection(reopened)
            assert kept is not None
            np.testing.assert_array_equal(kept.axes, projection.axes)
            assert reopened.fingerprint == kept.fingerprint
            assert reopened.fingerprint.startswith("abc@one+pca=5:")
            assert reopened.fingerprint.endswith("(4..64 image tokens)")
        assert kept_projection(whole) is None
        narrow = fit_projection(whole, 4)(rows)
        assert np.abs(narrow @ narrow.T - rows @ rows.T).max() > 0.1


def test_what_cannot_be_reduced(tmp_path: Path) -> None:
    with LanceStore(tmp_path / "empty", fingerprint=ONE) as empty, pytest.raises(InputError, match="is empty"):
        fit_projection(empty, 2)
    with LanceStore(tmp_path / "unmarked") as unmarked:
        unmarked.add(texts(3), vectors(3))
        with pytest.raises(InputError, match="of no model"):
            fit_projection(unmarked, 2)
    with LanceStore(tmp_path / "few", fingerprint=ONE) as few:
        few.add(texts(3), vectors(3))
        for dims, message in ((0, "from 1 to 7"), (8, "from 1 to 7"), (True, "from 1 to 7"), (5, "3 vectors")):
            with pytest.raises(InputError, match=message):
                fit_projection(few, dims)
        projection = fit_projection(few, 2)
        with pytest.raises(FingerprintMismatchError, match="pca=2"):
            reduce_store(few, few, projection)
        with LanceStore(tmp_path / "short", fingerprint=projection.fingerprint) as short:
            reduce_store(few, short, projection)
            with pytest.raises(InputError, match="reduced already"):
                fit_projection(short, 1)
            (file,) = (tmp_path / "short").glob("abc-projection-*")
            file.write_bytes(file.read_bytes()[:40])
            with pytest.raises(StoreError, match="restore this file"):
                kept_projection(short)


def test_vectors_as_a_store_takes_them(tmp_path: Path) -> None:
    rows = vectors(60, 16)
    with filled(tmp_path / "whole", rows) as whole:
        projection = fit_projection(whole, 4)
        assert Shortening(whole)(rows) is rows
        for make, name in ((ChromaStore, "chroma"), (LanceStore, "lance")):
            with make(tmp_path / name, fingerprint=projection.fingerprint) as short:
                reduce_store(whole, short, projection)
                shortened = Shortening(short)
                np.testing.assert_array_equal(shortened(rows.tolist()), projection(rows.astype(np.float32)))
                np.testing.assert_allclose(shortened(rows[3]), projection(rows)[3], atol=1e-6)
                # Of another length, or no vectors at all: for the store to judge.
                for given in (projection(rows), rows[:, :7], [["a", "b"], ["c"]]):
                    assert shortened(given) is given
            with pytest.raises(FingerprintMismatchError, match="reduced from these: open it without a fingerprint"):
                make(tmp_path / name, fingerprint=ONE)
            with pytest.raises(FingerprintMismatchError, match="index again"):
                make(tmp_path / name, fingerprint=TWO)
    assert reduced_from(projection.fingerprint) == str(ONE)
    assert reduced_from(str(ONE)) is None
