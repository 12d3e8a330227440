"""Many pictures under instructions: a store's facets, pictures that are looked at for it, and what a facet map says.

Vectors lie in a temporary file once they are many, and are read in blocks, so that memory stays bounded.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import Any, Literal

import numpy as np

from abc_rag.errors import InputError
from abc_rag.search.facet_maps import kept_map, made_map
from abc_rag.search.second_look import Looker, seen_under
from abc_rag.store.base import Store
from abc_rag.store.table import PAGE, pages
from abc_rag.types import InstructedImage, Record, Vectors

__all__ = ["PASSES", "Rows", "Sights", "seen_pictures"]

PASSES = 1000
"""Pictures without a facet that are looked at, if not given."""
_IN_MEMORY = 256 * 2**20  # bytes
_SEED = 20_266


class Rows:
    """float32 vectors, in memory while they are few, else in a temporary file that goes with this.

    Args:
        in_memory: Most bytes in memory.
    """

    def __init__(self, in_memory: int = _IN_MEMORY) -> None:
        self._file = SpooledTemporaryFile(max_size=in_memory)
        weakref.finalize(self, self._file.close)
        self._dim = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, vectors: Vectors) -> None:
        """Add vectors ``(n, dim)`` at the end."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(vectors, np.float32).tobytes())
        self._dim = vectors.shape[1]
        self._count += len(vectors)

    def read(self, start: int, stop: int) -> Vectors:
        """The vectors from one position to another, ``(stop - start, dim)``."""
        width = 4 * self._dim
        self._file.seek(start * width)
        return np.frombuffer(self._file.read((min(stop, self._count) - start) * width), np.float32).reshape(
            -1, self._dim
        )

    def blocks(self, size: int, start: int = 0) -> Iterator[tuple[int, Vectors]]:
        """All vectors from a position on, with the position of each block's first."""
        for first in range(start, self._count, size):
            yield first, self.read(first, first + size)


@dataclass
class Sights:
    """Pictures under instructions.

    Attributes:
        ids: Of the pictures that have a row; those of a facet map come last.
        rows: For each instruction, as many vectors.
        facets: How many of the pictures had all facets.
        passes: How many were looked at.
        mapped: How many a facet map speaks for.
        unusable: How many could not be opened or looked at; a warning is logged for each.
        left_out: How many more there are.
    """

    rows: Mapping[str, Rows]
    ids: list[str] = field(default_factory=list)
    facets: int = 0
    passes: int = 0
    mapped: int = 0
    unusable: int = 0
    left_out: int = 0

    @property
    def told(self) -> dict[str, int]:
        """The counts."""
        names = ("facets", "passes", "mapped", "unusable", "left_out")
        return {name: getattr(self, name) for name in names}

    def add(self, ids: Sequence[str], found: Sequence[Mapping[str, Vectors]]) -> int:
        """Take those pictures that have a vector under each instruction; return how many."""
        chosen = [id_ for id_ in ids if all(id_ in vectors for vectors in found)]
        if chosen:
            self.ids += chosen
            for rows, vectors in zip(self.rows.values(), found, strict=True):
                rows.append(np.stack([vectors[id_] for id_ in chosen]))
        return len(chosen)


def seen_pictures(
    looker: Looker,
    instructions: Sequence[str],
    *,
    where: Mapping[str, Any] | None = None,
    ids: Iterable[str] | None = None,
    passes: int = PASSES,
    facet_map: bool | Literal["auto"] = False,
) -> Sights:
    """See pictures under instructions.

    Those that have the facets are read from the store. Of the others, up to ``passes`` are looked at, chosen at random
    (the same ones again), and with a facet map the rest are guessed.

    Args:
        looker: Such as a retriever.
        instructions: What to look at.
        where: The store's metadata filter.
        ids: Only these pictures.
        passes: Most pictures to look at; one embedding for each facet that one lacks.
        facet_map: As for `abc_rag.Retriever.search`; with one instruction.

    Raises:
        InputError: An argument is unusable, an id is not that of a stored picture, or the model does not look at
            pictures under an instruction, and not all of them have facets.
        StoreError: The store cannot be read.
    """
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 0:
        raise InputError(f"passes must be a number of pictures, 0 or more, not {passes!r}")
    if not isinstance(facet_map, bool) and facet_map != "auto":
        raise InputError(f"facet_map must be True, False or 'auto', not {facet_map!r}")
    chosen = None if ids is None else list(dict.fromkeys(ids))
    if chosen is not None and where is not None:
        raise InputError("give ids or where, not both")
    sights = Sights({instruction: Rows() for instruction in instructions})
    rng, waiting, unseen = random.Random(_SEED), list[Record](), 0
    for page in _pages(looker.store, where, chosen):
        found = [looker.store.facet_vectors([one.id for one in page], one) for one in instructions]
        sights.facets += sights.add([one.id for one in page], found)
        for record in page:
            if all(record.id in vectors for vectors in found):
                continue
            # Reservoir sampling, Vitter's R.
            place = unseen if unseen < passes else rng.randrange(unseen + 1)
            unseen += 1
            if place == len(waiting) < passes:
                waiting.append(record)
            elif place < passes:
                waiting[place] = record
    if waiting and InstructedImage not in looker.embedder.accepts:
        raise InputError(
            f"{looker.embedder.fingerprint.model} does not look at pictures under an instruction, and {unseen} "
            "pictures have no facet of it; use a model that does, or pass passes=0 for those that have"
        )
    for some in pages(waiting):
        found = [seen_under(looker, some, instruction)[0] for instruction in instructions]
        taken = sights.add([one.id for one in some], found)
        sights.passes += taken
        sights.unusable += len(some) - taken
    sights.left_out = unseen - len(waiting)
    if sights.left_out and facet_map and sights.ids:
        _guess(looker, sights, instructions[0], where, chosen, {one.id for one in waiting}, make=facet_map is True)
    return sights


def _guess(
    looker: Looker,
    sights: Sights,
    instruction: str,
    where: Mapping[str, Any] | None,
    ids: Sequence[str] | None,
    waiting: set[str],
    *,
    make: bool,
) -> None:
    """Add what a facet map says of the pictures that were left out."""
    found = kept_map(looker.store, instruction) or (made_map(looker, instruction) if make else None)
    if found is None:
        return
    # A map is between vectors without their means: those of what was seen.
    known = sights.ids[-PASSES:]
    before = np.mean(list(looker.store.vectors(known).values()), axis=0)
    after = sights.rows[instruction].read(len(sights.ids) - len(known), len(sights.ids)).mean(axis=0)
    for page in _pages(looker.store, where, ids):
        there = looker.store.facet_vectors([one.id for one in page], instruction)
        vectors = looker.store.vectors(one.id for one in page if one.id not in there and one.id not in waiting)
        if vectors:
            guessed = found.mapped(np.stack(list(vectors.values())) - before) + after
            guessed /= np.maximum(np.linalg.norm(guessed, axis=1, keepdims=True), 1e-12)
            sights.mapped += sights.add(list(vectors), [dict(zip(vectors, guessed, strict=True))])
    sights.left_out -= sights.mapped


def _pages(store: Store, where: Mapping[str, Any] | None, ids: Sequence[str] | None) -> Iterator[list[Record]]:
    """Pictures, some at a time."""
    if ids is None:
        records = store.records(where, modality="image")
        while page := list(islice(records, PAGE)):
            yield page
        return
    for some in pages(ids):
        pictures = [one for one in store.get(some) if one.modality == "image"]
        if missing := set(some) - {one.id for one in pictures}:
            raise InputError(
                f"{min(missing)!r} is not the id of a stored picture; 'abc-rag list --only image' has them"
            )
        yield pictures
