"""The second look: pictures that were found, seen again under the question's instruction."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from abc_rag import ChromaStore, Image, Input, InstructedImage, Record, Text
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import content_hash
from abc_rag.ingest.paths import index_paths
from abc_rag.ingest.pictures import index_images
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import Placed, Scene
from abc_rag.search.answer import Answer
from abc_rag.search.retriever import Retriever
from abc_rag.search.rewriting.rewriter import WHOLE_PICTURE, AsAsked, Rewrite, Rewriter
from abc_rag.types import Trace, Vectors

LEFT, RIGHT = "what is on the left?", "what is on the right?"


class Counting(FakeEmbedder):
    """Notes what it is given; refuses pictures with certain bytes."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__(dim=dim)
        self.given: list[Input] = []
        self.refuse: list[bytes] = []

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        for one in inputs:
            if not isinstance(one, Text) and one.source in self.refuse:
                raise InputError("I do not look at this")
        self.given += inputs
        return super()._embed(inputs, batch_size=batch_size, progress=progress)

    def looks(self) -> int:
        count, self.given = sum(isinstance(one, InstructedImage) for one in self.given), []
        return count


def names(answer: Sequence[Any]) -> list[str]:
    return [Path(hit.source).stem or hit.text for hit in answer]


def scores(answer: Answer) -> dict[str, float]:
    return {hit.id: hit.score for hit in answer}


# -- with a model that can see ---------------------------------------------------------------------

PAIRS = [("pig", "car", "blue"), ("car", "pig", "blue"), ("pig", "rose", "green"), ("rose", "pig", "green")]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for left, right, background in [*PAIRS, ("rose", "car", "blue")]:
        scene = Scene((Placed(left, "big", "left"), Placed(right, "big", "right")), background)
        render(scene, 200).save(folder / f"{left}-{right}.png")
    return folder


@pytest.fixture(scope="module")
def seeing(mini: Embedder, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    with ChromaStore(tmp_path_factory.mktemp("store"), fingerprint=mini.fingerprint) as store:
        index_paths([scenes], mini, store)
        words = ["a pig on the right", "a burger"]
        store.add([Record(word, "text", word) for word in words], mini.embed_texts(words))
        yield Retriever(mini, store)


@pytest.mark.parametrize(
    ("kind", "side"), [("pig", "left"), ("pig", "right"), ("car", "left"), ("rose", "left"), ("rose", "right")]
)
def test_the_side_that_is_asked_about_decides(seeing: Retriever, kind: str, side: str) -> None:
    answer = seeing.search(f"which picture has a {kind} on the {side}?", k=5)
    assert answer.instruction == f"what is on the {side}?"
    right = {name for name in names(answer) if name.split("-")[side == "right"] == kind}
    assert 1 <= len(right) <= 2
    assert set(names(answer)[: len(right)]) == right


def test_a_first_search_alone_would_be_wrong(seeing: Retriever) -> None:
    question = "which picture has a pig on the right?"
    plain = seeing.search(question, rerank=False)
    assert plain.instruction is None
    assert {name.split("-")[1] for name in names(plain)[:2]} != {"pig"}
    for rerank in (True, "auto"):
        assert {name.split("-")[1] for name in names(seeing.search(question, rerank=rerank))[:2]} == {"pig"}


def test_passages_keep_their_score_and_pictures_their_mean(seeing: Retriever) -> None:
    # Asked so that neither pictures nor passages are wanted in particular.
    first = seeing.search("a pig on the right", k=7, rerank=False, trace=True)
    second = seeing.search("a pig on the right", k=7, trace=True)
    assert sorted(scores(first)) == sorted(scores(second))
    before, after = scores(first), scores(second)
    assert [hit.modality for hit in first].count("image") == 5
    assert all(after[hit.id] == hit.score for hit in first if hit.modality == "text")
    pictures = [hit.id for hit in first if hit.modality == "image"]
    assert np.mean([after[id_] for id_ in pictures]) == pytest.approx(np.mean([before[id_] for id_ in pictures]))
    assert [after[id_] for id_ in pictures] != pytest.approx([before[id_] for id_ in pictures], abs=1e-3)
    assert [hit.score for hit in second] == sorted(after.values(), reverse=True)


def test_the_weight_of_a_second_look_is_the_callers(seeing: Retriever) -> None:
    first = seeing.search("a pig on the right", k=7, rerank=False)
    nothing = Retriever(seeing.embedder, seeing.store, weight=0).search("a pig on the right", k=7)
    assert scores(nothing) == pytest.approx(scores(first))
    everything = Retriever(seeing.embedder, seeing.store, weight=1.0).search("a pig on the right", k=7, trace=True)
    pictures = [hit for hit in everything if hit.modality == "image"]
    seconds = [hit.trace.second for hit in pictures if hit.trace is not None]
    assert seconds == sorted(seconds, reverse=True)  # type: ignore[type-var]
    for weight in (-0.1, 1.1, True, "0.5"):
        with pytest.raises(InputError, match=r"weight must be a number in \[0, 1\]"):
            Retriever(seeing.embedder, seeing.store, weight=weight)  # type: ignore[arg-type]


def test_scores_are_fused_as_documented(seeing: Retriever, mini: Embedder) -> None:
    answer = seeing.search("a pig on the right", k=7, trace=True, keywords=False)
    query = mini.embed([Text("a pig on the right")])[0]
    pictures = [hit for hit in answer if hit.modality == "image"]
    first = np.array([(1 + mini.embed([Image(hit.source)])[0] @ query) / 2 for hit in pictures])
    second = np.array([(1 + mini.embed([InstructedImage(hit.source, RIGHT)])[0] @ query) / 2 for hit in pictures])
    fused = first + seeing.weight * (second - second.mean() - (first - first.mean()))
    np.testing.assert_allclose([hit.score for hit in pictures], fused, atol=1e-5)
    for hit, one, two in zip(pictures, first, second, strict=True):
        assert hit.trace == Trace(RIGHT, pytest.approx(one, abs=1e-5), pytest.approx(two, abs=1e-5))
    (passage,) = [hit for hit in answer if hit.text == "a burger"]
    assert passage.trace == Trace(None, passage.score)


def test_a_picture_with_a_question_is_compared_with_itself(seeing: Retriever, scenes: Path) -> None:
    # The passage is not wanted: pictures with the same object on the right are.
    question, image = "find pictures with the same object on the right", scenes / "rose-pig.png"
    answer = seeing.search(question, image=image, modality="image", rerank=True, k=5)
    assert set(names(answer)[:2]) == {"rose-pig", "car-pig"}
    assert answer.instruction == answer.rewrite.instruction  # type: ignore[union-attr]


# -- when there is a second look -------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    made = {colour: tmp_path / f"{colour}.png" for colour in ("red", "green", "blue", "pink")}
    for colour, path in made.items():
        PIL.Image.new("RGB", (5, 5), colour).save(path)
    return made


@pytest.fixture
def retriever(tmp_path: Path, photos: dict[str, Path]) -> Iterator[Retriever]:
    embedder = Counting()
    with ChromaStore(path=tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        index_images(photos.values(), embedder, store, ids=list(photos))
        store.add([Record("text", "text", "a dog")], embedder.embed_texts(["a dog"]))
        embedder.looks()
        yield Retriever(embedder, store)


def looks(retriever: Retriever) -> int:
    return retriever.embedder.looks()  # type: ignore[attr-defined, no-any-return]


def test_auto_looks_again_unless_the_whole_picture_is_asked_for(retriever: Retriever, photos: dict[str, Path]) -> None:
    for arguments, expected in (
        ({"question": "a dog on the left"}, 4),
        ({"question": "a dog on the left", "rerank": True}, 4),
        ({"question": "a dog on the left", "rerank": False}, 0),
        ({"question": "a dog on the left", "modality": "text"}, 0),
        ({"question": "a dog on the left", "modality": "image", "where": {"abc:source": str(photos["red"])}}, 1),
        ({"question": "a dog"}, 4),
        ({"question": "what is in the picture?"}, 0),
        ({"question": "what is in the picture?", "rerank": True}, 4),
        ({"question": "a dog", "rerank": True}, 4),
        ({"image": photos["red"]}, 0),
        ({"image": photos["red"], "rerank": True}, 0),
        # The picture itself is seen under the question as well.
        ({"question": LEFT, "image": photos["red"]}, 1),
        ({"question": LEFT, "image": photos["red"], "rerank": True}, 1 + 4),
        ({"question": "find pictures with the same collar", "image": photos["red"]}, 1 + 4),
        ({"question": "find pictures with the same collar", "image": photos["red"], "rerank": False}, 1),
    ):
        answer = retriever.search(**arguments)
        assert looks(retriever) == expected, arguments
        assert (answer.instruction is None) == (expected == 0), arguments
    assert retriever.search("what is this?", rerank=True).instruction == WHOLE_PICTURE
    assert retriever.search("Could you show me a dog?").instruction == "a dog"


def test_only_the_candidates_are_looked_at(retriever: Retriever) -> None:
    few = Retriever(retriever.embedder, retriever.store, candidates=2)
    for k, expected in ((1, 2), (2, 2), (3, 3), (9, 4)):
        assert len(few.search("a dog on the left", k=k, modality="image")) == min(k, 4)
        assert looks(retriever) == expected


def test_pictures_are_read_in_small_groups(retriever: Retriever, tmp_path: Path) -> None:
    sources = []
    for i in range(40):
        PIL.Image.new("RGB", (5, 5), (i, i, i)).save(tmp_path / f"{i}.png")
        sources.append(tmp_path / f"{i}.png")
    index_images(sources, retriever.embedder, retriever.store)
    looks(retriever)
    plain = retriever.search("a dog on the left", k=44, modality="image", rerank=False)
    again = retriever.search("a dog on the left", k=44, modality="image", trace=True)
    assert looks(retriever) == 44
    assert sorted(scores(again)) == sorted(scores(plain))
    assert all(hit.trace is not None and hit.trace.second is not None for hit in again)


def test_a_stored_facet_is_used_instead(retriever: Retriever, photos: dict[str, Path]) -> None:
    expected = retriever.search("a dog on the left", k=9, trace=True)
    assert looks(retriever) == 4
    red = retriever.embedder.embed([InstructedImage(photos["red"], LEFT), InstructedImage(photos["blue"], RIGHT)])
    retriever.store.add_facets(["red"], LEFT, red[:1])
    retriever.store.add_facets(["blue"], RIGHT, red[1:])
    photos["red"].unlink()
    looks(retriever)
    answer = retriever.search("a dog on the left", k=9, trace=True)
    assert looks(retriever) == 3
    traces = {hit.id: hit.trace for hit in answer}
    for hit in expected:
        assert traces[hit.id].second == pytest.approx(hit.trace.second, abs=1e-6)  # type: ignore[union-attr]
        assert traces[hit.id].note == ""  # type: ignore[union-attr]
    # The first search takes the nearest of a picture's vectors, and says which that was.
    for hit in retriever.store.search(retriever.embedder.embed_texts(["a dog on the left"])[0], 9):
        assert (traces[hit.id].first, traces[hit.id].facet) == (pytest.approx(hit.score), hit.facet)  # type: ignore[union-attr]


# -- pictures that cannot be seen again ------------------------------------------------------------


def spoil(how: str, retriever: Retriever, path: Path) -> str:
    """Make a second look at a picture impossible; return what is said about it."""
    (record,) = retriever.store.get(["red"])
    if how == "gone":
        path.unlink()
        return "red.png: cannot be read"
    if how == "replaced":
        PIL.Image.new("RGB", (6, 6), "red").save(path)
        return "red.png: holds another picture"
    if how == "refused":
        retriever.embedder.refuse = [path.read_bytes()]  # type: ignore[attr-defined]
        return "red: .*I do not look at this"
    if how == "broken":  # and stored so
        path.write_bytes(path.read_bytes()[:-20])
        broken = replace(record, sha256=content_hash(path))
        retriever.store.add([broken], [retriever.store.vectors(["red"])["red"]])
        return r"red.png: .*corrupt or truncated"
    change = {
        "no source": ({"source": ""}, "red: was stored without a source"),
        "url": ({"source": "https://x.org/a.png", "source_type": "url"}, "x.org/a.png: fetching .* is off"),
        "not a path": ({"source": "a\0b"}, "not in a folder that was indexed"),
        "no hash": ({"sha256": ""}, "red.png: was stored without a hash"),
    }[how]
    retriever.store.add([replace(record, **change[0])], [retriever.store.vectors(["red"])["red"]])  # type: ignore[arg-type]
    return change[1]


@pytest.mark.parametrize("how", ["gone", "replaced", "refused", "broken", "no source", "url", "not a path", "no hash"])
def test_a_picture_that_cannot_be_seen_keeps_its_score(
    retriever: Retriever, photos: dict[str, Path], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    first = scores(retriever.search("a dog on the left", k=9, rerank=False))
    said = spoil(how, retriever, photos["red"])
    with caplog.at_level(logging.WARNING):
        answer = retriever.search("a dog on the left", k=9, trace=True)
    after = scores(answer)
    assert after["red"] == pytest.approx(first["red"], abs=1e-6)
    assert after["text"] == first["text"]
    traces = {hit.id: hit.trace for hit in answer}
    red = traces["red"]
    assert red is not None
    assert (red.instruction, red.second) == (LEFT, None)
    assert re.search(said, red.note)
    assert [record.getMessage() for record in caplog.records] == [
        f"no second look at a picture that was found: {red.note}"
    ]
    others = ["green", "blue", "pink"]
    assert all(traces[id_].note == "" and traces[id_].second is not None for id_ in others)  # type: ignore[union-attr]
    # The mean that stays is that of those that were seen.
    assert np.mean([after[id_] for id_ in others]) == pytest.approx(np.mean([first[id_] for id_ in others]))
    assert any(abs(after[id_] - first[id_]) > 1e-4 for id_ in others)


def test_a_lone_picture_keeps_its_score(retriever: Retriever) -> None:
    where = {"abc:source": retriever.store.get(["red"])[0].source}
    first = retriever.search("a dog on the left", where=where, rerank=False)
    second = retriever.search("a dog on the left", where=where, rerank=True)
    assert scores(second) == pytest.approx(scores(first))
    assert looks(retriever) == 1


def test_the_callers_limits_count(retriever: Retriever, photos: dict[str, Path], tmp_path: Path) -> None:
    # Larger than what is allowed unless the caller says otherwise.
    large = tmp_path / "large.png"
    large.write_bytes(photos["red"].read_bytes() + bytes(50 * 2**20))
    limits = ImageLimits(max_bytes=60 * 2**20)
    record = Record("large", "image", source=str(large), sha256=content_hash(large, limits=limits))
    retriever.store.add([record], retriever.embedder.embed_images([photos["red"]]))
    for given, seen in ((None, False), (limits, True)):
        own = Retriever(retriever.embedder, retriever.store, image_limits=given, roots=[large])
        answer = own.search("a dog on the left", where={"abc:source": str(large)}, trace=True)
        assert (answer[0].trace.second is not None) == seen  # type: ignore[union-attr]


def test_what_another_client_keeps_is_said_to_be_kept(server_url: str, tmp_path: Path) -> None:
    embedder = Counting()
    place = {"url": server_url, "collection": "kept-elsewhere", "fingerprint": embedder.fingerprint}
    with ChromaStore(**place, pictures=tmp_path) as store:  # type: ignore[arg-type]
        PIL.Image.new("RGB", (5, 5), "red").save(tmp_path / "red.png")
        index_images([tmp_path / "red.png"], embedder, store, keep=True)
        (seen,) = Retriever(embedder, store).search("a dog on the left", trace=True)
        assert seen.trace.second is not None  # type: ignore[union-attr]
    with ChromaStore(**place) as store:  # type: ignore[arg-type]
        (unseen,) = Retriever(embedder, store).search("a dog on the left", trace=True)
        assert "open the store with pictures=FOLDER" in unseen.trace.note  # type: ignore[union-attr]


# -- rewriters -------------------------------------------------------------------------------------


class Fixed(Rewriter):
    """Makes the same of every question."""

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        return Rewrite("the picture" if has_image else "the frame", "a wooden frame", "image")


def test_a_rewriter_of_the_callers(retriever: Retriever, photos: dict[str, Path]) -> None:
    own = Retriever(retriever.embedder, retriever.store, rewriter=Fixed())
    answer = own.search("whatever", k=9)
    assert (answer.question, answer.instruction) == ("whatever", "the frame")
    assert answer.rewrite == Rewrite("the frame", "a wooden frame", "image")
    given = retriever.embedder.given  # type: ignore[attr-defined]
    assert Text("a wooden frame", role="query") in given
    assert {one.instruction for one in given if isinstance(one, InstructedImage)} == {"the frame"}
    assert {hit.modality for hit in answer} == {"image"}
    assert own.search("whatever", image=photos["red"]).instruction == "the picture"


def test_a_question_as_asked(retriever: Retriever) -> None:
    asked = Retriever(retriever.embedder, retriever.store, rewriter=AsAsked())
    answer = asked.search("could you show me a dog?", k=9)
    assert answer.rewrite == Rewrite("could you show me a dog?", "could you show me a dog?", "any")
    # Nothing was found in the question that a second look could be taken for; but it can be asked for.
    assert answer.instruction is None
    assert asked.search("could you show me a dog?", k=9, rerank=True).instruction == "could you show me a dog?"
    assert len(answer) == 5
