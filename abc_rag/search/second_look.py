"""The second look: pictures that were found are embedded again, under the instruction of the question.

The second look's scores are fused with those of the first search as ``first + w * (second - mean(second) - (first -
mean(first)))``, with both means over the pictures that were looked at. So pictures move among themselves and, as far
as one of them stands out from the others, against passages; their mean stays where it was. A picture under an
instruction is nearer to a phrase than a picture is, so adding the plain score would lift every picture above every
passage.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from abc_rag.embedding.ahead import named
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import ABCRagError, ImageError
from abc_rag.search.pictures import Pictures
from abc_rag.store.base import Store
from abc_rag.types import Hit, InstructedImage, Record, Vectors

__all__ = ["Looker", "look_again", "seen_under"]

logger = logging.getLogger(__name__)


class Looker(Protocol):
    """Who looks.

    Attributes:
        embedder: Made the store's vectors.
        store: Has the vectors of facets.
        pictures: Opens pictures.
        weight: Of the second look against the first search, in [0, 1]; ``w`` above.
    """

    embedder: Embedder
    store: Store
    pictures: Pictures
    weight: float


def look_again(looker: Looker, hits: Sequence[Hit], instruction: str, vector: Vectors) -> list[Hit]:
    """Fuse the scores of pictures with those that they have under the instruction; best first.

    Args:
        looker: Such as a retriever.
        hits: Of the first search.
        instruction: What to look at.
        vector: Of the query, shape ``(dim,)`` and unit length.
    """
    pictures = [hit for hit in hits if hit.record.modality == "image"]
    seen, notes = seen_under(looker, [hit.record for hit in pictures], instruction)
    second = {id_: (1.0 + float(np.clip(row @ vector, -1.0, 1.0))) / 2.0 for id_, row in seen.items()}
    # By how much a picture stands out from the others, not by how high all of them are: see above.
    firsts = [hit.score for hit in pictures if hit.record.id in second]
    shift = float(np.mean(list(second.values())) - np.mean(firsts)) if firsts else 0.0
    looked = []
    for hit in hits:
        id_, score, traced = hit.record.id, hit.score, hit.trace
        if id_ in second:
            score = min(1.0, max(0.0, score + looker.weight * (second[id_] - shift - score)))
        if traced is not None and hit.record.modality == "image":
            note = notes.get(id_, "")
            traced = replace(traced, instruction=instruction, second=second.get(id_), note=note)
        looked.append(replace(hit, score=score, trace=traced))
    return sorted(looked, key=lambda hit: (-hit.score, hit.record.id))


def seen_under(
    looker: Looker, pictures: Sequence[Record], instruction: str
) -> tuple[dict[str, Vectors], dict[str, str]]:
    """Vectors of pictures under an instruction, and why the others have none; by id.

    Those that have a facet of that instruction are read from the store, the others are opened and embedded. A warning
    is logged for each that cannot be.
    """
    seen = looker.store.facet_vectors([record.id for record in pictures], instruction)
    notes: dict[str, str] = {}
    unseen = [record for record in pictures if record.id not in seen]
    waiting = iter(unseen)
    for batch in looker.pictures.batches(unseen):
        records, contents = [], []
        for content, record in zip(batch, waiting, strict=False):
            if isinstance(content, ImageError):
                notes[record.id] = str(content)
            else:
                records.append(record)
                contents.append(content)
        looks = [InstructedImage(content, instruction) for content in contents]
        for record, result in zip(records, list(looker.embedder.embed_iter(looks, return_errors=True)), strict=True):
            if isinstance(result, ABCRagError):
                error = named(result, record.source)
                notes[record.id] = str(error) if isinstance(error, ImageError) else f"{record.id}: {error}"
            else:
                seen[record.id] = result
    for note in notes.values():
        logger.warning("no second look at a picture that was found: %s", note)
    return seen, notes
