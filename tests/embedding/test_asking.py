"""Asking a server: again while it is busy or away, and never otherwise. The server is a script on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from abc_rag.embedding.asking import KEY_VARIABLE, Refused, Server, error_told
from abc_rag.errors import ABCRagError, ContextError, ImageFormatError, InputError


@contextmanager
def scripted(*answers: tuple[int, Any]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Gives these answers, the last one for ever; None hangs up. Yields its URL and the headers of each request."""
    left, seen = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            status, body = left.pop(0) if len(left) > 1 else left[0]
            if body is None:
                self.close_connection = True
                return
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


BUSY = (503, {"error": {"message": "loading", "code": "loading"}})


def test_a_busy_or_broken_server_is_asked_again() -> None:
    with scripted(BUSY, (200, None), (429, {}), (200, {"a": 1})) as (url, seen):
        server = Server(url)
        assert server.ask("GET", "/x").json() == {"a": 1}
        assert len(seen) == 4
        server.close()


def test_patience_ends() -> None:
    with scripted(BUSY) as (url, _):
        server = Server(url, patience_s=0.3)
        with pytest.raises(ABCRagError, match=r"is busy \(503: loading\), for 0.3 s; try again later"):
            server.ask("GET", "/x")
        server.close()
    with pytest.raises(ABCRagError, match="cannot be reached"):
        Server(url, patience_s=0.3).ask("GET", "/x")


@pytest.mark.parametrize("status", [400, 401, 404, 409, 500, 501])
def test_other_answers_are_final(status: int) -> None:
    with scripted((status, {"error": {"message": "no", "code": "why"}})) as (url, seen):
        server = Server(url)
        with pytest.raises(Refused, match=f"{status}: no") as refused:
            server.ask("GET", "/x")
        assert (refused.value.status, refused.value.error["code"], len(seen)) == (status, "why", 1)
        server.close()


def test_a_key_goes_along_where_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted((200, {})) as (url, seen):
        server = Server(url)
        server.ask("GET", "/x")
        monkeypatch.setenv(KEY_VARIABLE, "abc-1-2\n")
        server.ask("GET", "/x")
        monkeypatch.setenv(KEY_VARIABLE, "ä")
        with pytest.raises(InputError, match=KEY_VARIABLE):
            server.ask("GET", "/x")
        assert [headers.get("Authorization") for headers in seen] == [None, "Bearer abc-1-2"]
        server.close()


@pytest.mark.parametrize(
    ("status", "told", "kind", "said"),
    [
        (400, {"code": "ContextError", "message": "too long"}, ContextError, "^too long$"),
        (
            400,
            {"code": "ImageFormatError", "source": "bytes", "reason": "is none"},
            ImageFormatError,
            "^a.png: is none$",
        ),
        (401, {"code": "invalid_api_key", "message": "none"}, InputError, "set \\$ABC_RAG_API_KEY"),
        (400, {"code": "bad_request", "message": "no"}, InputError, "refuses it \\(no\\)"),
        (500, {"code": "SystemExit", "message": "x"}, ABCRagError, "failed \\(x\\)"),
        (502, {}, ABCRagError, "failed \\(502\\)"),
    ],
)
def test_errors_come_back_as_their_classes(status: int, told: dict[str, str], kind: type, said: str) -> None:
    error = error_told(Refused(status, told, str(status)), Server("http://127.0.0.1:1"), source="a.png")
    assert type(error) is kind
    with pytest.raises(kind, match=said):
        raise error


def test_an_address_is_checked() -> None:
    for wrong in ("ftp://x", "http://", "http://user:secret@x", "http://x?key=1"):
        with pytest.raises(InputError) as said:
            Server(wrong)
        assert "secret" not in str(said.value)
