"""Facet maps: fitted as the closed form says, kept beside the store, and candidates for a second look."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from abc_rag import ChromaStore, Image, InstructedImage, Text
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.errors import InputError
from abc_rag.ingest.pictures import index_images
from abc_rag.search.facet_maps import FacetMap, fit_map, kept_map, made_map
from abc_rag.search.retriever import Retriever
from abc_rag.types import Fingerprint, Input, Vectors

RNG = np.random.default_rng(7)
INSTRUCTION = "what is on the left?"
QUESTION = "a pig on the left"


def unit(rows: Any) -> Vectors:
    return (np.asarray(rows) / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def dense(found: FacetMap) -> np.ndarray:
    return found.plain.T.astype(np.float64) @ found.weights


@pytest.mark.parametrize("rows", [5, 8, 40])
def test_a_map_is_the_ridge_regression(rows: int) -> None:
    plain, instructed = unit(RNG.normal(size=(rows, 8))), unit(RNG.normal(size=(rows, 8)))
    found = fit_map(plain, instructed, ridge=0.1)
    x, y = (one.astype(np.float64) - one.mean(axis=0, dtype=np.float64) for one in (plain, instructed))
    strength = 0.1 * np.trace(x.T @ x) / 8
    # The primal form of the same problem.
    expected = np.linalg.solve(x.T @ x + strength * np.eye(8), x.T @ y)
    np.testing.assert_allclose(dense(found), expected, atol=1e-5)
    question = unit(RNG.normal(size=8))
    np.testing.assert_allclose(found.asked(question), unit(expected @ question), atol=1e-5)


def test_searching_with_the_mapped_question_is_searching_the_mapped_pictures() -> None:
    truth = RNG.normal(size=(8, 8))
    plain = RNG.normal(size=(60, 8)).astype(np.float32)
    found = fit_map(plain, (plain @ truth).astype(np.float32), ridge=1e-9)
    np.testing.assert_allclose(dense(found), truth, atol=1e-3)
    question = unit(RNG.normal(size=8))
    others = RNG.normal(size=(500, 8))
    assert np.array_equal(np.argsort(others @ found.asked(question)), np.argsort(others @ truth @ question))


def test_equal_pictures_teach_nothing() -> None:
    rows = np.tile(unit([1.0, 2.0, 3.0]), (5, 1))
    question = unit([3.0, 1.0, 2.0])
    assert np.array_equal(fit_map(rows, rows).asked(question), question)


@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((1, 4), (1, 4)), ((4,), (4,))])
def test_vectors_that_are_no_pairs_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match="fitted to pairs of vectors"):
        fit_map(*(np.zeros(shape, np.float32) for shape in shapes))


class Hidden(Embedder):
    """Pictures are mostly noise; what is on the left is a small part of their vector, and all of it when asked for."""

    dim = 24
    fingerprint = Fingerprint("hidden", "1", 1, 1)

    def __init__(self) -> None:
        self.looks = 0
        self.noise = np.random.default_rng(3).normal(size=(256, 20))

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        rows = np.zeros((len(inputs), 24))
        for row, one in zip(rows, inputs, strict=True):
            if isinstance(one, Text):
                row[0], row[4:] = 1.0, 0.3
                continue
            assert isinstance(one, (Image, InstructedImage))
            with PIL.Image.open(BytesIO(one.source) if isinstance(one.source, bytes) else str(one.source)) as opened:
                number, left, _ = opened.getpixel((0, 0))  # type: ignore[misc]
            if isinstance(one, InstructedImage):
                self.looks += 1
                row[left] = 1.0
            else:
                row[left], row[4:] = 0.3, self.noise[number]
        return unit(rows)


@pytest.fixture
def hidden(tmp_path: Path) -> Iterator[Retriever]:
    """160 pictures; those with the numbers 5, 50 and 150 have on the left what is asked for."""
    files = []
    for number in range(160):
        files.append(tmp_path / f"{number:03}.png")
        left = 0 if number in (5, 50, 150) else 1 + number % 3
        PIL.Image.new("RGB", (4, 4), (number, left, 0)).save(files[-1])
    embedder = Hidden()
    with ChromaStore(tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        index_images(files, embedder, store, ids=[file.stem for file in files])
        yield Retriever(embedder, store, candidates=7)


def right(retriever: Retriever, **options: Any) -> set[str]:
    return {hit.id for hit in retriever.search(QUESTION, k=3, **options)} & {"005", "050", "150"}


def test_a_map_finds_what_a_first_search_does_not(hidden: Retriever) -> None:
    embedder = hidden.embedder
    assert isinstance(embedder, Hidden)
    assert len(right(hidden)) < 3
    assert embedder.looks == 7
    # It sees all 160 once, and then a second look takes place at both kinds of candidates.
    assert len(right(hidden, facet_map=True)) == 3
    assert 7 + 160 + 7 < embedder.looks <= 7 + 160 + 14
    # From then on there is a map, also for a retriever of another process.
    before = embedder.looks
    again = Retriever(embedder, hidden.store, candidates=7)
    assert len(right(again)) == 3
    assert embedder.looks - before <= 14
    assert len(right(again, facet_map=False)) < 3
    answer = again.search(QUESTION, k=14, facet_map=True, trace=True)
    assert len(answer) == 14
    for hit in answer:
        assert hit.trace is not None
        assert hit.trace.second is not None
        plain = hidden.store.vectors([hit.id])[hit.id] @ embedder.embed([Text("x")])[0]
        assert hit.trace.first == pytest.approx((1 + plain) / 2, abs=1e-5)


def test_a_map_is_left_alone_where_a_second_look_finds_enough(hidden: Retriever) -> None:
    assert made_map(hidden, INSTRUCTION) is not None
    embedder = hidden.embedder
    assert isinstance(embedder, Hidden)
    for candidates, mapped in ((7, True), (8, False)):  # of 160 pictures, 20 for each of 8
        before = embedder.looks
        Retriever(embedder, hidden.store, candidates=candidates).search(QUESTION, k=3)
        assert (embedder.looks - before > candidates) == mapped


def test_a_filter_holds_for_what_a_map_finds(hidden: Retriever) -> None:
    assert made_map(hidden, INSTRUCTION) is not None
    where = {"abc:source": {"$in": [str(hidden.store.get([id_])[0].source) for id_ in ("050", "051", "052")]}}
    answer = hidden.search(QUESTION, k=9, where=where)
    assert {hit.id for hit in answer} == {"050", "051", "052"}


def test_a_map_is_kept_for_its_store_model_and_instruction(hidden: Retriever, tmp_path: Path) -> None:
    made = made_map(hidden, INSTRUCTION)
    assert made is not None
    found = kept_map(hidden.store, INSTRUCTION)
    assert found is not None
    assert np.array_equal(found.plain, made.plain)
    assert np.array_equal(found.weights, made.weights)
    assert kept_map(hidden.store, "what is on the right?") is None
    with ChromaStore(tmp_path / "store", collection="other", fingerprint=hidden.embedder.fingerprint) as other:
        assert kept_map(other, INSTRUCTION) is None
    # One that somebody put in another's place is not taken for it.
    (file,) = (tmp_path / "store" / "abc-maps").iterdir()
    assert made_map(hidden, "what is on the right?") is not None
    (other_file,) = set((tmp_path / "store" / "abc-maps").iterdir()) - {file}
    other_file.write_bytes(file.read_bytes())
    assert kept_map(hidden.store, "what is on the right?") is None


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 200])
def test_a_damaged_map_is_left_out_and_made_anew(
    hidden: Retriever, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert made_map(hidden, INSTRUCTION) is not None
    (file,) = (tmp_path / "store" / "abc-maps").iterdir()
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert kept_map(hidden.store, INSTRUCTION) is None
    assert "is damaged" in caplog.text
    assert len(right(hidden, facet_map=True)) == 3
    assert kept_map(hidden.store, INSTRUCTION) is not None


def test_few_pictures_make_no_map(hidden: Retriever) -> None:
    assert made_map(hidden, INSTRUCTION, seen=40) is None
    assert kept_map(hidden.store, INSTRUCTION) is None
    hidden.store.add_facets(["000"], INSTRUCTION, np.eye(24)[:1])
    assert isinstance(hidden.embedder, Hidden)
    before = hidden.embedder.looks
    assert made_map(hidden, INSTRUCTION, seen=1000) is not None
    assert hidden.embedder.looks - before == 159  # one had a facet


def test_what_is_no_choice_is_refused(hidden: Retriever) -> None:
    with pytest.raises(InputError, match="facet_map must be True, False or 'auto'"):
        hidden.search(QUESTION, facet_map="yes")  # type: ignore[arg-type]
