"""Facet algebra: pictures that are like another in some respects, and unlike it in others.

"The same thing on another background": the picture that is asked with and those that were found are seen under each
instruction. A candidate's score is the mean of how near it is under each instruction of ``same``, and of how far under
each of ``different``; both are distances in the same space, from 0 to 1. How like the picture it is as a whole does not
count: candidates are what the plain search finds, and among these only the respects that were named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from abc_rag.errors import InputError
from abc_rag.search.second_look import Looker, seen_under
from abc_rag.types import Hit, ImageSource, InstructedImage

__all__ = ["alike", "checked_respects"]


def checked_respects(same: Sequence[str], different: Sequence[str]) -> None:
    """Check the instructions of `alike`.

    Raises:
        InputError: One of the arguments is no list of texts, an instruction is blank, or it is in both.
    """
    for name, instructions in (("same", same), ("different", different)):
        if isinstance(instructions, str) or not all(isinstance(one, str) and one.strip() for one in instructions):
            raise InputError(f"{name} must be a list of instructions, such as ['what is on the left?']; none is blank")
    if both := set(same) & set(different):
        raise InputError(f"{min(both)!r} is in same and in different; nothing is both")


def alike(
    looker: Looker, hits: Sequence[Hit], image: ImageSource, same: Sequence[str], different: Sequence[str]
) -> list[Hit]:
    """Score pictures by how like one they are under some instructions, and how unlike under others; best first.

    One embedding for each picture and instruction, where the store has no facet of it.

    Args:
        looker: Such as a retriever.
        hits: Pictures that were found. One that cannot be opened comes last, and a warning is logged.
        image: What they are compared with.
        same: Instructions.
        different: Further instructions.
    """
    told = [*same, *different]
    own = looker.embedder.embed([InstructedImage(image, instruction, role="query") for instruction in told])
    parts: dict[str, list[float]] = {hit.id: [] for hit in hits}
    for instruction, vector in zip(told, own, strict=True):
        rows, _ = seen_under(looker, [hit.record for hit in hits], instruction)
        for id_, row in rows.items():
            near = (1.0 + float(np.clip(row @ vector, -1.0, 1.0))) / 2.0
            parts[id_].append(near if instruction in same else 1.0 - near)
    scored = [
        replace(hit, score=float(np.mean(parts[hit.id])) if len(parts[hit.id]) == len(told) else 0.0) for hit in hits
    ]
    return sorted(scored, key=lambda hit: (-hit.score, hit.id))
