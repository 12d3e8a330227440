"""Retrieved documents as content blocks for a chat model."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Literal

from langchain_core.documents import Document
from langchain_core.messages.content import ContentBlock, ImageContentBlock, create_image_block, create_text_block

from abc_rag import ImageLimits, Record
from abc_rag.errors import ImageError, ImageFetchError, InputError
from abc_rag.images import DEFAULT_LIMITS, share_image
from abc_rag.search import Pictures, cited_numbers
from langchain_abc._documents import is_picture, own_field

__all__ = ["cited_documents", "to_content_blocks"]

_LOG = logging.getLogger(__name__)
# How JPEG, PNG, GIF and WebP files begin in base64.
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")


def to_content_blocks(
    documents: Sequence[Document],
    *,
    numbered: bool = True,
    max_side: int | None = None,
    image_limits: ImageLimits | None = None,
    roots: Iterable[str | os.PathLike[str]] = (),
    missing: Literal["note", "raise"] = "note",
) -> list[ContentBlock]:
    """Turn documents into content blocks, for ``HumanMessage(content_blocks=[...])``.

    A passage becomes a text block, ``[1] SOURCE`` and the text below. A picture becomes a text block of its number,
    source and caption, and an image block. What is sent of a picture is a JPEG, PNG or WebP file, upright, with its
    pixels alone: not where a photo was taken, nor anything else that stands beside them
    (`abc_rag.images.share_image`).

    A picture is opened only where it was indexed on this machine, or in one of ``roots``, and is sent only if it is
    still what was indexed: whoever can write into a store could make a document refer to any file.

    Args:
        documents: From an `ABCVectorStore` or an `InstructionRetriever`. Any others count as passages, but for those
            whose text is a picture in base64.
        numbered: Start each document with its number in brackets, from 1, so that the model can cite it; see
            `cited_documents`.
        max_side: Maximum pixels of a picture's longer side; larger ones are shrunk.
        image_limits: Which pictures are opened, and whether URLs are fetched.
        roots: Further files and folders from which pictures may be opened, such as those of a store that was indexed
            on another machine.
        missing: What to do about a picture that is gone, has changed, was stored without a source, or may not be
            opened: ``"note"`` puts a text block in its place and logs a warning; ``"raise"`` raises.

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
    pictures = Pictures(roots=roots, limits=image_limits or DEFAULT_LIMITS)
    blocks: list[ContentBlock] = []
    for number, document in enumerate(documents, 1):
        source = own_field(document, "source")
        source = source if isinstance(source, str) else ""
        head = " ".join(part for part in (f"[{number}]" if numbered else "", source) if part)
        body = document.page_content
        if not is_picture(document) and (found := _encoded_picture(body)) is not None:
            try:
                data, mime_type = share_image(found, limits=pictures.limits, max_side=max_side)
            except ImageError:
                pass  # then it is a text, if an odd one
            else:
                blocks += [create_text_block(f"{head} (picture)".lstrip()), _block(data, mime_type)]
                continue
        if not is_picture(document):
            blocks.append(create_text_block("\n".join(part for part in (head, body) if part)))
            continue
        caption = "" if body == source else body
        lines = [line for line in (f"{head} (picture)".lstrip(), caption) if line]
        try:
            image = _image_block(document, source, pictures, max_side)
        except ImageError as error:
            if missing == "raise":
                raise
            _LOG.warning("a picture cannot be shown to the chat model: %s", error)
            blocks.append(create_text_block("\n".join([*lines, f"This picture cannot be shown: {error.reason}"])))
        else:
            blocks += [create_text_block("\n".join(lines)), image]
    return blocks


def cited_documents(answer: str, documents: Sequence[Document]) -> list[Document]:
    """The documents that an answer cites, such as by ``[1]`` or ``[2-4]``, in the order of their first mention.

    Args:
        answer: What the chat model said; see `abc_rag.search.cited_numbers` for what is read as a citation.
        documents: Those given to `to_content_blocks`, in the same order. Numbers beyond them are passed over.
    """
    return [documents[number - 1] for number in cited_numbers(answer, len(documents))]


def _image_block(document: Document, source: str, pictures: Pictures, max_side: int | None) -> ImageContentBlock:
    if not source:
        raise ImageFetchError(f"picture {document.id}", "was stored without a source; store it with keep=True")
    record = Record(
        document.id or source,
        "image",
        source=source,
        source_type="url" if own_field(document, "source_type") == "url" else "path",
        sha256=own_field(document, "sha256") or "",
    )
    return _block(*pictures.share(record, max_side=max_side))


def _block(data: bytes, mime_type: str) -> ImageContentBlock:
    return create_image_block(base64=base64.b64encode(data).decode("ascii"), mime_type=mime_type)


def _encoded_picture(text: str) -> bytes | None:
    """Decode a text that is a picture in base64, which is what ``langchain_chroma.Chroma.add_images`` stores."""
    if not text.startswith(_BASE64):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None
