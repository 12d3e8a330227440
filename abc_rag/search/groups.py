"""GROUP BY an instruction: pictures that are alike in what is asked, with a phrase for each group.

Pictures are seen under the instruction (`abc_rag.search.sights`). Up to 2,000 of them, chosen at random, are clustered
(`abc_rag.search.clustering`); the others join the group whose centre is nearest. A group's phrase is, of all
candidates, the one that is nearest to its centre compared with how near it is to the other groups: one that fits all
says nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.errors import ABCRagError, InputError
from abc_rag.search.clustering import APART, clustered
from abc_rag.search.second_look import Looker
from abc_rag.search.sights import Sights
from abc_rag.store.base import Store
from abc_rag.types import Record, Vectors

__all__ = ["CLUSTERED", "Group", "Groups", "Namer", "grouped"]

CLUSTERED = 2000
"""Pictures that are clustered at most; the others join a group."""
_BLOCK = 4096
_SEED = 20_266
_PHRASES = 500
_LONGEST = 80  # characters of a text of the store that can be a phrase

Namer = Callable[[bytes, str], str]
"""Says in a few words what a picture, as its encoded bytes, is under an instruction."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """Pictures that are alike under an instruction.

    Attributes:
        phrase: What they have in common, in words; empty where nothing could be said.
        fit: How near the phrase is to the group's centre, ``(1 + cosine) / 2``; None without a phrase, and for one that
            a generator said.
        size: How many pictures.
        guessed: How many of these are here by a facet map alone.
        tightness: How near they are to the centre: the mean of ``(1 + cosine) / 2``, without those that are guessed.
        typical: The picture that is nearest to the centre.
        ids: All pictures, the most typical first, guessed ones last.
    """

    phrase: str
    fit: float | None
    size: int
    guessed: int
    tightness: float
    typical: Record
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Groups:
    """The pictures of a store, grouped by an instruction; a sequence of groups.

    Attributes:
        instruction: What was looked at.
        groups: The largest first.
        silhouette: How well the groups are apart, in [-1, 1], of the pictures that were clustered; None for one group.
        facets: How many pictures had a facet of the instruction.
        passes: How many were looked at.
        mapped: How many a facet map spoke for.
        unusable: How many could not be looked at.
        left_out: How many more there are.
        notes: What the caller should know, in words.
    """

    instruction: str
    groups: tuple[Group, ...]
    silhouette: float | None
    facets: int
    passes: int
    mapped: int
    unusable: int
    left_out: int
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, position: int) -> Group:
        return self.groups[position]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counts = ("facets", "passes", "mapped", "unusable", "left_out")
        return {
            "instruction": self.instruction,
            "silhouette": None if self.silhouette is None else round(self.silhouette, 6),
            **{name: getattr(self, name) for name in counts},
            "notes": list(self.notes),
            "groups": [
                {
                    "phrase": one.phrase,
                    "fit": None if one.fit is None else round(one.fit, 6),
                    "size": one.size,
                    "guessed": one.guessed,
                    "tightness": round(one.tightness, 6),
                    "typical": {"id": one.typical.id, "source": one.typical.source, "text": one.typical.text},
                    "ids": list(one.ids),
                }
                for one in self.groups
            ],
        }


def grouped(
    looker: Looker,
    sights: Sights,
    instruction: str,
    *,
    k: int | None,
    phrases: Sequence[str] | None,
    namer: Namer | None,
) -> Groups:
    """Group pictures that were seen.

    Args:
        looker: Such as a retriever.
        sights: Of one instruction.
        instruction: Which one.
        k: Number of groups; if not given, that of `abc_rag.search.clustering.clustered`.
        phrases: Candidates for phrases; if not given: what ``namer`` says of the most typical pictures or, without one,
            short texts of the store.
        namer: See above.

    Raises:
        InputError: There are fewer pictures than groups.
    """
    notes = _notes(sights)
    if not sights.ids:
        return Groups(instruction, (), None, **sights.told, notes=("there are no pictures to group", *notes))
    rows = sights.rows[instruction]
    seen = len(sights.ids) - sights.mapped
    if k is not None and k > seen:
        raise InputError(f"{seen} pictures do not make {k} groups; ask for fewer groups, or look at more pictures")
    chosen = np.arange(seen)
    if seen > CLUSTERED:
        chosen = np.sort(np.random.default_rng(_SEED).choice(seen, CLUSTERED, replace=False))
        notes.append(f"{CLUSTERED} pictures, chosen at random, were clustered, and the others joined the nearest group")
    vectors = np.concatenate(
        [
            block[chosen[(chosen >= start) & (chosen < start + len(block))] - start]
            for start, block in rows.blocks(_BLOCK)
        ]
    )
    found = clustered(vectors, k)
    if k is None and found.silhouette is None and seen > 2:
        notes.append(
            f"no grouping stands out (the best mean silhouette is below {APART}), so there is one group; ask for a "
            "number of groups to have them in any case"
        )
    sums = np.stack([vectors[found.labels == label].sum(axis=0) for label in range(found.labels.max() + 1)])
    centres: Vectors = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    labels, nearness = _assigned(sights, instruction, centres, vectors.mean(axis=0), chosen, found.labels)
    members = [_by_nearness(np.flatnonzero(labels == label), nearness, seen) for label in range(len(centres))]
    typical = {one.id: one for one in looker.store.get(sights.ids[own[0]] for own in members)}
    firsts = [typical[sights.ids[own[0]]] for own in members]
    groups = []
    said, fits = _phrased(looker, instruction, centres, firsts, phrases, namer)
    for own, phrase, fit in zip(members, said, fits, strict=True):
        guessed = int(np.sum(own >= seen))
        ids = tuple(sights.ids[place] for place in own)
        tightness = float(np.mean(nearness[own[own < seen]]))
        groups.append(Group(phrase, fit, len(own), guessed, tightness, typical[ids[0]], ids))
    groups.sort(key=lambda one: (-one.size, one.ids[0]))
    return Groups(instruction, tuple(groups), found.silhouette, **sights.told, notes=tuple(notes))


def _notes(sights: Sights) -> list[str]:
    notes = []
    if sights.mapped:
        notes.append(f"{sights.mapped} pictures are in a group by a facet map's guess")
    if sights.unusable:
        notes.append(f"{sights.unusable} pictures could not be looked at; they are in no group")
    if sights.left_out:
        notes.append(
            f"{sights.left_out} pictures were not looked at; index them with this instruction as a facet, raise "
            "passes, or make a facet map"
        )
    return notes


def _assigned(
    sights: Sights,
    instruction: str,
    centres: Vectors,
    mean: Vectors,
    chosen: npt.NDArray[np.int64],
    known: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The group of each picture, and its nearness to the centre."""
    seen = len(sights.ids) - sights.mapped
    labels = np.full(len(sights.ids), -1)
    labels[chosen] = known
    nearness = np.empty(len(labels), np.float32)
    # What a map says is nearer to the mean of all than a picture is. So directions from there are compared.
    away = centres - mean
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
    for start, block in sights.rows[instruction].blocks(_BLOCK):
        places = np.arange(start, start + len(block))
        near = block @ centres.T
        best = np.where(places < seen, near.argmax(axis=1), ((block - mean) @ away.T).argmax(axis=1))
        labels[places] = np.where(labels[places] < 0, best, labels[places])
        nearness[places] = (1.0 + np.clip(near[np.arange(len(block)), labels[places]], -1.0, 1.0)) / 2.0
    return labels, nearness


def _by_nearness(places: npt.NDArray[np.int64], nearness: npt.NDArray[np.float32], seen: int) -> npt.NDArray[np.int64]:
    """Positions, the nearest first, and those that are guessed last."""
    return places[np.lexsort((places, -nearness[places], places >= seen))]


def _phrased(
    looker: Looker,
    instruction: str,
    centres: Vectors,
    typical: Sequence[Record],
    phrases: Sequence[str] | None,
    namer: Namer | None,
) -> tuple[list[str], list[float | None]]:
    """A phrase for each group, and how it fits."""
    if phrases is None and namer is not None:
        return [_said(looker, namer, record, instruction) for record in typical], [None] * len(typical)
    texts = _texts(looker.store) if phrases is None else list(dict.fromkeys(phrases))
    if not texts:
        return [""] * len(centres), [None] * len(centres)
    near = centres @ looker.embedder.embed_texts(texts).T
    compared = near - near.mean(axis=0) if len(centres) > 1 else near
    best = compared.argmax(axis=1)
    fits = [(1.0 + float(np.clip(near[group, place], -1.0, 1.0))) / 2.0 for group, place in enumerate(best)]
    return [texts[place] for place in best], list(fits)


def _said(looker: Looker, namer: Namer, record: Record, instruction: str) -> str:
    try:
        return namer(looker.pictures.read(record), instruction)
    except ABCRagError as error:
        logger.warning("no phrase for the group of %s: %s", record.id, error)
        return ""


def _texts(store: Store) -> list[str]:
    """Short captions and passages of a store, each once: up to 500, chosen at random."""
    rng, found, count = np.random.default_rng(_SEED), list[str](), 0
    known: set[str] = set()
    for record in store.records():
        text = record.text.strip()
        if not text or len(text) > _LONGEST or "\n" in text or text in known:
            continue
        place = count if count < _PHRASES else int(rng.integers(count + 1))
        count += 1
        if place == len(found):
            found.append(text)
            known.add(text)
        elif place < _PHRASES:
            known.discard(found[place])
            known.add(text)
            found[place] = text
    return sorted(found)
