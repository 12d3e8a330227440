"""LangChain's documents and metadata as records, and back, without loss."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from typing import Any

import numpy as np
from langchain_core.documents import Document
from pydantic import PrivateAttr

from abc_rag import Hit, Record
from abc_rag.errors import InputError
from abc_rag.store import filterable
from abc_rag.types import MetadataValue

_LOG = logging.getLogger(__name__)
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
# The names of our fields where the user's metadata has keys of the same names.
_FIELDS = "source source_type modality mime_type sha256 score instruction first second facet note"
_OURS = frozenset(f"abc:{field}" for field in _FIELDS.split())
_STORABLE = "None, bool, int, float, str, dates and times, lists, tuples, and dicts with str keys"
_MOST_DEEP = 50


def stored_metadata(metadata: Mapping[str, Any] | None, document: str) -> dict[str, MetadataValue]:
    """Metadata as a store takes it: plain values as they are, dates as ISO text, and all of it as JSON where needed.

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
        if key and (plain := filterable(value)) is not None:
            native[key] = plain
        complete = complete and bool(key) and isinstance(value, (str, int, float, np.generic)) and key in native
    if not complete:
        native[_WHOLE] = json.dumps(whole, ensure_ascii=False, sort_keys=True)
    return native


def user_metadata(stored: Mapping[str, MetadataValue]) -> dict[str, Any]:
    """The inverse of `stored_metadata`."""
    whole = stored.get(_WHOLE)
    return dict(stored) if whole is None else {key: _decoded(value) for key, value in json.loads(str(whole)).items()}


def document_id(text: str, metadata: Mapping[str, MetadataValue]) -> str:
    """A hash of text and metadata: only equal texts with equal metadata have the same id."""
    content = json.dumps([text, metadata], sort_keys=True)
    return "text-" + hashlib.sha256(content.encode()).hexdigest()[:32]


class FoundDocument(Document):
    """A document from a store. Its metadata also has what a search says about it, which is not part of its value.

    So a document that two searches find with different scores counts as a duplicate, and storing it again drops
    what the search added.
    """

    _added: frozenset[str] = PrivateAttr(frozenset())
    _of_search: frozenset[str] = PrivateAttr(frozenset())

    @classmethod
    def lc_id(cls) -> list[str]:
        """Serialized as a plain ``Document``."""
        return Document.lc_id()

    @property
    def own_metadata(self) -> dict[str, Any]:
        """The user's own metadata."""
        return {key: value for key, value in self.metadata.items() if key not in self._added}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Document):
            return NotImplemented
        mine, theirs = ((one.id, one.page_content, one.type, _lasting(one)) for one in (self, other))
        return mine == theirs

    __hash__ = None  # type: ignore[assignment]

    def add(self, own: Mapping[str, Any], *, of_search: bool = False) -> None:
        """Add our fields to the metadata, as ``abc:KEY`` where the user has a key of that name."""
        for key, value in own.items():
            name = key
            if key in self.metadata and key not in self._added:
                if self.metadata[key] == value:
                    continue
                name = f"abc:{key}"
            self.metadata[name] = value
            self._added |= {name}
            if of_search:
                self._of_search |= {name}


def _lasting(document: Document) -> dict[str, Any]:
    if not isinstance(document, FoundDocument):
        return document.metadata
    return {key: value for key, value in document.metadata.items() if key not in document._of_search}


def to_document(record: Record) -> FoundDocument | None:
    """A stored record as a LangChain document; None, with a logged warning, for a damaged record.

    A picture's text is its caption or, without one, its source. Its metadata has our fields as well as the user's:
    ``source``, ``source_type``, ``modality``, ``mime_type`` and ``sha256``. If the user has a key of the same name,
    ours is ``abc:source`` and so on.
    """
    try:
        metadata = user_metadata(record.metadata)
    except Exception as error:  # whatever somebody else has written there
        _LOG.warning("record %r is damaged and left out (%s: %s)", record.id, type(error).__name__, error)
        return None
    document = FoundDocument(id=record.id, page_content=record.text, metadata=metadata)
    if record.modality == "text":
        if record.source and "source" not in metadata:
            document.add({"source": record.source})
        if metadata.get("modality") == "image":
            document.add({"modality": "text"})
        return document
    document.page_content = record.text or record.source
    own = {"source": record.source, "modality": record.modality, "mime_type": record.mime_type, "sha256": record.sha256}
    if record.source:
        own["source_type"] = record.source_type
    document.add({key: value for key, value in own.items() if value})
    return document


def to_documents(records: Iterable[Record]) -> list[Document]:
    """Records as documents; damaged ones are left out."""
    return [document for record in records if (document := to_document(record)) is not None]


def hit_document(hit: Hit) -> FoundDocument | None:
    """A hit as a document with its score and, if there is one, its trace; None for a damaged record."""
    document = to_document(hit.record)
    if document is None:
        return None
    own: dict[str, Any] = {"modality": hit.record.modality, "score": hit.score}
    if hit.confidence is not None:
        own["confidence"] = hit.confidence
    if hit.trace is not None:
        # All keys, even if their values are None.
        own |= {"instruction": hit.trace.instruction, "first": hit.trace.first, "second": hit.trace.second}
        own |= {"facet": hit.trace.facet, "note": hit.trace.note}
        own |= {"rank_by_vectors": hit.trace.rank_by_vectors, "rank_by_words": hit.trace.rank_by_words}
    document.add(own, of_search=True)
    return document


def stored_again(document: Document) -> dict[str, Any]:
    """The metadata to store for a document, without what another store added to it."""
    metadata = document.own_metadata if isinstance(document, FoundDocument) else document.metadata
    return {key: value for key, value in metadata.items() if key not in _OURS}


def own_field(document: Document, key: str) -> Any:  # noqa: ANN401
    """The value of one of our fields in a document; None if it has none."""
    return document.metadata.get(f"abc:{key}", document.metadata.get(key))


def is_picture(document: Document) -> bool:
    """Whether a document stands for a picture."""
    return bool(own_field(document, "modality") == "image")


def refuse_picture(metadata: Mapping[str, Any] | None, where: str) -> None:
    """Refuse a picture from a store among texts: its caption would replace the picture."""
    if isinstance(metadata, Mapping) and metadata.get("modality", metadata.get("abc:modality")) == "image":
        sha256 = metadata.get("abc:sha256", metadata.get("sha256"))
        if isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256):
            raise InputError(
                f"{where} is a picture from a store, and would be stored as a text; pass its source to add_images"
            )


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise InputError(f"{where}: keys must be str, not {type(key).__name__}; rename it")
    if key.startswith(_RESERVED):
        raise InputError(f"{where}: keys starting with {', '.join(map(repr, _RESERVED))} are reserved; rename it")
    check_unicode(key, where)
    return key


def check_unicode(text: str, where: str) -> None:
    """Refuse a text that cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is not valid Unicode ({error.reason}); clean it first") from error


def _encoded(value: object, where: str, depth: int) -> Any:  # noqa: ANN401
    if depth > _MOST_DEEP:
        raise InputError(f"{where}: nested more than {_MOST_DEEP} deep, perhaps in itself; store something flatter")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        check_unicode(value, where)
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: {value} cannot be stored; leave the key out, or store None")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    # A datetime is also a date, so it is checked first.
    for kind, name in ((datetime, "abc:datetime"), (date, "abc:date"), (time, "abc:time")):
        if isinstance(value, kind):
            if value != value:  # pandas' NaT
                raise InputError(f"{where}: {value} cannot be stored; leave the key out, or store None")
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
