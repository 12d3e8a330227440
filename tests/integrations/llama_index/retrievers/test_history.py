"""Chat engines: a follow-up without a picture is about the last picture that the user sent."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, LLMMetadata, TextBlock
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    ContextChatEngine,
    MultiModalCondensePlusContextChatEngine,
    MultiModalContextChatEngine,
)
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.llms import CompletionResponse, MockLLM
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer, Memory
from llama_index.core.schema import ImageNode, QueryBundle, TextNode
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.retrievers.abc import InstructionRetriever
from llama_index.retrievers.abc.history import last_picture
from llama_index.vector_stores.abc import ABCMultiModalIndex
from pydantic import PrivateAttr
from sqlalchemy.ext.asyncio import create_async_engine

import abc_rag
from abc_rag import URL, ChromaStore, DataURI
from abc_rag.errors import InputError

DEMO = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo"
PIG, ROSE = (DEMO / name for name in ("pig-car.jpg", "rose-fox.jpg"))
TEXTS = {"pig": "The pig rolls in mud.", "car": "A car has thirty thousand parts.", "fox": "A fox has a bushy tail."}


@pytest.fixture(scope="module")
def embed_model() -> ABCEmbeddings:
    return ABCEmbeddings(model="abc-mini", device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, embed_model: ABCEmbeddings) -> Iterator[ChromaStore]:
    nodes = [ImageNode(id_=path.stem, image_path=str(path)) for path in (PIG, ROSE)]
    nodes += [TextNode(id_=name, text=text) for name, text in TEXTS.items()]
    folder = tmp_path_factory.mktemp("chats")
    with ChromaStore(folder, fingerprint=embed_model.embedder.fingerprint) as opened:
        ABCMultiModalIndex(nodes, embed_model=embed_model, store=opened)
        yield opened


class Condenses(MockLLM):
    """A chat model that leaves questions as they are, and notes the pictures that it is shown."""

    _shown: list[bytes] = PrivateAttr(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, context_window=128_000)

    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        blocks = [block for message in messages for block in message.blocks]
        self._shown += [block.resolve_image().read() for block in blocks if isinstance(block, ImageBlock)]
        asked = [block.text for block in blocks if isinstance(block, TextBlock)][-1]
        line = next((line for line in asked.splitlines() if "Follow Up Input:" in line), "")
        return ChatResponse(message=ChatMessage(line.partition(":")[2].strip() or "an answer", role="assistant"))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self.chat(messages, **kwargs)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return CompletionResponse(text=self.chat([ChatMessage(prompt)]).message.content or "")

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return self.complete(prompt)


def sent(path: Path) -> ChatMessage:
    return ChatMessage(role="user", blocks=[ImageBlock(path=path)])


@pytest.mark.parametrize(
    "engine_of",
    [
        MultiModalContextChatEngine,
        MultiModalCondensePlusContextChatEngine,
        CondensePlusContextChatEngine,
        ContextChatEngine,
    ],
)
@pytest.mark.parametrize("awaited", [False, True])
async def test_a_chat_engine_asks_about_the_last_picture(
    embed_model: ABCEmbeddings, store: ChromaStore, engine_of: Any, awaited: bool
) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=100_000)
    await check_chat(embed_model, store, engine_of, memory, awaited)


async def test_a_memory_in_a_database(embed_model: ABCEmbeddings, store: ChromaStore, tmp_path: Path) -> None:
    database = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'chat.db'}")
    memory = Memory.from_defaults(token_limit=100_000, async_engine=database)
    await check_chat(embed_model, store, MultiModalContextChatEngine, memory, awaited=True)
    await database.dispose()


async def check_chat(
    embed_model: ABCEmbeddings, store: ChromaStore, engine_of: Any, memory: BaseMemory, awaited: bool
) -> None:
    llm = Condenses()
    retriever = InstructionRetriever(embed_model, store, modality="text", similarity_top_k=1, memory=memory)
    name = "multi_modal_llm" if engine_of.__name__.startswith("MultiModal") else "llm"
    engine: BaseChatEngine = engine_of.from_defaults(retriever=retriever, memory=memory, **{name: llm})

    async def ask(question: str) -> str:
        response = await engine.achat(question) if awaited else engine.chat(question)
        return str(response.source_nodes[0].node.node_id)

    await memory.aput(sent(PIG))
    assert await ask("which animal is in the picture?") == "pig"
    assert await ask("and what is on the right?") == "car"
    await memory.aput(sent(ROSE))
    assert await ask("what is on the right?") == "fox"
    assert await ask("a car") == "car"
    assert PIG.read_bytes() in llm._shown


def test_without_a_memory_or_with_a_picture_nothing_is_added(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=100_000)
    memory.put(sent(PIG))
    options: Any = {"modality": "text", "similarity_top_k": 1}
    bare = InstructionRetriever(embed_model, store, **options)
    chats = InstructionRetriever(embed_model, store, memory=memory, **options)
    asked = QueryBundle("and what is on the right?", image_path=str(ROSE))
    assert chats.retrieve(asked)[0].node.node_id == bare.retrieve(asked)[0].node.node_id == "fox"
    question = "and what is on the right?"
    assert chats.retrieve(question)[0].node.node_id == "car"
    assert bare.retrieve(question)[0].score != chats.retrieve(question)[0].score
    with pytest.raises(InputError, match="memory must be a LlamaIndex memory, not list"):
        InstructionRetriever(embed_model, store, memory=[sent(PIG)])  # type: ignore[arg-type]


def test_pictures_of_every_form_are_found() -> None:
    data = PIG.read_bytes()
    uri = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    for block, wanted in (
        (ImageBlock(path=PIG), PIG),
        (ImageBlock(image=data), data),
        (ImageBlock(image=BytesIO(data)), data),
        (ImageBlock(url=uri), DataURI(uri)),
        (ImageBlock(url="https://example.org/pig.jpg"), URL("https://example.org/pig.jpg")),
        (ImageBlock(), None),
    ):
        message = ChatMessage(role="user", blocks=[block, TextBlock(text="what is this?")])
        assert last_picture([message, ChatMessage("a pig", role="assistant")]) == wanted
    assert last_picture([]) is None
    assert last_picture([ChatMessage(role="assistant", blocks=[ImageBlock(path=PIG)])]) is None
    assert last_picture([sent(PIG), sent(ROSE), ChatMessage("and here?", role="user")]) == ROSE
