"""`ABCLLM`: the vision chat model that ABC's adapters lie on, as a LlamaIndex LLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from llama_index.core.base.llms.generic_utils import (
    astream_chat_response_to_completion_response,
    chat_response_to_completion_response,
    stream_chat_response_to_completion_response,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    ImageBlock,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)
from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field
from llama_index.core.llms import LLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.prompts import BasePromptTemplate
from llama_index.retrievers.abc.history import picture_of

from abc_rag import Image, Text
from abc_rag.answering import Generation
from abc_rag.answering.frameworks import CALL_KEYWORDS, ChatSettings
from abc_rag.answering.local import LocalGenerator
from abc_rag.answering.schema import closed_schema
from abc_rag.embedding.threads import Run, awaiting, blocking, inline
from abc_rag.errors import InputError
from abc_rag.types import Message, Role

__all__ = ["ABCLLM"]

_Model = TypeVar("_Model", bound=BaseModel)
_ROLES: dict[MessageRole, Role] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
# Of a server whose model's context is not known: LlamaIndex's own default.
_CONTEXT = 3900


class ABCLLM(ChatSettings, LLM):
    """Answers from texts and pictures, by the weights that found them.

    Examples:
        ``pip install 'abc-rag[llama-index,generate]'``, then::

            from llama_index.embeddings.abc import ABCEmbeddings
            from llama_index.llms.abc import ABCLLM

            llm = ABCLLM(model="abc")
            embed_model = ABCEmbeddings.of(llm.generator.embedder)  # of the same weights
            engine = RetrieverQueryEngine.from_args(InstructionRetriever(embed_model, store), llm=llm, multimodal=True)

    Messages hold ``TextBlock`` and ``ImageBlock`` values. A picture's URL is fetched only where
    ``options.image_limits`` allow it. ``structured_predict`` is enforced token by token. Tools cannot be called: the
    model was not trained to. Calls made at the same time are answered together, and awaited ones do not block the event
    loop.

    Args:
        model: What ``abc_rag.answering.load_generator`` takes: ``"abc"``, a folder, an ``abc_rag.ABCCheckpoint``,
            ``"vlm2vec:..."``. Default: the environment variable ``ABC_RAG_MODEL``, else ``"abc"``.
        options: How it is loaded, as ``abc_rag.embedding.options.EmbedderOptions``.
        generator: A generator that is loaded already, in place of ``model`` and ``options``; also an
            ``abc_rag.answering.OpenAIGenerator``.
        max_tokens: Most tokens of an answer.
        temperature: 0 always takes the likeliest token.
        seed: Makes drawing repeatable.
        drop_oldest: Leave out the oldest turns of a chat that is longer than the model reads, in place of an error;
            ``additional_kwargs["dropped_turns"]`` says how many.
        context_window: Tokens of a conversation and its answer together; the model's own, if not given.

    Raises:
        InputError: A message, a block or a setting cannot be used, or the chat is too long.
        ImageError: A picture cannot be opened.
        GenerationError: JSON was cut off before it was complete.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    context_window: int | None = Field(default=None, ge=1)

    @classmethod
    def class_name(cls) -> str:
        """The class's name in serialized settings."""
        return "ABCLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex fits prompts by; loads a local model, unless ``context_window`` is given."""
        window = self.context_window
        if window is None:
            window = self._generator.max_length if isinstance(self._generator, LocalGenerator) else _CONTEXT
        return LLMMetadata(
            context_window=window,
            num_output=min(self.max_tokens, window // 2),
            is_chat_model=True,
            is_function_calling_model=False,
            model_name=self.generator_name,
        )

    # -- answers ---------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:  # noqa: ANN401
        """Answer a conversation; see the class."""
        return _response(self._generator.generate(_conversation(messages), **self._asked(kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:  # noqa: ANN401
        """`chat` for event loops; a cancelled call ends its answer at the next token."""
        return _response(await self._generator.agenerate(_conversation(messages), **self._asked(kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:  # noqa: ANN401
        """`chat`, as the answer comes. Closing the generator ends the answer."""
        return self._streamed(_conversation(messages), self._asked(kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:  # noqa: ANN401
        """`stream_chat` for event loops."""
        return self._astreamed(_conversation(messages), self._asked(kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ANN401
        """Answer a prompt as the user's one message."""
        answer = self._generator.generate(self._prompted(prompt, formatted), **self._asked(kwargs))
        return chat_response_to_completion_response(_response(answer))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ANN401
        """`complete` for event loops."""
        answer = await self._generator.agenerate(self._prompted(prompt, formatted), **self._asked(kwargs))
        return chat_response_to_completion_response(_response(answer))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:  # noqa: ANN401
        """`complete`, as the answer comes."""
        parts = self._streamed(self._prompted(prompt, formatted), self._asked(kwargs))
        return stream_chat_response_to_completion_response(parts)

    @llm_completion_callback()
    async def astream_complete(
        self,
        prompt: str,
        formatted: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> CompletionResponseAsyncGen:
        """`stream_complete` for event loops."""
        parts = self._astreamed(self._prompted(prompt, formatted), self._asked(kwargs))
        return astream_chat_response_to_completion_response(parts)

    def _streamed(self, turns: Sequence[Message], asked: Mapping[str, Any]) -> ChatResponseGen:
        with self._generator.generate(turns, stream=True, **asked) as pieces:
            said = ""
            for piece in pieces:
                said += piece
                yield _said(said, piece)
            assert pieces.result is not None
            yield _response(pieces.result)

    async def _astreamed(self, turns: Sequence[Message], asked: Mapping[str, Any]) -> ChatResponseAsyncGen:
        async with await self._generator.agenerate(turns, stream=True, **asked) as pieces:
            said = ""
            async for piece in pieces:
                said += piece
                yield _said(said, piece)
            assert pieces.result is not None
            yield _response(pieces.result)

    # -- structured output -----------------------------------------------------------------------

    @blocking
    async def structured_predict(
        self,
        _run: Run,
        /,
        output_cls: type[_Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,  # noqa: ANN401
    ) -> _Model:
        """A value of ``output_cls``, whose schema is enforced token by token; see the base class."""
        turns = _conversation(self._extend_messages(prompt.format_messages(llm=self, **prompt_args)))
        asked, model = self._asked(llm_kwargs or {}, output_cls), self._generator
        answer = model.generate(turns, **asked) if _run is inline else await model.agenerate(turns, **asked)
        return output_cls.model_validate_json(answer.text)

    astructured_predict = awaiting(structured_predict)

    def _prompted(self, prompt: str, formatted: bool) -> list[Message]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [Message("user", [Text(prompt)])]

    def _asked(self, kwargs: Mapping[str, Any], output_cls: type[BaseModel] | None = None) -> dict[str, Any]:
        asked = self.asked_of(kwargs, CALL_KEYWORDS)
        if output_cls is not None:
            asked["schema"] = closed_schema(output_cls.model_json_schema())
        return asked


def _said(said: str, piece: str) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=said), delta=piece)


def _response(answer: Generation) -> ChatResponse:
    outcome = answer.outcome
    told: dict[str, Any] = {"finish_reason": outcome.finish}
    if outcome.prompt_tokens is not None and outcome.new_tokens is not None:
        told |= {"prompt_tokens": outcome.prompt_tokens, "completion_tokens": outcome.new_tokens}
        told["total_tokens"] = outcome.prompt_tokens + outcome.new_tokens
    if outcome.dropped:
        told["dropped_turns"] = outcome.dropped
    message = ChatMessage(role=MessageRole.ASSISTANT, content=answer.text)
    return ChatResponse(message=message, delta="", additional_kwargs=told, raw=told)


def _conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """LlamaIndex's messages in our terms; one that says nothing is left out."""
    turns = []
    for number, message in enumerate(messages):
        if message.role not in _ROLES:
            raise InputError(
                f"message {number} has the role {message.role.value!r}; it reads those of system, user and assistant"
            )
        parts: list[Text | Image] = []
        for block in message.blocks:
            if isinstance(block, TextBlock):
                parts += [Text(block.text)] if block.text else []
            elif isinstance(block, ImageBlock):
                if (picture := picture_of(block)) is None:
                    raise InputError(f"message {number}: an ImageBlock without image, path or url; give one of them")
                parts.append(Image(picture))
            elif not isinstance(block, ThinkingBlock):  # what a model thought is no part of what it said
                raise InputError(
                    f"message {number}: a {type(block).__name__}; ABCLLM reads text and pictures, so leave it out"
                )
        if parts:
            turns.append(Message(_ROLES[message.role], parts))
    return turns
