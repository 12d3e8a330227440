"""Collections: made, listed, deleted, filled by jobs, and what is in them."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from abc_rag.embedding.threads import in_thread
from abc_rag.server.errors import Refusal
from abc_rag.server.guard import caller_of, require
from abc_rag.server.ledger import Collection, Job
from abc_rag.server.library import Library
from abc_rag.server.uploads import received

__all__ = ["collection_routes"]

_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_-]{0,62}[a-zA-Z0-9])?")
_FORM = {
    "type": "object",
    "properties": {
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "metadata": {"type": "string", "description": "A JSON object, for the pictures among the files."},
        "facets": {"type": "string", "description": "A JSON list of instructions."},
    },
}


class NewCollection(BaseModel):
    """A collection to make."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "holidays"}]})

    name: str = Field(description="1 to 64 characters of [a-zA-Z0-9_-].")


def _shown_job(job: Job, collection: Collection) -> dict[str, Any]:
    told = asdict(job) | {"collection": collection.name, "state": job.state}
    del told["stored"]
    return told


def collection_routes(library: Library) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/collections", tags=["collections"])
    writers, admins = [Depends(require("write"))], [Depends(require("admin"))]

    @routes.get("", summary="Your collections")
    async def list_all(http: Request) -> dict[str, Any]:
        found = await in_thread(library.ledger.collections, caller_of(http).tenant)
        return {"data": [{"name": one.name, "created": one.created} for one in found]}

    @routes.post("", status_code=201, dependencies=writers, summary="Make a collection")
    async def make(asked: NewCollection, http: Request) -> dict[str, Any]:
        if not _NAME.fullmatch(asked.name):
            raise Refusal(400, "a collection's name has 1 to 64 characters of [a-zA-Z0-9_-]; choose another")
        made, new = await in_thread(library.ledger.make, caller_of(http).tenant, asked.name)
        if not new:
            raise Refusal(409, "there is a collection of that name; choose another", code="exists")
        return {"name": made.name, "created": made.created}

    @routes.get("/{name}", summary="A collection, and how many records it has")
    async def one(name: str, http: Request) -> dict[str, Any]:
        found = library.find(caller_of(http), name)
        store = await in_thread(library.stores.open, found.stored)
        return {
            "name": found.name,
            "created": found.created,
            "count": await in_thread(store.count),
            "keywords": store.has_words,
        }

    @routes.delete("/{name}", status_code=204, dependencies=admins, summary="Delete a collection and all in it")
    async def drop(name: str, http: Request) -> Response:
        await in_thread(library.drop, library.find(caller_of(http), name))
        return Response(status_code=204)

    body = {"application/json": {"schema": {"$ref": "#/components/schemas/ItemsRequest"}}}

    @routes.post(
        "/{name}/items",
        status_code=202,
        dependencies=writers,
        summary="Add pictures, documents and texts, as a job",
        openapi_extra={
            "requestBody": {"required": True, "content": {**body, "multipart/form-data": {"schema": _FORM}}}
        },
    )
    async def add(name: str, http: Request) -> JSONResponse:
        caller = caller_of(http)
        found = library.find(caller, name)
        _ = library.service.facts
        library.check_room(found)
        settings = library.service.settings
        upload = await received(
            http, library.uploads, library.service.blobs, caller.tenant, urls=settings.image_limits.allow_urls
        )
        job = await in_thread(library.accept, found, upload)
        headers = {"Location": f"/v1/collections/{found.name}/jobs/{job.id}"}
        return JSONResponse(_shown_job(job, found), 202, headers=headers)

    @routes.get("/{name}/jobs", summary="The last jobs of a collection")
    async def jobs(name: str, http: Request) -> dict[str, Any]:
        found = library.find(caller_of(http), name)
        return {"data": [_shown_job(job, found) for job in await in_thread(library.ledger.jobs, found.stored)]}

    @routes.get("/{name}/jobs/{job}", summary="A job: its progress, and why items failed")
    async def job(name: str, job: str, http: Request) -> dict[str, Any]:
        found = library.find(caller_of(http), name)
        known = await in_thread(library.ledger.job, job)
        if known is None or known.stored != found.stored:
            raise Refusal(404, "there is no such job in this collection")
        return _shown_job(known, found)

    return routes
