"""The tool that lets a chat model see what a retriever finds."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from langchain_abc import ABCEmbeddings, ABCVectorStore, retriever_tool

import abc_rag
from abc_rag.errors import InputError

PIG = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo" / "pig-car.jpg"


async def test_a_chat_model_is_given_pictures() -> None:
    with ABCVectorStore(ABCEmbeddings(model="abc-mini")) as store:
        store.add_images([PIG])
        store.add_texts(["a pig rolls in mud"])
        tool = retriever_tool(store.as_instruction_retriever(k=2), name="photos", description="My photos.")
        assert (tool.name, tool.description, list(tool.args)) == ("photos", "My photos.", ["query"])
        call = {"type": "tool_call", "id": "1", "name": "photos", "args": {"query": "a pig"}}
        for message in (tool.invoke(call), await tool.ainvoke(call)):
            kinds = sorted(block["type"] for block in message.content)
            assert kinds == ["image", "text", "text"]
            (picture,) = (block for block in message.content if block["type"] == "image")
            assert base64.b64decode(picture["base64"]) == PIG.read_bytes()
            assert {document.metadata["modality"] for document in message.artifact} == {"image", "text"}
    with pytest.raises(InputError, match="must be a LangChain retriever, not ABCVectorStore"):
        retriever_tool(store)  # type: ignore[arg-type]
