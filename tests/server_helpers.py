"""A server on loopback, in a thread of the test's own process."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import httpx
import PIL.Image
from fastapi import FastAPI

from abc_rag.embedding.embedder import Embedder
from abc_rag.server import BackgroundServer, ServerSettings


class Running(NamedTuple):
    url: str
    app: FastAPI
    client: httpx.Client

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.client.post(path, json=body, **more)


@contextmanager
def serving(embedder: Embedder, settings: ServerSettings | None = None, **more: Any) -> Iterator[Running]:
    """A running server whose model is loaded."""
    with (
        BackgroundServer(embedder, replace(settings or ServerSettings(), port=0), **more) as server,
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
    ):
        yield Running(server.url, server.app, client)


def png(color: str = "red", size: tuple[int, int] = (84, 84)) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{b64(data)}"
