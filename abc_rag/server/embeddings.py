"""``POST /v1/embeddings`` in the forms of OpenAI, Jina and vLLM, and ``POST /v2/embed`` in Cohere's."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field, field_validator
from pydantic_core import to_json

from abc_rag.embedding.threads import in_thread
from abc_rag.errors import InputError
from abc_rag.server.inputs import ContentPart, Item, Lenient, TextPart, input_of, item_input, picture_from
from abc_rag.server.service import Embedded, Service, packed
from abc_rag.types import Image, Input, Text

__all__ = ["embedding_routes", "json_answer"]

# Numbers in one answer above which it is written in a thread.
_MANY = 50_000
_TASKS = {
    "retrieval.query": "query",
    "retrieval.passage": "document",
    "query": "query",
    "passage": "document",
    "document": "document",
}
_EXAMPLES: list[Any] = [
    {"input": "a red bicycle", "model": "abc"},
    {
        "input": [
            {"text": "which animal is on the left?", "role": "query"},
            {"image": "data:image/png;base64,iVBORw0KGgo...", "instruction": "what is on the left?"},
        ]
    },
    {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo..."}},
                    {"type": "text", "text": "what is on the left?"},
                ],
            }
        ]
    },
]


class Turn(Lenient):
    """A message, as vLLM takes them: what a system says is the instruction."""

    role: Literal["system", "user"]
    content: str | list[ContentPart]

    @property
    def parts(self) -> list[Text | Image]:
        """Its texts and pictures."""
        if isinstance(self.content, str):
            return [Text(self.content)]
        return [Text(one.text) if isinstance(one, TextPart) else Image(picture_from(one.url)) for one in self.content]


class EmbeddingsRequest(Lenient):
    """What to embed: ``input`` in OpenAI's or Jina's form, or ``messages`` in vLLM's."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": _EXAMPLES})

    model: str | None = None
    input: str | Item | list[str | Item] | None = None
    messages: list[Turn] | None = Field(None, description="One input, as vLLM takes it.")
    instruction: str | None = Field(None, description="What to look at or for, where an item has none of its own.")
    role: str | None = Field(None, description="query or document, where an item has none of its own.")
    task: str | None = Field(None, description="Jina's word for the role: retrieval.query or retrieval.passage.")
    encoding_format: Literal["float", "base64"] = "float"
    embedding_type: Literal["float", "base64"] | None = Field(None, description="Jina's name for encoding_format.")
    dimensions: int | None = Field(None, ge=1, description="Length of a vector, for models trained for several.")

    @field_validator("input", mode="before")
    @classmethod
    def _no_tokens(cls, value: object) -> object:
        if isinstance(value, list) and value and isinstance(value[0], (int, list)):
            raise ValueError(
                "arrays of tokens are of another model's tokenizer; send texts (langchain-openai: "
                "check_embedding_ctx_length=False)"
            )
        return value

    def inputs(self, accepts: tuple[type, ...]) -> list[Input]:
        """The inputs.

        Raises:
            InputError: There are none, or one of them is none.
        """
        role = self.role or _role_of_task(self.task)
        if (self.input is None) == (self.messages is None):
            raise InputError("send exactly one of input and messages")
        if self.messages is not None:
            return [_conversation(self.messages, self.instruction, role, accepts)]
        items = self.input if isinstance(self.input, list) else [self.input]
        found: list[Input] = []
        for position, item in enumerate(items):
            assert item is not None
            try:
                found.append(item_input(item, instruction=self.instruction, role=role, accepts=accepts))
            except InputError as error:
                raise error.at(position) from error
        if not found:
            raise InputError("input is empty; send a text or a list of them")
        return found


class CohereInput(Lenient):
    """One input of Cohere's v2 form: texts and pictures."""

    content: list[ContentPart]


class CohereRequest(Lenient):
    """What to embed, in the form of Cohere's v2 API."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [{"model": "abc", "texts": ["a red bicycle"], "input_type": "search_query"}],
        },
    )

    model: str | None = None
    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[CohereInput] | None = None
    input_type: str | None = Field(None, description="search_query, search_document, image, ...")
    embedding_types: list[Literal["float", "base64"]] | None = None
    output_dimension: int | None = Field(None, ge=1)
    instruction: str | None = Field(None, description="What to look at in pictures, or to look for with texts.")

    def typed(self, accepts: tuple[type, ...]) -> list[Input]:
        """The inputs: texts, then pictures, then mixed ones.

        Raises:
            InputError: There are none, or one of them is none.
        """
        role = "query" if self.input_type == "search_query" else "document"
        parts: list[Sequence[Text | Image]] = [[Text(text)] for text in self.texts or ()]
        parts += [[Image(picture_from(picture))] for picture in self.images or ()]
        for one in self.inputs or ():
            parts.append(Turn(role="user", content=one.content).parts)
        if not parts:
            raise InputError("send texts, images or inputs")
        return [input_of(one, instruction=self.instruction, role=role, accepts=accepts) for one in parts]


def _role_of_task(task: str | None) -> str:
    if task is not None and task not in _TASKS:
        raise InputError(f"task {task[:60]!r} is not known; use retrieval.query or retrieval.passage, or role")
    return "document" if task is None else _TASKS[task]


def _conversation(messages: list[Turn], instruction: str | None, role: str, accepts: tuple[type, ...]) -> Input:
    told = [part.text for turn in messages if turn.role == "system" for part in turn.parts if isinstance(part, Text)]
    if told and instruction is not None:
        raise InputError("send the instruction once: as the system's message or as instruction")
    parts = [part for turn in messages if turn.role == "user" for part in turn.parts]
    return input_of(parts, instruction="\n".join(told) if told else instruction, role=role, accepts=accepts)


async def json_answer(value: Any, *, numbers: int = 0) -> Response:  # noqa: ANN401
    """A value as JSON; many numbers are written beside the event loop."""
    body = await in_thread(to_json, value) if numbers > _MANY else to_json(value)
    return Response(body, media_type="application/json")


def embedding_routes(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["embeddings"])

    @routes.post("/v1/embeddings", summary="Embed texts and pictures, as OpenAI, Jina and vLLM take them")
    async def embeddings(request: EmbeddingsRequest) -> Response:
        model = service.require_model(request.model)
        done = await service.embed(request.inputs(service.facts.accepts))
        vectors = service.cut(done.vectors, request.dimensions)
        packs = "base64" in (request.encoding_format, request.embedding_type)
        data = [
            {"object": "embedding", "index": index, "embedding": packed(row) if packs else row.tolist()}
            for index, row in enumerate(vectors)
        ]
        usage = {"prompt_tokens": done.tokens, "total_tokens": done.tokens}
        answer = {"object": "list", "data": data, "model": model, "usage": usage}
        return await json_answer(answer, numbers=0 if packs else vectors.size)

    @routes.post("/v2/embed", summary="Embed texts and pictures, as Cohere's v2 API takes them")
    async def embed(request: CohereRequest) -> Response:
        service.require_model(request.model)
        done: Embedded = await service.embed(request.typed(service.facts.accepts))
        vectors = service.cut(done.vectors, request.output_dimension)
        kinds = request.embedding_types or ["float"]
        shown: dict[str, list[Any]] = {}
        for kind in kinds:
            shown[kind] = np.asarray(vectors).tolist() if kind == "float" else [packed(row) for row in vectors]
        answer = {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_by_type",
            "embeddings": shown,
            "texts": request.texts or [],
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": done.tokens}},
        }
        return await json_answer(answer, numbers=vectors.size)

    return routes
