"""Models for stores with shorter vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from store_helpers import texts

from abc_rag import Retriever, Text
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ABCRagError, FingerprintMismatchError, InputError
from abc_rag.search import projected, rescored
from abc_rag.store import LanceStore, fit_projection, open_store, reduce_store
from abc_rag.types import Image, Record


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A store of 60 passages and a picture with a facet, and the same with a quarter of the dimensions."""
    embedder, whole, short = FakeEmbedder(dim=32), tmp_path / "whole", tmp_path / "short"
    with LanceStore(whole, fingerprint=embedder.fingerprint) as store:
        passages = texts(60)
        store.add(passages, embedder.embed_texts([record.text for record in passages]))
        store.add([Record("picture", "image")], embedder.embed([Image(b"a pig")]))
        store.add_facets(["picture"], "left?", embedder.embed_texts(["a barn on the left"]))
        projection = fit_projection(store, 8)
        with LanceStore(short, fingerprint=projection.fingerprint) as other:
            reduce_store(store, other, projection)
    return whole, short


async def test_a_model_is_projected_as_the_store_was(places: tuple[Path, Path]) -> None:
    embedder = FakeEmbedder(dim=32)
    with open_store(places[1]) as short:
        own = projected(embedder, short)
        assert (own.dim, str(own.fingerprint), own.accepts) == (8, short.fingerprint, embedder.accepts)
        inputs = [Text("passage 7"), Image(b"\x89PNG\r\n\x1a\nbroken"), Text("passage 9")]
        rows = own.embed([inputs[0], inputs[2]])
        np.testing.assert_allclose(rows[0], short.vectors(["t00007"])["t00007"], atol=1e-6)
        np.testing.assert_array_equal(await own.aembed([inputs[0], inputs[2]]), rows)
        first, broken, last = own.embed_iter(inputs, return_errors=True)
        np.testing.assert_array_equal([first, last], rows)
        assert isinstance(broken, ABCRagError)
        answer = Retriever(own, short).search("passage 7", keywords=False)
        assert answer.hits[0].id == "t00007"
        assert answer.hits[0].score == pytest.approx(1.0, abs=1e-5)
        with pytest.raises(FingerprintMismatchError, match="use that model"):
            projected(FakeEmbedder(dim=32, model="other"), short)
    with open_store(places[0]) as whole:
        assert projected(embedder, whole) is embedder


def test_whole_vectors_order_what_shorter_ones_find(places: tuple[Path, Path]) -> None:
    embedder = FakeEmbedder(dim=32)
    with open_store(places[0]) as whole, open_store(places[1]) as short:
        for words in ("passage 12 34", "a barn on the left"):
            row = embedder.embed_texts([words], role="query")[0]
            expected = whole.search(row, 5)
            found = rescored(short, whole, row, 5, candidates=61)
            assert [(hit.record, hit.facet) for hit in found] == [(hit.record, hit.facet) for hit in expected]
            np.testing.assert_allclose([h.score for h in found], [h.score for h in expected], atol=1e-6)
        assert found[0].facet == "left?"
        assert [hit.id for hit in rescored(short, whole, row, 1, {"page": 5})] == ["t00005"]
        assert rescored(short, whole, row, 1, modality="text")[0].record.modality == "text"
        with pytest.raises(InputError, match="in this order"):
            rescored(whole, short, row)
        with pytest.raises(InputError, match="by the model itself"):
            rescored(short, whole, row[:8])
