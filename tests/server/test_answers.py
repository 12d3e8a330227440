"""Conversations in OpenAI's form, and answers from a collection; both whole and as they are written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from server_helpers import Running, data_uri, png, serving

from abc_rag.answering.fake import FakeGenerator
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.server import ServerSettings
from abc_rag.server.stores import chroma


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("speaking")
    settings = ServerSettings(folder=place / "abc-server")
    with serving(FakeEmbedder(), settings, stores=chroma(place), generator=FakeGenerator()) as running:
        running.post("/v1/collections", {"name": "farm"})
        items = [
            {"text": "Pigs eat apples. They like mud.", "id": "pigs"},
            {"text": "Roses have thorns.", "id": "roses"},
        ]
        job = running.post("/v1/collections/farm/items", {"items": items}).json()
        while running.client.get(f"/v1/collections/farm/jobs/{job['id']}").json()["state"] != "done":
            time.sleep(0.02)
        yield running


def events(text: str) -> list[tuple[str, Any]]:
    """The name and the value of each server-sent event."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def test_a_conversation_with_a_picture_is_answered(speaking: Running) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": data_uri(png())}},
        {"type": "text", "text": "good morning"},
    ]
    answer = speaking.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "<picture>good morning"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] > 0


def test_a_stream_has_the_same_words(speaking: Running) -> None:
    body = {
        "messages": [{"role": "user", "content": "good morning to you"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = speaking.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = [value for _, value in events(answer.text)]
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["usage"]["completion_tokens"] > 0
    said = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-2] if c["choices"])
    assert said == "good morning to you"


def test_a_schema_holds(speaking: Running) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "which?"}], "response_format": form}
    answer = speaking.post("/v1/chat/completions", body).raise_for_status().json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"colour": "red"}


def test_what_is_not_done_is_said(speaking: Running, server: Running) -> None:
    messages = [{"role": "user", "content": "hello"}]
    for more in ({"n": 2}, {"tools": [{}]}, {"logprobs": True}, {"response_format": {"type": "xml"}}):
        assert speaking.post("/v1/chat/completions", {"messages": messages, **more}).status_code == 400
    assert server.post("/v1/chat/completions", {"messages": messages}).status_code == 501


def test_an_answer_cites_its_sources(speaking: Running) -> None:
    answer = speaking.post("/v1/collections/farm/answer", {"question": "What do pigs eat?"}).raise_for_status().json()
    assert answer["text"] == "Pigs eat apples [1]."
    assert answer["citations"] == [{"number": 1, "id": "pigs"}]
    assert answer["hits"][0]["id"] == "pigs"
    body = {"question": "What do pigs eat?", "stream": True}
    streamed = events(speaking.post("/v1/collections/farm/answer", body).text)
    assert "".join(value["text"] for name, value in streamed if name == "text") == answer["text"]
    assert streamed[-1][0] == "answer"
    assert streamed[-1][1]["citations"] == answer["citations"]


def test_hits_are_judged_where_asked(speaking: Running) -> None:
    body = {"question": "roses thorns", "rerank": "judge", "k": 2}
    hits = speaking.post("/v1/collections/farm/search", body).raise_for_status().json()["hits"]
    assert hits[0]["id"] == "roses"
    assert hits[0]["confidence"] > hits[1]["confidence"]
