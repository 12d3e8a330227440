"""ABCLLM: answers as the generator's, in every way that LlamaIndex asks."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from chat_helpers import OTHER, SMALL, user
from llama_index.core.base.llms.types import AudioBlock, ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import ImageNode, TextNode
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.llms.abc import ABCLLM
from llama_index.retrievers.abc import InstructionRetriever
from llama_index.vector_stores.abc import ABCMultiModalIndex
from pydantic import BaseModel, Field
from vlm2vec_helpers import QWEN

from abc_rag import ChromaStore
from abc_rag.answering.fake import FakeGenerator
from abc_rag.embedding.options import EmbedderOptions
from abc_rag.errors import ContextError, InputError
from abc_rag.types import Message

FEW = EmbedderOptions(device="cpu", min_tokens=4, max_tokens=16)
SEEING = ChatMessage(role="user", blocks=[TextBlock(text="what is "), ImageBlock(path=SMALL), TextBlock(text="this?")])


@pytest.fixture(scope="module")
def llm() -> ABCLLM:
    return ABCLLM(model=QWEN, options=FEW, max_tokens=4)


def test_answers_as_the_generator_does(llm: ABCLLM) -> None:
    expected = llm.generator.generate([user("what is ", SMALL, "this?")], max_new_tokens=4)
    outcome = expected.outcome
    answer = llm.chat([SEEING])
    assert answer.message.content == expected.text
    assert answer.additional_kwargs == {
        "finish_reason": outcome.finish,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.new_tokens,
        "total_tokens": llm.generator.count_tokens([user("what is ", SMALL, "this?")]) + (outcome.new_tokens or 0),
    }
    *parts, last = llm.stream_chat([SEEING])
    assert "".join(part.delta or "" for part in parts) == last.message.content == expected.text

    async def awaited() -> list[str | None]:
        streamed = [part async for part in await llm.astream_chat([SEEING])]
        return [(await llm.achat([SEEING])).message.content, streamed[-1].message.content]

    assert asyncio.run(awaited()) == [expected.text, expected.text]


def test_completes_a_prompt_as_a_users_message(llm: ABCLLM) -> None:
    expected = llm.generator.generate([user("what is a dog?")], max_new_tokens=4).text
    assert llm.complete("what is a dog?").text == expected
    assert [part.text for part in llm.stream_complete("what is a dog?")][-1] == expected

    async def awaited() -> list[str]:
        streamed = [part.text async for part in await llm.astream_complete("what is a dog?")]
        return [(await llm.acomplete("what is a dog?")).text, streamed[-1]]

    assert asyncio.run(awaited()) == [expected, expected]


class Animal(BaseModel):
    """An animal."""

    legs: int = Field(ge=0, le=9)
    tame: bool


def test_structured_output_is_enforced(llm: ABCLLM) -> None:
    told = PromptTemplate("which animal is {what}?")
    found = llm.structured_predict(Animal, told, {"max_tokens": 60}, what="tame")
    assert isinstance(found, Animal)
    assert asyncio.run(llm.astructured_predict(Animal, told, {"max_tokens": 60}, what="tame")) == found


def test_a_query_engine_shows_pictures_and_passages(tmp_path: Path) -> None:
    fake = FakeGenerator(lambda _: "A pig [1].")
    embed_model = ABCEmbeddings(model="abc-mini", device="cpu")
    nodes = [ImageNode(id_="small", image_path=str(OTHER)), TextNode(id_="mud", text="A pig rolls in mud.")]
    with ChromaStore(tmp_path / "store", fingerprint=embed_model.embedder.fingerprint) as store:
        ABCMultiModalIndex(nodes, embed_model=embed_model, store=store)
        retriever = InstructionRetriever(embed_model, store, similarity_top_k=2)
        engine = RetrieverQueryEngine.from_args(retriever, llm=ABCLLM(generator=fake), multimodal=True)
        answer = engine.query("what does a pig do?")
    assert str(answer) == "A pig [1]."
    (asked,) = fake.asked
    assert [len(turn.pictures) for turn in asked if turn.role == "user"] == [1]
    assert "rolls in mud" in "".join(getattr(part, "text", "") for turn in asked for part in turn.parts)


def test_a_chat_remembers() -> None:
    fake = FakeGenerator(lambda turns: f"{len(turns)} turns")
    llm = ABCLLM(generator=fake)
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=ChatMemoryBuffer.from_defaults(llm=llm))
    assert [str(engine.chat("hello")), str(engine.chat("and?"))] == ["1 turns", "3 turns"]


def test_oldest_turns_are_dropped_if_allowed(llm: ABCLLM) -> None:
    long = [
        ChatMessage("pig " * llm.metadata.context_window),
        ChatMessage("Oh.", role="assistant"),
        ChatMessage("and?"),
    ]
    with pytest.raises(ContextError, match="longer than"):
        llm.chat(long)
    answer = ABCLLM(generator=llm.generator, max_tokens=4, drop_oldest=True).chat(long)
    assert answer.additional_kwargs["dropped_turns"] == 2
    assert answer.message.content == llm.chat(long[-1:]).message.content


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (ChatMessage("4", role=MessageRole.TOOL), "message 0 has the role 'tool'"),
        (ChatMessage(role="user", blocks=[AudioBlock(audio=b"RIFF")]), "message 0: a AudioBlock"),
        (ChatMessage(role="user", blocks=[ImageBlock()]), "without image, path or url"),
    ],
)
def test_what_it_cannot_read_is_named(message: ChatMessage, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ABCLLM(generator=FakeGenerator()).chat([message])


def test_settings(llm: ABCLLM) -> None:
    again: Any = ABCLLM.from_json(llm.to_json())
    assert (again.options, again.max_tokens, again.model) == (FEW, 4, str(QWEN))
    assert pickle.loads(pickle.dumps(llm)).options == FEW
    assert llm.metadata.num_output == 4
    assert ABCLLM(generator=FakeGenerator()).metadata.context_window == 3900
    with pytest.raises(ValueError, match="or a generator"):
        ABCLLM(model="abc", generator=FakeGenerator())
    with pytest.raises(InputError, match="tools cannot be called"):
        llm.chat([ChatMessage("hi")], tools=[])


def test_embeddings_of_the_same_weights(llm: ABCLLM) -> None:
    embed_model = ABCEmbeddings.of(llm.generator.embedder, embed_batch_size=3)  # type: ignore[attr-defined]
    assert embed_model.embedder is llm.generator.embedder  # type: ignore[attr-defined]
    assert (embed_model.model, embed_model.max_tokens, embed_model.embed_batch_size) == (QWEN, 16, 3)


def test_notes_what_it_was_asked() -> None:
    fake = FakeGenerator()
    ABCLLM(generator=fake).chat([ChatMessage("a", role="developer"), ChatMessage("b", role="user")])
    assert fake.asked == [(Message("system", user("a").parts), user("b"))]
