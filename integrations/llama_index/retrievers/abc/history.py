"""The picture that a chat is about."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole

from abc_rag import URL, DataURI, ImageSource

__all__ = ["last_picture", "picture_of"]


def last_picture(messages: Sequence[ChatMessage]) -> ImageSource | None:
    """The last picture that the user sent, in the form in which it can be opened; None if there is none."""
    for message in reversed(messages):
        if message.role == MessageRole.USER:
            for block in reversed(message.blocks):
                if isinstance(block, ImageBlock) and (found := picture_of(block)) is not None:
                    return found
    return None


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
