"""Checks of what a caller wants to store, before anything is embedded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from langchain_core.documents import Document

from abc_rag import URL, DataURI, ImageSource, Record
from abc_rag.errors import ImageError, InputError, PartialIndexError
from abc_rag.search import Pictures
from abc_rag.types import MetadataValue
from langchain_abc._documents import (
    FoundDocument,
    check_unicode,
    document_id,
    is_picture,
    own_field,
    refuse_picture,
    stored_again,
    stored_metadata,
)


def text_records(
    texts: Iterable[str], metadatas: Sequence[Mapping[str, Any]] | None, ids: Sequence[str | None] | None
) -> list[Record]:
    """Checked records of texts. The default id is a hash of text and metadata."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InputError(f"texts must be a list of str; got a single {type(texts).__name__}: pass [text]")
    passages = list(texts)
    # LangChain's base class passes an empty list for none.
    each = one_each(len(passages), metadatas=metadatas or None, ids=ids or None)
    records = []
    for position, text in enumerate(passages):
        if not isinstance(text, str):
            raise InputError(f"text {position} must be a str, not {type(text).__name__}")
        metadata = each["metadatas"][position] if each["metadatas"] else None
        id_ = each["ids"][position] if each["ids"] else None
        name = f"document {position}" if id_ is None else f"document {position} (id {id_!r})"
        refuse_picture(metadata, name)
        stored = stored_metadata(metadata, name)
        # The record has it too, for whatever else reads the store.
        source = stored.get("source")
        check_unicode(text, f"{name}: its text")
        records.append(
            Record(
                id_ or document_id(text, stored),
                "text",
                text,
                source=source if isinstance(source, str) else "",
                metadata=stored,
            )
        )
    return records


@contextmanager
def placed(batch: Sequence[Record], records: Sequence[Record]) -> Iterator[None]:
    """Make an error about one text of a batch name its position in the whole call, and its id."""
    try:
        yield
    except InputError as error:
        if isinstance(error, ImageError) or error.position is None or error.position >= len(batch):
            raise
        record = batch[error.position]
        name = f"document {records.index(record)} (id {record.id!r})"
        raise InputError(f"{name}: {error.at(None)}") from error


@dataclass
class Pictured:
    """Documents that stand for pictures, as arguments of `ABCVectorStore.add_images`, with their positions."""

    places: list[int] = field(default_factory=list)
    images: list[ImageSource] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    metadatas: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Worded:
    """Documents that are texts, with their positions."""

    places: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    metadatas: list[dict[str, Any]] = field(default_factory=list)


class Stored:
    """Gathers the ids of a call whose parts are stored one after the other."""

    def __init__(self, count: int) -> None:
        self._ids: list[str | None] = [None] * count
        self._failed: list[tuple[int, InputError]] = []

    def take(self, places: Sequence[int], ids: Sequence[str | None]) -> None:
        """Record the ids of a part."""
        for place, id_ in zip(places, ids, strict=True):
            self._ids[place] = id_

    @contextmanager
    def failing(self, places: Sequence[int]) -> Iterator[None]:
        """Record what fails of a part, under its positions in the whole call."""
        try:
            yield
        except PartialIndexError as error:
            self.take(places, error.ids)
            self._failed += [(places[position], reason) for position, reason in error.failed]

    def ids(self) -> list[str]:
        """All ids, in order.

        Raises:
            PartialIndexError: Something failed.
        """
        if self._failed:
            raise PartialIndexError(self._ids, sorted(self._failed, key=lambda failure: failure[0]))
        return [id_ for id_ in self._ids if id_ is not None]


def split_documents(
    documents: Iterable[Document], ids: Sequence[str | None] | None, pictures: Pictures
) -> tuple[Worded, list[Pictured]]:
    """Split documents into texts and pictures; pictures with an id apart from those without.

    A document whose metadata has ``modality: image`` stands for a picture. If it comes from a store, its picture is
    opened here, so that only what was indexed is stored again. Otherwise its ``source`` is a path of the caller's.

    Raises:
        InputError: An item is not a document, or a stored picture cannot be opened; the message names it.
    """
    if isinstance(documents, (str, Document)) or not isinstance(documents, Iterable):
        raise InputError("documents must be a list of LangChain documents")
    given = list(documents)
    one_each(len(given), ids=ids)
    worded, named, unnamed = Worded(), Pictured(), Pictured()
    for place, document in enumerate(given):
        if not isinstance(document, Document):
            raise InputError(f"document {place} must be a LangChain Document, not {type(document).__name__}")
        id_ = ids[place] if ids else document.id
        metadata = stored_again(document)
        if not is_picture(document):
            worded.places.append(place)
            worded.texts.append(document.page_content)
            worded.ids.append(id_)
            worded.metadatas.append(metadata)
            continue
        part = unnamed if id_ is None else named
        image = _picture_of(document, place, pictures)
        part.places.append(place)
        part.images.append(image)
        part.ids.extend([] if id_ is None else [id_])
        part.captions.append(
            "" if document.page_content == str(own_field(document, "source") or image) else document.page_content
        )
        said = () if isinstance(document, FoundDocument) else ("modality", "source")
        part.metadatas.append({key: value for key, value in metadata.items() if key not in said})
    return worded, [part for part in (named, unnamed) if part.places]


def _picture_of(document: Document, place: int, pictures: Pictures) -> ImageSource:
    source = own_field(document, "source")
    source = source if isinstance(source, str) else ""
    if not isinstance(document, FoundDocument):
        return source or document.page_content
    record = Record(
        document.id or f"document {place}",
        "image",
        source=source,
        source_type="url" if own_field(document, "source_type") == "url" else "path",
        sha256=own_field(document, "sha256") or "",
    )
    try:
        pictures.read(record)
    except ImageError as error:
        raise InputError(f"document {place} is a picture that cannot be stored again: {error}") from error
    return URL(source) if record.source_type == "url" else source


def listed(images: Iterable[ImageSource]) -> list[ImageSource]:
    """The pictures of any iterable, such as a generator, a pandas column or an array of paths.

    Raises:
        InputError: It is a single picture.
    """
    # Bytes, str and PIL images are iterable or indexable as well, but are single pictures.
    single = isinstance(images, (str, bytes, os.PathLike, URL, DataURI)) or hasattr(images, "getbands")
    if single or not isinstance(images, Iterable):
        raise InputError(f"images must be a list; got a single {type(images).__name__}: pass [picture]")
    return list(images)


def picture_metadatas(
    images: Sequence[ImageSource], metadatas: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, MetadataValue]]:
    """Checked metadata of pictures, one for each."""
    given = one_each(len(images), metadatas=metadatas or None)["metadatas"] or [None] * len(images)
    return [stored_metadata(metadata, f"picture {position}") for position, metadata in enumerate(given)]


def one_each(count: int, **columns: Sequence[Any] | None) -> dict[str, Any]:
    """Check that each list has one value per item, or is None."""
    for name, values in columns.items():
        if values is not None and (isinstance(values, (str, bytes)) or len(values) != count):
            raise InputError(f"{name} must be a list with one for each of the {count}, not {len(values)} of them")
    return columns
