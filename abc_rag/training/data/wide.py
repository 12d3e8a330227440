"""The batches of abc-mini's base: what every picture shows, what is asked about it, and what is said of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from abc_rag.models.qwen2_vl.pictures import Patches, patchify, resize_as_pillow_12
from abc_rag.scenes.asking import NOTHING, Asked, asked
from abc_rag.scenes.kinds import BUNDLED, Kinds
from abc_rag.scenes.searching import Search, edits, said_of, searched
from abc_rag.scenes.typing import typed
from abc_rag.scenes.wide import WideScene, boxes, covered, draw_scene, draw_wide, wear
from abc_rag.scenes.words import mention, mention_background
from abc_rag.scenes.world import BACKGROUNDS, KINDS, background_phrase, phrase
from abc_rag.training.data.spoken import Asker, Spoken
from abc_rag.training.data.tasks import told, worked

__all__ = [
    "CELLS",
    "SIDE",
    "SIDES",
    "SIZES",
    "WideBatch",
    "answer_text",
    "chosen",
    "named_by",
    "search_of",
    "seen_batch",
    "true_names",
    "wide_batch",
    "wide_scene",
]

CELLS = 4
"""A picture is ``CELLS * CELLS`` image tokens."""
SIDE = CELLS * 28
SIDES = ("left", "right", "top", "bottom", "middle")
SIZES = ("big", "small")
_SIZES = (SIDE, SIDE, 3 * SIDE // 2)
_NONE = ("nothing", "nothing there", "there is no such thing", "none", "no such object", "no object")


@dataclass
class WideBatch:
    """A batch.

    Attributes:
        pictures: One per scene.
        cells: int64 ``(pictures, CELLS * CELLS)``: 1 + the number of the kind that covers a cell, 0 for none.
        boxes: float32 ``(pictures, CELLS * CELLS, 3)``: of the thing that covers a cell, its centre as seen from the
            cell's, to the right and down, and its extent, as shares of the picture's width; 0 for none.
        grounds: int64 ``(pictures,)``: number of the background's colour.
        sides: int64 ``(pictures, CELLS * CELLS)``: position in `SIDES` of the side of the thing that covers a cell.
        sizes: Likewise in `SIZES`.
        asked: (position of the picture, instruction, position of its candidate).
        candidates: Texts that answer.
        excluded: bool ``(asked, candidates)``: true of the picture without being the answer.
        captions: A text for each picture, then texts that are false of it in one respect.
        said: bool ``(pictures, captions)``: a text that is true of the picture, but is not its own.
        told: Questions about one picture each, grouped by picture.
        worked: Other conversations, those together that begin alike.
        sentences: Positions of the teacher's sentences.
    """

    pictures: list[Patches]
    cells: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]
    grounds: npt.NDArray[np.int64]
    sides: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    asked: list[tuple[int, str, int]] = field(default_factory=list)
    candidates: list[str] = field(default_factory=list)
    excluded: npt.NDArray[np.bool_] | None = None
    captions: list[str] = field(default_factory=list)
    said: npt.NDArray[np.bool_] | None = None
    told: list[list[Spoken]] = field(default_factory=list)
    worked: list[list[Spoken]] = field(default_factory=list)
    sentences: list[int] = field(default_factory=list)


def wide_scene(kinds: Kinds, rng: random.Random, *, own: float, simple: float) -> WideScene:
    """Draw a scene for training.

    Args:
        kinds: The kinds.
        rng: Random generator.
        own: Share of scenes that look like the package's own world.
        simple: Share of scenes with one object.
    """
    objects = 1 if rng.random() < simple else 2
    if rng.random() < own:
        return draw_scene(kinds, rng, objects=objects, among=KINDS, style=BUNDLED, plain=0.9)
    if objects == 2 and rng.random() < 0.25:
        objects = 3
    return draw_scene(kinds, rng, objects=objects, among=kinds.seen)


def _patches(scene: WideScene, kinds: Kinds, rng: random.Random, worn: float) -> Patches:
    picture = draw_wide(scene, kinds, rng.choice(_SIZES), vary=rng)
    if rng.random() < worn:
        picture = wear(picture, rng)
    if picture.width != SIDE:
        picture = resize_as_pillow_12(picture, SIDE, SIDE)
    return patchify(picture, patch=14, merge=2)


def seen_batch(scenes: Sequence[WideScene], kinds: Kinds, rng: random.Random, *, worn: float = 0.25) -> WideBatch:
    """Pictures and what covers their cells."""
    number = {kind: i for i, kind in enumerate(kinds.categories, 1)}
    colours = list(BACKGROUNDS)
    cells = np.zeros((len(scenes), CELLS * CELLS), dtype=np.int64)
    sides, sizes = np.zeros_like(cells), np.zeros_like(cells)
    places = np.zeros((len(scenes), CELLS * CELLS, 3), dtype=np.float32)
    for row, side, size, place, scene in zip(cells, sides, sizes, places, scenes, strict=True):
        for placed, inside, box in zip(scene.objects, covered(scene, CELLS), boxes(scene), strict=True):
            row[inside] = number[placed.kind]
            side[inside], size[inside] = SIDES.index(placed.side), SIZES.index(placed.size)
            centres = (np.stack([inside % CELLS, inside // CELLS], axis=1) + 0.5) / CELLS
            place[inside] = np.concatenate([box[:2] - centres, np.full((len(inside), 1), box[2])], axis=1)
    return WideBatch(
        [_patches(s, kinds, rng, worn) for s in scenes], cells, places,
        np.array([colours.index(s.background) for s in scenes]), sides, sizes,
    )  # fmt: skip


def wide_batch(
    scenes: Sequence[WideScene],
    kinds: Kinds,
    rng: random.Random,
    *,
    per_picture: int,
    negatives: int,
    chats: int,
    tasks: int,
    turns: int,
    sentences: int,
    taught: int,
    plain: float = 0.0,
    worn: float = 0.25,
    sources: int = 4,
) -> WideBatch:
    """Draw what is asked and said of some scenes.

    Args:
        scenes: The scenes.
        kinds: The kinds.
        rng: Random generator.
        per_picture: Questions per picture.
        negatives: Texts per picture that are false of it; with -1 there are no captions at all.
        chats: Number of pictures that ``turns`` questions are answered about in words.
        tasks: Number of groups of other conversations.
        turns: Most questions about a picture, and most conversations of a group.
        sentences: Number of the teacher's sentences.
        taught: How many there are.
        plain: Share of conversations, and of the pictures' questions, in words that are always the same.
        worn: Share of pictures that are worn.
        sources: Most sources of an answer.
    """
    batch = seen_batch(scenes, kinds, rng, worn=worn)
    _ask(batch, scenes, kinds, rng, per_picture, plain)
    if negatives >= 0:
        _caption(batch, scenes, rng, negatives)
    batch.told = [told(at, scenes[at], rng, turns, plain=plain) for at in range(min(chats, len(scenes)))]
    batch.worked = [worked(scenes, rng, turns, plain=plain, sources=sources) for _ in range(tasks)]
    batch.sentences = [rng.randrange(taught) for _ in range(sentences)] if taught else []
    return batch


_MAIN = {"left", "right", "top", "bottom", "big", "small", "background", "category", "only"}


def chosen(scene: WideScene, rng: random.Random, count: int) -> list[Asked]:
    """``count`` questions about a scene; seldom more than one about the background or one of the rarer aspects."""
    found = asked(scene, rng)
    main = [q for q in found if q.aspect in _MAIN]
    rest = [q for q in found if q.aspect not in _MAIN]
    background, things = main[0], main[1:]
    kept = rng.sample(things, min(len(things), count - 1)) or [background]
    kept.append(rng.choice([background, rng.choice(rest), rng.choice(rest)]))
    while len(kept) < count:
        kept.append(rng.choice(main))
    return kept


class _Candidates:
    """Texts that answer, each with the names in it; an answer has one text in a batch."""

    def __init__(self, kinds: Kinds, rng: random.Random) -> None:
        self.texts: list[str] = []
        self.named: list[frozenset[str]] = []
        self._kinds, self._rng = kinds, rng
        self._position: dict[str, int] = {}

    def add(self, text: str, named: frozenset[str]) -> int:
        self.texts.append(text)
        self.named.append(named)
        return len(self.texts) - 1

    def answer(self, said: str, *, plain: bool = False) -> int:
        if said not in self._position:
            text, named = answer_text(said, self._kinds, self._rng)
            self._position[said] = self.add(said if plain else text, named)
        return self._position[said]

    def excluded(self, asked_about: Sequence[tuple[WideScene, int]]) -> npt.NDArray[np.bool_]:
        """What may be true of a query's scene without being its own: it names the same, and nothing false."""
        saying: dict[str, list[int]] = {}
        for column, names in enumerate(self.named):
            for name in names:
                saying.setdefault(name, []).append(column)
        found = np.zeros((len(asked_about), len(self.texts)), dtype=np.bool_)
        for row, (scene, target) in zip(found, asked_about, strict=True):
            about = self.named[target]
            allowed = about | true_names(scene)
            for column in {c for name in about for c in saying.get(name, ())}:
                row[column] = column != target and self.named[column] <= allowed
        return found


def _ask(
    batch: WideBatch, scenes: Sequence[WideScene], kinds: Kinds, rng: random.Random, per_picture: int, plain: float
) -> None:
    """Questions, and one search in the place of a question for half of the pictures."""
    candidates = _Candidates(kinds, rng)
    for at, scene in enumerate(scenes):
        if rng.random() < plain:
            ask = Asker(rng, plain=True)
            known = ask.asked(scene)
            for question in rng.sample(known, min(per_picture, len(known))):
                batch.asked.append((at, ask.worded(question), candidates.answer(question.answer, plain=True)))
            continue
        questions = chosen(scene, rng, per_picture)
        if rng.random() < 0.5:
            questions = questions[:-1]
            search, right = search_of(scene, rng)
            text = right.plain if rng.random() < 0.5 else _again(right, scene, rng).text
            batch.asked.append((at, typed(search.text, rng), candidates.add(text, named_by(right))))
            if right is not search:
                candidates.add(search.plain, named_by(search))
        for question in questions:
            batch.asked.append((at, typed(question.instruction, rng), candidates.answer(question.answer)))
    for kind in rng.sample(list(kinds.seen), min(24, len(kinds.seen))):
        candidates.answer(phrase(kind))
    for colour in BACKGROUNDS:
        candidates.answer(background_phrase(colour))
    batch.candidates = candidates.texts
    batch.excluded = candidates.excluded([(scenes[at], target) for at, _, target in batch.asked])


def search_of(scene: WideScene, rng: random.Random) -> tuple[Search, Search]:
    """A search, false of a scene half of the time, and one by the same aspect that is true of it."""
    search = searched(scene, rng, edited=rng.random() < 0.5)
    return search, search if search.fits(scene) else searched(scene, rng, aspect=search.aspect)


def true_names(scene: WideScene) -> frozenset[str]:
    """The names of what a scene has, and of what is true of each; see `named_by`."""
    sizes = [o.size for o in scene.objects]
    found = {scene.background}
    for placed in scene.objects:
        found |= {placed.kind, f"{placed.kind} {placed.side}"}
        if sizes.count(placed.size) == 1:
            found.add(f"{placed.kind} {placed.size}")
    return frozenset(found)


def answer_text(answer: str, kinds: Kinds, rng: random.Random) -> tuple[str, frozenset[str]]:
    """A text that says an answer, in one of many wordings, and the names in it."""
    kind_of = _kind_of(kinds)
    kind = kind_of.get(answer)
    if kind is not None:
        return mention(kind, rng), frozenset((kind,))
    if answer.endswith("background") and " and " not in answer:
        colour = answer.split(" ")[1]
        return mention_background(colour, rng), frozenset((colour,))
    parts = (kind_of.get(p, p.split(" ")[1] if p.endswith("background") else p) for p in answer.split(" and "))
    return rng.choice(_NONE) if answer == NOTHING else answer, frozenset(parts)


@lru_cache(maxsize=4)
def _kind_of(kinds: Kinds) -> dict[str, str]:
    return {phrase(kind): kind for kind in kinds.categories}


def _again(search: Search, scene: WideScene, rng: random.Random) -> Search:
    """Another wording of a search's statement, if one is found that names the same."""
    for _ in range(3):
        again = searched(scene, rng, aspect=search.aspect)
        if again.plain == search.plain:
            return again
    return search


def named_by(search: Search) -> frozenset[str]:
    """The names in a search's statement; where it says a side or a size, also of what with which."""
    names = {o.kind for o in search.objects}
    if search.background is not None:
        names.add(search.background)
    if search.exact and search.objects:
        names.add(f"{search.objects[0].kind} {search.aspect}")
    return frozenset(names)


def _caption(batch: WideBatch, scenes: Sequence[WideScene], rng: random.Random, negatives: int) -> None:
    texts: list[str] = []
    conditions: list[Search | None] = []
    for scene in scenes:
        if rng.random() < 0.5:
            texts.append(said_of(scene, rng))
            conditions.append(None)
        else:
            search = searched(scene, rng)
            texts.append(typed(search.text, rng))
            conditions.append(search)
    for scene, own in zip(scenes, tuple(conditions), strict=True):
        changed = edits(scene, rng)
        for edit in changed[:negatives]:
            if own is None:
                texts.append(said_of(edit, rng))
                conditions.append(None)
            else:
                search = searched(edit, rng, aspect=own.aspect)
                texts.append(typed(search.text, rng))
                conditions.append(search)
    batch.captions = texts
    said = np.zeros((len(scenes), len(texts)), dtype=np.bool_)
    for column, condition in enumerate(conditions):
        if condition is not None:
            said[:, column] = [condition.fits(scene) for scene in scenes]
    said[np.arange(len(scenes)), np.arange(len(scenes))] = False
    batch.said = said
