"""Embedding ahead of whoever uses the vectors, with a bound on the pictures' bytes that are held meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.types import Input, Vectors

__all__ = ["Part", "embedded", "named"]

# Bytes of pictures that may be on their way.
_MOST_BYTES = 256 * 2**20


@dataclass
class Part:
    """What is used together.

    Attributes:
        inputs: What it needs embedded.
        held: The bytes that they hold.
    """

    inputs: Sequence[Input]
    held: int


P = TypeVar("P", bound=Part)


def embedded(
    embedder: Embedder, parts: Iterator[P | None]
) -> Generator[tuple[P, list[Vectors | ABCRagError]], None, None]:
    """Each part with what came of its inputs, in order, while the embedder computes later ones.

    Args:
        embedder: Makes the vectors.
        parts: Made as they are asked for, in the thread of the caller. None says that whatever follows can only be
            made when all before it has been used.

    Yields:
        A part, and a vector or an error for each of its inputs.
    """
    for first in parts:
        if first is None:
            continue
        if not first.inputs:  # no reason to load a model
            yield first, []
            continue
        waiting: deque[P] = deque([first])
        results: list[Vectors | ABCRagError] = []
        stream = embedder.embed_iter(_inputs(waiting, parts), return_errors=True)
        try:
            for result in stream:
                results.append(result)
                while waiting and len(results) == len(waiting[0].inputs):
                    part, finished, results = waiting.popleft(), results, []
                    yield part, finished
        finally:
            if isinstance(stream, Generator):  # gives up what has not begun
                stream.close()
        for part in waiting:  # one without inputs
            yield part, []


def _inputs(waiting: deque[P], parts: Iterator[P | None]) -> Iterator[Input]:
    yield from waiting[0].inputs
    while sum(part.held for part in waiting) < _MOST_BYTES and (part := next(parts, None)) is not None:
        waiting.append(part)
        yield from part.inputs
        if not part.inputs:
            return


def named(error: ABCRagError, name: str) -> InputError:
    """The error of one input, under the name of the picture and not of its bytes or of its place in a stream.

    Raises:
        ABCRagError: The error is of another kind, such as a model that cannot compute.
    """
    if isinstance(error, ImageError):
        return type(error)(name, error.reason)
    if isinstance(error, InputError):
        return error.at(None)
    raise error
