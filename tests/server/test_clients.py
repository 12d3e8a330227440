"""The clients that people have, against a running server."""

from __future__ import annotations

import base64
from pathlib import Path

import cohere
import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from server_helpers import Running, data_uri, png, serving

from abc_rag import Embedder, Image, InstructedImage, Text
from abc_rag.answering.fake import FakeGenerator
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.server import Keys

TEXTS = ["a rose", "a pig to the left of a car"]


@pytest.fixture(scope="module")
def expected(mini: Embedder) -> np.ndarray:
    return mini.embed([Text(text) for text in TEXTS])


def test_openai(server: Running, mini: Embedder, expected: np.ndarray) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        # Asks for base64 unless told otherwise.
        found = client.embeddings.create(model="abc-mini", input=TEXTS)
        np.testing.assert_allclose([one.embedding for one in found.data], expected, atol=1e-6)
        floats = client.embeddings.create(model="abc-mini", input=TEXTS[0], encoding_format="float")
        np.testing.assert_allclose(floats.data[0].embedding, expected[0], atol=1e-6)
        picture = client.embeddings.create(
            model="abc-mini",
            input=[],
            encoding_format="float",
            extra_body={"input": [{"image": data_uri(png()), "instruction": "what is on the left?"}]},
        )
        seen = mini.embed([InstructedImage(png(), "what is on the left?")])
        np.testing.assert_allclose(picture.data[0].embedding, seen[0], atol=1e-6)
        assert found.usage.prompt_tokens > 0
        assert [one.id for one in client.models.list()] == ["abc-mini"]
        assert client.models.retrieve("abc-mini").id == "abc-mini"
        with pytest.raises(openai.NotFoundError, match="abc-mini"):
            client.embeddings.create(model="text-embedding-3-small", input="a")
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
            client.embeddings.create(model="abc-mini", input=[[1, 2, 3]])


def test_openai_chat() -> None:
    with (
        serving(FakeEmbedder(), generator=FakeGenerator()) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        whole = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "good morning"}])
        assert whole.choices[0].message.content == "good morning"
        pieces = client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "good morning"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == "good morning"


def test_langchain_openai(server: Running, expected: np.ndarray) -> None:
    with httpx.Client(trust_env=False) as http:
        embeddings = OpenAIEmbeddings(
            model="abc-mini",
            base_url=f"{server.url}/v1",
            api_key="none",
            check_embedding_ctx_length=False,
            http_client=http,
        )
        np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected, atol=1e-6)
        np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), expected[0], atol=1e-6)


def test_llama_index_openai_like(server: Running, expected: np.ndarray) -> None:
    with httpx.Client(trust_env=False) as http:
        embeddings = OpenAILikeEmbedding(
            model_name="abc-mini", api_base=f"{server.url}/v1", api_key="none", max_retries=0, http_client=http
        )
        np.testing.assert_allclose(embeddings.get_text_embedding_batch(TEXTS), expected, atol=1e-6)
        np.testing.assert_allclose(embeddings.get_query_embedding(TEXTS[0]), expected[0], atol=1e-6)


def test_cohere(server: Running, mini: Embedder, expected: np.ndarray) -> None:
    with httpx.Client(trust_env=False) as http:
        _cohere(cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=http), mini, expected)


def _cohere(client: cohere.ClientV2, mini: Embedder, expected: np.ndarray) -> None:
    found = client.embed(
        model="abc-mini", texts=TEXTS, input_type="search_document", embedding_types=["float", "base64"]
    )
    np.testing.assert_allclose(found.embeddings.float_, expected, atol=1e-6)
    decoded = np.frombuffer(base64.b64decode(found.embeddings.base64[0]), "<f4")
    assert decoded.tolist() == found.embeddings.float_[0]
    picture = client.embed(model="abc-mini", images=[data_uri(png())], input_type="image", embedding_types=["float"])
    np.testing.assert_allclose(picture.embeddings.float_, mini.embed([Image(png())]), atol=1e-6)
    ranked = client.rerank(model="abc-mini", query="a rose", documents=["a fox", "a rose"], top_n=1)
    assert [one.index for one in ranked.results] == [1]


def test_a_key_is_sent_by_each_client(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    token = keys.add("team")[1]
    with serving(FakeEmbedder(dim=8), keys=keys) as running:
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=token, max_retries=0) as client:
            assert len(client.embeddings.create(model="fake", input="a").data[0].embedding) == 8
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.embeddings.create(model="fake", input="a")
        with httpx.Client(trust_env=False) as http:
            found = cohere.ClientV2(api_key=token, base_url=running.url, httpx_client=http).embed(
                model="fake", texts=["a"], input_type="search_query", embedding_types=["float"]
            )
        assert len(found.embeddings.float_[0]) == 8
