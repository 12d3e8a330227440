"""``POST /v1/chat/completions``, as OpenAI's clients ask, where the model can generate."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field
from starlette.responses import JSONResponse, StreamingResponse

from abc_rag.answering.generator import AsyncGenerationStream, Generator, Outcome
from abc_rag.errors import ABCRagError, InputError
from abc_rag.server.errors import Refusal, error_of
from abc_rag.server.inputs import ContentPart, Lenient, TextPart, picture_from
from abc_rag.server.service import Service
from abc_rag.types import Image, Message, Text

__all__ = ["chat_routes", "event"]


class ChatTurn(Lenient):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]

    def message(self) -> Message:
        """The turn as a generator takes it."""
        if isinstance(self.content, str):
            parts: list[Text | Image] = [Text(self.content)]
        else:
            parts = [
                Text(one.text) if isinstance(one, TextPart) else Image(picture_from(one.url)) for one in self.content
            ]
        return Message("system" if self.role == "developer" else self.role, parts)


class ChatRequest(Lenient):
    """A conversation."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "What is a pig?"}], "stream": True}]},
    )

    model: str | None = None
    messages: list[ChatTurn] = Field(min_length=1)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None
    n: int | None = None
    tools: list[Any] | None = None
    logprobs: bool | None = None

    def schema_(self) -> dict[str, Any] | None:
        """The JSON schema that the answer has to meet.

        Raises:
            InputError: The format is none that is known.
        """
        told = self.response_format or {"type": "text"}
        if told.get("type") == "text":
            return None
        if told.get("type") == "json_object":
            return {"type": "object"}
        named = told.get("json_schema")
        if told.get("type") == "json_schema" and isinstance(named, dict) and isinstance(named.get("schema"), dict):
            return dict(named["schema"])
        raise InputError("response_format is {'type': 'text'}, 'json_object', or 'json_schema' with a schema")

    def refuse(self) -> None:
        """Refuse what is not done here.

        Raises:
            InputError: It is asked for.
        """
        for name, wanted in (("n above 1", (self.n or 1) > 1), ("tools", self.tools), ("logprobs", self.logprobs)):
            if wanted:
                raise InputError(f"this server does no {name}; leave it out")


def event(value: Any, name: str = "") -> str:  # noqa: ANN401
    """A server-sent event."""
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(value)}\n\n"


def chat_routes(service: Service, generator: Generator | None) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["chat"])

    @routes.post("/v1/chat/completions", summary="Answer a conversation, with pictures", response_class=Response)
    async def chat(request: ChatRequest) -> Response:
        model = service.require_model(request.model)
        if generator is None:
            raise Refusal(501, "this server does not generate", code="not_generating")
        request.refuse()
        messages = [turn.message() for turn in request.messages]
        service.check_pictures(messages)
        stream = await generator.agenerate(
            messages,
            schema=request.schema_(),
            max_new_tokens=request.max_completion_tokens or request.max_tokens or 512,
            stop=[request.stop] if isinstance(request.stop, str) else request.stop or (),
            temperature=0.0 if request.temperature is None else request.temperature,
            seed=request.seed,
            stream=True,
        )
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        if not request.stream:
            return await _whole(stream, head)
        try:
            first = await anext(stream, "")  # what is wrong with the conversation shows here
        except BaseException:
            await stream.aclose()
            raise
        usage = bool((request.stream_options or {}).get("include_usage"))
        return StreamingResponse(_events(stream, first, head, usage), media_type="text/event-stream")

    return routes


async def _whole(stream: AsyncGenerationStream, head: dict[str, Any]) -> Response:
    async with stream:
        async for _ in stream:
            pass
    assert stream.result is not None
    message = {"role": "assistant", "content": stream.result.text}
    choice = {"index": 0, "message": message, "finish_reason": stream.result.outcome.finish, "logprobs": None}
    answer = {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(stream.result.outcome)}
    return JSONResponse(answer)


async def _events(stream: AsyncGenerationStream, first: str, head: dict[str, Any], usage: bool) -> AsyncIterator[str]:
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(delta: dict[str, str], finish: str | None = None) -> str:
        return event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    async with stream:
        yield chunk({"role": "assistant", "content": first})
        try:
            async for piece in stream:
                yield chunk({"content": piece})
        except ABCRagError as error:  # the status was sent long ago
            yield event(error_of(error)[1])
            return
    assert stream.result is not None
    yield chunk({}, stream.result.outcome.finish)
    if usage:
        yield event({**head, "choices": [], "usage": _usage(stream.result.outcome)})
    yield "data: [DONE]\n\n"


def _usage(outcome: Outcome) -> dict[str, int]:
    prompt, new = outcome.prompt_tokens or 0, outcome.new_tokens or 0
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
