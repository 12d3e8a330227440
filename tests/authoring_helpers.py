"""A folder of pictures, scripted chat models and a chat server, for the tests of building a benchmark."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from abc_rag.evaluation.authoring.build import BuildReport, build_ctrlbench
from abc_rag.evaluation.authoring.chat import Describer
from abc_rag.evaluation.authoring.review import ReviewServer

KEY = "sk-test-5f1b7c0d"
EVIL = "</script><script>alert('x')</script><img src=x onerror=y> {{DATA}} & \"quoted\""


def painted(path: Path, seed: int, size: tuple[int, int] = (160, 120), **settings: Any) -> Path:
    """A picture unlike all of other seeds."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(grid).resize(size, PIL.Image.Resampling.BICUBIC).save(path, **settings)
    return path


def answer(*pairs: tuple[str, str]) -> str:
    return json.dumps({"pairs": [{"instruction": i, "phrase": p} for i, p in pairs]})


def good(tag: object, count: int = 3) -> str:
    return answer(*((f"what is at place {n}?", f"thing {n} of {tag}") for n in range(count)))


class Scripted(Describer):
    """Answers by a function of the decoded picture; remembers what it was asked."""

    def __init__(self, reply: Callable[[PIL.Image.Image, str], str], name: str = "scripted") -> None:
        self.reply, self._name = reply, name
        self.prompts: list[str] = []

    @property
    def name(self) -> str:
        return self._name

    def describe(self, image: bytes, mime_type: str, prompt: str, schema: Mapping[str, Any]) -> str:
        assert mime_type == "image/jpeg"
        self.prompts.append(prompt)
        return self.reply(PIL.Image.open(io.BytesIO(image)), prompt)


def tag_of(image: PIL.Image.Image) -> str:
    """Says which picture it is, whatever JPEG did to it."""
    return "-".join(str(v // 8) for v in np.asarray(image.resize((2, 1), PIL.Image.Resampling.BOX)).ravel().tolist())


def by_picture(count: int = 3) -> Scripted:
    return Scripted(lambda image, _: good(tag_of(image), count))


def rows(report: BuildReport) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.file.read_text(encoding="utf-8").splitlines()]


def build(photos: Path, describer: Describer, **settings: Any) -> BuildReport:
    return build_ctrlbench(photos, photos.parent / "out", describer, **({"pairs": 3} | settings))


class Request(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class Reply(NamedTuple):
    status: int
    body: Any
    headers: Mapping[str, str] = {}
    wait_s: float = 0.0


def said(text: str | None, **fields: Any) -> Reply:
    return Reply(200, {"choices": [{"message": {"role": "assistant", "content": text, **fields}}]})


class ChatServer:
    """Replies by a function of the request and its number."""

    def __init__(self, reply: Callable[[Request, int], Reply]) -> None:
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                try:
                    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    with lock:
                        outer.requests.append(Request(self.path, dict(self.headers), body))
                        number = len(outer.requests)
                    made = reply(outer.requests[number - 1], number)
                except BaseException as error:
                    outer.errors.append(error)
                    raise
                time.sleep(made.wait_s)
                data = made.body if isinstance(made.body, bytes) else json.dumps(made.body).encode()
                self.send_response(made.status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in made.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def picture_in(request: Request) -> PIL.Image.Image:
    text, image = request.body["messages"][0]["content"]
    assert (text["type"], image["type"]) == ("text", "image_url")
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert picture.format == "JPEG"
    picture.load()
    return picture


def well(request: Request, _: int = 0) -> Reply:
    return said(good(tag_of(picture_in(request))))


def resaved(image: PIL.Image.Image, quality: int, share: float = 1.0) -> PIL.Image.Image:
    stream = io.BytesIO()
    image.resize((int(image.width * share), int(image.height * share))).save(stream, "JPEG", quality=quality)
    return PIL.Image.open(stream).convert("RGB")


def call(
    server: ReviewServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, bytes, Mapping[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} if data is not None else {}
    try:
        connection.request(
            method, path, data, given | {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answered = connection.getresponse()
        return answered.status, answered.read(), dict(answered.headers)
    finally:
        connection.close()


class Page(HTMLParser):
    """Finds scripts, their attributes, and what is referred to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.refers: list[str | None] = []
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append((dict(attrs), ""))
        self.refers += [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


def state_of(page: bytes) -> Any:
    parsed = Page(page.decode())
    assert [attributes.get("type") for attributes, _ in parsed.scripts] == ["application/json", None]
    assert parsed.refers == ["data:,"]  # no icon: nothing else is referred to
    return json.loads(parsed.scripts[0][1])


def state(server: ReviewServer) -> Any:
    status, page, _ = call(server, "GET", f"/{server.token}/")
    assert status == 200
    return state_of(page)


def decide(server: ReviewServer, pair: Mapping[str, Any], decision: str, **changed: str) -> None:
    row = {"pair": pair["id"], "decision": decision, "instruction": pair["instruction"], "phrase": pair["phrase"]}
    assert call(server, "POST", f"/{server.token}/decisions", row | changed)[:2] == (200, b"{}")
