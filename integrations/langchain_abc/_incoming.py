"""What a caller wants stored, checked before anything is embedded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from abc_rag import ImageSource, Record
from abc_rag.errors import InputError
from abc_rag.types import MetadataValue
from langchain_abc._documents import check_unicode, document_id, refuse_picture, stored_metadata


def text_records(
    texts: Iterable[str], metadatas: Sequence[Mapping[str, Any]] | None, ids: Sequence[str | None] | None
) -> list[Record]:
    """Checked records of texts; an id that is not given is made of text and metadata."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InputError(f"texts must be a list of str; got a single {type(texts).__name__}: pass [text]")
    passages = list(texts)
    # As LangChain's base class has it, an empty list is none.
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
        # So that whatever else reads the store knows where the text is from.
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


def picture_metadatas(
    images: Sequence[ImageSource], metadatas: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, MetadataValue]]:
    """Checked metadata of pictures, one for each."""
    # Bytes and paths are sequences too, of numbers and letters.
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes)):
        raise InputError(f"images must be a list; got a single {type(images).__name__}: pass [picture]")
    given = one_each(len(images), metadatas=metadatas or None)["metadatas"] or [None] * len(images)
    return [stored_metadata(metadata, f"picture {position}") for position, metadata in enumerate(given)]


def one_each(count: int, **columns: Sequence[Any] | None) -> dict[str, Any]:
    """Lists that have one value for each item, or None."""
    for name, values in columns.items():
        if values is not None and (isinstance(values, (str, bytes)) or len(values) != count):
            raise InputError(f"{name} must be a list with one for each of the {count}, not {len(values)} of them")
    return columns
