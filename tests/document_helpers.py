"""What tests of documents share."""

from __future__ import annotations

from collections.abc import Callable

from abc_rag.ingest.documents import Part

ReadParts = Callable[..., list[Part]]
