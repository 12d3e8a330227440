"""The units that move through the engine: a call, each of its inputs, and each distinct content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from abc_rag.models.chat import Conversation
from abc_rag.models.family import Prepared
from abc_rag.types import Input, Vectors

__all__ = ["Item", "Request", "Ticket", "Work"]

Item = Input | Conversation
"""What is prepared for the model."""


@dataclass(eq=False)
class Ticket:
    """One input of one call."""

    request: Request
    position: int
    item: Item


@dataclass(eq=False)
class Work:
    """One distinct content: computed once, for every ticket that asks for it.

    Attributes:
        key: Hash of the content.
        tickets: The inputs with this content.
        small: Whether a small call waits for it.
        prepared: The network's input, from the end of preparation until there is a result.
        tokens: Length of the sequence that the language model sees.
        since: When it became ready, on the monotonic clock.
        held_bytes: Bytes of its opened pictures.
    """

    key: bytes
    tickets: list[Ticket]
    small: bool = False
    prepared: Prepared | None = None
    tokens: int = 0
    since: float = 0.0
    held_bytes: int = 0


@dataclass(eq=False)
class Request:
    """One call and its results.

    Attributes:
        small: The call has few inputs, so somebody is probably waiting for the answer.
        max_items: Maximum inputs in one batch, or None.
        changed: Called under the lock when there is a result or room for another input.
        results: Position -> vector or error. The caller removes what it takes.
        waiting: How many inputs are submitted and have no result yet.
        closed: The caller has given up; its remaining inputs need not be computed.
        tokens: Tokens that the model read for the results so far.
    """

    small: bool
    max_items: int | None
    changed: Callable[[], None]
    results: dict[int, Vectors | BaseException] = field(default_factory=dict)
    waiting: int = 0
    closed: bool = False
    tokens: int = 0
