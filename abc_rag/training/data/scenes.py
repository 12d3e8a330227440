"""abc-mini's world as an endless data set: row ``i`` depends on the seed and ``i`` alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.scenes.captions import Description, caption_edits, captions, describe
from abc_rag.scenes.drawing import render
from abc_rag.scenes.words import mention
from abc_rag.scenes.world import Scene, random_scene
from abc_rag.training.data.rows import BadRows
from abc_rag.training.data.sources import Candidate, CaptionRow, CaptionSource

__all__ = ["SIDE", "SceneCaptions", "scene_of"]

_ROWS = 1_000_000
_SINGLES = 0.15
# Twice the side that the model sees, and resized like any picture, so that training and inference see equal pixels.
SIDE = 168


def scene_of(rng: random.Random, *, singles: float = _SINGLES) -> Scene:
    """Draw a scene for training; ``singles`` is the share of scenes with one object."""
    return random_scene(rng, objects=1 if rng.random() < singles else 2)


class SceneCaptions(CaptionSource):
    """Pictures with captions, and as negatives the captions of scenes that differ in one respect.

    45 % of the captions describe everything, 35 % a part, and the others are passages about one object. Captions that
    are true of another picture of the batch are excluded there.

    Args:
        seed: Seed of the whole data set.
        negatives: Maximum negatives per row.
    """

    def __init__(self, *, seed: int, negatives: int = 3) -> None:
        self.name = "scenes"
        self.bad = BadRows("scenes")
        self._seed, self._most = seed, negatives
        self.row = lru_cache(maxsize=256)(self._row)  # type: ignore[method-assign]

    def __len__(self) -> int:
        return _ROWS

    def row(self, index: int) -> CaptionRow:
        """See `CaptionSource.row`."""
        return self._row(index)

    def _row(self, index: int) -> CaptionRow:
        rng = random.Random(f"captions {self._seed} {index}")
        scene = scene_of(rng)
        say = rng.choices((_fully, describe, _about_one), weights=(45, 35, 20))[0]
        own = say(scene, rng)
        edited = [say(edit, rng) for edit in caption_edits(scene, rng)]
        # A text that mentions nothing of what was edited is still true, so it is no negative.
        negatives = [d for d in edited if not d.fits(scene)][: self._most]
        return CaptionRow(str(index), render(scene, SIDE), _candidate(own), tuple(_candidate(d) for d in negatives))

    def negatives_of(self, index: int, count: int, rng: random.Random) -> list[Candidate]:
        """The first ``count`` negatives: each differs in another respect."""
        return list(self.row(index).negatives[:count])

    def excluded(self, rows: Sequence[CaptionRow], candidates: Sequence[Candidate]) -> npt.NDArray[np.bool_]:
        """Texts that are true of a scene without being its caption; see `CaptionSource.excluded`."""
        scenes = [scene_of(random.Random(f"captions {self._seed} {row.id}")) for row in rows]
        said: list[Any] = [c.meaning for c in candidates]
        return np.array([[description.fits(scene) for description in said] for scene in scenes])

    def describe(self) -> dict[str, Any]:
        """See `CaptionSource.describe`."""
        return {"kind": "scenes with captions", "seed": self._seed, "rows": len(self)}


def _candidate(description: Description) -> Candidate:
    return Candidate(description.text, description)


def _fully(scene: Scene, rng: random.Random) -> Description:
    objects = tuple((o.kind, o.size, o.side) for o in scene.objects)
    return Description(captions(scene, rng), objects, scene.background)


def _about_one(scene: Scene, rng: random.Random) -> Description:
    kind = rng.choice(scene.objects).kind
    return Description(mention(kind, rng), ((kind, None, None),))
