"""Facet maps: an instruction for a whole store, from a few hundred of its pictures.

A second look reaches the pictures that the first search found. A facet map reaches all of them: a few hundred pictures
are seen under the instruction, and a linear map from their plain vectors to those is fitted (ridge regression, in
closed form; the idea is COCO-Facet's, arXiv 2505.15877). Whatever a plain vector says about the aspect, however
faintly, then counts, and what it says about the rest does not.

A mapped picture's product with a question is the plain picture's product with the question mapped back: ``(x W) . q =
x . (W q)``. So no vector of the store is computed anew or read: the store is searched once more, with another question,
filters and index included. What is found are candidates for the second look, beside those of the first search.

A map is kept in a file beside the store, by store, model and instruction.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from abc_rag.errors import InputError
from abc_rag.files import write
from abc_rag.search.second_look import Looker, seen_under
from abc_rag.store.base import Store
from abc_rag.types import Hit, Record, Trace, Vectors

__all__ = ["SEEN", "FacetMap", "fit_map", "kept_map", "made_map", "mapped_hits"]

SEEN = 512
"""Pictures that are seen to fit a map."""
# Fewer say too little.
_FEWEST = 64
# Pictures of a store for each candidate, up to which a second look alone finds as much: of 1,000 pictures and 50
# candidates all that is asked for, of 4,000 nine in ten (`abc-rag evaluate scale`).
_ENOUGH = 20
# Of the mean variance of the plain vectors. Of 0.001 to 1 the best on abc-mini's scenes; below 0.01 they hardly differ.
_RIDGE = 0.003
_SEED = 20_266

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FacetMap:
    """A linear map ``W`` from plain vectors to those under an instruction, as a product of two narrow matrices.

    Attributes:
        plain: float32 ``(n, dim)``: the plain vectors that it was fitted to, without their mean.
        weights: float32 ``(n, dim)``; ``W = plain.T @ weights``.
    """

    plain: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]

    def mapped(self, vectors: Vectors) -> Vectors:
        """What pictures are under the instruction, ``(n, dim)`` for ``(n, dim)``, both without their means."""
        found: Vectors = ((vectors @ self.plain.T) @ self.weights).astype(np.float32)
        return found

    def asked(self, vector: Vectors) -> Vectors:
        """The vector to search plain vectors with, unit length, in place of ``vector``; both of shape ``(dim,)``."""
        mapped = self.plain.T @ (self.weights @ vector)
        length = float(np.linalg.norm(mapped))
        found: Vectors = (mapped / length).astype(np.float32) if length > 0 else vector
        return found


def fit_map(plain: Vectors, instructed: Vectors, *, ridge: float = _RIDGE) -> FacetMap:
    """Fit a map by ridge regression, in its dual form: ``W = X' (X X' + s I)^-1 Y``, both sides without their means.

    Args:
        plain: ``(n, dim)``.
        instructed: The same pictures under the instruction, ``(n, dim)``.
        ridge: ``s``, as a multiple of the mean variance of the plain vectors' numbers.

    Raises:
        InputError: The shapes differ, or there are fewer than two rows.
    """
    if plain.shape != instructed.shape or plain.ndim != 2 or len(plain) < 2:
        raise InputError(
            f"a facet map is fitted to pairs of vectors, (n, dim) each, not {plain.shape} and {instructed.shape}; "
            "pass the same pictures twice, two at least"
        )
    x, y = (rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64) for rows in (plain, instructed))
    products = x @ x.T
    strength = ridge * float(np.trace(products)) / x.shape[1]
    # Equal pictures leave nothing to learn from.
    weights = np.linalg.solve(products + max(strength, 1e-9) * np.eye(len(x)), y)
    return FacetMap(x.astype(np.float32), weights.astype(np.float32))


def kept_map(store: Store, instruction: str) -> FacetMap | None:
    """The map of an instruction that `made_map` has left beside a store; None where there is none that can be used."""
    file = _file(store, instruction)
    try:
        with safe_open(file, framework="numpy") as opened:
            told = opened.metadata() or {}
            found = FacetMap(opened.get_tensor("plain"), opened.get_tensor("weights"))
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning("the facet map %s is damaged (%s); it is left out, and made anew when asked for", file, error)
        return None
    shape = found.plain.shape
    sound = len(shape) == 2 and shape == found.weights.shape and shape[1] == store.dim
    if told != _told(store, instruction) or not sound:
        return None
    return found if np.isfinite(found.plain).all() and np.isfinite(found.weights).all() else None


def made_map(looker: Looker, instruction: str, *, seen: int = SEEN) -> FacetMap | None:
    """Fit a map to pictures of a store, and keep it; the pictures are chosen at random, the same ones again.

    The store's vectors are read once, some at a time. Pictures that have a facet of the instruction are not seen again.

    Args:
        looker: Such as a retriever.
        instruction: What to look at.
        seen: Most pictures to see; one embedding each.

    Returns:
        None where fewer than 64 pictures could be seen.
    """
    chosen = _sample(looker.store, seen)
    rows, _ = seen_under(looker, [record for record, _ in chosen], instruction)
    pairs = [(vector, rows[record.id]) for record, vector in chosen if record.id in rows]
    if len(pairs) < _FEWEST:
        return None
    found = fit_map(np.stack([plain for plain, _ in pairs]), np.stack([row for _, row in pairs]))
    file = _file(looker.store, instruction)
    data = save({"plain": found.plain, "weights": found.weights}, metadata=_told(looker.store, instruction))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, data, durable=False)
    except OSError as error:
        logger.warning("the facet map of %r is not kept: %s", instruction, error)
    return found


def mapped_hits(
    looker: Looker,
    hits: Sequence[Hit],
    instruction: str,
    vector: Vectors,
    find: Callable[[Vectors], list[Hit]],
    use: bool | Literal["auto"],
    *,
    trace: bool,
) -> list[Hit]:
    """What a map finds besides the hits of a first search, with the scores that such a search gives them.

    Args:
        looker: Such as a retriever.
        hits: Of the first search.
        instruction: What to look at.
        vector: Of the query.
        find: Searches for pictures with a vector.
        use: True makes a map where there is none; ``"auto"`` does without, and without any in a store that is small
            beside what the first search found.
        trace: Give each its `Trace`.
    """
    # Where nobody has made a map, a search asks the store nothing more.
    if not use or (use == "auto" and not _folder(looker.store).is_dir()):
        return []
    # A first search that found everything leaves nothing to find.
    if looker.store.count() <= len(hits) * (_ENOUGH if use == "auto" else 1):
        return []
    found = kept_map(looker.store, instruction) or (made_map(looker, instruction) if use is True else None)
    if found is None:
        return []
    known = {hit.id for hit in hits}
    new = [hit for hit in find(found.asked(vector)) if hit.id not in known]
    vectors = looker.store.vectors(hit.id for hit in new)
    scores = {id_: (1.0 + float(np.clip(row @ vector, -1.0, 1.0))) / 2.0 for id_, row in vectors.items()}
    return [
        Hit(hit.record, scores[hit.id], trace=Trace(None, scores[hit.id]) if trace else None)
        for hit in new
        if hit.id in scores
    ]


def _sample(store: Store, most: int) -> Sequence[tuple[Record, Vectors]]:
    """Pictures chosen at random (reservoir sampling, Vitter's R), with their vectors."""
    rng, found, count = random.Random(_SEED), list[tuple[Record, Vectors]](), 0
    for records, vectors in store.pages():
        for record, vector in zip(records, vectors, strict=True):
            if record.modality != "image":
                continue
            place = count if count < most else rng.randrange(count + 1)
            count += 1
            if place == len(found):
                found.append((record, vector.copy()))
            elif place < most:
                found[place] = record, vector.copy()
    return found


def _told(store: Store, instruction: str) -> dict[str, str]:
    return {"store": repr(store), "fingerprint": str(store.fingerprint), "instruction": instruction}


def _file(store: Store, instruction: str) -> Path:
    name = hashlib.sha256(json.dumps(_told(store, instruction), sort_keys=True).encode()).hexdigest()[:32]
    return _folder(store) / f"{name}.safetensors"


def _folder(store: Store) -> Path:
    return store.notes_file.with_name("abc-maps")
