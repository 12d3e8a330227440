"""A chat model for LangChain, of the same weights that embed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field, field_validator

from abc_rag import URL, DataURI, Image, Text
from abc_rag.answering import Generation
from abc_rag.answering.frameworks import CALL_KEYWORDS, ChatSettings
from abc_rag.answering.schema import closed_schema
from abc_rag.errors import InputError
from abc_rag.types import Message, Role

__all__ = ["ChatABC", "turns_of"]

_ROLES: tuple[tuple[type[BaseMessage], Role], ...] = (
    (SystemMessage, "system"),
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
)
# What a call may bring along.
_KEYWORDS = {**CALL_KEYWORDS, "json_schema": "schema"}
_ANY_OBJECT = {"type": "object"}


class ChatABC(ChatSettings, BaseChatModel):
    """The vision chat model that ABC's adapters lie on: it answers from pictures, by the weights that found them.

    Setup:
        ``pip install 'abc-rag[langchain,generate]'``. ``model="abc"``, the default, fetches the published 7B model
        (about 16 GB) on first use and wants a GPU.

    Key init args:
        model: What ``abc_rag.answering.load_generator`` takes: ``"abc"``, a folder, an ``abc_rag.ABCCheckpoint``,
            ``"vlm2vec:..."``. Default: the environment variable ``ABC_RAG_MODEL``, else ``"abc"``.
        options: How it is loaded, as ``abc_rag.embedding.options.EmbedderOptions``: device, dtype, limits of pictures,
            and more.
        generator: A generator that is loaded already, in place of ``model`` and ``options``; also an
            ``abc_rag.answering.OpenAIGenerator``.
        max_tokens: Maximum tokens of an answer.
        temperature: 0 always takes the likeliest token.
        stop: Texts that end an answer.
        seed: Makes drawing repeatable.
        drop_oldest: Leave out the oldest turns of a chat that is longer than the model reads, in place of an error;
            ``response_metadata["dropped_turns"]`` says how many.
        streaming: Tell callbacks every token of ``invoke``, too.

    Instantiate, with embeddings of the same weights::

            from langchain_abc import ABCEmbeddings, ChatABC

            chat = ChatABC(model="abc")
            embeddings = ABCEmbeddings.of(chat.generator.embedder)

    Invoke, with pictures as LangChain's content blocks have them::

            from langchain_core.messages import HumanMessage

            chat.invoke([HumanMessage(content_blocks=[*to_content_blocks(documents), create_text_block(question)])])

    Stream::

            for chunk in chat.stream("What is a pig?"):
                print(chunk.text, end="")

    Structured output, enforced token by token::

            chat.with_structured_output(Animal).invoke(messages)

    A picture is base64, a ``data:`` URL, or a web URL; the last is fetched only where ``options.image_limits`` allow
    it. Tools cannot be called: the model was not trained to. Calls made at the same time are answered together.

    Raises:
        abc_rag.errors.InputError: A message, a block or a setting cannot be used, or the chat is too long.
        abc_rag.errors.ImageError: A picture cannot be opened.
        abc_rag.errors.GenerationError: JSON was cut off before it was complete.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    stop: list[str] = Field(default_factory=list)
    streaming: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, stop: object) -> object:
        return [] if stop is None else [stop] if isinstance(stop, str) else stop

    @property
    def _llm_type(self) -> str:
        return "abc-rag"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": self.generator_name,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stop": self.stop,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:  # noqa: ANN401
        params = super()._get_ls_params(stop=stop or self.stop or None, **kwargs)
        params["ls_provider"] = "abc-rag"
        params["ls_model_name"] = kwargs.get("model", self.generator_name)
        return params

    # -- answers ---------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> ChatResult:
        return self._result(self._generator.generate(turns_of(messages), **self._asked(stop, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> ChatResult:
        return self._result(await self._generator.agenerate(turns_of(messages), **self._asked(stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Iterator[ChatGenerationChunk]:
        with self._generator.generate(turns_of(messages), stream=True, **self._asked(stop, kwargs)) as pieces:
            for piece in pieces:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            yield self._last_chunk(pieces.result)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = self._asked(stop, kwargs)
        async with await self._generator.agenerate(turns_of(messages), stream=True, **asked) as pieces:
            async for piece in pieces:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            yield self._last_chunk(pieces.result)

    def _asked(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        told = {key: value for key, value in kwargs.items() if key != "ls_structured_output_format"}
        asked = {"stop": self.stop if stop is None else stop, **self.asked_of(told, _KEYWORDS)}
        if asked.get("schema") is not None:
            asked["stop"] = []  # could cut the JSON
        return asked

    def _told(self, answer: Generation) -> dict[str, Any]:
        told: dict[str, Any] = {"model_name": self.generator_name, "finish_reason": answer.outcome.finish}
        return told | ({"dropped_turns": answer.outcome.dropped} if answer.outcome.dropped else {})

    def _result(self, answer: Generation) -> ChatResult:
        message = AIMessage(content=answer.text, response_metadata=self._told(answer), usage_metadata=_usage_of(answer))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last_chunk(self, answer: Generation | None) -> ChatGenerationChunk:
        assert answer is not None  # the stream was read to its end
        message = AIMessageChunk(
            content="", response_metadata=self._told(answer), usage_metadata=_usage_of(answer), chunk_position="last"
        )
        return ChatGenerationChunk(message=message)

    # -- structured output -----------------------------------------------------------------------

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Runnable[LanguageModelInput, Any]:
        """A model whose answers are values of a schema, which is enforced token by token.

        Args:
            schema: A pydantic class, a ``TypedDict`` or a JSON schema.
            method: ``"json_schema"`` enforces the schema, and so does ``"function_calling"``, as others name it.
                ``"json_mode"`` enforces only that the answer is a JSON object; say in the prompt what it holds.
            include_raw: Return ``{"raw": message, "parsed": value, "parsing_error": error}``.
            strict: Accepted as other models take it; a schema is always kept to.
            **kwargs: None.

        Raises:
            abc_rag.errors.InputError: An argument is unusable. On invocation: the schema cannot be enforced.
        """
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise InputError(f"method must be 'json_schema', 'function_calling' or 'json_mode', not {method!r}")
        if kwargs:
            raise InputError(f"with_structured_output takes no {', '.join(map(repr, kwargs))}; leave it out")
        wanted = _ANY_OBJECT if method == "json_mode" else closed_schema(convert_to_json_schema(schema))
        told = {"kwargs": {"method": method}, "schema": schema}
        model = self.bind(json_schema=wanted, ls_structured_output_format=told)
        parser: Runnable[Any, Any] = JsonOutputParser()
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            parser = PydanticOutputParser(pydantic_object=schema)
        if not include_raw:
            return model | parser
        parsed: Runnable[Any, Any] = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
        )
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    # -- tokens ----------------------------------------------------------------------------------

    def get_num_tokens(self, text: str) -> int:
        """Tokens of a text as the whole of a conversation; loads the model."""
        return self._generator.count_tokens([Message("user", [Text(text)])])

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[object] | None = None, **_: object
    ) -> int:
        """Tokens of a conversation, image tokens included; loads the model and opens the pictures."""
        if tools:
            raise InputError("ChatABC calls no tools; leave tools out")
        return self._generator.count_tokens(turns_of(messages))


def _usage_of(answer: Generation) -> UsageMetadata | None:
    read, said = answer.outcome.prompt_tokens, answer.outcome.new_tokens
    if read is None or said is None:
        return None
    return UsageMetadata(input_tokens=read, output_tokens=said, total_tokens=read + said)


def turns_of(messages: Sequence[BaseMessage]) -> list[Message]:
    """LangChain's messages in our terms; one that says nothing is left out."""
    turns = []
    for number, message in enumerate(messages):
        role = next((role for kind, role in _ROLES if isinstance(message, kind)), None)
        if role is None or getattr(message, "tool_calls", None):
            raise InputError(
                f"message {number} is a {type(message).__name__}{'' if role is None else ' that calls tools'}; ChatABC "
                "reads system, human and AI messages with text and pictures: leave tools out"
            )
        if parts := [part for block in message.content_blocks for part in _parts(block, number)]:
            turns.append(Message(role, parts))
    return turns


def _parts(block: Mapping[str, Any], number: int) -> list[Text | Image]:
    kind = block["type"]
    if kind == "text":
        return [Text(block["text"])] if block["text"] else []
    if kind == "reasoning":
        return []  # what a model thought is no part of what it said
    if kind == "image":
        if data := block.get("base64"):
            return [Image(DataURI(f"data:{block.get('mime_type') or 'image/png'};base64,{data}"))]
        if url := block.get("url"):
            return [Image(DataURI(url) if url[:5].lower() == "data:" else URL(url))]
        raise InputError(f"message {number}: a picture without base64 or url; give one of them")
    raise InputError(f"message {number}: a {kind!r} block; ChatABC reads text and pictures, so leave it out")
