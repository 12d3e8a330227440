"""An embedder on another machine: `abc-rag serve` behind the seam of every embedder."""

from __future__ import annotations

import base64
import hashlib
import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import PIL.Image

from abc_rag.embedding.asking import Refused, Server, error_told
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import ABCRagError, FingerprintMismatchError, ImageLimitError, InputError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import as_png
from abc_rag.images.read import describe_source, read_bytes
from abc_rag.types import (
    INPUT_TYPES,
    Fingerprint,
    Image,
    ImageSource,
    Input,
    InstructedImage,
    InstructedText,
    Interleaved,
    Text,
    Vectors,
)

__all__ = ["RemoteEmbedder"]

# Inputs and characters of one request; several requests are on their way at once.
_INPUTS = 32
_CHARACTERS = 1_000_000
_AT_ONCE = 3
# How often pictures are sent again that the server forgot between two requests.
_SENDS = 4


@dataclass(frozen=True)
class _Model:
    """What the server says about its model."""

    fingerprint: Fingerprint
    dim: int
    accepts: tuple[type, ...]
    roles: tuple[str, ...]
    max_inputs: int
    max_picture_bytes: int


@dataclass
class _Request:
    """Some inputs as the server takes them, with the errors of those that cannot be sent."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    results: list[Vectors | ABCRagError | None] = field(default_factory=list)


class RemoteEmbedder(Embedder):
    """Asks a server that was started with ``abc-rag serve``; the vectors are its engine's, bit for bit.

    The first vector that is asked for connects. A picture is read here, and sent once: the server asks for those that
    it does not have. A server that is busy, loading or restarting is waited for; another model than at first is
    refused.

    Args:
        url: Of the server, such as ``"http://gpu:8000"``. Its key, if it wants one, is in the environment variable
            ``ABC_RAG_API_KEY``.
        image_limits: Which pictures are read here, and whether URLs are fetched. The server has limits of its own.
        patience_s: Maximum seconds for which a server is waited for.

    Raises:
        InputError: ``url`` is none.
    """

    def __init__(self, url: str, *, image_limits: ImageLimits = DEFAULT_LIMITS, patience_s: float = 120.0) -> None:
        self._settings: dict[str, Any] = {"image_limits": image_limits, "patience_s": patience_s}
        self._server = Server(url, patience_s=patience_s)
        self._limits = image_limits
        self._connecting = threading.Lock()
        self._known: _Model | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self.url, **self._settings), ()

    def __repr__(self) -> str:
        return f"RemoteEmbedder({self._server.url!r})"

    @property
    def url(self) -> str:
        """Of the server."""
        return self._server.url

    @property
    def dim(self) -> int:
        """Length of a vector; connects."""
        return self._model.dim

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the server's model; connects."""
        return self._model.fingerprint

    @property
    def accepts(self) -> tuple[type, ...]:
        """The input types that the server's model takes; connects."""
        return self._model.accepts

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that inputs may have; connects."""
        return self._model.roles

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._server.close()

    @property
    def _model(self) -> _Model:
        with self._connecting:
            if self._known is None:
                try:
                    self._known = _model_told(self._server.ask("GET", "/v1/model").json())
                except Refused as error:
                    raise error_told(error, self._server) from error
                except (ValueError, KeyError, TypeError) as error:
                    raise ABCRagError(
                        f"the server at {self.url} is none of abc-rag's; start one with abc-rag serve, or load another "
                        'one\'s embeddings by "openai:URL#MODEL"'
                    ) from error
            return self._known

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        rows = []
        with progress_bar("embedding", total=len(inputs), enabled=progress) as bar:
            for position, result in enumerate(self._embed_each(iter(inputs), batch_size=batch_size)):
                if isinstance(result, ABCRagError):
                    raise result.at(position) if isinstance(result, InputError) else result
                rows.append(result)
                bar.advance()
        return np.stack(rows)

    def _embed_each(self, inputs: Iterator[Input], *, batch_size: BatchSize) -> Iterator[Vectors | ABCRagError]:
        chunks = _chunked(inputs, min(self._model.max_inputs, _INPUTS if batch_size == "auto" else batch_size))
        first = next(chunks, None)
        second = next(chunks, None)
        if first is None:
            return
        if second is None:
            yield from self._results(first)
            return
        waiting: deque[Future[list[Vectors | ABCRagError]]] = deque()
        pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="abc-rag-remote")
        try:
            for chunk in itertools.chain([first, second], chunks):
                waiting.append(pool.submit(self._results, chunk))
                if len(waiting) == _AT_ONCE:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _results(self, chunk: Sequence[Input]) -> list[Vectors | ABCRagError]:
        """A vector or an error for each input of one request."""
        request = self._request(chunk)
        if request.inputs:
            try:
                told = self._told(request)
            except Refused as error:
                raise self._raised(error) from error
            vectors = np.frombuffer(base64.b64decode(told["vectors"]), "<f4").reshape(len(request.inputs), -1)
            for position, row in zip(request.positions, vectors.astype(np.float32), strict=True):
                request.results[position] = row
            for refusal in told["errors"]:
                position = request.positions[refusal["position"]]
                pictures = chunk[position].pictures
                name = describe_source(pictures[0]) if len(pictures) == 1 else None
                refused = Refused(400, refusal, str(refusal.get("message")))
                request.results[position] = error_told(refused, self._server, source=name)
        return [result for result in request.results if result is not None]

    def _told(self, request: _Request) -> dict[str, Any]:
        body = {"inputs": request.inputs, "errors": "each", "fingerprint": str(self._model.fingerprint)}
        for _ in range(_SENDS):
            try:
                told: dict[str, Any] = self._server.ask("POST", "/v1/vectors", json=body).json()
            except Refused as error:
                if error.error.get("code") != "blobs_missing":
                    raise
                for sha256 in error.error["missing"]:
                    self._server.ask("PUT", f"/v1/blobs/{sha256}", content=request.pictures[sha256])
                continue
            if _fingerprint(told) != self._model.fingerprint:
                raise FingerprintMismatchError(self._changed(str(_fingerprint(told))))
            return told
        raise ABCRagError(
            f"the server at {self.url} forgets pictures as soon as they are sent; give it more room for them "
            "(abc-rag serve --help), or send fewer at once"
        )

    def _raised(self, error: Refused) -> ABCRagError:
        if error.error.get("code") == "FingerprintMismatchError":
            there = error.error.get("fingerprint")
            return FingerprintMismatchError(self._changed(str(Fingerprint(**there)) if there else "another model"))
        return error_told(error, self._server)

    def _changed(self, there: str) -> str:
        return (
            f"the server at {self.url} has {there} now, and had {self._model.fingerprint} at first; load the embedder "
            "again, and use a store of that model's"
        )

    def _request(self, chunk: Sequence[Input]) -> _Request:
        request = _Request(results=[None] * len(chunk))
        for position, item in enumerate(chunk):
            try:
                told = self._item(item, request)
            except InputError as error:
                request.results[position] = error
            else:
                request.inputs.append(told)
                request.positions.append(position)
        return request

    def _item(self, item: Input, request: _Request) -> dict[str, Any]:
        if isinstance(item, InstructedText):
            return {"type": "instructed_text", "text": item.text, "instruction": item.instruction}
        if isinstance(item, Interleaved):
            parts = [
                {"type": "text", "text": part.text}
                if isinstance(part, Text)
                else {"type": "image", "image": self._picture(part.source, request)}
                for part in item.parts
            ]
            return {"type": "interleaved", "parts": parts, "role": item.role}
        if isinstance(item, InstructedImage):
            picture = self._picture(item.source, request)
            return {"type": "instructed_image", "image": picture, "instruction": item.instruction, "role": item.role}
        if isinstance(item, Image):
            return {"type": "image", "image": self._picture(item.source, request), "role": item.role}
        assert isinstance(item, Text)
        return {"type": "text", "text": item.text, "role": item.role}

    def _picture(self, source: ImageSource, request: _Request) -> dict[str, str]:
        if isinstance(source, PIL.Image.Image):
            data = as_png(source, limits=self._limits)
        else:
            data = read_bytes(source, limits=self._limits)
        most = self._model.max_picture_bytes
        if len(data) > most:
            raise ImageLimitError(
                describe_source(source),
                f"{len(data):,} bytes; the server takes {most:,}; shrink it, or raise that",
            )
        sha256 = hashlib.sha256(data).hexdigest()
        request.pictures[sha256] = data
        return {"sha256": sha256}


def _model_told(told: dict[str, Any]) -> _Model:
    kinds = {kind.__name__: kind for kind in INPUT_TYPES}
    limits = told["limits"]
    return _Model(
        fingerprint=_fingerprint(told),
        dim=int(told["dim"]),
        # A newer server may take what this version does not know.
        accepts=tuple(kinds[name] for name in told["accepts"] if name in kinds),
        roles=tuple(map(str, told["roles"])),
        max_inputs=max(1, int(limits["max_inputs"])),
        max_picture_bytes=int(limits["max_picture_bytes"]),
    )


def _fingerprint(told: dict[str, Any]) -> Fingerprint:
    return Fingerprint(**told["fingerprint"])


def _chunked(inputs: Iterator[Input], most: int) -> Iterator[list[Input]]:
    chunk: list[Input] = []
    characters = 0
    for item in inputs:
        length = len(item.words)
        if chunk and (len(chunk) == most or characters + length > _CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(item)
        characters += length
    if chunk:
        yield chunk
