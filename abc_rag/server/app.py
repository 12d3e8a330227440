"""The application: every route, behind the guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse

from abc_rag import __version__
from abc_rag.answering.generator import Generator
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.server.answers import answer_routes
from abc_rag.server.chat import chat_routes
from abc_rag.server.collections import collection_routes
from abc_rag.server.contents import content_routes
from abc_rag.server.embeddings import embedding_routes
from abc_rag.server.errors import Refusal, add_handlers
from abc_rag.server.explaining import explaining_routes
from abc_rag.server.guard import Guard, Seen, caller_of
from abc_rag.server.keys import Keys
from abc_rag.server.library import Library
from abc_rag.server.logs import log_request
from abc_rag.server.metrics import Metrics, metric_routes
from abc_rag.server.page import page_routes
from abc_rag.server.rerank import rerank_routes
from abc_rag.server.search import search_routes
from abc_rag.server.service import Service
from abc_rag.server.settings import ServerSettings, is_loopback
from abc_rag.server.stores import OpenStore
from abc_rag.server.uploads import ItemsRequest
from abc_rag.server.vectors import FINGERPRINT_HEADER, fingerprint_header, vector_routes
from abc_rag.types import MaskedImage

__all__ = ["create_app"]

_ABOUT = """Embeddings of texts and pictures, with instructions, in the forms of OpenAI, Jina, vLLM and Cohere."""


def create_app(
    embedder: Embedder,
    settings: ServerSettings | None = None,
    *,
    keys: Keys | None = None,
    stores: OpenStore | None = None,
    existing: Callable[[], Sequence[str]] = tuple,
    generator: Generator | None = None,
    loaded: Callable[[], None] | None = None,
) -> FastAPI:
    """The ASGI application of a server.

    Args:
        embedder: The model. It is loaded in the background once the server has started; ``/ready`` tells when it is.
        settings: Limits and places.
        keys: The API keys; None where anybody on this machine may ask.
        stores: Opens collections; None serves none. Takes ``settings.folder``.
        existing: Names of collections that were made without the server.
        generator: Judges and answers, if there is one.
        loaded: Called when the model is loaded, or cannot be: then ``app.state.service.failure`` says why.

    Raises:
        InputError: The address is not a loopback address, and there are no keys.
    """
    settings = settings or ServerSettings()
    if not is_loopback(settings.host) and (keys is None or not keys.all()):
        raise InputError(
            f"host {settings.host!r} can be reached from other machines, so it takes API keys; make one with: "
            "abc-rag serve keys add NAME --scope read"
        )
    service = Service(embedder, settings)
    library = None if stores is None else Library(service, stores, generator)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def load() -> None:
            await service.load()
            if service.ready and library is not None:
                library.adopt(await asyncio.to_thread(existing))
                library.start()
            if loaded is not None:
                loaded()

        loading = asyncio.create_task(load())
        try:
            yield
        finally:
            loading.cancel()
            if library is not None:
                await asyncio.to_thread(library.stop, settings.stop_timeout_s)
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="abc-rag",
        version=__version__,
        description=_ABOUT,
        lifespan=lifespan,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        # FastAPI would send traces wherever the environment of some other program says.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    add_handlers(app)
    metrics = Metrics(service, library)
    _add_routes(app, service, library, metrics, generator)

    def headers() -> list[tuple[bytes, bytes]]:
        if not service.ready:
            return []
        return [(FINGERPRINT_HEADER.lower().encode(), fingerprint_header(service.facts.fingerprint).encode())]

    def ended(seen: Seen) -> None:
        log_request(seen)
        metrics.request(seen)

    def counted(active: Callable[[], int]) -> None:
        service.in_progress = active

    app.add_middleware(Guard, settings=settings, keys=keys, ended=ended, headers=headers, counted=counted)
    app.state.service = service
    app.openapi = partial(_described, app, app.openapi)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    return app


def _add_routes(
    app: FastAPI, service: Service, library: Library | None, metrics: Metrics, generator: Generator | None
) -> None:
    # Routes are tried in this order, and embeddings are asked for most. The guard has let in only callers who may read.
    for routes in (embedding_routes(service), vector_routes(service), rerank_routes(service, generator)):
        app.include_router(routes)
    app.include_router(_health_routes(service))
    app.include_router(metric_routes(metrics))
    app.include_router(page_routes())
    app.include_router(_model_routes(service))
    app.include_router(chat_routes(service, generator))
    app.include_router(_access_routes(service, collections=library is not None, generates=generator is not None))
    if library is not None:
        for make in (collection_routes, content_routes, search_routes, answer_routes, explaining_routes):
            app.include_router(make(library))


def _described(app: FastAPI, plain: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The description, with the models of what the app reads by itself: a form or JSON at one address."""
    known = app.openapi_schema is not None
    told = plain()
    if not known:
        schema = ItemsRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = told.setdefault("components", {}).setdefault("schemas", {})
        for name, one in {**schema.pop("$defs", {}), "ItemsRequest": schema}.items():
            schemas.setdefault(name, one)
    return told


def _health_routes(service: Service) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/health", summary="Whether the process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/ready", summary="Whether the model is loaded")
    async def ready() -> JSONResponse:
        try:
            _ = service.facts
        except Refusal as error:
            headers = dict(error.headers or {})
            return JSONResponse({"status": error.code}, error.status_code, headers=headers)
        return JSONResponse({"status": "ready"})

    return routes


def _model_routes(service: Service) -> APIRouter:
    routes = APIRouter(tags=["embeddings"])

    @routes.get("/v1/models", summary="The models that are served: one, under each of its names")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_shown(name) for name in service.facts.names]}

    @routes.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> dict[str, Any]:
        service.require_model(name)
        return _shown(name)

    return routes


def _access_routes(service: Service, *, collections: bool, generates: bool) -> APIRouter:
    routes = APIRouter(tags=["abc-rag"])

    @routes.get("/v1/access", summary="What your key may do, and what this server does")
    async def access(http: Request) -> dict[str, Any]:
        _ = service.facts  # asked of a model that is loaded
        explains = collections and MaskedImage in service.embedder.accepts
        told = {"collections": collections, "generates": generates, "explains": explains}
        return {"scope": caller_of(http).scope, **told}

    return routes


def _shown(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "abc-rag"}
