"""``POST /v1/rerank`` and ``/v2/rerank``, as Jina and Cohere take them: documents by how well they fit a query.

``method="look"`` embeds; pictures are seen again under the query's instruction, which is our second look
(instruction-conditioned reranking). ``method="judge"`` lets a model that generates read query and document together.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import ConfigDict, Field

from abc_rag.answering.generator import Generator
from abc_rag.answering.judge import GenerativeJudge
from abc_rag.embedding.threads import in_thread
from abc_rag.errors import ABCRagError, InputError
from abc_rag.models.tasks import Source
from abc_rag.search.retriever import WEIGHT
from abc_rag.search.rewriting.rules import RuleRewriter
from abc_rag.server.errors import Refusal
from abc_rag.server.inputs import Item, Lenient, picture_from
from abc_rag.server.service import Service
from abc_rag.types import Image, ImageSource, Input, InstructedImage, Text

__all__ = ["rerank_routes"]


class RerankRequest(Lenient):
    """A query and the documents to order."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [{"query": "which animal lives in mud?", "documents": ["a pig", "a cat"], "top_n": 1}]
        },
    )

    model: str | None = None
    query: str | Item = Field(description="A text, or a picture with or without an instruction.")
    documents: list[str | Item] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    instruction: str | None = Field(
        None, description="What to look at in pictures. If not given: what the query asks for, by rules."
    )
    method: Literal["look", "judge"] = Field("look", description="judge takes a server that generates.")


class _Asked:
    """A query, checked and rewritten."""

    def __init__(self, request: RerankRequest) -> None:
        query = request.query
        self.item = query if isinstance(query, Item) else Item(text=query, image=None, instruction=None, role=None)
        words = self.item.text if self.item.text is not None else self.item.instruction
        self.image = None if self.item.image is None else picture_from(self.item.image)
        if not words and self.image is None:
            raise InputError("the query has neither a text nor a picture; send one")
        self.words = words or ""
        rewrite = RuleRewriter().rewrite(words, has_image=self.image is not None) if words and words.strip() else None
        self.target = rewrite.target if rewrite is not None else self.words
        own = rewrite.instruction if rewrite is not None and rewrite.names_aspect else None
        self.instruction = own if request.instruction is None else request.instruction

    def input(self) -> Input:
        """What is embedded for it."""
        if self.image is None:
            return Text(self.target, role="query")
        if self.instruction is None:
            return Image(self.image, role="query")
        return InstructedImage(self.image, self.instruction, role="query")


def rerank_routes(service: Service, generator: Generator | None) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["rerank"])
    judge = None if generator is None else GenerativeJudge(generator)

    async def rerank(request: RerankRequest) -> dict[str, Any]:
        model = service.require_model(request.model)
        asked = _Asked(request)
        documents = [_document(one, position) for position, one in enumerate(request.documents)]
        if request.method == "judge":
            if judge is None:
                raise Refusal(501, "this server does not generate; use method look", code="not_generating")
            service.check_amount(documents)
            scores, tokens = await in_thread(_judged, judge, asked, documents), 0
        else:
            scores, tokens = await _looked(service, asked, documents)
        order = sorted(range(len(scores)), key=lambda position: (-scores[position], position))[: request.top_n]
        return {
            "id": str(uuid.uuid4()),
            "model": model,
            "results": [
                {
                    "index": position,
                    "relevance_score": scores[position],
                    **({"document": _shown(request.documents[position])} if request.return_documents else {}),
                }
                for position in order
            ],
            "usage": {"total_tokens": tokens},
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        }

    for path in ("/v1/rerank", "/v2/rerank"):
        routes.post(path, summary="Order documents by how well they fit a query")(rerank)
    return routes


def _document(one: str | Item, position: int) -> Text | Image:
    if isinstance(one, str):
        return Text(one)
    try:
        if (one.text is None) == (one.image is None):
            raise InputError("a document has exactly one of text and image")
        return Text(one.text) if one.text is not None else Image(picture_from(one.image or ""))
    except InputError as error:
        raise error.at(position) from error


def _shown(one: str | Item) -> dict[str, Any]:
    # A picture is not sent back.
    return {"text": one if isinstance(one, str) else one.text or ""}


async def _looked(service: Service, asked: _Asked, documents: list[Text | Image]) -> tuple[list[float], int]:
    pictures = [position for position, one in enumerate(documents) if isinstance(one, Image)]
    looks: list[Input] = []
    if asked.instruction is not None and InstructedImage in service.facts.accepts:
        looks = [InstructedImage(documents[position].pictures[0], asked.instruction) for position in pictures]
    done = await service.embed([asked.input(), *documents, *looks])
    cosines = np.clip(done.vectors[1:] @ done.vectors[0], -1.0, 1.0)
    scores = ((1.0 + cosines) / 2.0).astype(np.float64)
    first = scores[: len(documents)]
    if looks:
        # As a search fuses them: by how much a picture stands out from the others, not by how high all of them are.
        second = scores[len(documents) :]
        shift = second.mean() - first[pictures].mean()
        first[pictures] = np.clip(first[pictures] + WEIGHT * (second - shift - first[pictures]), 0.0, 1.0)
    return [float(score) for score in first], done.tokens


def _judged(judge: GenerativeJudge, asked: _Asked, documents: list[Text | Image]) -> list[float]:
    sources = []
    for position, one in enumerate(documents):
        try:
            image: ImageSource | None = one.pictures[0] if isinstance(one, Image) else None
            sources.append(Source(image, one.words))
        except InputError as error:
            raise error.at(position) from error
    found = judge.judge(asked.words, sources, image=asked.image)
    for position, score in enumerate(found):
        if isinstance(score, ABCRagError):
            raise score.at(position) from score
    return [score for score in found if not isinstance(score, ABCRagError)]
