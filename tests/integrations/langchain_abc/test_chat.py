"""ChatABC: LangChain's standard suites over the public fake, and the real path on the fixture's base."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
from pathlib import Path
from typing import Any

import httpx
import pytest
from chat_helpers import OTHER, SMALL, user
from langchain_abc import ABCEmbeddings, ChatABC
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.messages.content import create_image_block, create_text_block
from langchain_tests.integration_tests import ChatModelIntegrationTests, chat_models
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel, Field
from vlm2vec_helpers import QWEN

from abc_rag.answering import Generator, load_generator
from abc_rag.answering.fake import FakeGenerator
from abc_rag.answering.schema import closed_schema
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.embedding.options import EmbedderOptions
from abc_rag.errors import ContextError, InputError
from abc_rag.types import Message

FEW = EmbedderOptions(device="cpu", min_tokens=4, max_tokens=16)
PICTURE = create_image_block(base64=base64.b64encode(SMALL.read_bytes()).decode(), mime_type="image/png")


class Standard:
    """A local model has no network, so nothing to wait for or to try again."""

    standard_chat_model_params: Any = {"temperature": 0, "max_tokens": 100, "stop": []}  # noqa: RUF012
    supports_image_inputs = True
    supports_json_mode = True
    supports_model_override = False

    @property
    def chat_model_class(self) -> type[ChatABC]:
        return ChatABC

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"generator": FakeGenerator()}


class TestUnit(Standard, ChatModelUnitTests):
    pass


class TestIntegration(Standard, ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _picture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The suite would fetch its picture from the web.
        found = httpx.Response(200, content=SMALL.read_bytes())
        monkeypatch.setattr(chat_models.httpx, "get", lambda url, **_: found)

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"generator": FakeGenerator(_joke)}


def _joke(messages: tuple[Message, ...]) -> str | None:
    # json_mode only enforces an object, and the fake's own would be empty.
    said = messages[-1].parts[-1]
    return '{"setup": "why?", "punchline": "because"}' if "json" in getattr(said, "text", "").lower() else None


@pytest.fixture(scope="module")
def chat() -> ChatABC:
    return ChatABC(model=QWEN, options=FEW, max_tokens=4)


def test_answers_as_the_generator_does(chat: ChatABC) -> None:
    turns = [
        SystemMessage("Be short."),
        HumanMessage(content_blocks=[create_text_block("what is "), PICTURE, create_text_block("this?")]),
        AIMessage("A thing."),
        HumanMessage("and?"),
    ]
    same = [
        Message("system", user("Be short.").parts),
        user("what is ", SMALL, "this?"),
        Message("assistant", user("A thing.").parts),
        user("and?"),
    ]
    expected = chat.generator.generate(same, max_new_tokens=4)
    answer = chat.invoke(turns)
    assert answer.text == expected.text
    assert answer.usage_metadata == {
        "input_tokens": expected.outcome.prompt_tokens,
        "output_tokens": expected.outcome.new_tokens,
        "total_tokens": chat.get_num_tokens_from_messages(turns) + (expected.outcome.new_tokens or 0),
    }
    assert answer.response_metadata["finish_reason"] == expected.outcome.finish
    assert "".join(chunk.text for chunk in chat.stream(turns)) == expected.text
    assert asyncio.run(chat.ainvoke(turns)).text == expected.text


def test_embeddings_of_the_same_weights(chat: ChatABC) -> None:
    embeddings = ABCEmbeddings.of(chat.generator.embedder)  # type: ignore[attr-defined]
    assert embeddings.embedder is chat.generator.embedder  # type: ignore[attr-defined]
    assert embeddings == ABCEmbeddings(model=QWEN, device="cpu", min_tokens=4, max_tokens=16)
    with pytest.raises(InputError, match="load_embedder or load_generator"):
        ABCEmbeddings.of(FakeEmbedder())


class Animal(BaseModel):
    """An animal."""

    legs: int = Field(ge=0, le=9)
    tame: bool


@pytest.mark.parametrize("schema", [Animal, Animal.model_json_schema()], ids=["class", "dict"])
def test_structured_output_is_enforced(chat: ChatABC, schema: Any) -> None:
    # The fixture's random weights say nothing that makes sense, but always this schema.
    longer = chat.model_copy(update={"max_tokens": 60})
    found = longer.with_structured_output(schema, include_raw=True).invoke("which animal?")
    assert found["parsing_error"] is None
    parsed = found["parsed"] if isinstance(found["parsed"], dict) else found["parsed"].model_dump()
    assert json.loads(found["raw"].text) == parsed
    assert set(parsed) == {"legs", "tame"}


def test_a_schema_closes_every_object() -> None:
    inner = {"type": "object", "properties": {"properties": {"type": "string"}}}
    told = {"type": "object", "properties": {"a": {"anyOf": [inner, {"type": "null"}]}, "b": {"items": inner}}}
    closed = inner | {"additionalProperties": False}
    assert closed_schema(told) == {
        "type": "object",
        "properties": {"a": {"anyOf": [closed, {"type": "null"}]}, "b": {"items": closed}},
        "additionalProperties": False,
    }
    free = {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}
    assert closed_schema(free) == free


def _saying(words: int) -> AnyMessage:
    return HumanMessage("pig " * words)


def test_oldest_turns_are_dropped_if_allowed(chat: ChatABC) -> None:
    most = chat.generator.max_length  # type: ignore[attr-defined]
    long = [SystemMessage("Be short."), _saying(most), AIMessage("Oh."), HumanMessage("and?")]
    with pytest.raises(ContextError, match="longer than"):
        chat.invoke(long)
    answer = chat.model_copy(update={"drop_oldest": True}).invoke(long)
    assert answer.response_metadata["dropped_turns"] == 2
    assert answer.text == chat.invoke([long[0], long[-1]]).text
    with pytest.raises(ContextError, match="longer than"):
        chat.model_copy(update={"drop_oldest": True}).invoke([_saying(most)])
    # LangChain's own way: by the tokens that this model counts.
    kept = trim_messages(long, max_tokens=100, token_counter=chat, include_system=True, start_on="human")
    assert kept == [long[0], long[-1]]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (ToolMessage("4", tool_call_id="1"), "message 1 is a ToolMessage"),
        (AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "1"}]), "that calls tools"),
        (HumanMessage([{"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}]), "message 1: a 'audio' block"),
    ],
)
def test_what_it_cannot_read_is_named(message: AnyMessage, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ChatABC(generator=FakeGenerator()).invoke([HumanMessage("hi"), message, HumanMessage("so?")])


def test_settings() -> None:
    made = ChatABC(model=Path(QWEN), options=FEW, stop="x")
    again = ChatABC.model_validate_json(made.model_dump_json())
    assert (again.options, again.stop, again.model) == (FEW, ["x"], str(QWEN))
    assert pickle.loads(pickle.dumps(made)).options == FEW
    with pytest.raises(ValueError, match="or a generator"):
        ChatABC(model="abc", generator=FakeGenerator())
    with pytest.raises(InputError, match="tools cannot be called"):
        made.invoke("hi", tools=[])
    with pytest.raises(InputError, match="'function_calling' or 'json_mode'"):
        made.with_structured_output(Animal, method="yaml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot generate"):
        ChatABC(model="st:somewhere/else")


def test_pictures_in_openais_form() -> None:
    fake: Generator = FakeGenerator()
    url = f"data:image/png;base64,{base64.b64encode(OTHER.read_bytes()).decode()}"
    ChatABC(generator=fake).invoke(
        [HumanMessage([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": url}}])]
    )
    (asked,) = fake.asked  # type: ignore[attr-defined]
    real = load_generator(QWEN, device="cpu", min_tokens=4, max_tokens=16)
    assert real.count_tokens(asked) == real.count_tokens([user("see", OTHER)])
