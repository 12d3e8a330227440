"""Running a server until it is told to stop."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from abc_rag.answering.generator import Generator
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import ABCRagError, InputError, MissingExtraError
from abc_rag.server.keys import Keys
from abc_rag.server.settings import ServerSettings
from abc_rag.server.stores import OpenStore

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

__all__ = ["configured", "serve"]


def configured(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn runs an app: nothing is believed of proxies' headers, and nothing is logged but by us."""
    import uvicorn

    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(settings.stop_timeout_s),
    )


def serve(
    embedder: Embedder,
    settings: ServerSettings,
    *,
    keys: Keys | None = None,
    stores: OpenStore | None = None,
    existing: Callable[[], Sequence[str]] = tuple,
    generator: Generator | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. Then no request is accepted any more, and those in progress end.

    Args:
        embedder: The model.
        settings: Limits and places.
        keys: The API keys; None where anybody on this machine may ask.
        stores: Opens collections; None serves none.
        existing: Names of collections that were made without the server.
        generator: Judges and answers, if there is one.
        started: Called with the server's address once it listens.

    Raises:
        InputError: The address takes keys and there are none, or it cannot be listened on.
        ABCRagError: The model cannot be loaded.
        MissingExtraError: A package is not installed.
    """
    try:
        import uvicorn

        from abc_rag.server.app import create_app
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_module(error, "the server", extra="server") from error

    def loaded() -> None:
        if app.state.service.failure is not None:
            server.should_exit = True
        gc.freeze()  # what is loaded stays; to go through it again would stop every request for a tenth of a second

    app = create_app(
        embedder, settings, keys=keys, stores=stores, existing=existing, generator=generator, loaded=loaded
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: object = None) -> None:
            await super().startup(sockets)  # type: ignore[arg-type]
            if started is not None and self.started:
                port = self.servers[0].sockets[0].getsockname()[1]
                started(replace(settings, port=port).url)

    server = Server(configured(app, settings))
    try:
        server.run()
    except SystemExit as error:  # uvicorn's way of saying that it could not listen
        raise InputError(
            f"{settings.host}:{settings.port} cannot be listened on; is another server running there?"
        ) from error
    failure = app.state.service.failure
    if isinstance(failure, ABCRagError):
        raise failure
    if failure is not None:
        raise ABCRagError(f"the model could not be loaded ({type(failure).__name__}: {failure})") from failure
