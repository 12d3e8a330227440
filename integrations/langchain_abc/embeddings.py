"""ABC embeddings for LangChain."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from abc_rag import ABCCheckpoint, Embedder, ImageLimits, ImageSource, load_embedder

__all__ = ["ABCEmbeddings"]

T = TypeVar("T")


class ABCEmbeddings(BaseModel, Embeddings):
    """Texts, pictures, and pictures seen under an instruction, as vectors of one space.

    Setup:
        ``pip install abc-rag``. ``model="abc-mini"`` needs nothing else and runs on a laptop; ``model="abc"``, the
        default, fetches the published 7B model (about 16 GB) on first use and wants a GPU.

    Key init args:
        model: ``"abc"``, ``"abc-mini"``, a checkpoint folder, or an ``abc_rag.ABCCheckpoint``. Default: the environment
            variable ``ABC_RAG_MODEL``, else ``"abc"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        min_tokens, max_tokens: Image tokens that a picture is resized to; more show more detail and cost more.
        batch_size: ``"auto"`` or a number of items.

    Instantiate:
        .. code-block:: python

            from langchain_abc import ABCEmbeddings

            embeddings = ABCEmbeddings(model="abc-mini")

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

    Async:
        .. code-block:: python

            vector = await embeddings.aembed_query("a dog to the left of a car")

        The model computes in one thread of its own, so the event loop is never blocked.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model: str | os.PathLike[str] | ABCCheckpoint | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    min_tokens: int | None = None
    max_tokens: int | None = None
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    batch_size: int | Literal["auto"] = "auto"
    show_progress: bool = False
    image_limits: ImageLimits | None = Field(default=None, exclude=True)

    _embedder: Embedder = PrivateAttr()
    _worker: ThreadPoolExecutor = PrivateAttr()

    @model_validator(mode="after")
    def _prepare(self) -> ABCEmbeddings:
        # Checks the settings; the weights are loaded by the first vector that is asked for.
        self._embedder = load_embedder(
            self.model,
            device=self.device,
            dtype=self.dtype,
            min_tokens=self.min_tokens,
            max_tokens=self.max_tokens,
            attention=self.attention,
            image_limits=self.image_limits,
        )
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="langchain-abc")
        return self

    @property
    def embedder(self) -> Embedder:
        """The `abc_rag.Embedder` that computes; mixed and instructed inputs can be given to it directly."""
        return self._embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages.

        Args:
            texts: The passages.

        Returns:
            One unit vector a passage, in order.
        """
        vectors: list[list[float]] = self._embedder.embed_texts(
            texts, batch_size=self.batch_size, progress=self.show_progress
        ).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a question or a description; the same space and the same vector as for a passage."""
        return self.embed_documents([text])[0]

    def embed_image(self, uris: Sequence[ImageSource], *, instruction: str | None = None) -> list[list[float]]:
        """Embed pictures.

        Args:
            uris: Paths (a ``str`` is always a path), or ``abc_rag.URL``, ``abc_rag.DataURI``, bytes or PIL images.
            instruction: What to look at in each of them; an empty one is still an instruction.

        Returns:
            One unit vector a picture, in order.

        Raises:
            abc_rag.errors.ImageError: A picture cannot be used; the message names it.
        """
        vectors: list[list[float]] = self._embedder.embed_images(
            uris, instruction=instruction, batch_size=self.batch_size, progress=self.show_progress
        ).tolist()
        return vectors

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages without blocking the event loop; see `embed_documents`."""
        return await self._in_worker(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a question without blocking the event loop; see `embed_query`."""
        return await self._in_worker(self.embed_query, text)

    async def aembed_image(self, uris: Sequence[ImageSource], *, instruction: str | None = None) -> list[list[float]]:
        """Embed pictures without blocking the event loop; see `embed_image`."""
        return await self._in_worker(lambda: self.embed_image(uris, instruction=instruction))

    async def _in_worker(self, call: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401
        # LangChain's default runs in the loop's shared pool: every other awaited call would wait behind the model.
        return await asyncio.get_running_loop().run_in_executor(self._worker, call, *arguments)
