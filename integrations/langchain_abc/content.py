"""Retrieved documents as content blocks for a chat model."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from langchain_core.documents import Document
from langchain_core.messages.content import ContentBlock, ImageContentBlock, create_image_block, create_text_block

from abc_rag import ImageLimits, Record
from abc_rag.errors import ImageError, ImageFetchError, InputError
from abc_rag.images import DEFAULT_LIMITS, open_image, share_image
from abc_rag.search import Pictures, cited_numbers, crop_of, name_of
from abc_rag.store import Store
from langchain_abc._documents import FoundDocument, is_picture, own_field

if TYPE_CHECKING:
    from langchain_abc.vectorstores import ABCVectorStore

__all__ = ["cited_documents", "record_of", "to_content_blocks"]

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
    pages: Literal["whole", "crop"] | None = None,
    store: ABCVectorStore | Store | None = None,
) -> list[ContentBlock]:
    """Turn documents into content blocks, for ``HumanMessage(content_blocks=[...])``.

    A passage becomes a text block, ``[1] SOURCE`` and the text below. A picture becomes a text block of its number,
    source and caption, and an image block. What is sent of a picture is a JPEG, PNG or WebP file, upright, with its
    pixels alone: not where a photo was taken, nor anything else that stands beside them
    (`abc_rag.images.share_image`).

    Of what was found in a document (`abc_rag.ingest.documents`), ``SOURCE`` is ``manual.pdf, page 12``. A figure is
    sent as a picture of itself, a passage as its text, and with ``pages`` what it looks like on its page too.

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
        pages: What is sent of the page of a passage or a figure besides. ``"whole"``: the page, behind the first
            document that is on it. ``"crop"``: of a passage, its place on the page, such as a table with its rules.
        store: From which the documents are; needed for ``pages``, whose pictures are looked up there.

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
    if pages not in (None, "whole", "crop") or (pages is not None and store is None):
        raise InputError(f"pages must be None, 'whole' or 'crop', with store=..., not {pages!r} with store={store!r}")
    limits = image_limits or DEFAULT_LIMITS
    pictures = Pictures(roots=roots, limits=limits)
    opened = store if store is None or isinstance(store, Store) else store.store
    on_pages = None if pages is None else _Pages(Pictures(opened, roots=roots, limits=limits), pages, max_side)
    blocks: list[ContentBlock] = []
    for number, document in enumerate(documents, 1):
        record = record_of(document)
        head = " ".join(part for part in (f"[{number}]" if numbered else "", name_of(record) or record.source) if part)
        blocks += _blocks(document, record, head, pictures, max_side, missing)
        if on_pages is not None:
            blocks += on_pages.blocks(record, head, missing)
    return blocks


def _blocks(
    document: Document,
    record: Record,
    head: str,
    pictures: Pictures,
    max_side: int | None,
    missing: Literal["note", "raise"],
) -> list[ContentBlock]:
    """What was found itself."""
    body = document.page_content
    if record.modality == "text":
        if (found := _encoded_picture(body)) is not None:
            try:
                shared = share_image(found, limits=pictures.limits, max_side=max_side)
            except ImageError:
                pass  # then it is a text, if an odd one
            else:
                return [create_text_block(f"{head} (picture)".lstrip()), _block(*shared)]
        return [create_text_block("\n".join(part for part in (head, body) if part))]
    caption = "" if body == record.source else body
    lines = [line for line in (f"{head} (picture)".lstrip(), caption) if line]
    try:
        if not record.source:
            raise ImageFetchError(f"picture {document.id}", "was stored without a source; store it with keep=True")
        shared = pictures.share(record, max_side=max_side)
    except ImageError as error:
        if missing == "raise":
            raise
        _LOG.warning("a picture cannot be shown to the chat model: %s", error)
        return [create_text_block("\n".join([*lines, f"This picture cannot be shown: {error.reason}"]))]
    return [create_text_block("\n".join(lines)), _block(*shared)]


def cited_documents(answer: str, documents: Sequence[Document]) -> list[Document]:
    """The documents that an answer cites, such as by ``[1]`` or ``[2-4]``, in the order of their first mention.

    Args:
        answer: What the chat model said; see `abc_rag.search.cited_numbers` for what is read as a citation.
        documents: Those given to `to_content_blocks`, in the same order. Numbers beyond them are passed over.
    """
    return [documents[number - 1] for number in cited_numbers(answer, len(documents))]


class _Pages:
    """What the pages of documents look like, each page once."""

    def __init__(self, pictures: Pictures, how: Literal["whole", "crop"], max_side: int | None) -> None:
        self._pictures = pictures
        self._how = how
        self._max_side = max_side
        self._sent: set[str] = set()

    def blocks(self, record: Record, head: str, missing: Literal["note", "raise"]) -> list[ContentBlock]:
        """What is sent besides a record: nothing where its page has no picture, is the record, or was sent before."""
        crop = self._how == "crop"
        page = None if crop and record.modality == "image" else self._pictures.page_of(record)
        if page is None or (page.id in self._sent and not crop):
            return []
        self._sent.add(page.id)
        if page.id == record.id:
            return []
        try:
            if not crop:
                image = _block(*self._pictures.share(page, max_side=self._max_side))
                return [create_text_block(f"{head} (its page)".lstrip()), image]
            shown = crop_of(open_image(self._pictures.read(page)).image, page, record)
            if shown is None:
                return []
            shared = share_image(shown, limits=self._pictures.limits, max_side=self._max_side)
            return [create_text_block(f"{head} (its place on the page)".lstrip()), _block(*shared)]
        except ImageError as error:
            if missing == "raise":
                raise
            _LOG.warning("a page cannot be shown to the chat model: %s", error)
            return []


def record_of(document: Document) -> Record:
    """The record of a document, as far as its metadata says; it may say anything."""
    source = own_field(document, "source")
    source = source if isinstance(source, str) else ""
    metadata = document.own_metadata if isinstance(document, FoundDocument) else document.metadata
    return Record(
        document.id or source,
        "image" if is_picture(document) else "text",
        source=source,
        metadata=metadata,
        source_type="url" if own_field(document, "source_type") == "url" else "path",
        sha256=own_field(document, "sha256") or "",
    )


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
