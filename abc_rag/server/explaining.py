"""``POST /v1/collections/{name}/explain``: where in a picture that was found the answer lies."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from abc_rag.errors import ImageError
from abc_rag.search.evidence import PASSES
from abc_rag.server.errors import Refusal
from abc_rag.server.guard import caller_of
from abc_rag.server.library import Library
from abc_rag.server.search import AboutQuestion
from abc_rag.types import Hit

__all__ = ["explaining_routes"]


class ExplainRequest(AboutQuestion):
    """What to explain: as `abc_rag.Retriever.explain` takes it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"id": "a record's id", "question": "a pig on the left"}]}
    )

    id: str = Field(description="The record, a picture, in which the answer is looked for.")
    answer: str | None = Field(
        None, min_length=1, max_length=100_000, description="What it is compared with, if not what the question seeks."
    )
    passes: int = Field(PASSES, ge=4, le=256, description="Most passes of the language model.")


def explaining_routes(library: Library) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/collections", tags=["collections"])

    @routes.post("/{name}/explain", summary="Where in a picture the answer lies")
    async def explain(name: str, asked: ExplainRequest, http: Request) -> dict[str, Any]:
        retriever, query = await asked.opened(library, http, name, keywords=False)
        record = await library.record(caller_of(http), name, asked.id)
        try:
            evidence = await retriever.aexplain(Hit(record, 0.0), query, answer=asked.answer, passes=asked.passes)
        except ImageError as error:
            if not record.source or record.source not in str(error):
                raise
            # Its message names a file.
            raise Refusal(404, "this picture cannot be shown; index it again", code="picture_gone") from error
        return evidence.as_dict()

    return routes
