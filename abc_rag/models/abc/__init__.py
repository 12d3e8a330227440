"""ABC (arXiv 2503.00329)."""

from __future__ import annotations

from abc_rag.models.abc.loader import ABCCheckpoint

__all__ = ["ABCCheckpoint"]
