"""What is in a collection: records, and pictures by record alone, never by path."""

from __future__ import annotations

import itertools
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from abc_rag.embedding.threads import in_thread
from abc_rag.server.errors import Refusal
from abc_rag.server.guard import Caller, caller_of, require
from abc_rag.server.library import Library, shown_or_gone
from abc_rag.server.records import public_record
from abc_rag.types import Record

__all__ = ["content_routes"]


class Ids(BaseModel):
    """Records to delete."""

    model_config = ConfigDict(extra="forbid")

    ids: list[str] = Field(min_length=1, max_length=10_000)


def content_routes(library: Library) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/collections", tags=["collections"])

    @routes.get("/{name}/records", summary="Records, a page at a time")
    async def records(name: str, http: Request, offset: int = 0, limit: int = 50) -> dict[str, Any]:
        if not 0 <= offset <= 10_000_000 or not 1 <= limit <= 500:
            raise Refusal(400, "offset is at least 0, and limit is 1 to 500")
        store = await in_thread(library.stores.open, library.find(caller_of(http), name).stored)
        page = await in_thread(lambda: list(itertools.islice(store.records(), offset, offset + limit)))
        return {"data": [public_record(record) for record in page], "count": await in_thread(store.count)}

    @routes.get("/{name}/record", summary="One record")
    async def record(name: str, id: str, http: Request) -> dict[str, Any]:
        return public_record(await library.record(caller_of(http), name, id))

    @routes.delete("/{name}/records", dependencies=[Depends(require("write"))], summary="Delete records")
    async def delete(name: str, asked: Ids, http: Request) -> dict[str, int]:
        store = await in_thread(library.stores.open, library.find(caller_of(http), name).stored)
        return {"deleted": await in_thread(store.delete, asked.ids)}

    @routes.get("/{name}/picture", summary="A record's picture", response_class=Response)
    async def picture(name: str, id: str, http: Request, max_side: int | None = None) -> Response:
        return await _shown(library, caller_of(http), name, await library.record(caller_of(http), name, id), max_side)

    @routes.get("/{name}/page", summary="The page that a part of a document is on", response_class=Response)
    async def page(name: str, id: str, http: Request, max_side: int | None = None) -> Response:
        caller = caller_of(http)
        part = await library.record(caller, name, id)
        return await _shown(library, caller, name, await library.page_of(caller, name, part), max_side)

    @routes.get("/{name}/page/record", summary="That page as a record: its box is its size")
    async def page_record(name: str, id: str, http: Request) -> dict[str, Any]:
        caller = caller_of(http)
        return public_record(await library.page_of(caller, name, await library.record(caller, name, id)))

    return routes


async def _shown(library: Library, caller: Caller, name: str, record: Record, max_side: int | None) -> Response:
    if max_side is not None and not 16 <= max_side <= 8192:
        raise Refusal(400, "max_side is 16 to 8192 pixels")
    pictures = await library.pictures(caller, name, record)
    data, kind = await in_thread(shown_or_gone, lambda: pictures.share(record, max_side=max_side))
    headers = {"Cache-Control": "private, max-age=3600", "Content-Security-Policy": "default-src 'none'"}
    return Response(data, media_type=kind, headers=headers)
