"""What was said and shown in a chat before a question."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole

from abc_rag import URL, DataURI, Image, ImageSource, Text
from abc_rag.types import Message

__all__ = ["last_picture", "picture_of", "turns_before"]


def last_picture(messages: Sequence[ChatMessage]) -> ImageSource | None:
    """The last picture that the user sent, in the form in which it can be opened; None if there is none."""
    for message in reversed(messages):
        if message.role == MessageRole.USER:
            for block in reversed(message.blocks):
                if isinstance(block, ImageBlock) and (found := picture_of(block)) is not None:
                    return found
    return None


def turns_before(messages: Sequence[ChatMessage], question: str) -> list[Message]:
    """What the user and the model said, as abc-rag has it; without the question itself, if an engine put it there."""
    turns = []
    for message in messages:
        if message.role in (MessageRole.USER, MessageRole.ASSISTANT):
            picture, text = last_picture([message]), (message.content or "").strip()
            parts: list[Text | Image] = [
                *([] if picture is None else [Image(picture)]),
                *([Text(text)] if text else []),
            ]
            if parts:
                turns.append(Message("user" if message.role == MessageRole.USER else "assistant", parts))
    if turns and turns[-1].role == "user" and any(part == Text(question.strip()) for part in turns[-1].parts):
        turns.pop()
    return turns


def picture_of(block: ImageBlock) -> ImageSource | None:
    """The picture of a block, in the form in which it can be opened; None if it has none."""
    if block.image is not None:
        data = block.resolve_image()
        data.seek(0)
        return bytes(data.read())
    if block.path is not None:
        return block.path
    if block.url is not None:
        url = str(block.url)
        return DataURI(url) if url[:5].lower() == "data:" else URL(url)
    return None
