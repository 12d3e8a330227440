"""Records as answers show them: no path of the server is in them."""

from __future__ import annotations

import ntpath
from dataclasses import asdict
from typing import Any

from abc_rag.search.answer import Answer
from abc_rag.types import Hit, Record

__all__ = ["public_answer", "public_hit", "public_record"]


def _name(path: str) -> str:
    # Both kinds of separators: a store may come from another system.
    return ntpath.basename(path)


def public_record(record: Record) -> dict[str, Any]:
    """A record. ``name`` is that of the file that it came from, or the address of a picture on the web."""
    metadata = dict(record.metadata)
    given = metadata.get("name")
    if record.source_type == "url":
        name = record.source
    elif record.document:
        metadata["document"] = name = _name(record.document)
    else:
        name = given if isinstance(given, str) else _name(record.source)
    return {
        "id": record.id,
        "modality": record.modality,
        "name": name,
        "text": record.text,
        "metadata": metadata,
        "page": record.page,
        "box": record.box,
        "sha256": record.sha256,
        "mime_type": record.mime_type,
    }


def public_hit(hit: Hit) -> dict[str, Any]:
    """A hit: its record with score, facet, confidence and trace."""
    told = public_record(hit.record) | {"score": hit.score, "facet": hit.facet, "confidence": hit.confidence}
    if hit.trace is not None:
        trace = asdict(hit.trace)
        # A note may name the file that could not be opened.
        trace["note"] = trace["note"].replace(hit.record.source, _name(hit.record.source)) if hit.record.source else ""
        told["trace"] = trace
    return told


def public_answer(answer: Answer) -> dict[str, Any]:
    """The hits of a search, and what the question became."""
    return {
        "question": answer.question,
        "instruction": answer.instruction,
        "target": None if answer.rewrite is None else answer.rewrite.target,
        "confidence": answer.confidence,
        "notes": list(answer.notes),
        "hits": [public_hit(hit) for hit in answer],
    }
