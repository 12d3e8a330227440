"""Reranking: the same order as the vectors have, pictures under the query's instruction, and the judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_helpers import Running, b64, serving

import abc_rag
from abc_rag import Embedder
from abc_rag.answering.fake import FakeGenerator
from abc_rag.embedding.fake import FakeEmbedder

DEMO = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo"


@pytest.fixture(scope="module")
def judging() -> Iterator[Running]:
    with serving(FakeEmbedder(), generator=FakeGenerator()) as running:
        yield running


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_texts_have_the_order_and_the_scores_of_their_vectors(server: Running, mini: Embedder, path: str) -> None:
    documents = ["a pig to the left of a car", "a rose", "a fox"]
    answer = server.post(path, {"query": "a rose", "documents": documents, "model": "abc-mini"}).json()
    vectors = mini.embed_texts(["a rose", *documents])
    expected = (1 + vectors[1:] @ vectors[0]) / 2
    assert [one["index"] for one in answer["results"]] == sorted(range(3), key=lambda n: -expected[n])
    assert answer["results"][0]["index"] == 1
    assert answer["results"][0]["relevance_score"] == pytest.approx(float(expected[1]), abs=1e-5)
    assert answer["usage"]["total_tokens"] > 0


def test_pictures_are_seen_under_the_querys_instruction(server: Running) -> None:
    pictures = [{"image": b64((DEMO / f"{name}.jpg").read_bytes())} for name in ("pig-car", "rose-fox")]
    body = {"query": "which picture has a rose on the left?", "documents": pictures, "top_n": 1}
    (best,) = server.post("/v1/rerank", body).raise_for_status().json()["results"]
    assert best["index"] == 1
    plain = server.post("/v1/rerank", {**body, "instruction": "what is on the right?"}).json()["results"][0]
    assert plain["relevance_score"] != best["relevance_score"]


def test_documents_come_back_if_asked_for(server: Running) -> None:
    body = {"query": "a rose", "documents": ["a fox", {"text": "a rose"}], "return_documents": True, "top_n": 1}
    assert server.post("/v1/rerank", body).json()["results"][0]["document"] == {"text": "a rose"}


def test_the_judge_reads_query_and_document_together(judging: Running) -> None:
    documents = ["roses have thorns", "pigs roll in mud"]
    body = {"query": "what have roses?", "documents": documents, "method": "judge"}
    results = judging.post("/v1/rerank", body).raise_for_status().json()["results"]
    assert results[0]["index"] == 0
    assert results[0]["relevance_score"] > results[1]["relevance_score"]


def test_without_a_generator_nothing_is_judged(server: Running) -> None:
    answer = server.post("/v1/rerank", {"query": "a", "documents": ["b"], "method": "judge"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_generating")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"query": "a", "documents": []}, "documents"),
        ({"query": "a", "documents": [{"text": "b", "image": "c"}]}, "exactly one of text and image"),
        ({"query": {"text": ""}, "documents": ["b"]}, "neither a text nor a picture"),
        ({"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
    ],
)
def test_what_cannot_be_ranked_is_said(server: Running, body: object, told: str) -> None:
    answer = server.post("/v1/rerank", body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]
