"""Embeds ahead of the code that uses the vectors, with a bound on the bytes of pictures held meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.types import Input, Vectors

__all__ = ["Part", "embedded", "named"]

# Maximum bytes of pictures held at a time.
_MOST_BYTES = 256 * 2**20


@dataclass
class Part:
    """Inputs whose vectors are used together, such as a picture and its facets.

    Attributes:
        inputs: The inputs.
        held: Their bytes in memory.
    """

    inputs: Sequence[Input]
    held: int


P = TypeVar("P", bound=Part)


def embedded(
    embedder: Embedder, parts: Iterator[P | None]
) -> Generator[tuple[P, list[Vectors | ABCRagError]], None, None]:
    """Embed parts in order; later parts are computed while the caller uses earlier ones.

    Args:
        embedder: The embedder.
        parts: The parts, made on demand in the caller's thread. None means that the next part can only be made after
            all parts before it have been used.

    Yields:
        Each part, with a vector or an error for each of its inputs.
    """
    for first in parts:
        if first is None:
            continue
        if not first.inputs:  # so the model need not be loaded
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
            if isinstance(stream, Generator):  # ends what has not begun
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
    """An input's error under the name of its picture, without a position.

    Raises:
        ABCRagError: The error is not about the input, such as that of a model that cannot compute.
    """
    if isinstance(error, ImageError):
        return type(error)(name, error.reason)
    if isinstance(error, InputError):
        return error.at(None)
    raise error
