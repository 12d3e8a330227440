"""What the routes of a server share: the model, its facts, and the limits."""

from __future__ import annotations

import base64
import functools
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.threads import in_thread
from abc_rag.errors import ABCRagError, ImageFetchError, InputError
from abc_rag.server.blobs import Blobs
from abc_rag.server.errors import Refusal
from abc_rag.server.settings import ServerSettings
from abc_rag.types import INPUT_TYPES, URL, DataURI, Fingerprint, ImageSource, Input, Message, Vectors

if TYPE_CHECKING:
    import asyncio

__all__ = ["Embedded", "ModelFacts", "Service", "packed"]

logger = logging.getLogger("abc_rag.server")


@dataclass(frozen=True)
class ModelFacts:
    """What is fixed once the model has been loaded.

    Attributes:
        fingerprint: Of the embedder.
        dim: Length of a vector.
        accepts: The input types that the model takes.
        roles: The roles that inputs may have.
        names: Names that clients may ask for; the first is the one in answers.
        cuts: Whether its vectors may be cut to fewer numbers.
    """

    fingerprint: Fingerprint
    dim: int
    accepts: tuple[type, ...]
    roles: tuple[str, ...]
    names: tuple[str, ...]
    cuts: bool = False

    @functools.cached_property
    def shown(self) -> dict[str, Any]:
        """The fingerprint as plain values."""
        return asdict(self.fingerprint)


@dataclass(frozen=True)
class Embedded:
    """What became of some inputs.

    Attributes:
        vectors: float32 ``(n, dim)``; zero where an input cannot be embedded.
        errors: Why not, by position.
        tokens: Tokens that the model read; equal inputs of one call count once.
    """

    vectors: Vectors
    errors: dict[int, InputError]
    tokens: int


class Service:
    """The model of a server, and what its routes need besides.

    Args:
        embedder: Serves all requests; it batches over them.
        settings: Limits and places.
    """

    def __init__(self, embedder: Embedder, settings: ServerSettings) -> None:
        self.embedder = embedder
        self.settings = settings
        self.failure: BaseException | None = None
        self.in_progress: Callable[[], int] = lambda: 0
        self.loading: asyncio.Task[None] | None = None
        self._facts: ModelFacts | None = None
        self._temporary = None if settings.folder else tempfile.TemporaryDirectory(prefix="abc-rag-")
        folder = settings.folder or Path(self._temporary.name if self._temporary else "")
        self.blobs = Blobs(folder / "blobs", settings.blob_bytes)

    @property
    def facts(self) -> ModelFacts:
        """Facts of the loaded model.

        Raises:
            Refusal: It is not loaded yet, or cannot be.
        """
        if self._facts is None:
            if self.failure is not None:
                raise Refusal(503, "the model could not be loaded; the server's log says why", code="model_failed")
            raise Refusal(503, "the model is being loaded; try again", code="loading", retry_s=5)
        return self._facts

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._facts is not None

    async def load(self) -> None:
        """Load the model."""
        try:
            self._facts = await in_thread(self._loaded)
        except Exception as error:
            self.failure = error
            logger.error("the model could not be loaded", exc_info=error)

    def _loaded(self) -> ModelFacts:
        one = self.embedder
        names = tuple(dict.fromkeys([*self.settings.names, one.fingerprint.model]))
        cuts = isinstance(one, LocalEmbedder) and one.facts.cuts
        accepts = tuple(kind for kind in one.accepts if kind in INPUT_TYPES)
        return ModelFacts(one.fingerprint, one.dim, accepts, one.roles, names, cuts)

    def require_model(self, name: str | None) -> str:
        """The name of the model in answers, given the one that a request asks for.

        Raises:
            Refusal: Another one is served.
        """
        names = self.facts.names
        if name and name not in names:
            told = f"this server has no model {name[:100]!r}; it has {', '.join(names)}"
            raise Refusal(404, told, code="model_not_found")
        return names[0]

    @property
    def max_picture_bytes(self) -> int:
        """Maximum encoded bytes of a picture."""
        return min(self.settings.image_limits.max_bytes, self.settings.max_body_bytes)

    def check_amount(self, inputs: Sequence[Input]) -> None:
        """Refuse more than one request may ask for.

        Raises:
            Refusal: It asks for more.
        """
        if len(inputs) > self.settings.max_inputs:
            told = f"{len(inputs)} inputs are more than {self.settings.max_inputs}; split them over several requests"
            raise Refusal(413, told)
        self.check_pictures(inputs)
        characters = sum(len(item.words) + len(getattr(item, "instruction", "")) for item in inputs)
        if characters > self.settings.max_text_characters:
            most = self.settings.max_text_characters
            raise Refusal(413, f"{characters:,} characters are more than {most:,}; split them over several requests")

    def check_pictures(self, inputs: Sequence[Input | Message]) -> None:
        """Refuse addresses where none are fetched.

        Raises:
            ImageFetchError: There is one.
        """
        for position, item in enumerate(inputs):
            for source in item.pictures:
                _check_source(source, position, urls=self.fetches)

    @property
    def fetches(self) -> bool:
        """Whether pictures are fetched from addresses."""
        return self.settings.image_limits.allow_urls

    def cut(self, vectors: Vectors, dimensions: int | None) -> Vectors:
        """Vectors of another length, where the model was trained for that.

        Raises:
            InputError: It was not, or they have fewer numbers.
        """
        if dimensions is None or dimensions == self.facts.dim:
            return vectors
        if self.facts.cuts and dimensions < self.facts.dim:
            rows = vectors[:, :dimensions]
            # A row without a vector, as its input has an error, stays zero.
            return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)
        raise InputError(f"dimensions={dimensions}: the vectors of this model have {self.facts.dim}; leave it out")

    async def embed(self, inputs: Sequence[Input]) -> Embedded:
        """Embed inputs together with those of all other requests.

        Raises:
            Refusal: There are more than one request may have.
            InputError: One cannot be embedded; the others are not either.
        """
        self.check_amount(inputs)
        if isinstance(self.embedder, LocalEmbedder):
            vectors, tokens = await self.embedder.aembed_counted(inputs)
            return Embedded(vectors, {}, tokens)
        return Embedded(await self.embedder.aembed(inputs), {}, 0)

    async def embed_each(self, inputs: Sequence[Input]) -> Embedded:
        """Embed what can be embedded."""
        try:
            return await self.embed(inputs)
        except InputError:
            # Rare, so it may take a thread: an input that fails costs the others nothing but this second way.
            return await in_thread(self._each, list(inputs))

    def _each(self, inputs: list[Input]) -> Embedded:
        vectors = np.zeros((len(inputs), self.facts.dim), dtype=np.float32)
        errors: dict[int, InputError] = {}
        for position, result in enumerate(self.embedder.embed_iter(inputs, return_errors=True)):
            if isinstance(result, InputError):
                errors[position] = result
            elif isinstance(result, ABCRagError):
                raise result
            else:
                vectors[position] = result
        return Embedded(vectors, errors, 0)

    def close(self) -> None:
        """Release the model and the temporary files."""
        self.blobs.close()
        if isinstance(self.embedder, LocalEmbedder):
            self.embedder.close()
        if self._temporary is not None:
            self._temporary.cleanup()


def _check_source(source: ImageSource, position: int, *, urls: bool) -> None:
    if isinstance(source, URL) and not urls:
        told = "pictures are not fetched by this server; send the picture itself, as a data: URI or base64"
        raise ImageFetchError("url", told).at(position)
    # A path would be read on the server.
    assert isinstance(source, (URL, DataURI, bytes)), type(source)


def packed(vectors: Vectors) -> str:
    """Vectors as base64 of little-endian float32: what comes out is bit for bit what went in."""
    return base64.b64encode(np.ascontiguousarray(vectors, dtype="<f4").tobytes()).decode("ascii")
