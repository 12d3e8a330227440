"""Embeddings of a server with OpenAI's protocol, such as vLLM, Infinity or TEI."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from abc_rag.embedding.asking import Refused, Server, error_told
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import ABCRagError, InputError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.share import share_image
from abc_rag.types import Fingerprint, Input, InstructedImage, Text, Vectors

__all__ = ["OpenAIEmbedder"]

_INPUTS = 32
# The environment variable whose key is sent; another one than of our own servers, for these are others'.
_KEY_VARIABLE = "OPENAI_API_KEY"


class OpenAIEmbedder(Embedder):
    """Asks ``/embeddings``: texts as strings, and a picture as a message of its own, as vLLM takes it.

    Whether the model takes pictures, the server says. Vectors are scaled to unit length. The protocol tells no revision
    of a model, so the fingerprint has none: if the model there changes, make a new store.

    Args:
        url: With ``/v1`` if the server's paths begin so, such as ``"http://127.0.0.1:8000/v1"``. Its key, if it wants
            one, is in the environment variable ``OPENAI_API_KEY``.
        model: The model's name there.
        image_limits: Which pictures are read. They are sent without what else their files hold.
        patience_s: Maximum seconds for which a busy server is waited for.

    Raises:
        InputError: An argument is unusable.
    """

    def __init__(
        self, url: str, model: str, *, image_limits: ImageLimits = DEFAULT_LIMITS, patience_s: float = 120.0
    ) -> None:
        if not isinstance(model, str) or not model.strip():
            raise InputError('the model on the server has no name; name it: "openai:http://127.0.0.1:8000/v1#MODEL"')
        self._settings: dict[str, Any] = {"image_limits": image_limits, "patience_s": patience_s}
        self._server = Server(url, key_variable=_KEY_VARIABLE, patience_s=patience_s)
        self._model = model
        self._limits = image_limits
        self._asking = threading.Lock()
        self._dim: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self._server.url, self._model, **self._settings), ()

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self._server.url!r}, {self._model!r})"

    @property
    def dim(self) -> int:
        """Length of a vector; asks for one."""
        with self._asking:
            if self._dim is None:
                self._dim = self._asked({"input": ["dimension"]}, 1).shape[1]
            return self._dim

    @property
    def fingerprint(self) -> Fingerprint:
        """The model's name, with the little that the protocol tells."""
        return Fingerprint(self._model, "openai", 0, 0)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._server.close()

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        most = _INPUTS if batch_size == "auto" else batch_size
        rows: list[Vectors] = []
        with progress_bar("embedding", total=len(inputs), enabled=progress) as bar:
            while len(rows) < len(inputs):
                texts = _texts(inputs, len(rows), most)
                try:
                    if texts:
                        rows += list(self._asked({"input": texts}, len(texts)))
                    else:
                        rows += list(self._asked({"messages": [self._message(inputs[len(rows)])]}, 1))
                except InputError as error:
                    if len(texts) < 2:
                        raise error.at(len(rows)) from error
                    if len(inputs) == len(texts):
                        raise
                    # One of several: alone, each says its own error.
                    return np.concatenate([self._embed([one], batch_size=1, progress=False) for one in inputs])
                bar.advance(max(1, len(texts)))
        return np.stack(rows)

    def _message(self, item: Input) -> dict[str, Any]:
        data, mime_type = share_image(item.pictures[0], limits=self._limits)
        uri = f"data:{mime_type};base64,{base64.b64encode(data).decode('ascii')}"
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri}}]
        if isinstance(item, InstructedImage):
            content.append({"type": "text", "text": item.instruction})
        return {"role": "user", "content": content}

    def _asked(self, body: dict[str, Any], count: int) -> Vectors:
        try:
            told = self._server.ask(
                "POST", "/embeddings", json={"model": self._model, "encoding_format": "float", **body}
            ).json()
            rows = sorted(told["data"], key=lambda one: one["index"])
            vectors = np.asarray([one["embedding"] for one in rows], dtype=np.float32)
            if len(vectors) != count or vectors.ndim != 2:
                raise ValueError(f"{len(vectors)} vectors for {count} inputs")
        except Refused as error:
            raise error_told(error, self._server) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ABCRagError(
                f"the server at {self._server.url} answers /embeddings with something else ({error}); check the address"
            ) from error
        unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit


def _texts(inputs: Sequence[Input], first: int, most: int) -> list[str]:
    """The texts from a position on, up to the next picture."""
    found: list[str] = []
    for item in inputs[first : first + most]:
        if not isinstance(item, Text):
            break
        found.append(item.text)
    return found
