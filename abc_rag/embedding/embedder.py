"""The seam of every embedder: inputs in, unit vectors out."""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.progress import progress_bar
from abc_rag.embedding.threads import in_thread
from abc_rag.errors import ABCRagError, InputError
from abc_rag.types import (
    BASIC_TYPES,
    INPUT_TYPES,
    ROLES,
    URL,
    DataURI,
    Fingerprint,
    Image,
    ImageSource,
    Input,
    InstructedImage,
    MaskedImage,
    Text,
    Vectors,
)

__all__ = ["UNIT_TOLERANCE", "BatchSize", "Embedder"]

BatchSize = int | Literal["auto"]

UNIT_TOLERANCE = 1e-2
"""How far the length of a vector may be from 1."""
_LEAST_LENGTH = 1e-12  # prevents a division by zero
# Inputs embedded together by an embedder without a stream of its own.
_CHUNK = 64


class Embedder(ABC):
    """Turns typed inputs into unit vectors of one space.

    A subclass implements `dim`, `fingerprint` and `_embed`; this class checks inputs and results. Where an input
    cannot be embedded, `_embed` raises ``InputError(reason).at(position)``. Implementations are safe to call from many
    threads at once.
    """

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of a vector."""

    @property
    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Which model, revision and resolution make these vectors."""

    @property
    def accepts(self) -> tuple[type, ...]:
        """The input types that can be embedded."""
        return BASIC_TYPES

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that inputs may have: ``"document"``, ``"query"``, and names of further prompts of the model."""
        return ROLES

    def grid(self, source: ImageSource) -> tuple[int, int]:
        """Rows and columns of a picture's image tokens, of which a `MaskedImage` leaves out some.

        Raises:
            InputError: This model cannot leave out any.
            ImageError: The picture cannot be opened.
        """
        raise InputError(
            f"{self.fingerprint.model} cannot leave out parts of a picture; models of the ABC family can, loaded on "
            'this machine: load_embedder("abc"), "abc-mini" or a folder of your own'
        )

    @abstractmethod
    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        """Embed checked inputs; return float32 of shape ``(len(inputs), dim)``, unit rows, in order."""

    def embed(self, inputs: Iterable[Input], *, batch_size: BatchSize = "auto", progress: bool = False) -> Vectors:
        """Embed any mix of texts, pictures and pictures with instructions.

        Args:
            inputs: `Text`, `Image` and `InstructedImage` values, in any mix; and `InstructedText` and `Interleaved`
                where `accepts` has them.
            batch_size: Maximum inputs in a batch; ``"auto"`` bounds the tokens instead. The result does not depend on
                it.
            progress: Show a progress bar with rate and time left on standard error.

        Returns:
            float32 array of shape ``(n, dim)``; row ``i`` is the unit vector of input ``i``.

        Raises:
            InputError: An input is not of an accepted type or cannot be used; the message gives its position.
            ImageError: A picture cannot be opened or exceeds a limit.
        """
        items = self._checked(inputs, batch_size)
        if not items:
            return np.zeros((0, self.dim), dtype=np.float32)
        vectors = self._embed(items, batch_size=batch_size, progress=progress)
        self._check(vectors, len(items), self.dim)
        return vectors

    async def aembed(self, inputs: Iterable[Input], *, batch_size: BatchSize = "auto") -> Vectors:
        """`embed` for event loops: other tasks keep running, and a cancelled call drops what has not begun."""
        items = self._checked(inputs, batch_size)
        if not items:
            return np.zeros((0, await in_thread(lambda: self.dim)), dtype=np.float32)
        vectors = await self._aembed(items, batch_size=batch_size)
        self._check(vectors, len(items), self.dim)
        return vectors

    @overload
    def embed_iter(
        self,
        inputs: Iterable[Input],
        *,
        batch_size: BatchSize = "auto",
        progress: bool = False,
        total: int | None = None,
        return_errors: Literal[False] = False,
    ) -> Iterator[Vectors]: ...

    @overload
    def embed_iter(
        self,
        inputs: Iterable[Input],
        *,
        batch_size: BatchSize = "auto",
        progress: bool = False,
        total: int | None = None,
        return_errors: Literal[True],
    ) -> Iterator[Vectors | ABCRagError]: ...

    def embed_iter(
        self,
        inputs: Iterable[Input],
        *,
        batch_size: BatchSize = "auto",
        progress: bool = False,
        total: int | None = None,
        return_errors: bool = False,
    ) -> Iterator[Vectors | ABCRagError]:
        """Embed a stream of any length in bounded memory, a little ahead of the code that takes the vectors.

        Inputs are taken from ``inputs`` in the caller's thread, in order, when there is room for them. Closing the
        iterator, or an exception in the loop over it, drops what has not begun. Vectors come in the order of the
        inputs, so a loop that counts them can resume where it stopped.

        Args:
            inputs: Any mix of inputs; a generator is read only as far as needed.
            batch_size: As for `embed`.
            progress: Show a progress bar with rate and, where ``total`` or the inputs' length is known, time left.
            total: Number of inputs, for the progress bar.
            return_errors: Yield the error of an input that cannot be embedded in place of its vector, and continue.

        Yields:
            One float32 unit vector of shape ``(dim,)`` per input, in order.

        Raises:
            InputError: An input cannot be used, and ``return_errors`` is false. The vectors before it were yielded.
            ImageError: As above, for a picture.
        """
        _refuse_single(inputs, (str, bytes, *INPUT_TYPES), "inputs")
        _check_batch_size(batch_size)
        if total is None and isinstance(inputs, Sequence):
            total = len(inputs)
        return self._stream(iter(inputs), batch_size, progress, total, return_errors)

    def _stream(
        self, inputs: Iterator[Input], batch_size: BatchSize, progress: bool, total: int | None, return_errors: bool
    ) -> Iterator[Vectors | ABCRagError]:
        pulled: deque[InputError | None] = deque()

        def usable() -> Iterator[Input]:
            for position, item in enumerate(inputs):
                pulled.append(self._wrong_type(position, item))
                if pulled[-1] is None:
                    yield item

        position, dim = 0, None
        with progress_bar("embedding", total=total, enabled=True) if progress else nullcontext() as bar:
            for result in itertools.chain(self._embed_each(usable(), batch_size=batch_size), [None]):
                while pulled and (wrong := pulled.popleft()) is not None:
                    yield _given(wrong, return_errors)
                    if bar is not None:
                        bar.advance()
                    position += 1
                if result is None:
                    return
                if isinstance(result, ABCRagError):
                    if isinstance(result, InputError) or result.position is not None:
                        result = result.at(position)
                    result = _given(result, return_errors)
                else:
                    dim = dim or self.dim
                    self._check(result[None], 1, dim, first=position)
                yield result
                if bar is not None:
                    bar.advance()
                position += 1

    def _embed_each(self, inputs: Iterator[Input], *, batch_size: BatchSize) -> Iterator[Vectors | ABCRagError]:
        """The vector of each input, or its error, in order; `embed_iter` sets the position of an error.

        An embedder that computes ahead overrides this.
        """
        while chunk := list(itertools.islice(inputs, _CHUNK)):
            yield from self._embed_halving(chunk, batch_size)

    def _embed_halving(self, inputs: list[Input], batch_size: BatchSize) -> Iterator[Vectors | ABCRagError]:
        """Embed a batch; if an input cannot be embedded, halve the batch until that input is alone."""
        try:
            yield from self._embed(inputs, batch_size=batch_size, progress=False)
        except InputError as error:
            if len(inputs) == 1:
                # An embedder from elsewhere may write the position into the message.
                yield InputError(str(error.at(None)).removeprefix("input 0: ")) if type(error) is InputError else error
                return
            middle = len(inputs) // 2
            yield from self._embed_halving(inputs[:middle], batch_size)
            yield from self._embed_halving(inputs[middle:], batch_size)

    async def _aembed(self, inputs: Sequence[Input], *, batch_size: BatchSize) -> Vectors:
        """`_embed` without blocking the event loop."""
        return await in_thread(partial(self._embed, inputs, batch_size=batch_size, progress=False))

    def _checked(self, inputs: Iterable[Input], batch_size: BatchSize) -> list[Input]:
        _refuse_single(inputs, (str, bytes, *INPUT_TYPES), "inputs")
        items = list(inputs)
        for position, item in enumerate(items):
            if error := self._wrong_type(position, item):
                raise error
        _check_batch_size(batch_size)
        return items

    def _wrong_type(self, position: int, item: object) -> InputError | None:
        # The basic types come first, because asking for the others may load a model.
        known = (*INPUT_TYPES, MaskedImage)
        if isinstance(item, BASIC_TYPES) or (isinstance(item, known) and isinstance(item, self.accepts)):
            role: str = item.role  # type: ignore[attr-defined]  # tuples of types tell mypy nothing
            if role in ROLES or role in self.roles:
                return None
            return InputError(
                f"input {position} has role {role!r}, which {self.fingerprint.model} does not know; it knows "
                f"{', '.join(self.roles)}"
            )
        if isinstance(item, known):
            return InputError(
                f"input {position} is {_with_article(type(item))}, which {self.fingerprint.model} does not take; it "
                f"takes {', '.join(kind.__name__ for kind in self.accepts)}"
            )
        return InputError(
            f"input {position} is a {type(item).__name__}; wrap it as abc_rag.Text(text), "
            "abc_rag.Image(source) or abc_rag.InstructedImage(source, instruction)"
        )

    def _check(self, vectors: Vectors, count: int, dim: int, *, first: int = 0) -> None:
        """Refuse rows that would spoil a store: too few, of another dimension, or not of unit length (NaN included)."""
        wanted = (count, dim)
        if vectors.shape != wanted or vectors.dtype != np.float32:
            raise ABCRagError(
                f"{type(self).__name__} returned {vectors.dtype} of shape {vectors.shape}; expected float32 of {wanted}"
            )
        lengths = np.linalg.norm(vectors, axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < UNIT_TOLERANCE))
        if len(wrong):
            remedy = (
                "" if np.isfinite(lengths[wrong[0]]) else "; if this is dtype='float16', use 'bfloat16' or 'float32'"
            )
            raise ABCRagError(
                f"{type(self).__name__} returned a vector of length {lengths[wrong[0]]:.4g} for input "
                f"{first + wrong[0]}; expected unit vectors{remedy}"
            )

    def similarity(self, first: npt.ArrayLike, second: npt.ArrayLike) -> Vectors:
        """Cosine similarity of each of the first vectors with each of the second.

        Args:
            first: Vectors of shape ``(n, dim)``, or one of shape ``(dim,)``.
            second: Vectors of shape ``(m, dim)``, or one of shape ``(dim,)``.

        Returns:
            float32 of shape ``(n, m)``, in [-1, 1]; a single vector has no axis in the result.

        Raises:
            InputError: The arguments are no vectors, or of different dimension.
        """
        try:
            a, b = (np.asarray(vectors, dtype=np.float32) for vectors in (first, second))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"similarity compares vectors (dim,) or (n, dim), not {type(first).__name__} with "
                f"{type(second).__name__} ({error}); pass what embed returned"
            ) from error
        if not (a.ndim in (1, 2) and b.ndim in (1, 2) and a.shape[-1] == b.shape[-1]):
            raise InputError(
                f"similarity compares vectors (dim,) or (n, dim) of one length, not {a.shape} with {b.shape}; "
                "pass what embed returned"
            )
        lengths = [np.linalg.norm(vectors, axis=-1, keepdims=True) for vectors in (a, b)]
        a, b = (vectors / np.maximum(length, _LEAST_LENGTH) for vectors, length in zip((a, b), lengths, strict=True))
        cosines: Vectors = np.asarray(np.clip(a @ b.T, -1.0, 1.0), dtype=np.float32)
        return cosines

    def embed_texts(
        self,
        texts: Iterable[str],
        *,
        role: str = "document",
        batch_size: BatchSize = "auto",
        progress: bool = False,
    ) -> Vectors:
        """Embed passages, or with ``role="query"`` questions; shape ``(n, dim)``. See `embed`."""
        _refuse_single(texts, str, "texts")
        return self.embed([Text(t, role=role) for t in texts], batch_size=batch_size, progress=progress)

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


def _with_article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"


def _given(error: ABCRagError, return_errors: bool) -> ABCRagError:
    if not return_errors:
        raise error
    return error


def _check_batch_size(batch_size: BatchSize) -> None:
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size must be 'auto' or a positive int, not {batch_size!r}")


def _refuse_single(values: object, single: type | tuple[type, ...], name: str) -> None:
    # A str is an iterable of its letters and bytes of ints: both would be embedded one by one.
    if isinstance(values, single) or not isinstance(values, Iterable):
        raise InputError(f"{name} must be a list; got a single {type(values).__name__}: pass [{name[:-1]}]")
