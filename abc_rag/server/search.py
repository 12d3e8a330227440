"""Searching a collection: a question, a picture, or a picture under a question."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from abc_rag.embedding.threads import in_thread
from abc_rag.server.guard import caller_of
from abc_rag.server.library import Library
from abc_rag.server.records import public_answer
from abc_rag.server.vectors import Picture, picture_of

__all__ = ["SearchRequest", "search_routes"]


class SearchRequest(BaseModel):
    """What to look for: as `abc_rag.Retriever.search` takes it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"question": "which picture has a rose on the left?", "k": 4, "trace": True}]},
    )

    question: str | None = Field(None, max_length=100_000, description="A question or a description.")
    image: Picture | None = Field(None, description="A picture that the question is about.")
    k: int = Field(4, ge=1, le=1000)
    where: dict[str, Any] | None = Field(None, description='A filter over metadata, such as {"page": {"$gte": 3}}.')
    modality: Literal["image", "text"] | None = None
    rerank: bool | Literal["auto", "judge"] = "auto"
    keywords: bool | Literal["auto"] = "auto"
    mmr: float | None = Field(None, ge=0, le=1)
    min_score: float | None = Field(None, ge=0, le=1)
    min_confidence: float | None = Field(None, ge=0, le=1)
    trace: bool = False


def search_routes(library: Library) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/collections", tags=["collections"])

    @routes.post("/{name}/search", summary="Search a collection")
    async def search(name: str, asked: SearchRequest, http: Request) -> dict[str, Any]:
        caller = caller_of(http)
        found = library.find(caller, name)
        _ = library.service.facts
        picture = None
        if asked.image is not None:
            picture = await in_thread(picture_of, library.service, caller.tenant, asked.image)
        retriever = await in_thread(library.stores.retriever, found.stored)
        answer = await retriever.asearch(
            asked.question,
            image=picture,
            k=asked.k,
            where=asked.where,
            modality=asked.modality,
            rerank=asked.rerank,
            keywords=asked.keywords,
            mmr=asked.mmr,
            min_score=asked.min_score,
            min_confidence=asked.min_confidence,
            trace=asked.trace,
        )
        return public_answer(answer)

    return routes
