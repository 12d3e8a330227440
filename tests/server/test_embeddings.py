"""The forms in which the ecosystem asks for embeddings: each gives the vectors of the embedder itself."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from server_helpers import Running, b64, data_uri, png

from abc_rag import Embedder, Image, InstructedImage, Text

RED = png("red")


def rows(answer: Any) -> np.ndarray:
    return np.asarray([one["embedding"] for one in answer["data"]], dtype=np.float32)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ({"input": "a rose"}, [Text("a rose")]),
        ({"input": ["a rose", "a pig"], "model": "abc-mini"}, [Text("a rose"), Text("a pig")]),
        ({"input": [{"text": "a rose"}, {"image": b64(RED)}]}, [Text("a rose"), Image(RED)]),
        ({"input": {"image": data_uri(RED), "instruction": "left?"}}, [InstructedImage(RED, "left?")]),
        ({"input": [{"image": b64(RED)}, "a pig"], "task": "retrieval.query"}, [Image(RED), Text("a pig")]),
        (
            {"input": [{"image": b64(RED)}, {"image": b64(RED), "instruction": ""}], "instruction": "what?"},
            [InstructedImage(RED, "what?"), InstructedImage(RED, "")],
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": data_uri(RED)}},
                            {"type": "text", "text": "what is on the left?"},
                        ],
                    }
                ]
            },
            [InstructedImage(RED, "what is on the left?")],
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "what is on the left?"},
                    {"role": "user", "content": [{"type": "image_url", "image_url": data_uri(RED)}]},
                ]
            },
            [InstructedImage(RED, "what is on the left?")],
        ),
    ],
)
def test_each_form_gives_the_vectors_of_the_embedder(
    server: Running, mini: Embedder, body: Any, inputs: list[Any]
) -> None:
    answer = server.post("/v1/embeddings", body).raise_for_status().json()
    np.testing.assert_allclose(rows(answer), mini.embed(inputs), atol=1e-6)
    assert answer["model"] == "abc-mini"
    assert [one["index"] for one in answer["data"]] == list(range(len(inputs)))


def test_usage_counts_the_tokens_that_the_model_read(server: Running, mini: Embedder) -> None:
    inputs = [Text("a rose beside a fox"), Image(RED)]
    body = {"input": [{"text": "a rose beside a fox"}, {"image": b64(RED)}]}
    usage = server.post("/v1/embeddings", body).json()["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] == sum(mini.family.prepare(one).tokens for one in inputs)


def test_base64_is_the_same_numbers(server: Running) -> None:
    floats = server.post("/v1/embeddings", {"input": "a rose"}).json()
    packed = server.post("/v1/embeddings", {"input": "a rose", "encoding_format": "base64"}).json()
    decoded = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    assert decoded.tolist() == floats["data"][0]["embedding"]


def test_cohere_texts_and_pictures(server: Running, mini: Embedder) -> None:
    body = {
        "model": "abc-mini",
        "input_type": "search_document",
        "embedding_types": ["float", "base64"],
        "texts": ["a rose"],
        "images": [data_uri(RED)],
        "inputs": [{"content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": data_uri(RED)}]}],
    }
    answer = server.post("/v2/embed", body).raise_for_status().json()
    expected = mini.embed([Text("a rose"), Image(RED), InstructedImage(RED, "what?")])
    np.testing.assert_allclose(answer["embeddings"]["float"], expected, atol=1e-6)
    assert len(answer["embeddings"]["base64"]) == 3


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"input": [[1, 2, 3]]}, "check_embedding_ctx_length"),
        ({"input": [1, 2, 3]}, "check_embedding_ctx_length"),
        ({"input": []}, "input is empty"),
        ({}, "exactly one of input and messages"),
        ({"input": "a", "messages": []}, "exactly one of input and messages"),
        ({"input": {"text": "a", "image": "b"}}, "exactly one of text and image"),
        ({"input": "a", "dimensions": 7}, "dimensions=7"),
        ({"input": "a", "task": "poetry"}, "retrieval.query"),
        ({"input": "a", "role": "poet"}, "role 'poet'"),
        ({"input": ["a", {"image": "no base64!"}]}, "nor base64"),
        ({"input": {"image": "data:image/png;base64,%%%"}}, "base64"),
        ({"input": {"image": "data:text/html;base64,PGI+"}}, "not a picture"),
        ({"input": {"image": ""}}, "empty"),
        ({"input": [{"image": "https://example.com/cat.png"}]}, "not fetched by this server"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_what_cannot_be_embedded_is_said(server: Running, body: Any, told: str) -> None:
    answer = server.post("/v1/embeddings", body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_a_broken_picture_names_its_position(server: Running) -> None:
    answer = server.post("/v1/embeddings", {"input": ["a", {"image": b64(b"no picture")}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["position"]) == (400, "ImageFormatError", 1)


def test_another_model_is_not_found(server: Running) -> None:
    answer = server.post("/v1/embeddings", {"input": "a", "model": "text-embedding-3-small"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
