"""ABC embeddings for LangChain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, PrivateAttr, field_serializer, model_validator

from abc_rag import (
    ABCCheckpoint,
    Embedder,
    EngineSettings,
    Image,
    ImageLimits,
    ImageSource,
    Input,
    InstructedImage,
    Text,
    load_embedder,
)
from abc_rag.embedding.load import loading_of
from abc_rag.embedding.options import EmbedderOptions, keywords_of, model_as_text
from abc_rag.embedding.threads import ForkSafeLock
from abc_rag.errors import InputError
from langchain_abc._incoming import listed

__all__ = ["ABCEmbeddings"]


class ABCEmbeddings(BaseModel, Embeddings):
    """Texts, pictures, and pictures seen under an instruction, as vectors of one space.

    Setup:
        ``pip install 'abc-rag[langchain]'``. ``model="abc-mini"`` needs nothing else and runs on a laptop;
        ``model="abc"``, the default, fetches the published 7B model (about 16 GB) on first use and wants a GPU.

    Key init args:
        model: What ``abc_rag.load_embedder`` takes: ``"abc"``, ``"abc-mini"``, a checkpoint folder, an
            ``abc_rag.ABCCheckpoint``, or a model of another family. Default: the environment variable
            ``ABC_RAG_MODEL``, else ``"abc"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        dtype: ``"auto"`` (bfloat16 on CUDA, else float32), or one of those that torch has.
        min_tokens, max_tokens: Image tokens that a picture is resized to; more show more detail and cost more.
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
        batch_size: ``"auto"`` or a number of items.
        show_progress: A progress bar on standard error, for calls that are not awaited.
        image_limits: Which pictures are accepted, and whether URLs are fetched.
        engine: What the engine may use, as ``abc_rag.EngineSettings``: workers, batches, caches.

    Instantiate:
        .. code-block:: python

            from langchain_abc import ABCEmbeddings

            embeddings = ABCEmbeddings(model="abc-mini")

        The weights are loaded by the first vector that is asked for. The settings can be written down and read back:
        ``ABCEmbeddings.model_validate_json(embeddings.model_dump_json())``. A pickle holds the settings alone; a copy
        shares the weights.

    Embed single text:
        .. code-block:: python

            vector = embeddings.embed_query("a dog to the left of a car")

    Embed multiple texts:
        .. code-block:: python

            vectors = embeddings.embed_documents(["a dog", "a car"])

    Embed pictures, and what an instruction says to look at in them:
        .. code-block:: python

            vectors = embeddings.embed_image(uris=["photo.jpg"])
            vectors = embeddings.embed_image(uris=["photo.jpg"], instruction="what is on the left?")
            vectors = embeddings.embed_images(["a.jpg", "b.jpg"], instruction=["the animal", "the background"])

    Async:
        .. code-block:: python

            vector = await embeddings.aembed_query("a dog to the left of a car")

        The event loop is never blocked, not even while the model is loaded. Calls that are awaited at the same time are
        computed together. What a cancelled call has waiting is not computed.
    """

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True, validate_assignment=True
    )

    model: str | os.PathLike[str] | ABCCheckpoint | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    weights: Literal["full", "int8", "int4"] = "full"
    min_tokens: int | None = None
    max_tokens: int | None = None
    resolution: int | str | None = None
    dims: int | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    background: str | None = None
    depth: Literal["published", "scaled"] = "published"
    batch_size: int | Literal["auto"] = "auto"
    show_progress: bool = False
    image_limits: ImageLimits | None = None
    engine: EngineSettings | None = None

    _runtime: _Runtime = PrivateAttr(default_factory=lambda: _Runtime())

    @model_validator(mode="after")
    def _check(self) -> ABCEmbeddings:
        # This checks the settings. Nothing is loaded yet.
        if self.batch_size != "auto" and self.batch_size < 1:
            raise InputError(f"batch_size must be 'auto' or a positive int, not {self.batch_size!r}")
        self._runtime.embedder(self._loading(), self._load)
        return self

    @field_serializer("model", when_used="json")
    def _write_model(self, model: str | os.PathLike[str] | ABCCheckpoint | None) -> Any:  # noqa: ANN401
        return model_as_text(model)

    @field_serializer("engine", when_used="json")
    def _write_engine(self, engine: EngineSettings | None) -> Any:  # noqa: ANN401
        return EmbedderOptions(engine=engine).as_dict()["engine"]

    @classmethod
    def of(cls, embedder: Embedder, *, batch_size: int | Literal["auto"] = "auto") -> ABCEmbeddings:
        """Embeddings by an embedder that exists already, such as that of a generator, with its settings.

        Args:
            embedder: From ``abc_rag.load_embedder``, or the ``embedder`` of ``abc_rag.answering.load_generator``.
            batch_size: As in the class.

        Raises:
            abc_rag.errors.InputError: It was made otherwise.
        """
        loading = loading_of(embedder)
        made = cls(model=loading.model, batch_size=batch_size, **keywords_of(loading.options))
        made._runtime.share(made._loading(), embedder)
        return made

    def __copy__(self) -> ABCEmbeddings:
        """A shallow copy. It shares the weights until a setting changes."""
        copied = super().__copy__()
        copied._runtime = self._runtime.copied()
        return copied

    def _loading(self) -> tuple[object, ...]:
        """The settings that determine what is loaded."""
        return self.model, EmbedderOptions(**keywords_of(self))

    def _load(self) -> Embedder:
        return load_embedder(self.model, **keywords_of(self))

    @property
    def embedder(self) -> Embedder:
        """The underlying `abc_rag.Embedder`. It also takes mixed and instructed inputs."""
        return self._runtime.embedder(self._loading(), self._load)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages.

        Args:
            texts: The passages.

        Returns:
            One unit vector a passage, in order.

        Raises:
            abc_rag.errors.InputError: A passage is no ``str`` or is too long; the message names its position.
        """
        return self._embed(_texts(texts))

    def embed_query(self, text: str) -> list[float]:
        """Embed a question or a description in the space of the passages; see ``query_instruction``."""
        return self._embed(_texts([text], role="query"))[0]

    def embed_images(
        self, images: Iterable[ImageSource], *, instruction: str | Sequence[str] | None = None
    ) -> list[list[float]]:
        """Embed pictures, by themselves or under an instruction.

        Args:
            images: Any iterable of paths (a ``str`` is always a path), ``abc_rag.URL``, ``abc_rag.DataURI``, bytes or
                PIL images.
            instruction: What to look at: one instruction for all pictures, or a list with one for each. An empty one
                is still an instruction.

        Returns:
            One unit vector a picture, in order.

        Raises:
            abc_rag.errors.ImageError: A picture cannot be used; the message names it.
            abc_rag.errors.InputError: The pictures are no list, or there are not as many instructions as pictures.
        """
        return self._embed(_pictures(images, instruction))

    def embed_image(self, uris: Iterable[ImageSource], *, instruction: str | None = None) -> list[list[float]]:
        """`embed_images` under the name and signature that other LangChain packages call."""
        return self.embed_images(uris, instruction=instruction)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages without blocking the event loop; see `embed_documents`."""
        return await self._aembed(_texts(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a question without blocking the event loop; see `embed_query`."""
        return (await self._aembed(_texts([text], role="query")))[0]

    async def aembed_images(
        self, images: Iterable[ImageSource], *, instruction: str | Sequence[str] | None = None
    ) -> list[list[float]]:
        """Embed pictures without blocking the event loop; see `embed_images`."""
        return await self._aembed(_pictures(images, instruction))

    async def aembed_image(self, uris: Iterable[ImageSource], *, instruction: str | None = None) -> list[list[float]]:
        """Embed pictures without blocking the event loop; see `embed_images`."""
        return await self.aembed_images(uris, instruction=instruction)

    def _embed(self, inputs: Sequence[Input]) -> list[list[float]]:
        vectors: list[list[float]] = self.embedder.embed(
            inputs, batch_size=self.batch_size, progress=self.show_progress
        ).tolist()
        return vectors

    async def _aembed(self, inputs: Sequence[Input]) -> list[list[float]]:
        vectors: list[list[float]] = (await self.embedder.aembed(inputs, batch_size=self.batch_size)).tolist()
        return vectors


class _Runtime:
    """The embedder of an `ABCEmbeddings`, which is not part of its value."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._made: tuple[tuple[object, ...], Embedder] | None = None

    def embedder(self, settings: tuple[object, ...], load: Callable[[], Embedder]) -> Embedder:
        """The embedder for ``settings``, which may have changed since the last call."""
        with self._lock:
            if self._made is None or self._made[0] != settings:
                self._made = settings, load()
            return self._made[1]

    def share(self, settings: tuple[object, ...], embedder: Embedder) -> None:
        """Use an embedder that was made with ``settings``."""
        with self._lock:
            self._made = settings, embedder

    def copied(self) -> _Runtime:
        """Another one that shares the weights."""
        copied = _Runtime()
        copied._made = self._made
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> _Runtime:
        return self.copied()

    def __reduce__(self) -> tuple[type[_Runtime], tuple[()]]:
        # A pickle contains neither weights nor locks; the model is loaded again on first use.
        return _Runtime, ()

    def __eq__(self, other: object) -> bool:
        # pydantic compares private attributes as well, but embeddings are equal if their settings are.
        return isinstance(other, _Runtime)

    __hash__ = None  # type: ignore[assignment]


def _texts(texts: Iterable[str], *, role: str = "document") -> list[Input]:
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InputError(f"texts must be a list; got a single {type(texts).__name__}: pass [text]")
    made: list[Input] = []
    for position, text in enumerate(texts):
        try:
            made.append(Text(text, role=role))
        except InputError as error:
            raise error.at(position) from error
    return made


def _pictures(images: Iterable[ImageSource], instruction: str | Sequence[str] | None) -> list[Input]:
    sources = listed(images)
    if instruction is None:
        return [Image(source) for source in sources]
    each = [instruction] * len(sources) if isinstance(instruction, str) else list(instruction)
    if len(each) != len(sources):
        raise InputError(f"{len(each)} instructions for {len(sources)} pictures; give one for all, or one for each")
    return [InstructedImage(source, one) for source, one in zip(sources, each, strict=True)]
