"""What was found, as a model that generates reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from abc_rag.errors import ImageError, InputError
from abc_rag.models.tasks import Source
from abc_rag.search.pictures import Pictures
from abc_rag.types import Hit, Record

__all__ = ["LONGEST_PASSAGE", "name_of", "sources_of"]

LONGEST_PASSAGE = 4000
"""Characters of a passage that are read by default, about 1,000 tokens."""


def sources_of(hits: Sequence[Hit], pictures: Pictures, *, longest: int = LONGEST_PASSAGE) -> list[Source | InputError]:
    """Hits with their pictures opened; an error in the place of one that cannot be.

    Args:
        hits: What was found.
        pictures: Opens pictures.
        longest: Maximum characters of a passage or a caption; the rest is left out, and ``...`` says so.
    """
    shown = [hit.record for hit in hits if hit.modality == "image"]
    opened = iter([one for batch in pictures.batches(shown) for one in batch])
    sources: list[Source | InputError] = []
    for hit in hits:
        record = hit.record
        text = record.text.strip()
        if len(text) > longest:
            text = f"{text[:longest].rsplit(None, 1)[0]} ..."
        picture = next(opened) if record.modality == "image" else None
        if isinstance(picture, ImageError):
            sources.append(picture)
        elif picture is None and not text:
            sources.append(InputError(f"{record.id}: the passage has no text; index it again"))
        else:
            sources.append(Source(picture, text, name_of(record)))
    return sources


def name_of(record: Record) -> str:
    """Where a part of a document is from, such as ``"report.pdf, page 3"``; empty for anything else.

    A picture's own file name is not told: it may say what the picture shows, or give orders.
    """
    if not record.document:
        return ""
    name = os.path.basename(record.document.replace("\\", "/"))
    return name if record.page is None else f"{name}, page {record.page_label}"
