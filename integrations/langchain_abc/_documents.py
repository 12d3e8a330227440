"""LangChain's documents and metadata as records, and back, without loss."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any

from langchain_core.documents import Document

from abc_rag import Hit, Record
from abc_rag.errors import InputError
from abc_rag.types import MetadataValue

# The whole metadata as JSON, where Chroma cannot hold all of it.
_WHOLE = "langchain:metadata"
_RESERVED = ("abc:", "chroma:", _WHOLE)
# What JSON has no word for is an object with one of these keys.
_READERS: dict[str, Any] = {
    "abc:datetime": datetime.fromisoformat,
    "abc:date": date.fromisoformat,
    "abc:time": time.fromisoformat,
    "abc:tuple": lambda items: tuple(_decoded(item) for item in items),
}
_STORABLE = "None, bool, int, float, str, dates and times, lists, tuples, and dicts with str keys"
_MOST_DEEP = 50


def stored_metadata(metadata: Mapping[str, Any] | None, document: str) -> dict[str, MetadataValue]:
    """Metadata as Chroma takes it: plain values as they are, dates as ISO text, the whole as JSON where that is less.

    Args:
        metadata: Of a LangChain document.
        document: What to call it in messages.

    Raises:
        InputError: Something in it cannot be brought back as it was; the message names the document and the key.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InputError(f"{document}: metadata must be a dict, not {type(metadata).__name__}")
    native: dict[str, MetadataValue] = {}
    whole: dict[str, Any] = {}
    complete = True
    for key, value in (metadata or {}).items():
        where = f"{document}: metadata key {key!r}"
        whole[_key(key, where)] = _encoded(value, where, 0)
        if key and (plain := _native(value)) is not None:
            native[key] = plain
        complete = complete and bool(key) and isinstance(value, (str, int, float)) and key in native
    if not complete:
        native[_WHOLE] = json.dumps(whole, ensure_ascii=False, sort_keys=True)
    return native


def user_metadata(stored: Mapping[str, MetadataValue]) -> dict[str, Any]:
    """The metadata that `stored_metadata` was given."""
    whole = stored.get(_WHOLE)
    return dict(stored) if whole is None else {key: _decoded(value) for key, value in json.loads(str(whole)).items()}


def document_id(text: str, metadata: Mapping[str, MetadataValue]) -> str:
    """Equal texts with equal metadata have equal ids, and only they."""
    content = json.dumps([text, metadata], sort_keys=True)
    return "text-" + hashlib.sha256(content.encode()).hexdigest()[:32]


def to_document(record: Record) -> Document:
    """A stored record as LangChain has it.

    A picture's text is its caption or, without one, its source. Our own fields stand in its metadata beside the
    user's: ``source``, ``source_type``, ``modality``, ``mime_type`` and ``sha256``. Where the user has a key of the
    same name, that stays, and ours is ``abc:source`` and so on.
    """
    metadata = user_metadata(record.metadata)
    if record.modality == "text":
        if record.source:
            metadata.setdefault("source", record.source)
        if metadata.get("modality") == "image":
            metadata["abc:modality"] = "text"
        return Document(id=record.id, page_content=record.text, metadata=metadata)
    own = {"source": record.source, "modality": record.modality, "mime_type": record.mime_type, "sha256": record.sha256}
    if record.source:
        own["source_type"] = record.source_type
    add_own(metadata, own)
    return Document(id=record.id, page_content=record.text or record.source, metadata=metadata)


def hit_document(hit: Hit) -> Document:
    """A retrieved record, with its score and, where it was traced, how that came about."""
    document = to_document(hit.record)
    own: dict[str, Any] = {"modality": hit.record.modality, "score": hit.score}
    if hit.trace is not None:
        # Also where there was nothing to tell, so that the keys are always there.
        own |= {"instruction": hit.trace.instruction, "first": hit.trace.first, "second": hit.trace.second}
        own |= {"facet": hit.trace.facet, "note": hit.trace.note}
    add_own(document.metadata, own, empty=True)
    return document


def add_own(metadata: dict[str, Any], own: Mapping[str, Any], *, empty: bool = False) -> None:
    """Add our fields to the user's metadata, clobbering none."""
    for key, value in own.items():
        if not value and not empty:
            continue
        if key not in metadata:
            metadata[key] = value
        elif metadata[key] != value:
            metadata[f"abc:{key}"] = value


def own_field(document: Document, key: str) -> Any:  # noqa: ANN401
    """One of our fields of a document that `to_document` made; None where it has none."""
    return document.metadata.get(f"abc:{key}", document.metadata.get(key))


def is_picture(document: Document) -> bool:
    """Whether a document stands for a stored picture."""
    return bool(own_field(document, "modality") == "image")


def refuse_picture(metadata: Mapping[str, Any] | None, where: str) -> None:
    """Refuse a picture's document among texts: its caption would take the picture's place."""
    if isinstance(metadata, Mapping) and metadata.get("modality", metadata.get("abc:modality")) == "image":
        sha256 = metadata.get("abc:sha256", metadata.get("sha256"))
        if isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256):
            raise InputError(
                f"{where} is a picture from a store, and would be stored as a text; pass its source to add_images"
            )


def _native(value: object) -> MetadataValue | None:
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**63) <= value < 2**63 else None
    return value if isinstance(value, (bool, float, str)) else None


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise InputError(f"{where}: keys must be str, not {type(key).__name__}; rename it")
    if key.startswith(_RESERVED):
        raise InputError(f"{where}: keys starting with {', '.join(map(repr, _RESERVED))} are reserved; rename it")
    check_unicode(key, where)
    return key


def check_unicode(text: str, where: str) -> None:
    """Refuse what no encoder takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is not valid Unicode ({error.reason}); clean it first") from error


def _encoded(value: object, where: str, depth: int) -> Any:  # noqa: ANN401
    if depth > _MOST_DEEP:
        raise InputError(f"{where}: nested more than {_MOST_DEEP} deep, perhaps in itself; store something flatter")
    if isinstance(value, str):
        check_unicode(value, where)
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: {value} cannot be stored; leave the key out, or store None")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    # A datetime is a date too: the more exact one first.
    for kind, name in ((datetime, "abc:datetime"), (date, "abc:date"), (time, "abc:time")):
        if isinstance(value, kind):
            return {name: value.isoformat()}
    if isinstance(value, (list, tuple)):
        items = [_encoded(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"abc:tuple": items}
    if isinstance(value, Mapping):
        return {_key(k, f"{where}[{k!r}]"): _encoded(v, f"{where}[{k!r}]", depth + 1) for k, v in value.items()}
    raise InputError(
        f"{where}: a value of type {type(value).__name__} cannot be stored ({_STORABLE} can); "
        "convert it, or leave the key out"
    )


def _decoded(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        if len(value) == 1:
            name, content = next(iter(value.items()))
            if name in _READERS:
                return _READERS[name](content)
        return {key: _decoded(item) for key, item in value.items()}
    return value
