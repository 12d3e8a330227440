"""What an indexing run did."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["IndexReport"]


@dataclass
class IndexReport:
    """What an indexing run did.

    Attributes:
        added: Pictures and passages that were embedded and stored.
        unchanged: Those that were stored already.
        removed: Stored ones whose file now holds something else or, with ``prune``, is gone.
        failed: (file, reason) of each file that could not be used.
        facets: Vectors under instructions that were added to pictures.
        left_out: How many files and folders were passed over, by reason: ``{"hidden": 2, "PDF": 7}``. A folder counts
            once, whatever it holds.
    """

    added: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    facets: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
