"""Text as it comes, and what it is at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from typing_extensions import Self

__all__ = ["AsyncTextStream", "TextStream"]

R = TypeVar("R")
Ended = Callable[[str, Any], R]
"""From the whole text, and what came behind its last piece, to the result."""


class TextStream(Iterator[str], Generic[R]):
    """A text as it comes: an iterator of its pieces. Closing it, or leaving its ``with``, ends the text.

    Args:
        parts: The pieces, of which empty ones are left out, and something else at the end.
        ended: Makes the result.

    Attributes:
        result: Once the iterator is exhausted, what has become of it; None before.
    """

    def __init__(self, parts: Iterator[Any], ended: Ended[R]) -> None:
        self._parts = parts
        self._ended = ended
        self._said: list[str] = []
        self.result: R | None = None

    def __next__(self) -> str:
        while (part := next(self._parts)) == "":
            pass
        if isinstance(part, str):
            self._said.append(part)
            return part
        self.result = self._ended("".join(self._said), part)
        self.close()
        raise StopIteration

    def whole(self) -> R:
        """The result, after reading to the end."""
        with self:
            for _ in self:
                pass
        assert self.result is not None
        return self.result

    def close(self) -> None:
        """End the text at its next token."""
        if close := getattr(self._parts, "close", None):
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncTextStream(AsyncIterator[str], Generic[R]):
    """`TextStream` for event loops."""

    def __init__(self, parts: AsyncIterator[Any], ended: Ended[R]) -> None:
        self._parts = parts
        self._ended = ended
        self._said: list[str] = []
        self.result: R | None = None

    async def __anext__(self) -> str:
        while (part := await anext(self._parts)) == "":
            pass
        if isinstance(part, str):
            self._said.append(part)
            return part
        self.result = self._ended("".join(self._said), part)
        await self.aclose()
        raise StopAsyncIteration

    async def whole(self) -> R:
        """The result, after reading to the end."""
        async with self:
            async for _ in self:
                pass
        assert self.result is not None
        return self.result

    async def aclose(self) -> None:
        """End the text at its next token."""
        if close := getattr(self._parts, "aclose", None):
            await close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
