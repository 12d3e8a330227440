"""ABC embeddings for LlamaIndex: texts, pictures, and pictures seen under an instruction."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import BaseNode, ImageType
from llama_index.core.utils import get_tqdm_iterable, iter_batch
from llama_index.embeddings.abc.nodes import (
    Pictured,
    Worded,
    as_source,
    assign,
    blamed,
    contents,
    error_of,
    sources,
    split,
)
from llama_index.embeddings.abc.settings import Settings
from llama_index_instrumentation import get_dispatcher

from abc_rag import (
    URL,
    Image,
    Input,
    InstructedImage,
    Text,
)
from abc_rag.embedding.threads import Run, awaiting, blocking, either
from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.images.limits import DEFAULT_LIMITS
from abc_rag.images.read import describe_source

__all__ = ["ABCEmbeddings"]

dispatcher = get_dispatcher(__name__)


class ABCEmbeddings(Settings):
    """Texts, pictures, and pictures seen under an instruction, as vectors of one space.

    ``model="abc-mini"`` needs nothing and runs on a laptop; ``model="abc"``, the default, fetches the published 7B
    model (about 16 GB) on first use and wants a GPU. The weights are loaded by the first vector that is asked for.

    Examples:
        ``pip install 'abc-rag[llama-index]'``

        ```python
        from llama_index.embeddings.abc import ABCEmbeddings

        embed_model = ABCEmbeddings(model="abc-mini")
        embed_model.get_text_embedding("a dog to the left of a car")
        embed_model.get_image_embedding("photo.jpg")
        embed_model.get_instructed_image_embedding("photo.jpg", "what is on the left?")
        ```

    A picture is a path (a ``str`` is always a path, never a URL), ``BytesIO``, bytes, ``abc_rag.URL``,
    ``abc_rag.DataURI`` or a PIL image. The embedder is called once for each batch of ``embed_batch_size``. Awaited
    calls block neither the event loop nor its shared threads, and those awaited at the same time are computed together.

    As a transformation of an ``IngestionPipeline``, LlamaIndex's own classes embed the *metadata* of a picture's node
    as if it were the picture. This one gives such a node its picture's vector, and keeps the vector of its caption in
    ``text_embedding``. Mind the pipeline's cache, which knows nodes by their text and metadata alone: two pictures
    without either are one to it. Pass ``disable_cache=True``, or give each a metadata value of its own.

    ``embeddings_cache`` keeps texts only, under the bare text: pictures never touch it, and one cache must not serve
    two models.

    Args:
        model: What ``abc_rag.load_embedder`` takes: ``"abc"``, ``"abc-mini"``, a checkpoint folder, an
            ``abc_rag.ABCCheckpoint``, or a model of another family. Default: the environment variable
            ``ABC_RAG_MODEL``, else ``"abc"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        dtype: ``"auto"`` is bfloat16 on CUDA and float32 elsewhere.
        min_tokens: Fewest image tokens that a picture is resized to.
        max_tokens: Most image tokens; more show more detail and cost more.
        resolution: What else the model's family calls a resolution; see ``abc_rag.load_embedder``.
        dims: Length of a vector, for models that were trained to be cut to several (Matryoshka).
        query_instruction: What queries are told, where the model was trained so, in place of the family's own prompt;
            of VLM2Vec one of ``abc_rag.models.vlm2vec.TASK_INSTRUCTIONS``.
        document_instruction: The same for passages and pictures.
        attention: ``"auto"``, ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.
        weights: ``"full"``; or ``"int8"`` or ``"int4"``, for less memory and other vectors, with
            ``pip install 'abc-rag[quantized]'``.
        background: A colour behind transparent pixels, such as ``"white"``. If not given, transparency is dropped, as
            published.
        depth: ``"scaled"`` maps deep greys to 8 bits; see ``abc_rag.load_embedder``.
        image_limits: Which pictures are accepted, and whether URLs are fetched.
        engine: What the engine may use, as ``abc_rag.EngineSettings``: workers, batches, caches.
        show_progress: Show a progress bar in every batch call, also where the call does not ask for one.
    """

    # -- texts -----------------------------------------------------------------------------------

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embed([Text(query, role="query")])[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._aembed([Text(query, role="query")]))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._embed([Text(text)])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aembed([Text(text)]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embed([Text(text) for text in texts])

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._aembed([Text(text) for text in texts])

    @blocking
    async def get_text_embedding_batch(
        self,
        _run: Run,
        /,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> list[Embedding]:
        """Embed passages; see the base class. An error about one of them names its position in ``texts``."""
        batch, abatch = super().get_text_embedding_batch, super().aget_text_embedding_batch
        try:
            return await either(_run, batch, abatch, texts, show_progress or self.show_progress, **kwargs)
        except InputError as error:
            raise await _run(self._placed, error, texts) from error

    aget_text_embedding_batch = awaiting(get_text_embedding_batch)

    # -- pictures --------------------------------------------------------------------------------

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return (await self._aget_image_embeddings([img_file_path]))[0]

    @blocking
    async def _get_image_embeddings(self, _run: Run, /, img_file_paths: list[ImageType]) -> list[Embedding]:
        inputs = _pictures(img_file_paths)
        with self._events(inputs) as embeddings:
            embeddings += await either(_run, self._embed, self._aembed, inputs)
        return embeddings

    _aget_image_embeddings = awaiting(_get_image_embeddings)

    @blocking
    async def get_image_embedding_batch(
        self, _run: Run, /, img_file_paths: list[ImageType], show_progress: bool = False
    ) -> list[Embedding]:
        """Embed pictures; see the base class."""
        batch, abatch = super().get_image_embedding_batch, super().aget_image_embedding_batch
        return await either(_run, batch, abatch, img_file_paths, show_progress or self.show_progress)

    aget_image_embedding_batch = awaiting(get_image_embedding_batch)

    # -- pictures under an instruction -----------------------------------------------------------

    def get_instructed_image_embedding(self, img_file_path: ImageType, instruction: str) -> Embedding:
        """Embed a picture seen under an instruction.

        Args:
            img_file_path: The picture; see the class.
            instruction: What to look at in it; an empty one is still an instruction.

        Returns:
            A unit vector.

        Raises:
            abc_rag.errors.ImageError: The picture cannot be used; the message names it.
        """
        return self.get_instructed_image_embedding_batch([img_file_path], instruction)[0]

    async def aget_instructed_image_embedding(self, img_file_path: ImageType, instruction: str) -> Embedding:
        """`get_instructed_image_embedding` without blocking the event loop."""
        return (await self.aget_instructed_image_embedding_batch([img_file_path], instruction))[0]

    @dispatcher.span
    @blocking
    async def get_instructed_image_embedding_batch(
        self, _run: Run, /, img_file_paths: Sequence[ImageType], instruction: str, show_progress: bool = False
    ) -> list[Embedding]:
        """Embed pictures, all under one instruction; one unit vector each, in order. See the single call."""
        embeddings: list[Embedding] = []
        batches = list(iter_batch(_pictures(img_file_paths, instruction), self.embed_batch_size))
        shown = show_progress or self.show_progress
        for batch in get_tqdm_iterable(batches, shown, "Generating instructed image embeddings"):
            with self._callback(batch) as found:
                found += await either(_run, self._embed, self._aembed, batch)
            embeddings += found
        return embeddings

    aget_instructed_image_embedding_batch = dispatcher.span(awaiting(get_instructed_image_embedding_batch))

    # -- nodes -----------------------------------------------------------------------------------

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:  # noqa: ANN401
        """Set each node's vector: that of its picture, or else that of its text.

        A captioned picture's node gets the vector of its caption too, as ``text_embedding``.

        Raises:
            abc_rag.errors.InputError: A picture cannot be used; the message names it and its node.
        """
        self._embed_nodes(*split(nodes), **kwargs)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:  # noqa: ANN401
        """`__call__` without blocking the event loop."""
        await self._aembed_nodes(*split(nodes), **kwargs)
        return nodes

    def embed_missing(self, nodes: Sequence[BaseNode], *, show_progress: bool = False) -> None:
        """Set those vectors that `__call__` would set and that a node does not have yet."""
        self._embed_nodes(*split(nodes, missing_only=True), show_progress=show_progress)

    async def aembed_missing(self, nodes: Sequence[BaseNode], *, show_progress: bool = False) -> None:
        """`embed_missing` without blocking the event loop."""
        await self._aembed_nodes(*split(nodes, missing_only=True), show_progress=show_progress)

    def embed_each(self, nodes: Sequence[BaseNode]) -> dict[int, InputError]:
        """`embed_missing` that goes on where a node cannot be embedded.

        Returns:
            The errors by position; all other nodes have their vectors.
        """
        failed: dict[int, InputError] = {}
        parts: list[tuple[int, Input, Worded | None, Pictured | None]] = []
        for place, node in enumerate(nodes):
            try:
                worded, pictured = split([node], missing_only=True)
            except InputError as error:
                failed[place] = error
                continue
            parts += [(place, Image(one[1]), None, one) for one in pictured]
            parts += [(place, Text(content), one, None) for one, content in zip(worded, contents(worded), strict=True)]
        found = list(self._embedder.embed_iter([part[1] for part in parts], return_errors=True))
        for (place, *_), result in zip(parts, found, strict=True):
            if isinstance(result, ABCRagError):
                failed.setdefault(place, error_of(nodes[place], result))
        for (place, _, worded_one, pictured_one), result in zip(parts, found, strict=True):
            if place not in failed and not isinstance(result, ABCRagError):
                row = result.tolist()
                if worded_one is not None:
                    assign([worded_one], [row], [], [])
                elif pictured_one is not None:
                    assign([], [], [pictured_one], [row])
        return failed

    @blocking
    async def _embed_nodes(
        self,
        _run: Run,
        /,
        worded: Sequence[Worded],
        pictured: Sequence[Pictured],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        images, aimages = self.get_image_embedding_batch, self.aget_image_embedding_batch
        batch, abatch = self.get_text_embedding_batch, self.aget_text_embedding_batch
        with self._named(pictured):
            pictures = await either(_run, images, aimages, sources(pictured), show_progress)
        with self._node_named(worded):
            texts = await either(_run, batch, abatch, contents(worded), show_progress, **kwargs)
        assign(worded, texts, pictured, pictures)

    _aembed_nodes = awaiting(_embed_nodes)

    # -- helpers ---------------------------------------------------------------------------------

    @blocking
    async def _embed(self, _run: Run, /, inputs: Sequence[Input]) -> list[Embedding]:
        try:
            vectors = await either(_run, self._embedder.embed, self._embedder.aembed, inputs)
        except ImageError as error:
            raise self._blamed(error, inputs) from error
        rows: list[Embedding] = vectors.tolist()
        return rows

    _aembed = awaiting(_embed)

    def _placed(self, error: InputError, texts: Sequence[str]) -> InputError:
        """``error`` with the text's position in the whole call; the base class passes one batch at a time."""
        try:
            results = self._embedder.embed_iter(map(Text, texts), return_errors=True)
            return next((result for result in results if isinstance(result, InputError)), error)
        except InputError:  # one that is no text at all
            return error

    def _blamed(self, error: ImageError, inputs: Sequence[Input]) -> ImageError:
        unnamed = len(inputs) > 1 and not error.source.startswith("picture ")
        found = [item.source for item in inputs if isinstance(item, (Image, InstructedImage))]
        if not unnamed or all(isinstance(source, (str, os.PathLike, URL)) for source in found):
            return error
        named = [(f"picture {number} of {len(found)}", source) for number, source in enumerate(found, 1)]
        return blamed(error, named, self.image_limits or DEFAULT_LIMITS)

    @contextmanager
    def _named(self, pictured: Sequence[Pictured]) -> Iterator[None]:
        try:
            yield
        except ImageError as error:
            named = [(f"node {node.node_id!r}", source) for node, source in pictured]
            raise blamed(error, named, self.image_limits or DEFAULT_LIMITS) from error

    @contextmanager
    def _node_named(self, worded: Sequence[Worded]) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            if error.position is None:
                raise
            raise error_of(worded[error.position][0], error) from error

    @contextmanager
    def _events(self, inputs: Sequence[Input]) -> Iterator[list[Embedding]]:
        """Send the events that the base class sends for texts only."""
        dispatcher.event(EmbeddingStartEvent(model_dict=self.to_payload()))
        embeddings: list[Embedding] = []
        yield embeddings
        dispatcher.event(EmbeddingEndEvent(chunks=[_shown(item) for item in inputs], embeddings=embeddings))

    @contextmanager
    def _callback(self, inputs: Sequence[Input]) -> Iterator[list[Embedding]]:
        """Send these events, and the older callbacks that the base class also sends for pictures."""
        payload: dict[str, Any] = {EventPayload.SERIALIZED: self.to_payload()}
        with self.callback_manager.event(CBEventType.EMBEDDING, payload=payload) as event:
            with self._events(inputs) as embeddings:
                yield embeddings
            chunks = [_shown(item) for item in inputs]
            event.on_end(payload={EventPayload.CHUNKS: chunks, EventPayload.EMBEDDINGS: embeddings})


def _pictures(pictures: Sequence[object], instruction: str | None = None) -> list[Input]:
    if instruction is None:
        return [Image(as_source(picture)) for picture in pictures]
    return [InstructedImage(as_source(picture), instruction) for picture in pictures]


def _shown(item: Input) -> str:
    if isinstance(item, Image):
        return describe_source(item.source)
    if isinstance(item, InstructedImage):
        return f"{describe_source(item.source)} ({item.instruction})"
    return item.text if isinstance(item, Text) else str(item)
