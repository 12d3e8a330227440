"""A server with OpenAI's chat completions: busy, slow, refusing, with and without a key."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from authoring_helpers import (
    KEY,
    ChatServer,
    Reply,
    Request,
    build,
    good,
    picture_in,
    said,
    tag_of,
    well,
)

from abc_rag.errors import ABCRagError, InputError
from abc_rag.evaluation.authoring.chat import OpenAIDescriber


def test_the_whole_way_over_http(photos: Path, key: str) -> None:
    with ChatServer(well) as server:
        report = build(photos, OpenAIDescriber("see-all", server.url, key))
    assert not server.errors
    assert report.pictures == 4
    assert len(server.requests) == 4
    for request in server.requests:
        assert request.path == "/v1/chat/completions"
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert request.body["model"] == "see-all"
        schema = request.body["response_format"]["json_schema"]
        assert schema["strict"] is True
        assert schema["schema"]["required"] == ["pairs"]
        assert "Write 3 pairs" in request.body["messages"][0]["content"][0]["text"]
    for file in report.file.parent.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
    record = json.loads((report.file.parent / "build.json").read_text())
    assert record["settings"]["describer"] == {
        "name": "see-all",
        "type": "OpenAIDescriber",
        "base_url": server.url,
        "api_key_env": key,
    }


def test_a_busy_server_is_asked_again(photos: Path) -> None:
    def reply(request: Request, number: int) -> Reply:
        if number <= 3:
            busy = {"error": {"message": "slow down"}}
            return Reply(
                (429, 503, 500)[number - 1],
                busy,
                {"Retry-After": ("0", "Wed, 21 Oct 2015 07:28:00 GMT", "0")[number - 1]},
            )
        return well(request)

    with ChatServer(reply) as server:
        assert build(photos, OpenAIDescriber("m", server.url), concurrency=1).pictures == 4
    assert len(server.requests) == 7


def test_a_server_that_stays_busy_stops_the_run(photos: Path, key: str) -> None:
    def reply(request: Request, number: int) -> Reply:
        return Reply(429, {"error": {"message": f"no quota for {KEY}"}}, {"Retry-After": "0"})

    with ChatServer(reply) as server:
        with pytest.raises(
            ABCRagError, match=r"no answer after 3 tries: status 429: no quota for \.\.\.; try again"
        ) as error:
            build(photos, OpenAIDescriber("m", server.url, key, retries=2), concurrency=1)
        assert KEY not in str(error.value)
        assert len(server.requests) == 3

    with (
        ChatServer(lambda *_: Reply(429, {}, {"Retry-After": "86400"})) as server,
        pytest.raises(ABCRagError, match=r"no answer after 1 try: .*the server asks to wait 86400 s"),
    ):
        build(photos, OpenAIDescriber("m", server.url), concurrency=1)


def test_a_server_without_response_format_is_asked_in_words(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    def reply(request: Request, _: int) -> Reply:
        if "response_format" in request.body:
            return Reply(400, {"error": "response_format is not supported"})
        return said(f"```json\n{good(tag_of(picture_in(request)))}\n```")

    with ChatServer(reply) as server:
        report = build(photos, OpenAIDescriber("m", server.url), concurrency=1)
    assert report.pictures == 4
    assert ["response_format" in request.body for request in server.requests] == [True] + 4 * [False]
    assert caplog.text.count("does not support response_format") == 1


def test_a_request_that_is_wrong_costs_only_its_picture(photos: Path) -> None:
    odd = tag_of(PIL.Image.open(photos / "2.png").convert("RGB"))

    def reply(request: Request, number: int) -> Reply:
        return (
            Reply(400, {"error": {"message": "bad picture"}}) if tag_of(picture_in(request)) == odd else well(request)
        )

    with ChatServer(reply) as server:
        report = build(photos, OpenAIDescriber("m", server.url), concurrency=1)
    assert report.pictures == 3
    assert report.bad["rows"][0]["detail"] == f"{server.url}: status 400: bad picture"
    assert ["response_format" in request.body for request in server.requests].count(False) == 1


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (said("x", refusal="I cannot  look at faces"), "the model refuses: I cannot look at faces"),
        (said(None), "choices[0].message.content is NoneType, not text"),
        (Reply(200, {"choices": []}), "has no choices[0].message.content"),
        (Reply(200, []), "has no choices[0].message.content"),
        (Reply(200, b"<html>"), "is not JSON"),
        (Reply(200, b"x" * (4 * 2**20 + 1)), "is larger than 4 MiB"),
        (
            Reply(200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}),
            "content filter",
        ),
        (said("Sorry."), "the answer was not one JSON object"),
    ],
)
def test_odd_answers_are_named(photos: Path, reply: Reply, detail: str) -> None:
    with ChatServer(lambda *_: reply) as server:
        report = build(photos, OpenAIDescriber("m", server.url), limit=1)
    assert report.pictures == 0
    assert detail in report.bad["rows"][0]["detail"]


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "check $TEST_CHAT_KEY"), (404, "check the base URL"), (307, "check the")]
)
def test_what_is_wrong_for_all_pictures_stops_at_once(photos: Path, key: str, status: int, remedy: str) -> None:
    reply = Reply(status, {"error": {"message": "no"}}, {"Location": "http://127.0.0.1:9/"})
    with ChatServer(lambda *_: reply) as server:
        with pytest.raises(ABCRagError, match=re.escape(f"status {status}: no; {remedy}")):
            build(photos, OpenAIDescriber("m", server.url, key), concurrency=1)
        assert len(server.requests) == 1


def test_a_slow_server_runs_into_the_limit(photos: Path) -> None:
    given_up = threading.Event()

    def reply(request: Request, number: int) -> Reply:
        if number == 1:
            given_up.wait(300)
        return well(request)

    with ChatServer(reply) as server:
        with pytest.raises(ABCRagError, match=r"no (complete )?answer within 0.4 s"):
            build(photos, OpenAIDescriber("m", server.url, timeout_s=0.4, retries=0), concurrency=1)
        given_up.set()
        assert build(photos, OpenAIDescriber("m", server.url), concurrency=1).pictures == 4


def test_a_server_that_is_not_there(photos: Path) -> None:
    with pytest.raises(ABCRagError, match=r"http://127.0.0.1:9/v1: no answer after 1 try: ConnectError"):
        build(photos, OpenAIDescriber("m", "http://127.0.0.1:9/v1", retries=0))


def test_a_key_goes_where_it_belongs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert OpenAIDescriber("m").base_url == "https://api.openai.com/v1"
    with ChatServer(well) as server:
        build(photos, OpenAIDescriber("m", server.url))
    assert not any("Authorization" in request.headers for request in server.requests)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match=r"\$OPENAI_API_KEY is not set"):
        OpenAIDescriber("m")
    monkeypatch.setenv("ODD_KEY", f"{KEY}\nX: y")
    with pytest.raises(InputError, match=r"\$ODD_KEY holds characters") as error:
        OpenAIDescriber("m", "http://127.0.0.1:9", "ODD_KEY")
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": " "}, "model must be a name"),
        ({"base_url": "127.0.0.1:8000"}, "base_url must be an http"),
        ({"base_url": "ftp://x/"}, "base_url must be an http"),
        ({"base_url": "http://x:99999"}, "base_url must be an http"),
        ({"base_url": None}, "base_url must be an http"),
        ({"base_url": "http://me:secret@x/v1"}, "must have no user, password"),
        ({"base_url": "http://x/v1?key=secret"}, "must have no user, password"),
        ({"timeout_s": 0}, "timeout_s must be"),
        ({"retries": -1}, "retries must be"),
    ],
)
def test_a_describer_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": "m", "base_url": "http://127.0.0.1:1"} | arguments
    with pytest.raises(InputError, match=message) as error:
        OpenAIDescriber(**given)
    assert "secret" not in str(error.value)
