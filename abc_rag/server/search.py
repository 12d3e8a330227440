"""Searching a collection: a question, a picture, or a picture under a question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from abc_rag.answering.retriever import Retriever
from abc_rag.embedding.threads import in_thread
from abc_rag.search.query import Query
from abc_rag.search.rewriting.rewriter import Rewrite
from abc_rag.server.guard import Caller, caller_of, require
from abc_rag.server.library import Library, shown_or_gone
from abc_rag.server.records import public_answer
from abc_rag.server.vectors import Picture, picture_of
from abc_rag.types import ImageSource, Modality

__all__ = ["AboutPicture", "AboutQuestion", "SearchRequest", "may_map", "search_routes"]


class AboutPicture(BaseModel):
    """A picture that a question is about: one that the client has, or a record's."""

    image: Picture | None = Field(None, description="A picture that the question is about.")
    record: str | None = Field(None, description="In place of image: the id of a record whose picture it is.")

    @model_validator(mode="after")
    def _one(self) -> AboutPicture:
        if self.image is not None and self.record is not None:
            raise ValueError("give one of image and record")
        return self

    async def picture(self, library: Library, caller: Caller, name: str) -> ImageSource | None:
        """The picture, if there is one.

        Raises:
            Refusal: There is no such record, or it cannot be read.
            ImageError: It is none.
        """
        if self.image is not None:
            return await in_thread(picture_of, library.service, caller.tenant, self.image)
        if self.record is None:
            return None
        record = await library.record(caller, name, self.record)
        pictures = await library.pictures(caller, name, record)
        return await in_thread(shown_or_gone, lambda: pictures.read(record))


class AboutQuestion(AboutPicture):
    """A question, a picture or both."""

    question: str | None = Field(None, max_length=100_000, description="A question or a description.")
    instruction: str | None = Field(
        None,
        max_length=100_000,
        description="Look at pictures under this, such as a stored facet, and not under what the question becomes.",
    )

    @model_validator(mode="after")
    def _said(self) -> AboutQuestion:
        if self.instruction is not None and not self.instruction.strip():
            raise ValueError("the instruction is blank; leave it out")
        return self

    async def opened(
        self, library: Library, http: Request, name: str, *, keywords: bool | Literal["auto"]
    ) -> tuple[Retriever, Query]:
        """The collection's retriever, and what it searches with, or explains.

        Raises:
            InputError: There is nothing to search for.
            Refusal: There is no such collection, or the model is not loaded; otherwise as `picture`.
        """
        caller = caller_of(http)
        found = library.find(caller, name)
        _ = library.service.facts
        retriever = await in_thread(library.stores.retriever, found.stored)
        picture = await self.picture(library, caller, name)
        query = await in_thread(retriever.prepare, self.question, image=picture, keywords=keywords)
        if self.instruction is not None:
            rewrite = query.rewrite or Rewrite(self.instruction, self.instruction, "any")
            query = replace(query, rewrite=replace(rewrite, instruction=self.instruction))
        return retriever, query


class SearchRequest(AboutQuestion):
    """What to look for: as `abc_rag.Retriever.search` takes it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"question": "which picture has a rose on the left?", "k": 4, "trace": True}]},
    )

    k: int = Field(4, ge=1, le=1000)
    where: dict[str, Any] | None = Field(None, description='A filter over metadata, such as {"page": {"$gte": 3}}.')
    modality: Modality | None = None
    same: list[str] = Field(
        default_factory=list,
        max_length=16,
        description="With a picture alone: instructions under which pictures are to be like it.",
    )
    different: list[str] = Field(
        default_factory=list, max_length=16, description="Instructions under which they are to be unlike it."
    )
    rerank: bool | Literal["auto", "judge"] = "auto"
    keywords: bool | Literal["auto"] = "auto"
    facet_map: bool | Literal["auto"] = Field(
        "auto", description="Also rerank what a facet map finds; true makes one, which takes a key that may write."
    )
    mmr: float | None = Field(None, ge=0, le=1)
    min_score: float | None = Field(None, ge=0, le=1)
    min_confidence: float | None = Field(None, ge=0, le=1)
    trace: bool = False
    facets: bool = Field(False, description="Tell under which instructions each picture that is found has a vector.")


async def may_map(facet_map: bool | Literal["auto"], http: Request) -> None:
    """Check that a caller who has a facet map made may write: it is kept beside the store.

    Raises:
        Refusal: They may not.
    """
    if facet_map is True:
        await require("write")(http)


def search_routes(library: Library) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/collections", tags=["collections"])

    @routes.post("/{name}/search", summary="Search a collection")
    async def search(name: str, asked: SearchRequest, http: Request) -> dict[str, Any]:
        await may_map(asked.facet_map, http)
        retriever, query = await asked.opened(library, http, name, keywords=asked.keywords)
        answer = await retriever.asearch(
            query,
            same=asked.same,
            different=asked.different,
            k=asked.k,
            where=asked.where,
            modality=asked.modality,
            rerank=asked.rerank,
            keywords=asked.keywords,
            facet_map=asked.facet_map,
            mmr=asked.mmr,
            min_score=asked.min_score,
            min_confidence=asked.min_confidence,
            trace=asked.trace,
        )
        told = public_answer(answer)
        if asked.facets:
            names = await in_thread(retriever.store.facet_names, [hit.id for hit in answer])
            for hit in told["hits"]:
                hit["facets"] = sorted(names.get(hit["id"], ()))
        return told

    return routes
