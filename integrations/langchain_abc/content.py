"""Retrieved documents as what a chat model reads and sees."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import PIL.Image
from langchain_core.documents import Document
from langchain_core.messages.content import ContentBlock, ImageContentBlock, create_image_block, create_text_block

from abc_rag import URL, ImageLimits
from abc_rag.errors import ImageError, ImageFetchError, InputError
from abc_rag.images.limits import DEFAULT_LIMITS
from abc_rag.images.open import open_image
from abc_rag.images.read import read_bytes
from langchain_abc._documents import is_picture, own_field

__all__ = ["cited_documents", "to_content_blocks"]

_LOG = logging.getLogger(__name__)
# What all of today's chat models take.
_UNDERSTOOD = frozenset({"image/jpeg", "image/png", "image/webp"})
_MODES = frozenset({"L", "P", "RGB", "RGBA"})
_PRIVATE = frozenset({"exif", "xmp", "xml:com.adobe.xmp", "raw profile type exif"})
_JPEG_QUALITY = 92


def to_content_blocks(
    documents: Sequence[Document],
    *,
    numbered: bool = True,
    max_side: int | None = None,
    image_limits: ImageLimits | None = None,
    missing: Literal["note", "raise"] = "note",
) -> list[ContentBlock]:
    """Make content blocks of documents, for ``HumanMessage(content_blocks=[...])``.

    A passage becomes a text block, ``[1] SOURCE`` and the text below. A picture becomes a text block of its number,
    source and caption, and an image block. What is sent of a picture is a JPEG, PNG or WebP file, upright; it is
    encoded anew where it is of another kind, moves, is too large, or holds EXIF or XMP data, which often tells where
    a photo was taken.

    Args:
        documents: From an `ABCVectorStore` or an `InstructionRetriever`; any others count as passages.
        numbered: Begin each with its number in brackets, from 1, for the model to cite: see `cited_documents`.
        max_side: Shrink pictures to at most so many pixels on their longer side.
        image_limits: Which pictures are opened, and whether URLs are fetched.
        missing: What becomes of a picture that cannot be shown, since it is gone, has changed since it was stored, was
            stored without a source, or cannot be opened: ``"note"`` is a text block that says so and a logged warning;
            ``"raise"`` is an error.

    Returns:
        The blocks, in the order of the documents.

    Raises:
        abc_rag.errors.ImageError: With ``missing="raise"``, the first picture that cannot be shown.
        abc_rag.errors.InputError: An argument cannot be used.
    """
    if isinstance(documents, (str, Document)) or not all(isinstance(document, Document) for document in documents):
        raise InputError("documents must be a list of LangChain documents")
    if max_side is not None and (isinstance(max_side, bool) or not isinstance(max_side, int) or max_side < 1):
        raise InputError(f"max_side must be a positive number of pixels or None, not {max_side!r}")
    if missing not in ("note", "raise"):
        raise InputError(f"missing must be 'note' or 'raise', not {missing!r}")
    limits = image_limits or DEFAULT_LIMITS
    blocks: list[ContentBlock] = []
    for number, document in enumerate(documents, 1):
        source = own_field(document, "source")
        source = source if isinstance(source, str) else ""
        head = " ".join(part for part in (f"[{number}]" if numbered else "", source) if part)
        body = document.page_content
        if not is_picture(document):
            blocks.append(create_text_block("\n".join(part for part in (head, body) if part)))
            continue
        caption = "" if body == source else body
        lines = [line for line in (f"{head} (picture)".lstrip(), caption) if line]
        try:
            image = _image_block(document, source, limits, max_side)
        except ImageError as error:
            if missing == "raise":
                raise
            _LOG.warning("a picture cannot be shown to the chat model: %s", error)
            blocks.append(create_text_block("\n".join([*lines, f"This picture cannot be shown: {error.reason}"])))
        else:
            blocks += [create_text_block("\n".join(lines)), image]
    return blocks


def cited_documents(answer: str, documents: Sequence[Document]) -> list[Document]:
    """The documents that an answer cites as ``[1]`` or ``[1, 3]``, in the order of their first mention.

    Args:
        answer: What the chat model said.
        documents: Those given to `to_content_blocks`, in the same order. Numbers beyond them are passed over.
    """
    groups: Iterable[str] = re.findall(r"\[(\d+(?:\s*[,;]\s*\d+)*)\]", answer)
    numbers = dict.fromkeys(int(number) for group in groups for number in re.findall(r"\d+", group))
    return [documents[number - 1] for number in numbers if 1 <= number <= len(documents)]


def _image_block(document: Document, source: str, limits: ImageLimits, max_side: int | None) -> ImageContentBlock:
    if not source:
        raise ImageFetchError(f"picture {document.id}", "was stored without a source; store it with keep=True")
    place = URL(source) if own_field(document, "source_type") == "url" else source
    data = read_bytes(place, limits=limits)
    sha256 = own_field(document, "sha256")
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise ImageFetchError(source, "has changed since it was stored; store it again")
    opened = open_image(data, limits=limits)
    mime_type = opened.mime_type or ""
    too_large = max_side is not None and max(opened.size) > max_side
    if mime_type not in _UNDERSTOOD or too_large or not _is_plain(data):
        data, mime_type = _encoded(opened.image, mime_type, max_side)
    return create_image_block(base64=base64.b64encode(data).decode("ascii"), mime_type=mime_type)


def _is_plain(data: bytes) -> bool:
    """Whether a file, which `open_image` has vetted, is one still frame in common colours without EXIF or XMP data."""
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            if getattr(image, "n_frames", 1) > 1 or image.mode not in _MODES:
                return False
            return not _PRIVATE & {str(name).lower() for name in image.info}
    except Exception:  # what `open_image` bears may be too much for Pillow's own way in
        return False


def _encoded(image: PIL.Image.Image, mime_type: str, max_side: int | None) -> tuple[bytes, str]:
    if max_side is not None and max(image.size) > max_side:
        image.thumbnail((max_side, max_side), PIL.Image.Resampling.LANCZOS)
    # What was a photo stays one: as PNG it would be many times larger.
    kind = "JPEG" if mime_type == "image/jpeg" else "PNG"
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {}))
    return stream.getvalue(), f"image/{kind.lower()}"
