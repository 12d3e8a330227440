"""A server in a thread of this process: for notebooks, examples and tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import uvicorn

from abc_rag.answering.generator import Generator
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import ABCRagError, InputError
from abc_rag.server.app import create_app
from abc_rag.server.keys import Keys
from abc_rag.server.run import configured
from abc_rag.server.settings import ServerSettings
from abc_rag.server.stores import OpenStore

__all__ = ["BackgroundServer"]


class _Server(uvicorn.Server):
    """Says when it listens, or that it never will."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    def run(self, sockets: object = None) -> None:
        try:
            super().run(sockets)  # type: ignore[arg-type]
        except SystemExit:  # it could not listen
            pass
        finally:
            self.settled.set()

    async def startup(self, sockets: object = None) -> None:
        await super().startup(sockets)  # type: ignore[arg-type]
        self.settled.set()


class BackgroundServer:
    """A server in a thread. It listens, with its model loaded, once this is made; `close` stops it.

    Args:
        embedder: The model. It is closed with the server.
        settings: Limits and places; without a port of its own, a free one is taken.
        keys: The API keys; None where anybody on this machine may ask.
        stores: Opens collections (`abc_rag.server.chroma`); None serves none. Takes ``settings.folder``.
        existing: Names of collections that were made without the server.
        generator: Judges and answers, if there is one.

    Attributes:
        url: Its address.

    Raises:
        InputError: It cannot listen.
        ABCRagError: The model cannot be loaded.
    """

    def __init__(
        self,
        embedder: Embedder,
        settings: ServerSettings | None = None,
        *,
        keys: Keys | None = None,
        stores: OpenStore | None = None,
        existing: Callable[[], Sequence[str]] = tuple,
        generator: Generator | None = None,
    ) -> None:
        settings = settings or ServerSettings(port=0)
        ready = threading.Event()
        self.app = create_app(
            embedder, settings, keys=keys, stores=stores, existing=existing, generator=generator, loaded=ready.set
        )
        self._server = _Server(configured(self.app, settings))
        self._thread = threading.Thread(target=self._server.run, name="abc-rag-server", daemon=True)
        self._thread.start()
        self._server.settled.wait()
        if not self._server.started:
            raise InputError(f"{settings.host}:{settings.port} cannot be listened on; is another server running there?")
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.settings = replace(settings, port=port)
        self.url = self.settings.url
        ready.wait()
        failure = self.app.state.service.failure
        if failure is not None:
            self.close()
            raise ABCRagError(f"the model could not be loaded ({failure})") from failure

    def close(self) -> None:
        """Accept nothing more, let requests in progress end, and stop. Idempotent."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> BackgroundServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
