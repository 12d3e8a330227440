"""The wider world as endless data sets for the two adapters: row ``i`` depends on the seed and ``i`` alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.scenes.kinds import BUNDLED, Kinds
from abc_rag.scenes.questions import questions
from abc_rag.scenes.searching import Search, edits, said_of, searched
from abc_rag.scenes.typing import typed
from abc_rag.scenes.wide import WideScene, draw_wide, wear
from abc_rag.scenes.words import mention
from abc_rag.training.data.rows import BadRows
from abc_rag.training.data.sources import Candidate, CaptionRow, CaptionSource, Pair, PairsRow, PairsSource
from abc_rag.training.data.wide import SIDE, answer_text, chosen, named_by, search_of, true_names, wide_scene

__all__ = ["WideCaptions", "WidePairs"]

_ROWS = 1_000_000
_WORN = 0.2
_SIMPLE = 0.12


class WideCaptions(CaptionSource):
    """Pictures with captions, searches or passages about one thing, and texts that are false in one respect.

    Args:
        kinds: The kinds.
        own: See `abc_rag.training.data.wide.wide_scene`.
        seed: Seed of the whole data set.
        negatives: Most negatives per row.
    """

    def __init__(self, kinds: Kinds, *, own: float, seed: int, negatives: int = 3) -> None:
        self.name = "wide scenes"
        self.bad = BadRows(self.name)
        self._kinds, self._own, self._seed, self._most = kinds, own, seed, negatives
        self.row = lru_cache(maxsize=256)(self._row)  # type: ignore[method-assign]

    def __len__(self) -> int:
        return _ROWS

    def _scene(self, index: int) -> tuple[WideScene, random.Random]:
        rng = random.Random(f"wide captions {self._seed} {index}")
        return wide_scene(self._kinds, rng, own=self._own, simple=_SIMPLE), rng

    def row(self, index: int) -> CaptionRow:
        """See `CaptionSource.row`."""
        return self._row(index)

    def _row(self, index: int) -> CaptionRow:
        scene, rng = self._scene(index)
        draw = rng.random()
        changed = edits(scene, rng)[: self._most]
        if draw < 0.4:
            own = Candidate(said_of(scene, rng))
            negatives = [Candidate(said_of(edit, rng)) for edit in changed]
        elif draw < 0.85:
            search = searched(scene, rng)
            own = Candidate(typed(search.text, rng), search)
            found = [searched(edit, rng, aspect=search.aspect) for edit in changed]
            negatives = [Candidate(typed(s.text, rng), s) for s in found if not s.fits(scene)]
        else:
            placed = rng.choice(scene.objects)
            own = Candidate(mention(placed.kind, rng), Search("", "", "shown", (placed,)))
            negatives = []
        picture = draw_wide(scene, self._kinds, 2 * SIDE)
        picture = wear(picture, rng) if rng.random() < _WORN else picture
        return CaptionRow(str(index), picture, own, tuple(negatives))

    def negatives_of(self, index: int, count: int, rng: random.Random) -> list[Candidate]:
        """The first ``count`` negatives: each differs in another respect."""
        return list(self.row(index).negatives[:count])

    def excluded(self, rows: Sequence[CaptionRow], candidates: Sequence[Candidate]) -> npt.NDArray[np.bool_]:
        """Texts that are true of a scene without being its caption; see `CaptionSource.excluded`."""
        scenes = [self._scene(int(row.id))[0] for row in rows]
        return np.array(
            [
                [c.meaning.fits(s) if isinstance(c.meaning, Search) else c.text == row.caption.text for c in candidates]
                for s, row in zip(scenes, rows, strict=True)
            ]
        )

    def describe(self) -> dict[str, Any]:
        """See `CaptionSource.describe`."""
        return {"kind": self.name, "seed": self._seed, "rows": len(self), "kinds": len(self._kinds), "own": self._own}


class WidePairs(PairsSource):
    """Pictures with questions and a search; the phrase is a text about what is asked for, in one of many wordings.

    Args:
        kinds: The kinds.
        own: See `abc_rag.training.data.wide.wide_scene`.
        seed: Seed of the whole data set.
        side: Pictures are so many pixels wide.
    """

    def __init__(self, kinds: Kinds, *, own: float, seed: int, side: int = 2 * SIDE) -> None:
        self.name = "wide scenes"
        self.bad = BadRows(self.name)
        self._kinds, self._own, self._seed, self._side = kinds, own, seed, side

    def __len__(self) -> int:
        return _ROWS

    def _scene(self, index: int) -> tuple[WideScene, random.Random]:
        rng = random.Random(f"wide pairs {self._seed} {index}")
        return wide_scene(self._kinds, rng, own=self._own, simple=_SIMPLE), rng

    def row(self, index: int) -> PairsRow:
        """See `PairsSource.row`."""
        scene, rng = self._scene(index)
        asks = [(typed(q.instruction, rng), q.answer) for q in chosen(scene, rng, 5)]
        if all(style == BUNDLED for style in scene.styles):
            # As written, without slips: the shortest way to ask.
            plain = rng.choice(questions(scene, rng))
            asks.append((plain.instruction, plain.answer))
        pairs = [Pair(words, Candidate(*answer_text(answer, self._kinds, rng))) for words, answer in asks]
        search, right = search_of(scene, rng)
        pairs.append(Pair(typed(search.text, rng), Candidate(right.plain, named_by(right))))
        picture = draw_wide(scene, self._kinds, self._side)
        picture = wear(picture, rng) if rng.random() < _WORN else picture
        return PairsRow(str(index), picture, tuple(pairs))

    def excluded(
        self, pairs: Sequence[tuple[PairsRow, Pair]], candidates: Sequence[Candidate]
    ) -> npt.NDArray[np.bool_]:
        """Texts that name what the answer names, and nothing that is not there; see `PairsSource.excluded`."""
        scenes = {row.id: self._scene(int(row.id))[0] for row, _ in pairs}
        found = np.zeros((len(pairs), len(candidates)), dtype=np.bool_)
        for n, (row, pair) in enumerate(pairs):
            about: Any = pair.phrase.meaning
            allowed = true_names(scenes[row.id]) | about
            for m, candidate in enumerate(candidates):
                other: Any = candidate.meaning
                found[n, m] = bool(other & about) and other <= allowed
        return found

    def describe(self) -> dict[str, Any]:
        """See `PairsSource.describe`."""
        return {"kind": self.name, "seed": self._seed, "rows": len(self), "kinds": len(self._kinds), "own": self._own}
