"""The seam that everything else stands on: inputs in, unit vectors out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from abc_rag.errors import ABCRagError, InputError
from abc_rag.types import URL, DataURI, Fingerprint, Image, ImageSource, Input, InstructedImage, Text

__all__ = ["BatchSize", "Embedder", "Vectors"]

Vectors = npt.NDArray[np.float32]
BatchSize = int | Literal["auto"]

_UNIT_TOLERANCE = 1e-2


class Embedder(ABC):
    """Turns typed inputs into unit vectors of one space.

    A subclass implements `dim`, `fingerprint` and `_embed`; this class checks inputs and results.
    Implementations are safe to call from many threads at once.
    """

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of a vector."""

    @property
    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Which model, revision and resolution make these vectors."""

    @abstractmethod
    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        """Embed checked inputs; return float32 of shape ``(len(inputs), dim)``, unit rows, in order."""

    def embed(self, inputs: Iterable[Input], *, batch_size: BatchSize = "auto", progress: bool = False) -> Vectors:
        """Embed any mix of texts, pictures and pictures with instructions.

        Args:
            inputs: `Text`, `Image` and `InstructedImage` values, in any mix.
            batch_size: Most items computed at once; ``"auto"`` bounds the tokens in flight instead.
                The result does not depend on it.
            progress: Show a progress bar with rate and time left on standard error.

        Returns:
            float32 array of shape ``(n, dim)``; row ``i`` is the unit vector of input ``i``.

        Raises:
            InputError: An input is not one of the three types, or cannot be used; the message says which.
            ImageError: A picture cannot be opened or exceeds a limit.
        """
        _refuse_single(inputs, (str, bytes, Text, Image, InstructedImage), "inputs")
        items = list(inputs)
        for position, item in enumerate(items):
            if not isinstance(item, (Text, Image, InstructedImage)):
                raise InputError(
                    f"input {position} is a {type(item).__name__}; wrap it as abc_rag.Text(text), "
                    "abc_rag.Image(source) or abc_rag.InstructedImage(source, instruction)"
                )
        if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"batch_size must be 'auto' or a positive int, not {batch_size!r}")
        if not items:
            return np.zeros((0, self.dim), dtype=np.float32)
        vectors = self._embed(items, batch_size=batch_size, progress=progress)
        self._check(vectors, len(items))
        return vectors

    def _check(self, vectors: Vectors, count: int) -> None:
        """Refuse what would spoil a store: rows too few, of another length, or of no unit length (NaN included)."""
        wanted = (count, self.dim)
        if vectors.shape != wanted or vectors.dtype != np.float32:
            raise ABCRagError(
                f"{type(self).__name__} returned {vectors.dtype} of shape {vectors.shape}; expected float32 of {wanted}"
            )
        lengths = np.linalg.norm(vectors, axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < _UNIT_TOLERANCE))
        if len(wrong):
            remedy = (
                "" if np.isfinite(lengths[wrong[0]]) else "; if this is dtype='float16', use 'bfloat16' or 'float32'"
            )
            raise ABCRagError(
                f"{type(self).__name__} returned a vector of length {lengths[wrong[0]]:.4g} for input {wrong[0]}; "
                f"expected unit vectors{remedy}"
            )

    def embed_texts(self, texts: Iterable[str], *, batch_size: BatchSize = "auto", progress: bool = False) -> Vectors:
        """Embed passages; shape ``(n, dim)``. See `embed`."""
        _refuse_single(texts, str, "texts")
        return self.embed([Text(t) for t in texts], batch_size=batch_size, progress=progress)

    def embed_images(
        self,
        images: Iterable[ImageSource],
        *,
        instruction: str | None = None,
        batch_size: BatchSize = "auto",
        progress: bool = False,
    ) -> Vectors:
        """Embed pictures, all under one instruction where one is given; shape ``(n, dim)``. See `embed`."""
        _refuse_single(images, (str, bytes, os.PathLike, URL, DataURI), "images")
        inputs: list[Input] = [
            Image(source) if instruction is None else InstructedImage(source, instruction) for source in images
        ]
        return self.embed(inputs, batch_size=batch_size, progress=progress)


def _refuse_single(values: object, single: type | tuple[type, ...], name: str) -> None:
    # A str is an iterable of its letters and bytes of ints: both would be embedded one by one.
    if isinstance(values, single) or not isinstance(values, Iterable):
        raise InputError(f"{name} must be a list; got a single {type(values).__name__}: pass [{name[:-1]}]")
