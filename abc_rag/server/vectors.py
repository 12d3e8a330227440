"""Our own form: every kind of input, pictures by content, float32 bit for bit, errors by input.

``GET /v1/model``, ``POST /v1/vectors``, ``POST /v1/blobs/missing``, and ``HEAD`` and ``PUT /v1/blobs/{sha256}``.
"""

from __future__ import annotations

import functools
import urllib.parse
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse

from abc_rag.embedding.threads import in_thread
from abc_rag.errors import ImageFetchError, InputError
from abc_rag.server.blobs import checked_sha256
from abc_rag.server.embeddings import json_answer
from abc_rag.server.errors import Refusal, error_of
from abc_rag.server.guard import caller_of
from abc_rag.server.inputs import decoded
from abc_rag.server.service import Service, packed
from abc_rag.types import (
    URL,
    Fingerprint,
    Image,
    ImageSource,
    Input,
    InstructedImage,
    InstructedText,
    Interleaved,
    Text,
)

__all__ = ["FINGERPRINT_HEADER", "Picture", "fingerprint_header", "picture_of", "vector_routes"]

FINGERPRINT_HEADER = "ABC-Fingerprint"


@functools.lru_cache(maxsize=16)
def fingerprint_header(fingerprint: Fingerprint) -> str:
    """A fingerprint as a header's value: what is not ASCII is percent-encoded."""
    return urllib.parse.quote(str(fingerprint), safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~")


class _Own(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Picture(_Own):
    """A picture: exactly one of its fields."""

    sha256: str | None = Field(None, description="Of a picture that was sent to /v1/blobs.")
    data: str | None = Field(None, description="Its bytes in base64.")
    url: str | None = Field(None, description="Its address, where the server fetches any.")

    @model_validator(mode="after")
    def _one(self) -> Picture:
        if [self.sha256, self.data, self.url].count(None) != 2:
            raise ValueError("a picture has exactly one of sha256, data and url")
        return self


class TextInput(_Own):
    """`abc_rag.Text`."""

    type: Literal["text"]
    text: str
    role: str = "document"


class InstructedTextInput(_Own):
    """`abc_rag.InstructedText`."""

    type: Literal["instructed_text"]
    text: str
    instruction: str


class ImageInput(_Own):
    """`abc_rag.Image`."""

    type: Literal["image"]
    image: Picture
    role: str = "document"


class InstructedImageInput(_Own):
    """`abc_rag.InstructedImage`."""

    type: Literal["instructed_image"]
    image: Picture
    instruction: str
    role: str = "document"


class PartText(_Own):
    """A text of an interleaved input."""

    type: Literal["text"]
    text: str


class PartImage(_Own):
    """A picture of an interleaved input."""

    type: Literal["image"]
    image: Picture


class InterleavedInput(_Own):
    """`abc_rag.Interleaved`."""

    type: Literal["interleaved"]
    parts: list[Annotated[PartText | PartImage, Field(discriminator="type")]]
    role: str = "document"


AnyInput = Annotated[
    TextInput | InstructedTextInput | ImageInput | InstructedImageInput | InterleavedInput, Field(discriminator="type")
]


class VectorsRequest(_Own):
    """What to embed."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {"type": "text", "text": "a red bicycle", "role": "query"},
                        {
                            "type": "instructed_image",
                            "image": {"data": "iVBORw0KGgo..."},
                            "instruction": "what is left?",
                        },
                    ]
                }
            ]
        },
    )

    inputs: list[AnyInput]
    errors: Literal["raise", "each"] = Field(
        "raise", description="Whether an input that cannot be embedded fails the request, or only itself."
    )
    dimensions: int | None = Field(None, ge=1, description="Length of a vector, for models trained for several.")
    fingerprint: str | None = Field(None, description="The model that must answer; another one is refused with 409.")


class MissingRequest(_Own):
    """Pictures that a client has."""

    sha256: list[str] = Field(max_length=4096)


def vector_routes(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["abc-rag"])

    @routes.get("/v1/model", summary="The model's facts")
    async def model() -> dict[str, Any]:
        facts, settings = service.facts, service.settings
        return {
            "model": facts.names[0],
            "fingerprint": asdict(facts.fingerprint),
            "dim": facts.dim,
            "accepts": [kind.__name__ for kind in facts.accepts],
            "roles": list(facts.roles),
            "dimensions": "any" if facts.cuts else [],
            "limits": {
                "max_inputs": settings.max_inputs,
                "max_body_bytes": settings.max_body_bytes,
                "max_text_characters": settings.max_text_characters,
                "max_picture_bytes": service.max_picture_bytes,
                "urls": service.fetches,
            },
        }

    @routes.post("/v1/vectors", summary="Embed every kind of input, bit for bit")
    async def vectors(request: VectorsRequest, http: Request) -> Response:
        facts = service.facts
        if request.fingerprint is not None and request.fingerprint != str(facts.fingerprint):
            told = "this server has another model than the one that was asked for; connect again"
            raise Refusal(409, told, code="FingerprintMismatchError", more={"fingerprint": asdict(facts.fingerprint)})
        inputs = await _Reader(service, caller_of(http).tenant).read(request.inputs)
        done = await (service.embed_each(inputs) if request.errors == "each" else service.embed(inputs))
        rows = service.cut(done.vectors, request.dimensions)
        errors = [
            {**error_of(error)[1]["error"], "position": position} for position, error in sorted(done.errors.items())
        ]
        answer = {
            "fingerprint": facts.shown,
            "dim": rows.shape[1],
            "dtype": "<f4",
            "vectors": packed(rows),
            "errors": errors,
            "usage": {"total_tokens": done.tokens},
        }
        return await json_answer(answer)

    @routes.post("/v1/blobs/missing", summary="Which pictures have to be sent")
    async def missing(request: MissingRequest, http: Request) -> dict[str, list[str]]:
        tenant = caller_of(http).tenant
        return {"missing": [one for one in request.sha256 if not service.blobs.has(tenant, checked_sha256(one))]}

    @routes.head("/v1/blobs/{sha256}", summary="Whether a picture was sent")
    async def head(sha256: str, http: Request) -> Response:
        there = service.blobs.has(caller_of(http).tenant, checked_sha256(sha256))
        return Response(status_code=200 if there else 404)

    @routes.put("/v1/blobs/{sha256}", status_code=201, summary="Send a picture ahead, as its plain bytes")
    async def put(sha256: str, http: Request) -> JSONResponse:
        checked_sha256(sha256)
        data = await http.body()
        most = service.max_picture_bytes
        if len(data) > most:
            raise Refusal(413, f"{len(data):,} bytes are more than the {most:,} of a picture; send a smaller one")
        new = await in_thread(service.blobs.put, caller_of(http).tenant, sha256, data)
        return JSONResponse({"sha256": sha256, "new": new}, 201 if new else 200)

    return routes


class _Reader:
    """Makes typed inputs of a request's."""

    def __init__(self, service: Service, tenant: str) -> None:
        self._service = service
        self._tenant = tenant
        self._missing: list[str] = []

    async def read(self, given: list[Any]) -> list[Input]:
        """All of them.

        Raises:
            Refusal: Pictures have to be sent first; the error names them.
            InputError: One is none.
        """
        # Texts take no time; pictures are decoded, or read from the disk.
        texts = all(isinstance(one, (TextInput, InstructedTextInput)) for one in given)
        found = self._all(given) if texts else await in_thread(self._all, given)
        if self._missing:
            told = f"{len(self._missing)} pictures are not here (any more); PUT them to /v1/blobs and ask again"
            raise Refusal(409, told, code="blobs_missing", more={"missing": list(dict.fromkeys(self._missing))})
        return found

    def _all(self, given: list[Any]) -> list[Input]:
        made: list[Input] = []
        for position, one in enumerate(given):
            try:
                made.append(self._one(one))
            except InputError as error:
                raise error.at(position) from error
        return made

    def _one(self, one: Any) -> Input:  # noqa: ANN401  (of AnyInput)
        if isinstance(one, TextInput):
            return Text(one.text, role=one.role)
        if isinstance(one, InstructedTextInput):
            return InstructedText(one.text, one.instruction)
        if isinstance(one, ImageInput):
            return Image(self._picture(one.image), role=one.role)
        if isinstance(one, InstructedImageInput):
            return InstructedImage(self._picture(one.image), one.instruction, role=one.role)
        parts = [Text(p.text) if isinstance(p, PartText) else Image(self._picture(p.image)) for p in one.parts]
        return Interleaved(parts, role=one.role)

    def _picture(self, picture: Picture) -> ImageSource:
        try:
            return picture_of(self._service, self._tenant, picture)
        except Refusal as error:
            self._missing += error.more["missing"]
            return b""


def picture_of(service: Service, tenant: str, picture: Picture) -> ImageSource:
    """A picture as the embedder takes it.

    Raises:
        Refusal: It has to be sent first.
        ImageError: It is none, or is not fetched.
    """
    if picture.data is not None:
        return decoded(picture.data)
    if picture.url is not None:
        if picture.url[:8].lower().startswith(("http://", "https://")) and service.fetches:
            return URL(picture.url)
        raise ImageFetchError("url", "pictures are not fetched by this server; send the picture itself")
    sha256 = checked_sha256(picture.sha256 or "")
    data = service.blobs.read(tenant, sha256)
    if data is None:
        told = "a picture is not here (any more); PUT it to /v1/blobs and ask again"
        raise Refusal(409, told, code="blobs_missing", more={"missing": [sha256]})
    return data
