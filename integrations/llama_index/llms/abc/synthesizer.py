"""`ABCSynthesizer`: answers from nodes in the conversation that abc-rag's own retriever has with a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ContentBlock, ImageBlock, MessageRole, TextBlock
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.llms import LLM
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.embeddings.abc.nodes import has_picture, picture_of
from llama_index.llms.abc.base import ABCLLM

from abc_rag import Text
from abc_rag.errors import ImageError, InputError
from abc_rag.images import mime_type_of, read_bytes, share_image
from abc_rag.models.tasks import REFUSAL, Source, answering

__all__ = ["ABCSynthesizer"]

_TOLD = "conversation"


class ABCSynthesizer(BaseSynthesizer):
    """Asks a chat model to answer from nodes and the picture of the question, and to cite the nodes like ``[1]``.

    What it asks is word for word what ``abc_rag.Retriever.answer`` asks, in which what comes from outside is data. A
    small model that was trained on these conversations, such as abc-mini, needs them; others read them as well. All
    nodes go into one question; of an `ABCLLM` whose checkpoint answers from few sources at once, the first ones.

    Examples:
        ``pip install 'abc-rag[llama-index,generate]'``, then::

            engine = RetrieverQueryEngine(InstructionRetriever(embed_model, store), ABCSynthesizer(llm))
            engine.query(QueryBundle("which animal is in the picture?", image_path="photos/pig-car.jpg"))

    Args:
        llm: A chat model that sees, such as `ABCLLM`.
        streaming: Give the answer as it comes.
        empty_response: The answer where nothing was found.

    Raises:
        InputError: A picture has neither data, nor a path, nor a URL.
        ImageError: The question's picture cannot be opened. In the place of another one that cannot be, a text says so.
    """

    def __init__(self, llm: LLM, *, streaming: bool = False, empty_response: str = REFUSAL) -> None:
        # Not multimodal for the base class: it would open every picture once more, and let one that is gone end all.
        super().__init__(llm=llm, streaming=streaming, empty_response=empty_response)

    def synthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,  # noqa: ANN401
    ) -> RESPONSE_TYPE:
        """See the base class; a `QueryBundle` may bring a picture."""
        told = {_TOLD: _asked(query, nodes[: self._most()])} if nodes else {}
        return super().synthesize(query, nodes, additional_source_nodes, **told, **response_kwargs)

    async def asynthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,  # noqa: ANN401
    ) -> RESPONSE_TYPE:
        """`synthesize` for event loops."""
        told = {_TOLD: _asked(query, nodes[: self._most()])} if nodes else {}
        return await super().asynthesize(query, nodes, additional_source_nodes, **told, **response_kwargs)

    def get_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        **response_kwargs: Any,  # noqa: ANN401
    ) -> str | Generator[str, None, None]:
        """The answer to what `synthesize` made, else from texts alone."""
        told = _told(query_str, text_chunks[: self._most()], response_kwargs)
        if self._streaming:
            return (part.delta or "" for part in self._llm.stream_chat(told, **response_kwargs))
        return self._llm.chat(told, **response_kwargs).message.content or ""

    async def aget_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        **response_kwargs: Any,  # noqa: ANN401
    ) -> str | AsyncGenerator[str, None]:
        """`get_response` for event loops."""
        told = _told(query_str, text_chunks[: self._most()], response_kwargs)
        if self._streaming:
            parts = await self._llm.astream_chat(told, **response_kwargs)
            return (part.delta or "" async for part in parts)
        return (await self._llm.achat(told, **response_kwargs)).message.content or ""

    def _most(self) -> int | None:
        return self._llm.generator.tasks.sources if isinstance(self._llm, ABCLLM) else None

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if prompts:
            raise InputError("what ABCSynthesizer asks is fixed; use another synthesizer for prompts of your own")


def _told(question: str, texts: Sequence[str], given: dict[str, Any]) -> list[ChatMessage]:
    """Takes the conversation out of the arguments that are for the model."""
    told: list[ChatMessage] | None = given.pop(_TOLD, None)
    return _messages(question, [Source(text=text) for text in texts if text.strip()], None) if told is None else told


def _asked(query: str | QueryBundle, nodes: Sequence[NodeWithScore]) -> list[ChatMessage]:
    question, image = (query, None) if isinstance(query, str) else (query.query_str, query.image_path)
    return _messages(question, [_source(one) for one in nodes], None if image is None else share_image(image)[0])


def _source(found: NodeWithScore) -> Source:
    node, text = found.node, found.node.get_content(MetadataMode.NONE).strip()
    if not has_picture(node):
        if isinstance(node, ImageNode):
            raise InputError(f"{node.node_id}: a picture without image, image_path or image_url; give one of them")
        return Source(text=text or "(empty)")
    try:
        picture = picture_of(node)
        assert picture is not None
        return Source(share_image(picture)[0], text)
    except InputError as error:
        reason = error.reason if isinstance(error, ImageError) else str(error)
        return Source(text=f"{text} (This picture cannot be shown: {reason})".strip())


def _messages(question: str, sources: Sequence[Source], image: bytes | None) -> list[ChatMessage]:
    told = []
    for turn in answering(question, sources, image=image):
        blocks: list[ContentBlock] = []
        for part in turn.parts:
            if isinstance(part, Text):
                blocks.append(TextBlock(text=part.text))
            else:
                data = read_bytes(part.source)
                blocks.append(ImageBlock(image=data, image_mimetype=mime_type_of(data)))
        told.append(ChatMessage(role=MessageRole(turn.role), blocks=blocks))
    return told
