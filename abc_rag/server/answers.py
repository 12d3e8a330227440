"""``POST /v1/collections/{name}/answer``: an answer in words from what a collection has, with its sources."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, StreamingResponse

from abc_rag.answering.retriever import AnswerKeywords
from abc_rag.answering.writing import AsyncAnswerStream
from abc_rag.embedding.threads import in_thread
from abc_rag.errors import ABCRagError
from abc_rag.search.answer import Answer
from abc_rag.server.chat import event
from abc_rag.server.errors import Refusal, error_of
from abc_rag.server.guard import caller_of
from abc_rag.server.library import Library
from abc_rag.server.records import public_answer
from abc_rag.server.search import AboutPicture, may_map
from abc_rag.types import Message, Modality, Text

__all__ = ["answer_routes"]


class Said(BaseModel):
    """A turn before the question."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["user", "assistant"]
    content: str = Field(min_length=1, max_length=100_000)


class AnswerRequest(AboutPicture):
    """What is asked: as `abc_rag.Retriever.answer` takes it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"question": "What does a pig eat?", "stream": True}]}
    )

    question: str = Field(min_length=1, max_length=100_000)
    history: list[Said] = Field(default_factory=list, max_length=100, description="The turns before it, oldest first.")
    k: int = Field(4, ge=1, le=100)
    where: dict[str, Any] | None = None
    modality: Modality | None = None
    rerank: bool | Literal["auto", "judge"] = "judge"
    keywords: bool | Literal["auto"] = "auto"
    facet_map: bool | Literal["auto"] = Field("auto", description="As for a search.")
    mmr: float | None = Field(None, ge=0, le=1)
    min_score: float | None = Field(None, ge=0, le=1)
    min_confidence: float | Literal["auto"] | None = "auto"
    trace: bool = False
    max_new_tokens: int = Field(512, ge=1, le=8192)
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int | None = None
    stream: bool = Field(False, description="Send events: text as it is written, then the whole answer.")


def answer_routes(library: Library) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/collections", tags=["collections"])

    @routes.post("/{name}/answer", summary="Answer from a collection", response_class=Response)
    async def answer(name: str, asked: AnswerRequest, http: Request) -> Response:
        caller = caller_of(http)
        await may_map(asked.facet_map, http)
        found = library.find(caller, name)
        _ = library.service.facts
        if not library.stores.generates:
            raise Refusal(501, "this server does not generate; search instead", code="not_generating")
        options: AnswerKeywords = {
            "k": asked.k,
            "where": asked.where,
            "modality": asked.modality,
            "rerank": asked.rerank,
            "keywords": asked.keywords,
            "facet_map": asked.facet_map,
            "mmr": asked.mmr,
            "min_score": asked.min_score,
            "min_confidence": asked.min_confidence,
            "trace": asked.trace,
            "max_new_tokens": asked.max_new_tokens,
            "temperature": asked.temperature,
            "seed": asked.seed,
            "history": [Message(one.role, [Text(one.content)]) for one in asked.history],
        }
        picture = await asked.picture(library, caller, name)
        if picture is not None:
            options["image"] = picture
        retriever = await in_thread(library.stores.answering, found.stored)
        if not asked.stream:
            return JSONResponse(_public(await retriever.aanswer(asked.question, **options)))
        stream = retriever.astream_answer(asked.question, **options)
        try:
            first = await anext(stream, "")  # what is wrong with the question shows here
        except BaseException:
            await stream.aclose()
            raise
        return StreamingResponse(_events(stream, first), media_type="text/event-stream")

    return routes


async def _events(stream: AsyncAnswerStream, first: str) -> AsyncIterator[str]:
    async with stream:
        try:
            if first:
                yield event({"text": first}, "text")
            async for piece in stream:
                yield event({"text": piece}, "text")
        except ABCRagError as error:  # the status was sent long ago
            yield event(error_of(error)[1], "error")
            return
    assert stream.result is not None
    yield event(_public(stream.result), "answer")


def _public(answer: Answer) -> dict[str, Any]:
    cited = [{"number": one.number, "id": one.hit.record.id} for one in answer.citations]
    told = {"text": answer.text, "citations": cited, "unsupported": list(answer.unsupported)}
    return told | public_answer(answer)
