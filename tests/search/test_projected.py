"""Models for stores with shorter vectors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from store_helpers import texts

from abc_rag import Retriever, Text
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ABCRagError, FingerprintMismatchError, InputError
from abc_rag.ingest import index_images, index_paths
from abc_rag.search import opened_for, projected, rescored
from abc_rag.search.rewriting.rewriter import Rewrite, Rewriter
from abc_rag.store import LanceStore, fit_projection, open_store, reduce_store
from abc_rag.types import Image, InstructedImage, Record


class Says(Rewriter):
    """Says what every question means."""

    def __init__(self, instruction: str, target: str) -> None:
        self.rewritten = Rewrite(instruction, target, "any")

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        return self.rewritten


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
        assert projected(own, short) is own
        answer = Retriever(own, short).search("passage 7", keywords=False)
        assert answer.hits[0].id == "t00007"
        assert answer.hits[0].score == pytest.approx(1.0, abs=1e-5)
        for use in (projected, Retriever, partial(index_images, [])):
            with pytest.raises(FingerprintMismatchError, match="use that model"):
                use(FakeEmbedder(dim=32, model="other"), short)
    with open_store(places[0]) as whole:
        assert projected(embedder, whole) is embedder


def test_a_retriever_over_a_reduced_store_projects_what_is_asked(places: tuple[Path, Path], tmp_path: Path) -> None:
    embedder = FakeEmbedder(dim=32)
    question = embedder.embed_texts(["a barn"], role="query")
    with open_store(places[1]) as short:
        retriever = Retriever(embedder, short, rewriter=Says("left?", "a barn"))
        own = retriever.embedder
        # A picture that is written now, and one that was reduced with its facet.
        for name, color in (("pig.png", "pink"), ("barn.png", "red")):
            PIL.Image.new("RGB", (32, 32), color).save(tmp_path / name)
        report = index_paths([tmp_path / "pig.png", tmp_path / "barn.png"], embedder, short)
        assert (report.added, short.dim) == (2, 8)
        found = {hit.id: hit for hit in retriever.search("a barn?", k=9, modality="image", rerank=True, trace=True)}
        assert len(found) == 3
        (barn,) = (hit for hit in found.values() if hit.source.endswith("barn.png"))
        seen = own.embed([Image(tmp_path / "barn.png"), InstructedImage(tmp_path / "barn.png", "left?")])
        kept = short.facet_vectors(["picture"], "left?")["picture"]
        asked = own.embed_texts(["a barn"], role="query")[0]
        assert barn.trace.first == pytest.approx((1 + float(seen[0] @ asked)) / 2, abs=1e-5)
        assert barn.trace.second == pytest.approx((1 + float(seen[1] @ asked)) / 2, abs=1e-5)
        assert found["picture"].trace.second == pytest.approx((1 + float(kept @ asked)) / 2, abs=1e-5)
        alike = retriever.search(image=tmp_path / "barn.png", same=["left?"], k=3)
        assert (alike.hits[0].id, alike.hits[0].score) == (barn.id, pytest.approx(1.0, abs=1e-5))
        # A vector may be the model's or the store's.
        for vector in (question[0], asked):
            hits = retriever.search(retriever.prepare(vector=vector), k=5).hits
            assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in short.search(asked, 5)]
        with pytest.raises(InputError, match=r"shape \(9,\)"):
            retriever.prepare(vector=[*asked.tolist(), 0.0])


def test_a_store_is_opened_for_its_model_or_not_at_all(places: tuple[Path, Path]) -> None:
    embedder, other = FakeEmbedder(dim=32), FakeEmbedder(dim=32, model="other")
    for place in places:
        found, store = opened_for(embedder, lambda fingerprint, place=place: open_store(place, fingerprint=fingerprint))
        with store:
            assert (str(found.fingerprint), found.dim) == (store.fingerprint, store.dim)
            assert (found is embedder) == (store.dim == 32)
        with pytest.raises(FingerprintMismatchError, match=r"of fake@.* of other@.*index again"):
            opened_for(other, lambda fingerprint, place=place: open_store(place, fingerprint=fingerprint))


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
