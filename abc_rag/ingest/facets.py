"""Vectors of pictures under instructions, checked and stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.store.base import Store
from abc_rag.store.records import checked_instruction
from abc_rag.types import InstructedImage, Vectors

__all__ = ["checked_facets", "store_facets"]


def checked_facets(facets: Sequence[str], embedder: Embedder) -> list[str]:
    """Each facet once.

    Raises:
        InputError: ``facets`` is a single str, or one of them is blank.
    """
    if isinstance(facets, str):
        raise InputError("facets must be a list; got a single str: pass [facet]")
    if facets and InstructedImage not in embedder.accepts:
        raise InputError(
            f"{embedder.fingerprint.model} does not look at pictures under an instruction, which facets are (--facet); "
            "leave them out"
        )
    for facet in facets:
        checked_instruction(facet)
    return list(dict.fromkeys(facets))


def store_facets(store: Store, facets: Mapping[tuple[str, str], Vectors]) -> None:
    """Store the vector of each (id, instruction), those of one instruction together."""
    for facet in dict.fromkeys(facet for _, facet in facets):
        chosen = {id_: vector for (id_, asked), vector in facets.items() if asked == facet}
        store.add_facets(list(chosen), facet, np.stack(list(chosen.values())))
