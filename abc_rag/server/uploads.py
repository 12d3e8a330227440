"""What clients send into collections, as files on the disk and rows of a job."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from abc_rag.embedding.threads import in_thread
from abc_rag.errors import InputError
from abc_rag.files import new_file, write
from abc_rag.images.formats import format_of
from abc_rag.ingest.files import kind_of_name
from abc_rag.server.blobs import Blobs, checked_sha256
from abc_rag.server.errors import Refusal
from abc_rag.server.guard import end_of_body
from abc_rag.server.inputs import decoded
from abc_rag.server.vectors import Picture
from abc_rag.store.records import checked_instruction, checked_records
from abc_rag.types import Record

__all__ = ["ItemsRequest", "Upload", "received"]

_MOST_FILES = 1000
_MOST_FIELD_BYTES = 2**20
_HEAD = 64
_UNSAFE = re.compile(r"[^\w .()+,=@-]+")
Metadata = Mapping[str, str | int | float | bool | list[str] | list[int] | list[float] | list[bool]]


class NewItem(BaseModel):
    """A passage or a picture."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(None, min_length=1, max_length=512, description="If not given: a hash of the content.")
    text: str | None = Field(None, max_length=1_000_000, description="A passage.")
    image: Picture | None = Field(None, description="A picture.")
    caption: str = Field("", max_length=100_000, description="A text stored beside the picture; it is not embedded.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="Your own values, for filters.")

    @model_validator(mode="after")
    def _one(self) -> NewItem:
        if (self.text is None) == (self.image is None):
            raise ValueError("an item has exactly one of text and image")
        if self.text is not None and not self.text.strip():
            raise ValueError("the text is blank")
        return self


class ItemsRequest(BaseModel):
    """What to add."""

    model_config = ConfigDict(extra="forbid")

    items: list[NewItem] = Field(min_length=1)
    facets: list[str] = Field(
        default_factory=list,
        max_length=16,
        description="Instructions under which each picture gets a further vector.",
    )


@dataclass
class Upload:
    """A job that is about to be accepted: its files lie in a folder of its id.

    Attributes:
        folder: Of all uploads.
        id: Of the job.
        items: What the ledger notes of each item.
        facets: Of its pictures.
    """

    folder: Path
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    items: list[dict[str, Any]] = field(default_factory=list)
    facets: list[str] = field(default_factory=list)

    def discard(self) -> None:
        """Remove its files."""
        shutil.rmtree(self.folder / self.id, ignore_errors=True)

    def add_file(self, name: str, file: IO[bytes], metadata: Mapping[str, Any]) -> None:
        """Add an uploaded file: a picture, a document or a text."""
        safe = _safe(name)
        head = file.read(_HEAD)
        file.seek(0)
        image = kind_of_name(safe) == "image" or (kind_of_name(safe) is None and format_of(head) is not None)
        place = f"{len(self.items)}/{safe}"
        path = self.folder / self.id / place
        path.parent.mkdir(parents=True)
        with new_file(path) as draft, draft.open("wb") as target:
            shutil.copyfileobj(file, target, 1 << 20)
        told = {"name": safe, **metadata} if image else {}
        self._add("image" if image else "file", name=safe, file=place, metadata=told)

    def add_item(self, item: NewItem, blobs: Blobs, tenant: str) -> None:
        """Add an item of a JSON request.

        Raises:
            InputError: It cannot be stored.
        """
        if item.text is not None:
            checked_records([Record(item.id or "text", "text", text=item.text, metadata=item.metadata)])
            return self._add("text", id_=item.id, text=item.text, metadata=item.metadata)
        assert item.image is not None
        checked_records([Record(item.id or "image", "image", text=item.caption, metadata=item.metadata)])
        common: dict[str, Any] = {"id_": item.id, "text": item.caption, "metadata": item.metadata}
        if item.image.url is not None:
            return self._add("image", url=item.image.url, name=item.image.url, **common)
        if item.image.data is not None:
            data: bytes | None = decoded(item.image.data)
        else:
            data = blobs.read(tenant, checked_sha256(item.image.sha256 or ""))
        if data is None:
            told = "a picture is not here (any more); PUT it to /v1/blobs and ask again"
            raise Refusal(409, told, code="blobs_missing", more={"missing": [item.image.sha256]})
        place = f"{len(self.items)}/picture"
        path = self.folder / self.id / place
        path.parent.mkdir(parents=True)
        write(path, data)
        self._add("image", file=place, **common)

    def _add(
        self,
        kind: str,
        *,
        id_: str | None = None,
        name: str = "",
        text: str = "",
        file: str = "",
        url: str = "",
        metadata: Mapping[str, Any],
    ) -> None:
        told = {"kind": kind, "id": id_, "name": name, "text": text, "file": file, "url": url}
        self.items.append(told | {"metadata": dict(metadata)})


async def received(request: Request, folder: Path, blobs: Blobs, tenant: str, *, urls: bool) -> Upload:
    """What a request brings, on the disk.

    Raises:
        InputError: It is malformed, or an item cannot be stored.
        Refusal: A picture has to be sent first, or the disk is full.
    """
    upload = Upload(folder)
    try:
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            await _form(request, upload)
            # The parser takes what there is; what was cut off would be stored as if it were whole.
            if not end_of_body(request).rstrip().endswith(b"--"):
                raise InputError("the form breaks off before its end; send it again")
        else:
            await _json(request, upload, blobs, tenant, urls)
        for facet in upload.facets:
            checked_instruction(facet)
    except ClientDisconnect as error:
        await in_thread(upload.discard)
        raise Refusal(400, "the upload broke off; send it again") from error
    except OSError as error:
        await in_thread(upload.discard)
        raise Refusal(507, "the server cannot keep this upload; its disk may be full", code="no_space") from error
    except BaseException:
        await in_thread(upload.discard)
        raise
    return upload


async def _form(request: Request, upload: Upload) -> None:
    async with request.form(max_files=_MOST_FILES, max_fields=8, max_part_size=_MOST_FIELD_BYTES) as form:
        unknown = sorted(set(form) - {"files", "metadata", "facets"})
        if unknown:
            raise InputError(f"a form has the fields files, metadata and facets, not {unknown[0][:60]!r}")
        files = form.getlist("files")
        if not files or not all(isinstance(one, UploadFile) for one in files):
            raise InputError("send at least one file, in the field files")
        metadata = _field(form.get("metadata"), "metadata", dict)
        upload.facets = _field(form.get("facets"), "facets", list)
        if not all(isinstance(one, str) for one in upload.facets) or len(upload.facets) > 16:
            raise InputError("facets is a JSON list of at most 16 texts")
        checked_records([Record("image", "image", metadata=metadata)])
        for one in files:
            assert isinstance(one, UploadFile)
            await in_thread(upload.add_file, one.filename or "", one.file, metadata)


def _field(value: object, name: str, kind: type[Any]) -> Any:  # noqa: ANN401  (of that kind)
    if value is None:
        return kind()
    try:
        found = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise InputError(f"{name} is a JSON {'object' if kind is dict else 'list'}; correct it")
    return found


async def _json(request: Request, upload: Upload, blobs: Blobs, tenant: str, urls: bool) -> None:
    try:
        asked = ItemsRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from error
    upload.facets = asked.facets
    await in_thread(_add_all, asked.items, upload, blobs, tenant, urls)


def _add_all(items: Sequence[NewItem], upload: Upload, blobs: Blobs, tenant: str, urls: bool) -> None:
    for position, item in enumerate(items):
        try:
            if item.image is not None and item.image.url is not None and not urls:
                raise InputError("pictures are not fetched by this server; send the picture itself")
            upload.add_item(item, blobs, tenant)
        except InputError as error:
            raise error.at(position) from error


def _safe(name: str) -> str:
    """A file's own name without folders, and without what a file system or a terminal obeys."""
    base = re.split(r"[/\\]", name)[-1]
    stem, dot, suffix = _UNSAFE.sub("_", base).strip(" .").rpartition(".")
    short = stem.encode()[:100].decode("utf-8", "ignore") + dot + suffix.encode()[:20].decode("utf-8", "ignore")
    # A hidden file would be left out.
    return short.strip(" .") or "file"
