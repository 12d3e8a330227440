"""A tool with which a chat model searches and sees the results."""

from __future__ import annotations

import os
from collections.abc import Iterable

from langchain_core.documents import Document
from langchain_core.messages.content import ContentBlock
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import BaseTool, StructuredTool

from abc_rag import ImageLimits
from abc_rag.errors import InputError
from langchain_abc.content import to_content_blocks

__all__ = ["retriever_tool"]

_ToolOutput = tuple[list[ContentBlock], list[Document]]


def retriever_tool(
    retriever: BaseRetriever,
    *,
    name: str = "search",
    description: str = "Search pictures and passages by a question or a description of what they show or say.",
    max_side: int | None = 1024,
    image_limits: ImageLimits | None = None,
    roots: Iterable[str | os.PathLike[str]] = (),
) -> BaseTool:
    """Make a tool that returns content blocks. LangChain's ``create_retriever_tool`` returns text only.

    Args:
        retriever: Such as ``ABCVectorStore.as_instruction_retriever()``.
        name: The tool's name.
        description: Tells the chat model when to use the tool.
        max_side: Maximum pixels of a picture's longer side; larger ones are shrunk.
        image_limits: As for `to_content_blocks`.
        roots: As for `to_content_blocks`.

    Returns:
        A tool that takes ``query``. Its message has the blocks as content, and the documents as artifact.

    Raises:
        abc_rag.errors.InputError: ``retriever`` is not a LangChain retriever.
    """
    if not isinstance(retriever, BaseRetriever):
        raise InputError(f"retriever must be a LangChain retriever, not {type(retriever).__name__}")
    allowed = tuple(roots)

    def shown(documents: list[Document]) -> _ToolOutput:
        blocks = to_content_blocks(documents, max_side=max_side, image_limits=image_limits, roots=allowed)
        return blocks, documents

    def search(query: str) -> _ToolOutput:
        return shown(retriever.invoke(query))

    async def asearch(query: str) -> _ToolOutput:
        return shown(await retriever.ainvoke(query))

    return StructuredTool.from_function(
        search, asearch, name=name, description=description, response_format="content_and_artifact"
    )
