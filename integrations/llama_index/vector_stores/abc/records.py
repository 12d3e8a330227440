"""LlamaIndex's nodes as abc-rag's records, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    TextNode,
)
from llama_index.embeddings.abc.nodes import picture_of

from abc_rag import URL, ChromaStore, ImageLimits, Record
from abc_rag.errors import ImageError, InputError
from abc_rag.images.open import open_image
from abc_rag.types import MetadataValue, Modality

__all__ = ["NODE_ID", "OF_KIND", "REF_DOC_ID", "node_id_of", "nodes_of", "record_id", "record_of"]

# The first two are LlamaIndex's own names for these.
_CONTENT = "_node_content"
_TYPE = "_node_type"
_KEPT = "_node_picture_kept"
_PICTURED = "_node_has_picture"
NODE_ID = "_node_id"
REF_DOC_ID = "ref_doc_id"

# What is asked of the store for nodes of a kind. A caption is a text to the store, and a picture to whoever asks.
OF_KIND: dict[Modality, dict[str, Any]] = {
    "image": {"$or": [{"abc:modality": "image"}, {_PICTURED: True}]},
    "text": {"$and": [{"abc:modality": "text"}, {_PICTURED: {"$ne": True}}]},
}

# LlamaIndex's own `metadata_dict_to_node` makes a TextNode of an ImageDocument, without its picture.
_TYPES: dict[str, type[BaseNode]] = {
    known.class_name(): known for known in (TextNode, ImageNode, IndexNode, Node, Document, ImageDocument)
}


def record_id(node_id: str, modality: Modality) -> str:
    """Id of a node's record. A captioned picture has two records: one id would let one overwrite the other."""
    return f"{modality}:{node_id}"


def node_id_of(record: Record) -> str:
    """Id of the node that a record was made from, or that is made from it."""
    return str(record.metadata.get(NODE_ID, record.id))


def record_of(node: BaseNode, modality: Modality, store: ChromaStore, limits: ImageLimits) -> Record:
    """The record of a node, which comes back whole from it.

    Only metadata values that Chroma can filter by (str, int, float, bool) are searchable; the others, lists and
    nested ones, come back with the node. A picture given as base64 is copied into the store's folder and comes back
    as that file's path: megabytes have no place in searchable metadata.

    Raises:
        InputError: A picture is wanted and there is none, or it cannot be kept.
    """
    data = node.model_dump(mode="json")
    data["embedding"] = None
    # Vectors are Chroma's; base64 is the folder's.
    for name in ("image", "text_embedding"):
        data.pop(name, None)
    if isinstance(node, TextNode):
        data["text"] = ""  # it is the record's
    else:
        data.pop("text", None)
        if data.get("text_resource"):
            data["text_resource"].pop("embeddings", None)
    record = Record(record_id(node.node_id, modality), modality, text=node.get_content(MetadataMode.NONE))
    own: dict[str, MetadataValue] = {NODE_ID: node.node_id}
    picture = picture_of(node)
    if picture is None and modality == "image":
        raise InputError(f"node {node.node_id!r} has no picture; a store of pictures takes only nodes that have one")
    if picture is not None:
        own[_PICTURED] = True
        record = _with_picture(record, picture, node, store, limits)
        if isinstance(picture, bytes):
            own[_KEPT] = True
            _point_to(data, record.source, record.mime_type)
    elif isinstance(node.metadata.get("file_path"), str):
        record = replace(record, source=node.metadata["file_path"])
    if node.ref_doc_id:
        own[REF_DOC_ID] = node.ref_doc_id
    own[_CONTENT] = json.dumps(data, ensure_ascii=False)
    own[_TYPE] = next(name for c in type(node).__mro__ for name, known in _TYPES.items() if c is known)
    plain = {key: value for key, value in node.metadata.items() if isinstance(value, (str, int, float, bool))}
    return replace(record, metadata={**plain, **own})


def _with_picture(
    record: Record, picture: bytes | Path | URL, node: BaseNode, store: ChromaStore, limits: ImageLimits
) -> Record:
    if isinstance(picture, URL):
        return replace(record, source=picture.url, source_type="url")
    try:
        opened = open_image(picture, limits=limits)
    except ImageError as error:
        if isinstance(picture, bytes):
            raise InputError(f"node {node.node_id!r}: {error}") from error
        # There is a vector, so it was there when that was made. Without its hash it counts as unknown, not as changed.
        return replace(record, source=str(picture.absolute()))
    record = replace(record, sha256=opened.sha256, mime_type=opened.mime_type or "")
    if isinstance(picture, bytes):
        return replace(record, source=store.keep_picture(picture, record.mime_type))
    return replace(record, source=str(picture.absolute()))


def _point_to(data: dict[str, Any], path: str, mime_type: str) -> None:
    """Make a node's data refer to a file in place of base64."""
    if data["class_name"] in ("Node", "Document", "ImageDocument") or "image_resource" in data:
        data["image_resource"] = {"path": path, "mimetype": mime_type}
    else:
        data["image_path"], data["image_mimetype"] = path, data.get("image_mimetype") or mime_type


def nodes_of(records: Sequence[Record], store: ChromaStore) -> list[BaseNode]:
    """The nodes of records: those they were made from, or new ones for what was stored without LlamaIndex."""
    moved = _kept_elsewhere(records, store)
    return [_node_of(record, moved) for record in records]


def _kept_elsewhere(records: Iterable[Record], store: ChromaStore) -> dict[str, str]:
    """Node -> where the store's copy of its picture is now.

    Only a picture's own record follows when a store's directory is moved; its caption's record does not.
    """
    captions = [node_id_of(record) for record in records if record.modality == "text" and record.metadata.get(_KEPT)]
    if not captions:
        return {}
    return {node_id_of(found): found.source for found in store.get(record_id(id_, "image") for id_ in captions)}


def _node_of(record: Record, moved: dict[str, str]) -> BaseNode:
    content = record.metadata.get(_CONTENT)
    if not isinstance(content, str):
        return _new_node(record)
    data = json.loads(content)
    if record.metadata.get(_KEPT):
        path = record.source if record.modality == "image" else moved.get(node_id_of(record), record.source)
        _point_to(data, path, record.mime_type)
    node = _TYPES[str(record.metadata[_TYPE])].from_dict(data)
    if isinstance(node, TextNode):
        node.text = record.text
    return node


def _new_node(record: Record) -> BaseNode:
    metadata: dict[str, Any] = dict(record.metadata)
    if record.source:
        metadata.setdefault("source", record.source)
    # Where something lies says nothing about what it is.
    hidden = ["source"] if record.source else []
    if record.modality == "text":
        return TextNode(id_=record.id, text=record.text, metadata=metadata, excluded_embed_metadata_keys=hidden)
    place = record.picture
    return ImageNode(
        id_=record.id,
        text=record.text,
        metadata=metadata,
        excluded_embed_metadata_keys=hidden,
        image_path=str(place) if isinstance(place, Path) else None,
        image_url=place.url if isinstance(place, URL) else None,
        image_mimetype=record.mime_type or None,
    )
