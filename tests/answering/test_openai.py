"""The client of OpenAI's protocol, against a server on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from chat_helpers import CONVERSATIONS, SMALL, user

from abc_rag import URL
from abc_rag.answering import Generator, load_generator
from abc_rag.answering.openai import OpenAIGenerator
from abc_rag.errors import ContextError, GenerationError, ImageError, InputError

USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def event(content: Any, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]}


class Server(ThreadingHTTPServer):
    """Says what a test tells it to, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.refusal = ""
        self.events: list[Any] = []
        self.ends = True
        self.gone = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.headers.append(dict(self.headers))
        self.send_response(self.server.status)
        self.end_headers()
        if self.server.status != 200:
            said = self.server.refusal or f"no: {self.headers['Authorization']}"
            self.wfile.write(json.dumps({"error": {"message": said}}).encode())
            return
        try:
            for one in self.server.events:
                data = one if isinstance(one, str) else json.dumps(one)
                self.wfile.write(f": a comment\n\ndata: {data}\n\n".encode())
                self.wfile.flush()
            while not self.server.ends:
                self.wfile.write(b": still here\n\n")
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.server.gone.set()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.ends = True
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def generator(server: Server) -> Generator:
    server.events = [event("A "), event("pig"), event("", "stop"), USAGE]
    return OpenAIGenerator(server.url, "a-model")


def test_an_answer_and_what_was_asked(generator: Generator, server: Server) -> None:
    found = generator.generate(CONVERSATIONS["several turns"], max_new_tokens=9, stop=["x"], temperature=0.5, seed=4)
    assert found.text == "A pig"
    assert (found.outcome.finish, found.outcome.prompt_tokens, found.outcome.new_tokens) == ("stop", 7, 3)
    (asked,) = server.asked
    assert [turn["role"] for turn in asked["messages"]] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert asked["messages"][0]["content"] == "Be short."
    picture, text = asked["messages"][1]["content"]
    assert text == {"type": "text", "text": "what is this?"}
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    rest = {key: asked[key] for key in ("model", "max_tokens", "stop", "temperature", "seed")}
    assert rest == {"model": "a-model", "max_tokens": 9, "stop": ["x"], "temperature": 0.5, "seed": 4}
    assert "Authorization" not in server.headers[0]
    assert generator.model == "a-model"


def test_a_picture_is_sent_as_it_is_where_it_holds_nothing_else(generator: Generator, server: Server) -> None:
    generator.generate([user(SMALL)])
    uri = server.asked[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(uri.partition(",")[2]).startswith(b"\x89PNG")


async def test_streams_and_event_loops(generator: Generator) -> None:
    with generator.generate(CONVERSATIONS["text"], stream=True) as said:
        assert list(said) == ["A ", "pig"]
    assert said.result is not None
    async with await generator.agenerate(CONVERSATIONS["text"], stream=True) as coming:
        assert [piece async for piece in coming] == ["A ", "pig"]
    assert coming.result == said.result
    both = await asyncio.gather(generator.agenerate(CONVERSATIONS["text"]), generator.agenerate(CONVERSATIONS["text"]))
    assert [one.text for one in both] == ["A pig"] * 2
    assert [one.text for one in generator.generate_all([CONVERSATIONS["text"]] * 3)] == ["A pig"] * 3


def test_a_url_loads_one(generator: Generator, server: Server) -> None:
    assert load_generator(URL(server.url), served="a-model").generate(CONVERSATIONS["text"]).text == "A pig"
    for wrong in ({}, {"served": "a-model", "device": "cpu"}):
        with pytest.raises(InputError, match="served='MODEL'"):
            load_generator(URL(server.url), **wrong)
    with pytest.raises(InputError, match=r"abc_rag\.URL"):
        load_generator("abc-mini", served="a-model")  # type: ignore[call-overload]


def test_an_abandoned_stream_hangs_up(generator: Generator, server: Server) -> None:
    server.ends, server.events = False, [event("A ")]
    with generator.generate(CONVERSATIONS["text"], stream=True) as said:
        assert next(said) == "A "
    assert server.gone.wait(60)


def test_a_schema_is_asked_for_and_checked(generator: Generator, server: Server) -> None:
    schema = {"enum": ["left", "right"]}
    server.events = [event('"left"', "stop")]
    assert generator.generate(CONVERSATIONS["text"], schema=schema).json() == "left"
    asked = server.asked[0]["response_format"]
    assert asked == {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    server.events = [event("left, I think", "stop")]
    with pytest.raises(GenerationError, match="no JSON"):
        generator.generate(CONVERSATIONS["text"], schema=schema)
    server.events = [event('"le', "length")]
    with pytest.raises(GenerationError, match="cut off"):
        generator.generate(CONVERSATIONS["text"], schema=schema)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([event("A ")], "broke off"),
        ([event("A ", "content_filter")], "content_filter"),
        (["{not json"], "none of OpenAI's protocol"),
        (["[1]"], "none of OpenAI's protocol"),
        ([event(3)], "none of OpenAI's protocol"),
        ([{"error": {"message": "no memory"}}], "no memory"),
        ([{"choices": [{"delta": {"refusal": "I will not"}}]}], "I will not"),
    ],
)
def test_what_is_no_answer_is_an_error(events: list[Any], said: str, generator: Generator, server: Server) -> None:
    server.events = events
    with pytest.raises(GenerationError, match=said):
        generator.generate(CONVERSATIONS["text"])


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [(400, InputError, "status 400"), (401, GenerationError, "api_key_env"), (500, GenerationError, "try again later")],
)
async def test_a_refusal_tells_the_status_and_no_key(
    status: int, kind: type[Exception], said: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "s3cret")
    generator = OpenAIGenerator(server.url, "a-model", api_key_env="A_KEY")
    server.status = status
    for call in (generator.generate, lambda turns: asyncio.run(generator.agenerate(turns))):
        with pytest.raises(kind, match=said) as raised:
            await asyncio.to_thread(call, CONVERSATIONS["text"])
        assert "s3cret" not in str(raised.value)
    assert server.headers[0]["Authorization"] == "Bearer s3cret"


def test_no_server_no_key_no_picture(server: Server, generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"missing\.png"):
        generator.generate([user("and ", SMALL.parent / "missing.png")])
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(InputError, match=r"\$NO_KEY is not set"):
        OpenAIGenerator(server.url, "a-model", api_key_env="NO_KEY")
    with pytest.raises(InputError, match="gives no probabilities"):
        generator.score(CONVERSATIONS["text"], ["yes"])
    closed = OpenAIGenerator("http://127.0.0.1:9/v1", "a-model", timeout_s=5)
    with pytest.raises(GenerationError, match="check that the server runs"):
        closed.generate(CONVERSATIONS["text"])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://user:pass@a/v1", "http://a/v1?key=1", 3])
def test_unusable_urls_are_refused(url: Any) -> None:
    with pytest.raises(InputError, match="base_url") as raised:
        OpenAIGenerator(url, "a-model")
    assert "pass@" not in str(raised.value)


def test_a_server_that_finds_a_conversation_too_long_says_so(server: Server) -> None:
    server.status, server.refusal = 400, "This model's maximum context length is 4096 tokens. Yours has 5000."
    with pytest.raises(ContextError, match="fewer sources"):
        OpenAIGenerator(server.url, "m").generate(CONVERSATIONS["text"])
