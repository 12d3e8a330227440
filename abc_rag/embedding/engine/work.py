"""What moves through an engine: calls, their inputs, and the distinct contents that are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from abc_rag.models.family import Prepared
from abc_rag.types import Input, Vectors

__all__ = ["Request", "Ticket", "Work"]


@dataclass(eq=False)
class Ticket:
    """One input of one call."""

    request: Request
    position: int
    item: Input


@dataclass(eq=False)
class Work:
    """One distinct content: computed once, for every ticket that asks for it.

    Attributes:
        key: Hash of the content.
        tickets: Who waits for it.
        prepared: What the network takes, from the end of preparation until there is a result.
        tokens: Length of the sequence that the language model sees.
        since: When it became ready, on the monotonic clock.
        held_bytes: Bytes of its opened pictures.
    """

    key: bytes
    tickets: list[Ticket]
    prepared: Prepared | None = None
    tokens: int = 0
    since: float = 0.0
    held_bytes: int = 0

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return any(not ticket.request.closed for ticket in self.tickets)

    @property
    def small(self) -> bool:
        """Whether a call with few inputs waits for it."""
        return any(ticket.request.small for ticket in self.tickets)


@dataclass(eq=False)
class Request:
    """One call: what it has given, and what has come of it.

    Attributes:
        small: It has few inputs.
        max_items: Most inputs in one batch, or None.
        changed: Called, under the lock, when there is a result or room.
        results: Position -> vector or error; whoever takes one removes it.
        waiting: How many inputs are on their way.
        closed: Nobody wants the rest.
    """

    small: bool
    max_items: int | None
    changed: Callable[[], None]
    results: dict[int, Vectors | BaseException] = field(default_factory=dict)
    waiting: int = 0
    closed: bool = False
