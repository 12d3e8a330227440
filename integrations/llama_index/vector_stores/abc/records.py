"""Conversion of LlamaIndex nodes to records, and back."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    TextNode,
)
from llama_index.embeddings.abc.nodes import picture_of

from abc_rag import URL, ImageLimits, Record
from abc_rag.errors import ImageError, InputError
from abc_rag.images import describe_source, mime_type_of, read_bytes
from abc_rag.search import Pictures
from abc_rag.store import Store, filterable
from abc_rag.types import MetadataValue, Modality

__all__ = ["MISSING", "NODE_ID", "OF_KIND", "REF_DOC_ID", "node_id_of", "nodes_of", "record_id", "record_of"]

logger = logging.getLogger(__name__)

# The first two are LlamaIndex's own keys.
_CONTENT = "_node_content"
# The metadata keys whose values were dates or times, which JSON has as text.
_DATES = "_node_dates"
_TYPE = "_node_type"
_PICTURED = "_node_has_picture"
# Metadata keys of a node whose picture is left out: its source, and the reason.
MISSING = "missing_picture"
_WHY = "missing_picture_reason"
NODE_ID = "_node_id"
REF_DOC_ID = "ref_doc_id"

# What a language model is told of the place of a part of a document.
_TOLD = frozenset({"file_name", "page_label", "heading"})

# Filters for the two kinds of nodes. To the store, a caption is a text; to the user, it is part of a picture.
OF_KIND: dict[Modality, dict[str, Any]] = {
    "image": {"$or": [{"abc:modality": "image"}, {_PICTURED: True}]},
    "text": {"$and": [{"abc:modality": "text"}, {_PICTURED: {"$ne": True}}]},
}

# LlamaIndex's own `metadata_dict_to_node` turns an ImageDocument into a TextNode without a picture.
_TYPES: dict[str, type[BaseNode]] = {
    known.class_name(): known for known in (TextNode, ImageNode, IndexNode, Node, Document, ImageDocument)
}


def record_id(node_id: str, modality: Modality) -> str:
    """Id of a node's record. A captioned picture has two records, so the modality is part of the id."""
    return f"{modality}:{node_id}"


def node_id_of(record: Record) -> str:
    """Id of a record's node."""
    return str(record.metadata.get(NODE_ID, record.id))


def record_of(node: BaseNode, modality: Modality, store: Store, limits: ImageLimits) -> Record:
    """The record of a node, from which the whole node is restored.

    Only metadata values that Chroma can filter by (str, int, float, bool) are searchable; the others, lists and
    nested ones, come back with the node. A picture given as base64 is copied into the store's folder and comes back
    as that file's path: megabytes have no place in searchable metadata.

    Raises:
        InputError: A picture is wanted and there is none, or it cannot be kept.
    """
    searchable = _searchable(node)  # first, for what cannot be stored may not be dumped either
    # Pictures and vectors are stored with the record.
    data = _disarmed(_dumped(node))
    data["embedding"] = None
    data.pop("text_embedding", None)
    if isinstance(node, TextNode):
        data["text"] = ""  # it is the record's
    else:
        data.pop("text", None)
    record = Record(record_id(node.node_id, modality), modality, text=node.get_content(MetadataMode.NONE))
    own: dict[str, MetadataValue] = {NODE_ID: node.node_id}
    picture = picture_of(node)
    if picture is None and modality == "image":
        raise InputError(f"node {node.node_id!r} has no picture; a store of pictures takes only nodes that have one")
    if picture is not None:
        own[_PICTURED] = True
        record = _with_picture(record, picture, node, store, limits)
    elif isinstance(node.metadata.get("file_path"), str):
        record = replace(record, source=node.metadata["file_path"])
    if node.ref_doc_id:
        own[REF_DOC_ID] = node.ref_doc_id
    own[_CONTENT] = json.dumps(data, ensure_ascii=False)
    dates = {key: type(value).__name__ for key, value in node.metadata.items() if type(value) in (date, datetime)}
    if dates:
        own[_DATES] = json.dumps(dates)
    own[_TYPE] = next(name for c in type(node).__mro__ for name, known in _TYPES.items() if c is known)
    return replace(record, metadata={**searchable, **own})


def _dumped(node: BaseNode) -> dict[str, Any]:
    try:
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in node.metadata.items()}
        dumped: dict[str, Any] = node.model_copy(update={"metadata": plain}).model_dump(mode="json")
    except Exception as error:  # pydantic raises what the values' own types raise
        raise InputError(f"node {node.node_id!r}: its metadata cannot be stored ({error}); use plain values") from error
    return dumped


def _searchable(node: BaseNode) -> dict[str, MetadataValue]:
    """The metadata that can be filtered by. Other metadata is stored with the node as well.

    Raises:
        InputError: A value would not come back as it is.
    """
    found: dict[str, MetadataValue] = {}
    for key, value in node.metadata.items():
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            problem = f"{value} cannot be stored; leave the key out, or store None"
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            problem = f"{value} does not fit into 64 bits; store it as a str"
        elif isinstance(value, date) and value != value:  # pandas' NaT
            problem = f"{value} cannot be stored; leave the key out, or store None"
        else:
            plain = filterable(value)
            if plain is not None:
                found[key] = plain
            continue
        raise InputError(f"node {node.node_id!r}: metadata key {key!r}: {problem}")
    return found


def _with_picture(
    record: Record, picture: bytes | Path | URL, node: BaseNode, store: Store, limits: ImageLimits
) -> Record:
    """The record with its picture's source, and with the hash that is required to open it again."""
    if isinstance(picture, URL):
        record = replace(record, source=picture.url, source_type="url")
        if not limits.allow_urls:
            return record
    elif isinstance(picture, Path):
        record = replace(record, source=str(picture.absolute()))
    try:
        data = read_bytes(picture, limits=limits)
        mime_type = mime_type_of(data, limits=limits, name=describe_source(picture))
    except ImageError as error:
        if isinstance(picture, bytes):
            raise InputError(f"node {node.node_id!r}: {error}") from error
        return record  # there is a vector, so the picture was there when that was made
    record = replace(record, sha256=hashlib.sha256(data).hexdigest(), mime_type=mime_type)
    return replace(record, source=store.keep_picture(data, mime_type)) if isinstance(picture, bytes) else record


def nodes_of(records: Sequence[Record], store: Store, pictures: Pictures, *, with_bytes: bool) -> list[BaseNode | None]:
    """The nodes of records. What was stored without LlamaIndex becomes a new node.

    LlamaIndex opens any path and fetches any URL that a node has. So a node has its picture only if that was opened
    here and is what was indexed; otherwise it is a ``TextNode`` whose metadata says what is missing. A damaged record
    becomes None, and a warning names it.

    Args:
        records: From ``store``.
        store: Is asked for the pictures of captions.
        pictures: Opens pictures.
        with_bytes: Whether nodes hold their pictures, which a framework then shows to a model without opening the
            file itself: pixels alone, without what else the file says. Without, they have only the path or the URL.
    """
    owners = _owners(records, store)
    return [_node_of(record, owners.get(record.id, record), pictures, with_bytes) for record in records]


def _owners(records: Iterable[Record], store: Store) -> dict[str, Record]:
    """Record id of a caption -> the picture's record, whose source is right even if the store has been moved."""
    captions = {
        record_id(node_id_of(record), "image"): record.id
        for record in records
        if record.modality == "text" and record.metadata.get(_PICTURED)
    }
    return {captions[found.id]: found for found in store.get(captions)} if captions else {}


def _node_of(record: Record, owner: Record, pictures: Pictures, with_bytes: bool) -> BaseNode | None:
    try:
        node, pictured = _bare_node(record)
    except Exception as error:  # whatever somebody else has written there
        logger.warning("record %r is damaged and left out (%s: %s)", record.id, type(error).__name__, error)
        return None
    if not pictured:
        return node
    try:
        if with_bytes:
            data, mime_type = pictures.share(owner)
            shown = base64.b64encode(data).decode("ascii")
        else:
            pictures.read(owner)
            shown, mime_type = None, owner.mime_type
    except ImageError as error:
        logger.warning("a picture is left out of its node: %s", error)
        return _without_picture(node, record, owner, error)
    path, url = (owner.source, None) if owner.source_type == "path" else (None, owner.source)
    if isinstance(node, ImageNode):
        node.image, node.image_path, node.image_url, node.image_mimetype = shown, path, url, mime_type or None
    elif isinstance(node, Node):
        resource = {"data": shown and shown.encode(), "path": path, "url": url, "mimetype": mime_type or None}
        node.image_resource = MediaResource.model_validate(resource)
    return node


def _bare_node(record: Record) -> tuple[BaseNode, bool]:
    """A record's node without paths and URLs, and whether it should have a picture."""
    content = record.metadata.get(_CONTENT)
    if content is None:
        return _new_node(record), record.modality == "image"
    data = json.loads(str(content))
    if not isinstance(data, dict):
        raise TypeError(f"its node is a {type(data).__name__}")
    node = _TYPES[str(record.metadata[_TYPE])].from_dict(_disarmed(data))
    for key, kind in json.loads(str(record.metadata.get(_DATES, "{}"))).items():
        node.metadata[key] = (date if kind == "date" else datetime).fromisoformat(node.metadata[key])
    if isinstance(node, TextNode):
        node.text = record.text
    return node, isinstance(node, (ImageNode, Node)) and bool(record.metadata.get(_PICTURED))


def _disarmed(data: Any) -> Any:  # noqa: ANN401
    """A node's data without anything that LlamaIndex would open, in nested nodes as well."""
    if isinstance(data, list):
        return [_disarmed(item) for item in data]
    if not isinstance(data, dict):
        return data
    kept = {}
    for key, value in data.items():
        if key == "metadata":
            kept[key] = value
        elif key == "text_resource" and isinstance(value, dict):
            kept[key] = {name: value[name] for name in ("text", "mimetype") if name in value}
        elif key not in ("image", "image_path", "image_url") and not key.endswith("_resource"):
            kept[key] = _disarmed(value)
    return kept


def _without_picture(node: BaseNode, record: Record, owner: Record, error: ImageError) -> TextNode:
    hidden = [MISSING, _WHY]
    return TextNode(
        id_=node.node_id,
        text=record.text,
        metadata={**node.metadata, MISSING: str(owner.source) or "stored without a source", _WHY: error.reason},
        excluded_embed_metadata_keys=[*node.excluded_embed_metadata_keys, *hidden],
        excluded_llm_metadata_keys=[*node.excluded_llm_metadata_keys, _WHY],
        relationships=node.relationships,
    )


def _new_node(record: Record) -> BaseNode:
    make = TextNode if record.modality == "text" else ImageNode
    metadata: dict[str, Any] = dict(record.metadata)
    if record.source:
        metadata.setdefault("source", record.source)
    if record.document:
        # As LlamaIndex's readers, and `llama_index.readers.abc`, call it.
        metadata = {"file_path": record.document, "file_name": Path(record.document).name, **metadata}
        told = {"id_": record.id, "text": record.text, "metadata": metadata}
        untold = [key for key in metadata if key not in _TOLD]
        return make(**told, excluded_embed_metadata_keys=list(metadata), excluded_llm_metadata_keys=untold)
    # A path is no content, so it is not embedded.
    hidden = ["source"] if record.source else []
    return make(id_=record.id, text=record.text, metadata=metadata, excluded_embed_metadata_keys=hidden)
