"""Judging what was found: order, confidence, and an empty result with its reason."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from abc_rag import ChromaStore, Image, Record, Text
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ABCRagError, GenerationError, InputError
from abc_rag.ingest.pictures import index_images
from abc_rag.models.tasks import Source
from abc_rag.search import Judge
from abc_rag.search.retriever import Retriever
from abc_rag.search.rewriting.rewriter import Rewrite, Rewriter
from abc_rag.store.records import text_id
from abc_rag.types import ImageSource, Message

PASSAGES = ("the red bicycle", "a blue boat", "a blue bicycle")
TOLD = {"the red bicycle": 0.3, "a blue boat": 0.9, "a blue bicycle": 0.6}


class Known(Judge):
    """Knows passages; a picture is as likely as the red in it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[Source], ImageSource | None]] = []

    def judge(
        self, question: str, sources: Sequence[Source], *, image: ImageSource | None = None
    ) -> list[float | ABCRagError]:
        self.asked.append((question, list(sources), image))
        return [0.5 if source.image is not None else TOLD[source.text] for source in sources]


class Broken(Judge):
    def judge(self, question: str, sources: Sequence[Source], *, image: ImageSource | None = None) -> list[Any]:
        return [GenerationError("the model is ill; ask later") if one.text == "a blue boat" else 0.2 for one in sources]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    PIL.Image.new("RGB", (5, 5), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def retriever(tmp_path: Path, picture: Path) -> Iterator[Retriever]:
    embedder = FakeEmbedder(dim=256)
    with ChromaStore(path=tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        store.add([Record(text_id(one), "text", text=one) for one in PASSAGES], embedder.embed_texts(PASSAGES))
        index_images([picture], embedder, store, ids=["picture"])
        yield Retriever(embedder, store, judge=Known())


def names(answer: Any) -> list[str]:
    return [hit.text or hit.id for hit in answer]


def test_the_likeliest_come_first_and_keep_their_scores(retriever: Retriever) -> None:
    plain = {hit.id: hit.score for hit in retriever.search("blue bicycle", k=9)}
    answer = retriever.search("blue bicycle", k=9, rerank="judge", trace=True)
    assert names(answer) == ["a blue boat", "a blue bicycle", "picture", "the red bicycle"]
    assert [hit.confidence for hit in answer] == [0.9, 0.6, 0.5, 0.3]
    assert {hit.id: hit.score for hit in answer} == plain
    assert [hit.trace.judged for hit in answer if hit.trace] == [0.9, 0.6, 0.5, 0.3]
    assert answer.confidence == 0.9
    assert answer.as_dict()["hits"][0]["confidence"] == 0.9


def test_only_the_first_are_judged(retriever: Retriever) -> None:
    retriever.judged = 2
    answer = retriever.search("blue bicycle", k=1, rerank="judge")
    assert names(answer) == ["a blue boat"]
    ((question, sources, image),) = retriever.judge.asked  # type: ignore[union-attr]
    assert (question, len(sources), image) == ("blue bicycle", 2, None)
    whole = retriever.search("blue bicycle", k=3, rerank="judge", modality="text")
    assert [hit.confidence is None for hit in whole] == [False] * 3  # at least k


def test_hits_below_the_minimum_go_and_the_order_stays(retriever: Retriever) -> None:
    plain = names(retriever.search("blue bicycle", k=9))
    answer = retriever.search("blue bicycle", k=9, min_confidence=0.5)
    assert names(answer) == [name for name in plain if name != "the red bicycle"]
    assert answer.notes == ()


def test_an_empty_result_says_why(retriever: Retriever) -> None:
    answer = retriever.search("blue bicycle", rerank="judge", min_confidence=0.95)
    assert len(answer) == 0
    (note,) = answer.notes
    assert "nothing here matches" in note
    assert "0.900, below min_confidence=0.95" in note
    assert answer.confidence == 0.9
    assert "min_score=0.99" in retriever.search("blue bicycle", min_score=0.99).notes[0]
    assert "nothing was found" in retriever.search("bicycle", where={"page": 7}).notes[0]


def test_what_cannot_be_judged_comes_last_and_is_noted(
    retriever: Retriever, picture: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture.unlink()
    retriever.judge = Broken()
    with caplog.at_level(logging.WARNING):
        answer = retriever.search("what is blue?", k=9, rerank="judge", trace=True)
    assert [hit.confidence for hit in answer] == [0.2, 0.2, None, None]
    assert set(names(answer)[2:]) == {"a blue boat", "picture"}
    notes = {hit.id: hit.trace.note for hit in answer if hit.trace}
    assert "the model is ill" in notes[text_id("a blue boat")]
    assert "red.png" in notes["picture"]
    assert sum("not judged" in record.message for record in caplog.records) == 2
    retriever.store.delete([hit.id for hit in answer[:2]])  # type: ignore[index]
    (note,) = retriever.search("blue", min_confidence=0.1).notes
    assert "could be judged" in note


def test_the_judge_reads_the_complete_question_and_its_picture(retriever: Retriever, picture: Path) -> None:
    class Completing(Rewriter):
        def _rewrite(self, question: str, has_image: bool) -> Rewrite:
            return Rewrite(question, question, "any", question="what is right of the boat?")

    retriever.rewriter = Completing()
    earlier = [Message("user", [Image(picture), Text("what is on the left?")]), Message("assistant", [Text("A boat.")])]
    answer = retriever.search("and on the right?", history=earlier, rerank="judge")
    ((question, _, image),) = retriever.judge.asked  # type: ignore[union-attr]
    assert (question, image) == ("what is right of the boat?", picture)  # the picture of the turn before
    assert answer.question == "and on the right?"
    retriever.search("what is red?", history=earlier, rerank="judge")
    assert retriever.judge.asked[-1][2] is None  # type: ignore[union-attr]


def test_options_that_do_not_fit(retriever: Retriever, picture: Path) -> None:
    with pytest.raises(InputError, match="min_confidence needs a question"):
        retriever.search(image=picture, min_confidence=0.5)
    assert retriever.search(image=picture, rerank="judge").confidence is None
    with pytest.raises(InputError, match="min_confidence must be a number"):
        retriever.search("x", min_confidence=2)
    with pytest.raises(InputError, match="judged must be a positive int"):
        Retriever(retriever.embedder, retriever.store, judged=0)
    retriever.judge = None
    for options in ({"rerank": "judge"}, {"min_confidence": 0.5}):
        with pytest.raises(InputError, match=r"generator=load_generator"):
            retriever.search("x", **options)
    with pytest.raises(InputError, match=r"pass image to prepare\(\) instead, and history"):
        retriever.search(retriever.prepare("x"), history=[Message("user", [Text("y")])])
