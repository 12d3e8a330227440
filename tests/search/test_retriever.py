"""Questions to a small store whose nearest neighbours are known beforehand."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from abc_rag import ChromaStore, Hit, Image, InstructedImage, Record, Text
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import FingerprintMismatchError, ImageError, InputError
from abc_rag.ingest.pictures import index_images
from abc_rag.search.answer import Answer
from abc_rag.search.retriever import Retriever
from abc_rag.search.rewriting.rewriter import AsAsked
from abc_rag.search.rewriting.rules import RuleRewriter
from abc_rag.store.records import text_id
from abc_rag.types import Trace

PASSAGES = {"the red bicycle": 1, "a blue boat": 2, "a blue bicycle": 3}


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for colour in ("red", "green"):
        made[colour] = tmp_path / f"{colour}.png"
        PIL.Image.new("RGB", (5, 5), colour).save(made[colour])
    return made


@pytest.fixture
def retriever(tmp_path: Path, pictures: dict[str, Path]) -> Iterator[Retriever]:
    embedder = FakeEmbedder(dim=256)
    with ChromaStore(path=tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        records = [Record(text_id(t), "text", text=t, metadata={"page": page}) for t, page in PASSAGES.items()]
        store.add(records, embedder.embed_texts(PASSAGES))
        index_images(
            pictures.values(),
            embedder,
            store,
            ids=[f"picture-{colour}" for colour in pictures],
            metadatas=[{"page": 9} for _ in pictures],
        )
        yield Retriever(embedder, store)


def found(answer: Answer) -> list[str]:
    return [hit.record.text or hit.record.id for hit in answer.hits]


def test_a_question(retriever: Retriever) -> None:
    answer = retriever.search("red bicycle", k=2)
    assert (answer.question, answer.instruction) == ("red bicycle", "red bicycle")
    assert found(answer) == ["the red bicycle", "a blue bicycle"]
    assert answer.hits[0].score > answer.hits[1].score
    assert answer.hits[0].record == Record(
        text_id("the red bicycle"), "text", text="the red bicycle", metadata={"page": 1}
    )


def test_a_picture_alone(retriever: Retriever, pictures: dict[str, Path]) -> None:
    answer = retriever.search(image=pictures["green"], k=1)
    assert (answer.question, answer.instruction) == (None, None)
    assert found(answer) == ["picture-green"]
    assert answer.hits[0].score == pytest.approx(1)


def test_a_picture_under_a_question(retriever: Retriever, pictures: dict[str, Path]) -> None:
    answer = retriever.search("a boat", image=str(pictures["red"]), k=5)
    assert (answer.question, answer.instruction) == ("a boat", "a boat")
    assert answer.rewrite == RuleRewriter().rewrite("a boat", has_image=True)
    assert set(found(answer)[:2]) == {"picture-red", "a blue boat"}
    # The vector is that of the picture with the instruction, and neither that of the one nor of the other.
    (vector,) = retriever.embedder.embed([InstructedImage(pictures["red"], "a boat")])
    assert answer.hits == retriever.store.search(vector, k=5)
    for other in (Image(pictures["red"]), Text("a boat")):
        assert answer.hits != retriever.store.search(retriever.embedder.embed([other])[0], k=5)


@pytest.mark.parametrize("k", [1, 3, 5, 50])
def test_k_is_the_most(retriever: Retriever, k: int) -> None:
    assert len(retriever.search("bicycle", k=k).hits) == min(k, 5)


def test_four_are_found_unless_asked(retriever: Retriever) -> None:
    assert len(retriever.search("bicycle").hits) == 4


@pytest.mark.parametrize(
    ("modality", "expected"),
    [("text", set(PASSAGES)), ("image", {"picture-red", "picture-green"})],
)
def test_one_modality(retriever: Retriever, modality: Any, expected: set[str]) -> None:
    assert set(found(retriever.search("bicycle", k=9, modality=modality))) == expected


def test_a_filter(retriever: Retriever) -> None:
    assert found(retriever.search("bicycle", where={"page": 2})) == ["a blue boat"]
    assert set(found(retriever.search("bicycle", where={"page": {"$gte": 3}}, k=9))) == {
        "a blue bicycle",
        "picture-red",
        "picture-green",
    }
    assert found(retriever.search("bicycle", where={"page": {"$gte": 3}}, modality="text")) == ["a blue bicycle"]
    assert found(retriever.search("bicycle", where={"page": 77})) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to search for"),
        ({"question": ""}, "question is empty"),
        ({"question": " \n\t"}, "question is empty"),
        ({"question": 5}, "question must be a str, not int"),
        ({"question": b"bicycle"}, "question must be a str, not bytes"),
        ({"question": "caf\udce9"}, "not valid Unicode"),
        ({"question": "x", "k": 0}, "k must be a positive int"),
        ({"question": "x", "modality": "film"}, "modality"),
        ({"question": "x", "where": {"page": {"$near": 3}}}, "filter"),
        ({"image": 5}, "must be a path"),
        ({"image": "nowhere.png"}, r"nowhere\.png"),
        ({"question": "x", "k": True}, "k must be"),
        ({"question": "x", "k": 1.5}, "k must be"),
        ({"question": "x", "rerank": "yes"}, "rerank must be"),
        ({"question": "x", "rerank": None}, "rerank must be"),
        ({"question": "x", "rerank": 1}, "rerank must be"),
        ({"question": "x", "mmr": 1.1}, "mmr must be"),
        ({"question": "x", "mmr": -0.1}, "mmr must be"),
        ({"question": "x", "mmr": True}, "mmr must be"),
        ({"question": "x", "mmr": "0.5"}, "mmr must be"),
        ({"question": "x", "min_score": 2}, "min_score must be"),
        ({"question": "x", "min_score": math.nan}, "min_score must be"),
    ],
)
def test_what_cannot_be_searched_for(retriever: Retriever, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        retriever.search(**arguments)


def test_a_blank_question_is_refused_beside_a_picture(retriever: Retriever, pictures: dict[str, Path]) -> None:
    # An empty instruction has a vector of its own: taken for none, it would quietly find something else.
    with pytest.raises(InputError, match="question is empty"):
        retriever.search(" ", image=pictures["red"])


def test_an_empty_store_has_no_answer(tmp_path: Path) -> None:
    with ChromaStore(path=tmp_path / "empty") as store:
        retriever = Retriever(FakeEmbedder(), store)
        for options in ({}, {"mmr": 0.5}, {"rerank": True}, {"min_score": 0.1, "trace": True}, {"modality": "image"}):
            answer = retriever.search("anything on the left", **options)  # type: ignore[arg-type]
            assert answer == Answer("anything on the left", None, [], answer.rewrite, notes=answer.notes)
            assert "nothing was found" in answer.notes[0]
            assert (list(answer), len(answer), bool(answer)) == ([], 0, False)


@pytest.mark.parametrize("candidates", [0, -1, 1.5, True, "50", None])
def test_candidates_are_counted(tmp_path: Path, candidates: Any) -> None:
    with ChromaStore(path=tmp_path) as store, pytest.raises(InputError, match="candidates must be a positive int"):
        Retriever(FakeEmbedder(), store, candidates=candidates)


def test_a_store_of_another_model_is_refused_at_opening(tmp_path: Path, retriever: Retriever) -> None:
    with pytest.raises(FingerprintMismatchError, match=r"fake-256.*fake-32"):
        ChromaStore(path=tmp_path / "store", fingerprint=FakeEmbedder().fingerprint)


def test_an_answer_is_the_sequence_of_its_hits(retriever: Retriever) -> None:
    answer = retriever.search("red bicycle", k=3)
    assert list(answer) == answer.hits == [answer[0], answer[1], answer[-1]]
    assert len(answer) == 3


def test_a_trace_only_where_it_is_asked_for(retriever: Retriever) -> None:
    assert [hit.trace for hit in retriever.search("red bicycle")] == [None] * 4
    for hit in retriever.search("red bicycle", rerank=False, trace=True, mmr=0.9, min_score=0.1, keywords=False):
        assert hit.trace == Trace(None, hit.score)


# --- Prepared queries, and event loops ----------------------------------------------------------------------


def test_a_prepared_query_gives_what_its_question_gives(retriever: Retriever, pictures: dict[str, Path]) -> None:
    for question, image in (("a bicycle on the left", None), (None, pictures["red"]), ("a boat", pictures["red"])):
        query = retriever.prepare(question, image=image)
        assert retriever.search(query, k=5) == retriever.search(question, image=image, k=5)
    query = retriever.prepare("show me pictures of a bicycle")
    assert (query.wants, query.instruction, query.inputs) == ("image", None, [Text("a bicycle", role="query")])
    with pytest.raises(InputError, match=r"pass image to prepare\(\)"):
        retriever.search(query, image=pictures["red"])
    with pytest.raises(AttributeError):
        query.question = "another"  # type: ignore[misc]


def test_further_texts_are_averaged(retriever: Retriever, pictures: dict[str, Path]) -> None:
    made_up = ["a boat at sea", "a harbour"]
    boat = retriever.rewriter.rewrite("a boat", has_image=False).target
    under = InstructedImage(pictures["red"], retriever.rewriter.rewrite("a boat", has_image=True).instruction)
    for arguments, inputs in (
        ({"question": "a boat", "texts": made_up}, map(Text, made_up)),
        ({"texts": [*made_up, " "]}, map(Text, made_up)),
        ({"question": "a boat", "texts": ["a boat", *made_up]}, map(Text, [boat, *made_up])),
        ({"question": "a boat", "image": pictures["red"], "texts": made_up}, [under, *map(Text, made_up)]),
    ):
        mean = retriever.embedder.embed(inputs).mean(axis=0)  # type: ignore[arg-type]
        answer = retriever.search(retriever.prepare(**arguments), k=5)  # type: ignore[arg-type]
        assert [hit.id for hit in answer] == [hit.id for hit in retriever.store.search(mean, k=5)]


def test_a_vector_of_the_callers(retriever: Retriever) -> None:
    vector = retriever.embedder.embed_texts(["the red bicycle"])[0]
    for question in ("a blue boat", None):
        answer = retriever.search(retriever.prepare(question, vector=7 * vector), k=1)
        assert (answer.question, found(answer)) == (question, ["the red bicycle"])
        assert answer[0].score == pytest.approx(1)
    for wrong, message in (
        (vector[:3], r"shape \(3,\), but this model's have \(256,\)"),
        (0 * vector, "is zero or holds"),
        (vector * math.nan, "is zero or holds"),
        ("words", "must be an array of 256 numbers"),
    ):
        with pytest.raises(InputError, match=message):
            retriever.prepare("a blue boat", vector=wrong)


def test_kinds_of_the_callers_own(retriever: Retriever) -> None:
    kinds: dict[Any, dict[str, Any]] = {"image": {"page": {"$gte": 3}}, "text": {"page": {"$lt": 3}}}
    own = Retriever(retriever.embedder, retriever.store, kinds=kinds)
    pictures = {"picture-red", "picture-green", "a blue bicycle"}
    assert set(found(own.search("show me pictures of a bicycle", k=9))) == pictures
    assert set(found(own.search("a bicycle", k=9, modality="image"))) == pictures
    assert found(own.search("a bicycle", k=9, modality="image", where={"page": 3})) == ["a blue bicycle"]
    assert len(own.search("a bicycle", k=9)) == 5


async def test_searches_are_awaited_beside_others(retriever: Retriever) -> None:
    questions = ["red bicycle", "a blue boat", "a bicycle on the left"]
    answers = await asyncio.gather(*(retriever.asearch(question, k=3, trace=True) for question in questions))
    assert answers == [retriever.search(question, k=3, trace=True) for question in questions]
    with pytest.raises(InputError, match="nothing to search for"):
        await retriever.asearch()


# --- What is wanted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "modality", "expected"),
    [
        ("show me pictures of a bicycle", None, {"image"}),
        ("find the paragraph about bicycles", None, {"text"}),
        ("a bicycle", None, {"image", "text"}),
        ("show me pictures of a bicycle", "text", {"text"}),
        ("find the paragraph about bicycles", "image", {"image"}),
    ],
)
def test_the_kind_that_is_wanted(retriever: Retriever, question: str, modality: Any, expected: set[str]) -> None:
    answer = retriever.search(question, k=9, modality=modality)
    assert {hit.modality for hit in answer} == expected


def test_where_there_is_none_of_the_kind_that_is_wanted(retriever: Retriever) -> None:
    question = "show me pictures of a bicycle"
    assert {hit.modality for hit in retriever.search(question, k=9, where={"page": {"$lt": 9}})} == {"text"}
    assert retriever.search(question, modality="image", where={"page": {"$lt": 9}}).hits == []
    retriever.store.delete(["picture-red", "picture-green"])
    assert len(retriever.search(question, k=9)) == 3
    assert len(retriever.search(question, k=9, rerank=True, trace=True)) == 3


# --- Threshold, difference, number ------------------------------------------------------------------------


def by_hand(retriever: Retriever, hits: list[Hit], k: int, weight: float) -> list[str]:
    """Maximal marginal relevance from its formula."""
    ids = [hit.id for hit in hits]
    vectors = retriever.store.vectors(ids)
    score = {hit.id: hit.score for hit in hits}
    chosen: list[str] = []
    while len(chosen) < min(k, len(ids)):
        value = {
            id_: weight * score[id_]
            - (1 - weight) * max(((1 + float(vectors[id_] @ vectors[c])) / 2 for c in chosen), default=0.0)
            for id_ in ids
            if id_ not in chosen
        }
        chosen.append(max(value, key=lambda id_: value[id_]))
    return chosen


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Retriever]:
    """Ten groups of six passages, those of a group much alike."""
    embedder = FakeEmbedder(dim=16)
    rows = np.repeat(np.random.default_rng(0).standard_normal((10, 16)), 6, axis=0)
    rows += 0.3 * np.random.default_rng(1).standard_normal(rows.shape)
    with ChromaStore(path=tmp_path / "crowd", fingerprint=embedder.fingerprint) as store:
        store.add([Record(f"{i:02}", "text", str(i)) for i in range(60)], rows)
        yield Retriever(embedder, store, candidates=25)


@pytest.mark.parametrize("weight", [0, 0.2, 0.5, 0.8, 0.95, 1])
@pytest.mark.parametrize("k", [1, 5, 25, 40])
def test_mmr_is_that_of_the_formula(crowd: Retriever, weight: float, k: int) -> None:
    candidates = crowd.search("some question", k=max(k, 25)).hits
    answer = crowd.search("some question", k=k, mmr=weight)
    assert [hit.id for hit in answer] == by_hand(crowd, candidates, k, weight)
    assert len(answer) == k
    assert {hit.id: hit.score for hit in answer}.items() <= {hit.id: hit.score for hit in candidates}.items()
    if weight == 1:
        assert answer.hits == candidates[:k]


def test_mmr_spreads(crowd: Retriever) -> None:
    plain, spread = (crowd.search("some question", k=5, mmr=weight) for weight in (1, 0.3))
    assert plain[0] == spread[0]
    assert len({int(hit.id) // 6 for hit in spread}) > len({int(hit.id) // 6 for hit in plain})


def test_a_threshold(crowd: Retriever) -> None:
    hits = crowd.search("some question", k=10).hits
    for least, expected in ((hits[4].score, 5), (hits[4].score + 1e-9, 4), (0, 10), (1, 0)):
        assert crowd.search("some question", k=10, min_score=least).hits == hits[:expected]


def test_the_threshold_comes_before_mmr_and_mmr_before_the_cut(crowd: Retriever) -> None:
    candidates = crowd.search("some question", k=25).hits
    least = candidates[11].score
    answer = crowd.search("some question", k=6, mmr=0.3, min_score=least)
    assert [hit.id for hit in answer] == by_hand(crowd, candidates[:12], 6, 0.3)
    # Neither is the same as choosing among all, nor as choosing among the first six.
    assert [hit.id for hit in answer] != by_hand(crowd, candidates, 6, 0.3)
    assert {hit.id for hit in answer} != {hit.id for hit in candidates[:6]}


def test_the_second_look_comes_before_the_threshold(retriever: Retriever) -> None:
    question = "a red bicycle on the left"
    first = retriever.search(question, k=9, rerank=False, modality="image")
    second = retriever.search(question, k=9, modality="image")
    # Two pictures: as far as one rises, the other falls.
    least = second[1].score
    assert first[1].score < least - 1e-3 < second[0].score < first[0].score
    assert retriever.search(question, modality="image", min_score=least).hits == second.hits
    assert retriever.search(question, modality="image", min_score=least, rerank=False).hits == first.hits[:1]


def test_the_instruction_steers_abc_mini(mini: Embedder, tmp_path: Path) -> None:
    from abc_rag.cli.demo import demo_folder

    texts = ["a burger", "a rabbit"]
    with demo_folder() as folder, ChromaStore(path=tmp_path / "store", fingerprint=mini.fingerprint) as store:
        picture = folder / "burger-rabbit.jpg"
        store.add([Record(text_id(t), "text", text=t) for t in texts], mini.embed_texts(texts))
        retriever = Retriever(mini, store)
        left = retriever.search("what is on the left?", image=picture)
        right = retriever.search("what is on the right?", image=picture)
        assert found(left)[0] == "a burger"
        assert found(right)[0] == "a rabbit"
        with pytest.raises(ImageError, match="passages"):
            retriever.search("what is on the left?", image=folder / "passages.json")


# --- Keywords ------------------------------------------------------------------------------------------------


@pytest.fixture
def manual(tmp_path: Path) -> Iterator[Retriever]:
    """Passages whose vectors say nothing of their words: each is nearer to the question than the one after it."""
    embedder = FakeEmbedder(dim=256)
    said = ["the oil filter", "a filter for oil", "MX-4471-B bolt", "MX-4471-C bolt", "a diesel engine", "an engine"]
    with ChromaStore(path=tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        vector = embedder.embed_texts(["question"])[0]
        rows = np.stack([np.roll(vector, 1) * (i + 1) / 10 + vector for i in range(len(said))])
        store.add([Record(f"p{i}", "text", text, metadata={"page": i}) for i, text in enumerate(said)], rows)
        yield Retriever(embedder, store, rewriter=AsAsked())


def asked(retriever: Retriever, question: str, **options: Any) -> str:
    query = replace(retriever.prepare(question, keywords=options.get("keywords", "auto")))
    query = replace(query, vector=retriever.embedder.embed_texts(["question"])[0])
    return " ".join(hit.id for hit in retriever.search(query, **options))


def test_a_name_goes_to_keywords_first(manual: Retriever) -> None:
    assert asked(manual, "MX-4471-C", k=2) == "p3 p0"
    assert asked(manual, "mx-4471", k=3) == "p2 p3 p0"
    assert asked(manual, "which bolt is MX-4471-C?", k=2) == "p3 p0"
    assert asked(manual, "MX-4471-C", k=2, keywords=False) == "p0 p1"
    assert asked(manual, "MX-4471-C", k=1, where={"page": {"$ne": 3}}) == "p0"


def test_keywords_count_where_all_or_any_are_there(manual: Retriever) -> None:
    assert asked(manual, "diesel engine", k=2) == "p4 p0"
    assert asked(manual, "red diesel engine", k=2) == "p0 p1"
    assert asked(manual, "red diesel engine", k=2, keywords=True) == "p4 p5"


def test_phrases_and_what_must_not_be_there_hold_for_vectors_too(manual: Retriever) -> None:
    assert asked(manual, '"oil filter"', k=9) == "p0"
    assert asked(manual, "filter -the", k=9) == "p1 p2 p3 p4 p5"
    assert asked(manual, 'oil -"oil filter" -bolt', k=9) == "p1 p4 p5"
    assert asked(manual, 'oil -"oil filter" -bolt', k=9, keywords=False) == "p0 p1 p2 p3 p4 p5"
    # A phrase that is nowhere: quotation marks were meant as such, unless keywords are insisted on.
    assert asked(manual, 'the "blue moon"', k=2) == "p0 p1"
    assert asked(manual, 'the "blue moon"', k=2, keywords=True) == ""
    query = manual.prepare('engine "oil filter" -diesel')
    assert query.inputs == [Text("engine oil filter", role="query")]
    assert query.question == 'engine "oil filter" -diesel'
    assert manual.prepare('engine "oil filter"', keywords=False).inputs == [Text('engine "oil filter"', role="query")]


def test_exclusions_are_filled_up_with_what_is_further_away(manual: Retriever) -> None:
    few = Retriever(manual.embedder, manual.store, rewriter=AsAsked(), candidates=1)
    assert asked(few, "something -filter -bolt", k=1) == "p4"


def test_a_trace_tells_both_ranks(manual: Retriever) -> None:
    first, second = manual.search("MX-4471-C", k=2, trace=True)
    assert first.trace is not None
    assert second.trace is not None
    assert (first.id, first.trace.rank_by_words, second.trace.rank_by_words) == ("p3", 1, None)
    assert first.trace.first <= first.score
    assert {first.trace.rank_by_vectors, second.trace.rank_by_vectors} <= set(range(1, 7))


def test_a_question_about_a_picture_is_no_search_for_words(manual: Retriever, pictures: dict[str, Path]) -> None:
    assert manual.prepare("MX-4471-C", image=pictures["red"]).keywords is None
    answer = manual.search("MX-4471-C", image=pictures["red"], k=1, keywords=True)
    assert answer[0].id == "p3"
