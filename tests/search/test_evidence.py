"""Where the answer lies: maps of known weights, what is no evidence, and real pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from abc_rag import ChromaStore, Hit, Image, InstructedImage, Record, Text
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.engine.runner import BatchReport
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ImageError, InputError
from abc_rag.ingest.paths import index_paths
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import Placed, Scene
from abc_rag.search.evidence import explain_picture
from abc_rag.search.retriever import Retriever
from abc_rag.types import BASIC_TYPES, Fingerprint, Input, MaskedImage, Vectors

QUERY = np.array([1, 0], dtype=np.float32)


class Known(Embedder):
    """Its similarity with `QUERY` is a function of which image tokens are there."""

    dim = 2
    fingerprint = Fingerprint("known", "1", 1, 1)
    accepts = (*BASIC_TYPES, MaskedImage)

    def __init__(self, shape: tuple[int, int], similarity: Callable[[np.ndarray], float]) -> None:
        self.shape, self.similarity_of, self.passes = shape, similarity, 0

    def grid(self, source: Any) -> tuple[int, int]:
        return self.shape

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        found = []
        for one in inputs:
            there = np.ones(self.shape, dtype=bool)
            if isinstance(one, MaskedImage):
                there.ravel()[list(one.without)] = False
            cosine = self.similarity_of(there)
            found.append([cosine, np.sqrt(1 - cosine**2)])
        self.passes += len(found)
        return np.array(found, dtype=np.float32)


def known(weights: Any, rest: float = 0.1) -> Known:
    """Every token adds its weight."""
    weighed = np.array(weights, dtype=np.float64)
    return Known(weighed.shape, lambda there: rest + float(weighed[there].sum()))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 4), (1, 7), (16, 9)])
def test_one_token_that_counts_has_all_the_weight_in_two_passes_a_halving(shape: tuple[int, int]) -> None:
    weights = np.zeros(shape)
    weights[-1, shape[1] // 2] = 0.5
    embedder = known(weights)
    found = explain_picture(embedder, b"picture", QUERY, "what is there?")
    np.testing.assert_allclose(found.map, weights / 0.5, atol=1e-6)
    assert (found.similarity, found.without) == (pytest.approx(0.6), pytest.approx(0.1))
    halvings = sum(int(np.ceil(np.log2(side))) for side in shape)
    assert found.passes == embedder.passes <= 2 + 2 * halvings
    # A single token cannot stand out from others.
    assert found.evidence == (shape != (1, 1))


def test_weights_that_add_up_are_drawn_as_they_are() -> None:
    weights = np.array([[0.2, 0.1, 0.0], [0.05, 0.0, 0.0], [0.0, 0.0, 0.15]])
    found = explain_picture(known(weights), b"picture", QUERY, None)
    np.testing.assert_allclose(found.map, weights / weights.sum(), atol=1e-6)
    assert found.gain == pytest.approx(0.5)
    # Half of the distance between both maps: what would have to move.
    assert found.concentration == pytest.approx(0.5 * np.abs(weights / 0.5 - 1 / 9).sum(), abs=1e-6)
    assert found.evidence
    told = found.as_dict()
    assert (told["evidence"], told["reason"], told["passes"]) == (True, "", found.passes)
    assert np.shape(told["map"]) == (3, 3)


def test_few_passes_give_a_coarser_map_of_the_same_weights() -> None:
    weights = np.zeros((8, 8))
    weights[5, 2], weights[5, 3] = 0.3, 0.1
    found = explain_picture(known(weights), b"picture", QUERY, "what?", passes=6)
    assert found.passes == 6
    assert found.map[4:, :4] == pytest.approx(np.full((4, 4), 1 / 16))
    assert found.map.sum() == pytest.approx(1)


def test_a_uniform_map_is_no_evidence_and_says_why() -> None:
    found = explain_picture(known(np.full((4, 4), 0.03)), b"picture", QUERY, "the background")
    assert found.map == pytest.approx(np.full((4, 4), 1 / 16))
    assert found.concentration == pytest.approx(0, abs=1e-6)
    assert not found.evidence
    assert "in the picture as a whole" in found.reason


def test_halves_that_stand_in_for_one_another_are_not_divided() -> None:
    embedder = Known((4, 4), lambda there: 0.6 if there.any() else 0.1)
    found = explain_picture(embedder, b"picture", QUERY, "the background")
    assert found.passes == 4
    assert found.map == pytest.approx(np.full((4, 4), 1 / 16))
    assert not found.evidence


@pytest.mark.parametrize("weight", [0.0, -0.02])
def test_a_picture_that_brings_nothing_nearer_has_an_empty_map(weight: float) -> None:
    found = explain_picture(known(np.full((3, 3), weight), rest=0.3), b"picture", QUERY, "a whale")
    assert not found.map.any()
    assert not found.evidence
    assert "nothing in it speaks for the answer" in found.reason
    assert found.passes == 2


@pytest.mark.parametrize("passes", [3, 0, True, 8.0, "8"])
def test_passes_are_a_number_of_at_least_four(passes: Any) -> None:
    with pytest.raises(InputError, match="passes must be an int of at least 4"):
        explain_picture(known(np.ones((2, 2))), b"picture", QUERY, None, passes=passes)


def test_the_map_is_drawn_on_the_picture() -> None:
    weights = np.zeros((2, 2))
    weights[0, 1] = 0.5
    picture = PIL.Image.new("RGB", (300, 200), (40, 90, 200))
    drawn = explain_picture(known(weights), picture, QUERY, "what?").picture(side=150)
    assert (drawn.mode, drawn.size) == ("RGB", (150, 100))
    shown = np.asarray(drawn, dtype=np.int64)
    colour = shown.max(axis=2) - shown.min(axis=2)
    assert colour[5, -5] > 40  # tinted blue
    assert colour[-5, 5] == 0  # grey
    empty = explain_picture(known(np.zeros((2, 2))), picture, QUERY, "what?").picture()
    assert np.ptp(np.asarray(empty), axis=2).max() == 0


# -- with a model that can see ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeing(mini: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    folder = tmp_path_factory.mktemp("evidence")
    for left, right in (("pig", "car"), ("rose", "cat")):
        scene = Scene((Placed(left, "big", "left"), Placed(right, "big", "right")), "blue")
        render(scene, 168).save(folder / f"{left}-{right}.png")
    (folder / "notes.txt").write_text("a pig")
    with ChromaStore(folder / "store", fingerprint=mini.fingerprint) as store:
        index_paths([folder], mini, store)
        yield Retriever(mini, store)


def picture_of(seeing: Retriever, name: str) -> Hit:
    (hit,) = [hit for hit in seeing.search("a picture", k=9, modality="image") if Path(hit.source).stem == name]
    return hit


@pytest.mark.parametrize(("kind", "side"), [("pig", "left"), ("car", "right")])
def test_the_answer_lies_where_the_thing_is(seeing: Retriever, kind: str, side: str) -> None:
    hit = picture_of(seeing, "pig-car")
    by_search = seeing.explain(hit, f"show me a picture with a {kind} on the {side}")
    by_answer = seeing.explain(hit, f"what is on the {side}?", answer=f"a {kind}")
    for found in (by_search, by_answer):
        assert found.instruction == f"what is on the {side}?"
        assert found.evidence, found.reason
        halves = found.map[:, : found.map.shape[1] // 2].sum(), found.map[:, -(found.map.shape[1] // 2) :].sum()
        assert halves[side == "right"] > 0.8
    target = seeing.embedder.embed([Text(f"a {kind} on the {side}", role="query")])[0]
    looked = seeing.embedder.embed([InstructedImage(hit.source, f"what is on the {side}?")])[0]
    assert by_search.similarity == pytest.approx(float(looked @ target), abs=1e-5)


def test_a_thing_that_is_not_there_has_no_evidence(seeing: Retriever) -> None:
    found = seeing.explain(picture_of(seeing, "pig-car"), "what is on the left?", answer="a guitar")
    assert not found.evidence
    assert found.similarity < 0.4


def test_a_picture_by_itself_and_one_that_came_with_the_question(seeing: Retriever) -> None:
    hit = picture_of(seeing, "rose-cat")
    alone = seeing.explain(hit, image=hit.source)
    assert alone.instruction is None
    assert alone.similarity == pytest.approx(1, abs=1e-5)
    awaited = asyncio.run(seeing.aexplain(hit, "what is on the right?", image=hit.source))
    assert awaited.instruction == "what is on the right?"
    assert awaited.similarity == pytest.approx(1, abs=1e-5)
    assert awaited.map[:, awaited.map.shape[1] // 2 :].sum() > 0.8


def test_a_passage_and_a_lost_picture_are_refused(seeing: Retriever) -> None:
    (passage,) = seeing.search("a pig", k=1, modality="text")
    with pytest.raises(InputError, match="is a passage"):
        seeing.explain(passage, "a pig")
    with pytest.raises(ImageError):
        seeing.explain(Hit(Record("x", "image", source="/nowhere.png", sha256="0" * 64), 0.5), "a pig")


def test_the_vision_tower_sees_the_picture_once(mini: Embedder) -> None:
    assert isinstance(mini, LocalEmbedder)
    picture = render(Scene((Placed("pig", "big", "left"), Placed("car", "big", "right")), "green"), 168)
    target = mini.embed_texts(["a pig"])[0]
    reports: list[BatchReport] = []
    mini.forget()
    mini.report_to(reports.append)
    try:
        found = explain_picture(mini, picture, target, "what is on the left?")
        # The last report may come after its vectors.
        mini.embed_texts(["another text"])
    finally:
        mini.report_to(None)
    seen = [one for one in reports if one.kind == "image+instruction"]
    rows, columns = mini.grid(picture)
    assert sum(one.patches for one in seen) == 4 * rows * columns
    assert sum(one.items for one in seen) == found.passes


def test_who_cannot_leave_out_parts_says_who_can() -> None:
    embedder = FakeEmbedder(dim=8)
    with pytest.raises(InputError, match=r'cannot leave out parts.*load_embedder\("abc"\), "abc-mini"'):
        explain_picture(embedder, b"picture", np.ones(8, dtype=np.float32), "what?")
    with pytest.raises(InputError, match=r"input 0 is a MaskedImage, which .* does not take; it takes Text"):
        embedder.embed([MaskedImage(b"picture", "what?", [0])])


def test_nothing_left_out_is_the_picture_itself(mini: Embedder) -> None:
    picture = render(Scene((Placed("pig", "big", "left"), Placed("car", "big", "right")), "green"), 168)
    pairs: list[tuple[Input, Input]] = [
        (MaskedImage(picture, None, []), Image(picture)),
        (MaskedImage(picture, "what is on the left?", ()), InstructedImage(picture, "what is on the left?")),
        (MaskedImage(picture, "", ()), InstructedImage(picture, "")),
    ]
    vectors = mini.embed([one for pair in pairs for one in pair])
    assert np.abs(vectors[::2] - vectors[1::2]).max() < 1e-5
    rows, columns = mini.grid(picture)
    with pytest.raises(InputError, match=f"of {rows * columns} image tokens has no token {rows * columns}"):
        mini.embed([MaskedImage(picture, None, [rows * columns])])
