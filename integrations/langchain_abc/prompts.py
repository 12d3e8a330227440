"""A question and its documents as the conversation that abc-rag's own retriever has with a model."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.content import ContentBlock, create_image_block, create_text_block

from abc_rag import ImageLimits, ImageSource, Text
from abc_rag.errors import ImageError, InputError
from abc_rag.images import DEFAULT_LIMITS, share_image
from abc_rag.models.tasks import Source, answering
from abc_rag.search import Pictures, name_of
from abc_rag.types import Message
from langchain_abc.chat import turns_of
from langchain_abc.content import record_of

__all__ = ["answering_messages"]

_KINDS: dict[str, type[BaseMessage]] = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}


def answering_messages(
    question: str,
    documents: Sequence[Document],
    *,
    image: ImageSource | None = None,
    history: Sequence[BaseMessage] = (),
    image_limits: ImageLimits | None = None,
    roots: Iterable[str | os.PathLike[str]] = (),
) -> list[BaseMessage]:
    """Messages that ask a chat model to answer from documents, and to cite them like ``[1]``.

    They are word for word what ``abc_rag.Retriever.answer`` asks, in which what comes from outside is data. A small
    model that was trained on these conversations, such as abc-mini, needs them; others read them as well.

    Args:
        question: What is asked.
        documents: What was found; see `to_content_blocks` for which of their pictures are opened. In the place of one
            that cannot be, a text says so.
        image: A picture that the question is about.
        history: The turns before it, oldest first.
        image_limits: Which pictures are opened, and whether URLs are fetched.
        roots: Further files and folders from which pictures may be opened.

    Raises:
        abc_rag.errors.InputError: There is no document, or an argument cannot be used.
        abc_rag.errors.ImageError: ``image`` cannot be opened.
    """
    if not documents or isinstance(documents, (str, Document)):
        raise InputError("documents must be a list of LangChain documents, at least one")
    limits = image_limits or DEFAULT_LIMITS
    pictures = Pictures(roots=roots, limits=limits)
    sources = [_source(document, pictures) for document in documents]
    told = answering(question, sources, image=image, history=turns_of(history))
    return [_message(turn, limits) for turn in told]


def _source(document: Document, pictures: Pictures) -> Source:
    record, text = record_of(document), document.page_content.strip()
    if record.modality == "text":
        return Source(text=text or "(empty)", name=name_of(record))
    caption = "" if text == record.source else text
    try:
        return Source(pictures.read(record), caption, name_of(record))
    except ImageError as error:
        return Source(text=f"{caption} (This picture cannot be shown: {error.reason})".strip(), name=name_of(record))


def _message(turn: Message, limits: ImageLimits) -> BaseMessage:
    blocks: list[ContentBlock] = []
    for part in turn.parts:
        if isinstance(part, Text):
            blocks.append(create_text_block(part.text))
        else:
            data, mime_type = share_image(part.source, limits=limits)
            blocks.append(create_image_block(base64=base64.b64encode(data).decode("ascii"), mime_type=mime_type))
    return _KINDS[turn.role](content_blocks=blocks)
