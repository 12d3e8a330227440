"""Pictures and captions of LlamaIndex nodes, and their vectors."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import cast

from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.schema import BaseNode, ImageNode, ImageType, MetadataMode, Node

from abc_rag import URL, ImageLimits, ImageSource
from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.images.open import open_image

__all__ = [
    "Pictured",
    "Worded",
    "as_source",
    "assign",
    "blamed",
    "caption_vector",
    "contents",
    "error_of",
    "has_picture",
    "has_text",
    "picture_of",
    "set_caption_vector",
    "sources",
    "split",
]

Worded = tuple[BaseNode, bool]
"""A node, and whether its text is only the caption of its picture."""
Pictured = tuple[BaseNode, ImageSource]
"""A node and its picture."""


def as_source(picture: object) -> ImageSource:
    """A picture as LlamaIndex hands it over (a path or a ``BytesIO``), or as abc-rag does; the latter checks it."""
    # getvalue, because an earlier reader may have moved the position.
    return picture.getvalue() if isinstance(picture, BytesIO) else cast(ImageSource, picture)


def picture_of(node: BaseNode) -> bytes | Path | URL | None:
    """The picture of an ``ImageNode``, an ``ImageDocument`` or a ``Node`` with an image; None if it has none.

    Unlike LlamaIndex's own ``resolve_image`` this fetches nothing: a URL stays one, for abc-rag's limits to judge.

    Raises:
        InputError: The node's base64 is broken.
    """
    data: str | bytes | None
    path: str | Path | None
    if isinstance(node, ImageNode):
        data, path, url = node.image, node.image_path, node.image_url
    elif isinstance(node, Node) and node.image_resource is not None:
        resource = node.image_resource
        data, path, url = resource.data, resource.path, str(resource.url) if resource.url else None
    else:
        return None
    if data:
        return _decoded(data, node.node_id)
    if path:
        return Path(path)
    return URL(url) if url else None


def has_picture(node: BaseNode) -> bool:
    """Whether `picture_of` returns a picture, without decoding it."""
    if isinstance(node, ImageNode):
        return bool(node.image or node.image_path or node.image_url)
    resource = node.image_resource if isinstance(node, Node) else None
    return resource is not None and bool(resource.data or resource.path or resource.url)


def _decoded(data: str | bytes, node_id: str) -> bytes:
    packed = data.encode() if isinstance(data, str) else data
    try:
        return base64.b64decode(b"".join(packed.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"node {node_id!r}: its image is not base64 ({error}); encode it again") from error


def has_text(node: BaseNode) -> bool:
    """Whether a node has a text besides its metadata, such as a picture's caption."""
    return bool(node.get_content(metadata_mode=MetadataMode.NONE).strip())


def split(nodes: Iterable[BaseNode], *, missing_only: bool = False) -> tuple[list[Worded], list[Pictured]]:
    """Split nodes into those to embed as texts and those to embed as pictures. A captioned picture is both.

    Args:
        nodes: The nodes.
        missing_only: Leave out what has its vector already.
    """
    worded: list[Worded] = []
    pictured: list[Pictured] = []
    for node in nodes:
        if not has_picture(node):
            if not missing_only or node.embedding is None:
                worded.append((node, False))
            continue
        if not missing_only or node.embedding is None:
            picture = picture_of(node)
            if picture is not None:
                pictured.append((node, picture))
        if has_text(node) and (not missing_only or caption_vector(node) is None):
            worded.append((node, True))
    return worded, pictured


def caption_vector(node: BaseNode) -> Embedding | None:
    """The vector of a picture's caption, if the node has one."""
    if isinstance(node, ImageNode):
        return node.text_embedding
    if isinstance(node, Node) and node.text_resource is not None and node.text_resource.embeddings:
        return node.text_resource.embeddings.get("dense")
    return None


def set_caption_vector(node: BaseNode, vector: Embedding | None) -> None:
    """Set the vector of a picture's caption."""
    if isinstance(node, ImageNode):
        node.text_embedding = vector
    elif isinstance(node, Node) and node.text_resource is not None:
        embeddings = None if vector is None else {"dense": vector}
        # Copies of a node share its resource, so it is replaced rather than changed.
        node.text_resource = node.text_resource.model_copy(update={"embeddings": embeddings})


def contents(worded: Sequence[Worded]) -> list[str]:
    """The text to embed for each node; as in LlamaIndex, it includes metadata."""
    return [node.get_content(metadata_mode=MetadataMode.EMBED) for node, _ in worded]


def sources(pictured: Sequence[Pictured]) -> list[ImageType]:
    """The pictures, typed as LlamaIndex's methods declare them."""
    return [cast(ImageType, source) for _, source in pictured]


def assign(
    worded: Sequence[Worded], texts: list[Embedding], pictured: Sequence[Pictured], pictures: list[Embedding]
) -> None:
    """Set the vectors of nodes."""
    for (node, is_caption), vector in zip(worded, texts, strict=True):
        if is_caption:
            set_caption_vector(node, vector)
        else:
            node.embedding = vector
    for (node, _), vector in zip(pictured, pictures, strict=True):
        node.embedding = vector


def error_of(node: BaseNode, error: ABCRagError) -> InputError:
    """An error about one input that names its node.

    Raises:
        ABCRagError: It is about something else, such as a model that cannot compute.
    """
    if isinstance(error, ImageError):
        return type(error)(f"node {node.node_id!r} ({error.source})", error.reason)
    if isinstance(error, InputError):
        return InputError(f"node {node.node_id!r}: {error.at(None)}")
    raise error


def blamed(error: ImageError, pictures: Sequence[tuple[str, ImageSource]], limits: ImageLimits) -> ImageError:
    """``error`` with the name of its picture, because ``"bytes (12 KB)"`` does not tell which one it is."""
    for name, source in pictures:
        try:
            open_image(source, limits=limits)
        except ImageError as found:
            return type(found)(f"{name} ({found.source})", found.reason)
    return error
