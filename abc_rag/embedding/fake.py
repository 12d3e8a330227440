"""Stand-ins for tests: an embedder that needs no model.

>>> from abc_rag import Text
>>> from abc_rag.embedding.fake import FakeEmbedder
>>> FakeEmbedder(dim=8).embed([Text("a red bicycle")]).shape
(1, 8)
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import os
import re
import urllib.parse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.errors import ImageFetchError, ImageFormatError, InputError
from abc_rag.types import (
    INPUT_TYPES,
    URL,
    DataURI,
    Fingerprint,
    ImageSource,
    Input,
    InstructedImage,
    InstructedText,
    Interleaved,
    Text,
    Vectors,
)

if TYPE_CHECKING:
    import PIL.Image

    from abc_rag.images.limits import ImageLimits

__all__ = ["FakeEmbedder"]


class FakeEmbedder(Embedder):
    """A deterministic `Embedder` without a network, for tests of what stands on one.

    A text's vector is the normalised sum of its words' vectors, so texts that share words are close. A picture's
    vector depends on its pixels alone: a path, its bytes and the opened image agree. A picture with an instruction
    lies between the picture and the instruction's text. Equal inputs have equal vectors, in every process and on every
    machine.

    Bytes that do not begin like a picture are used as they are, so tests need no real pictures. Bytes that do, and are
    broken, are refused. A `URL` is never fetched: its address stands for the picture.

    Args:
        dim: Length of a vector.
        model: Name in the fingerprint; another name also means other vectors.
    """

    def __init__(self, dim: int = 32, model: str = "fake") -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise InputError(f"dim must be a positive int, not {dim!r}")
        self._dim = dim
        self._model = model

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def fingerprint(self) -> Fingerprint:
        """The fake's name and dimension in place of a model's."""
        return Fingerprint(model=self._model, revision=f"fake-{self._dim}", min_tokens=1, max_tokens=1)

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        return np.stack([self._vector(item) for item in inputs]).astype(np.float32)

    @property
    def accepts(self) -> tuple[type, ...]:
        """All types."""
        return INPUT_TYPES

    def _vector(self, item: Input) -> Vectors:
        if isinstance(item, Text):
            return self._text(item.text)
        if isinstance(item, InstructedText):
            return _unit(self._text(item.text) + self._text(item.instruction))
        if isinstance(item, Interleaved):
            # Weighted, so that the order matters.
            return _unit(np.sum([self._vector(part) / (2 + n) for n, part in enumerate(item.parts)], axis=0))
        picture = self._hashed("picture", _content(item.source))
        if not isinstance(item, InstructedImage):
            return picture
        # The mark distinguishes an empty instruction from none.
        mark = self._hashed("instruction", b"")
        return _unit(picture + self._text(item.instruction) + 0.1 * mark)

    def _text(self, text: str) -> Vectors:
        words = re.findall(r"\w+", text.lower()) or [text]
        return _unit(np.sum([self._hashed("word", word.encode("utf-8", "surrogatepass")) for word in words], axis=0))

    def _hashed(self, kind: str, content: bytes) -> Vectors:
        return _random_unit(f"{self._model}\0{kind}\0".encode() + hashlib.sha256(content).digest(), self._dim)


@functools.lru_cache(maxsize=4096)
def _random_unit(seed: bytes, dim: int) -> Vectors:
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(seed).digest(), "big"))
    vector = _unit(generator.standard_normal(dim, dtype=np.float32))
    vector.setflags(write=False)  # shared by all callers
    return vector


def _unit(vector: Vectors) -> Vectors:
    unit: Vectors = vector / np.linalg.norm(vector)
    return unit


def _content(source: ImageSource) -> bytes:
    """What a picture is, whichever way it is given: its size and pixels, or else its bytes."""
    if isinstance(source, URL):
        return b"url:" + source.url.encode("utf-8", "surrogatepass")
    if isinstance(source, DataURI):
        head, _, body = source.uri.partition(",")
        try:
            data = base64.b64decode(body) if head.endswith(";base64") else urllib.parse.unquote_to_bytes(body)
        except binascii.Error as error:
            raise ImageFormatError("data URI", f"its base64 is broken ({error}); encode it again") from error
    elif isinstance(source, bytes):
        data = source
    elif isinstance(source, (str, os.PathLike)):
        try:
            with open(source, "rb") as file:
                data = file.read()
        except (OSError, ValueError) as error:
            raise ImageFetchError(os.fspath(source), f"cannot be read ({error}); correct the path") from error
    else:
        return _pixels(source, source)

    from abc_rag.images.formats import format_of

    return data if format_of(data) is None else _pixels(data, source)


def _pixels(picture: bytes | PIL.Image.Image, source: ImageSource) -> bytes:
    from abc_rag.images.open import open_image
    from abc_rag.images.read import describe_source

    image = open_image(picture, limits=_any_size(), name=describe_source(source)).image
    return f"{image.size}".encode() + image.tobytes()


def _any_size() -> ImageLimits:
    from abc_rag.images.limits import ImageLimits

    most = 2**62
    return ImageLimits(max_bytes=most, max_pixels=most, max_aspect_ratio=1e9, max_frames=most)
