"""A server on loopback, in a thread of the test's own process."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import PIL.Image
import uvicorn
from fastapi import FastAPI

from abc_rag.embedding.embedder import Embedder
from abc_rag.server import Keys, ServerSettings, create_app


class Running(NamedTuple):
    url: str
    app: FastAPI
    client: httpx.Client

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.client.post(path, json=body, **more)


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextmanager
def serving(
    embedder: Embedder, settings: ServerSettings | None = None, *, keys: Keys | None = None, **more: Any
) -> Iterator[Running]:
    """A running server whose model is loaded."""
    app = create_app(embedder, settings or ServerSettings(), keys=keys, **more)
    server = _Server(uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=10))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.listening.wait(60)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            while client.get("/ready").status_code == 503:
                pass
            yield Running(url, app, client)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def png(color: str = "red", size: tuple[int, int] = (84, 84)) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{b64(data)}"
