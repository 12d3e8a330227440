"""How well abc-mini understands wordings: forms and words that training used and never used, in four groups."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import PIL.Image

from abc_rag.embedding.embedder import Embedder
from abc_rag.scenes.asking import asked
from abc_rag.scenes.typing import typed
from abc_rag.scenes.wide import WideScene
from abc_rag.types import Input, InstructedImage

__all__ = ["WORDING_GROUPS", "by_aspect", "share_right", "wording_groups"]

WORDING_GROUPS: Mapping[str, tuple[bool, bool]] = {
    "unseen forms, unseen words": (True, True),
    "unseen forms, seen words": (True, False),
    "seen forms, unseen words": (False, True),
    "seen forms, seen words": (False, False),
}
"""Name -> whether forms and whether words are of the quarter that training never uses."""
_SLIPS = 0.15


def wording_groups(
    embedder: Embedder,
    scenes: Sequence[WideScene],
    pictures: Sequence[PIL.Image.Image],
    answers: Sequence[str],
    *,
    seed: int,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Share of right answers of each group of wordings, by aspect and over ``"all"``, with capitals and slips.

    Args:
        embedder: The model.
        scenes: What the pictures show.
        pictures: One per scene.
        answers: The candidates.
        seed: Of the wordings.
        progress: Show progress bars.
    """
    found = {}
    for name, (form, synonym) in WORDING_GROUPS.items():
        rng = random.Random(f"{seed} {name}")
        questions = [
            (at, q.aspect, typed(q.instruction, rng, slips=_SLIPS), q.answer)
            for at, scene in enumerate(scenes)
            for q in asked(scene, rng, form=form, synonym=synonym, extra=False)
        ]
        found[name] = by_aspect(questions, share_right(embedder, pictures, answers, questions, progress=progress))
    return found


def share_right(
    embedder: Embedder,
    pictures: Sequence[PIL.Image.Image],
    answers: Sequence[str],
    questions: Sequence[tuple[int, str, str, str]],
    *,
    progress: bool = False,
) -> list[bool]:
    """Whether each question's answer scores highest of all candidates.

    Args:
        embedder: The model.
        pictures: The pictures.
        answers: The candidates.
        questions: (position of the picture, aspect, instruction, answer).
        progress: Show progress bars.
    """
    position = {answer: i for i, answer in enumerate(answers)}
    candidates = embedder.embed_texts(list(answers))
    inputs: list[Input] = [InstructedImage(pictures[at], words) for at, _, words, _ in questions]
    best = (embedder.embed(inputs, progress=progress) @ candidates.T).argmax(axis=1)
    return [int(one) == position[answer] for one, (_, _, _, answer) in zip(best, questions, strict=True)]


def by_aspect(questions: Sequence[tuple[int, str, str, str]], right: Sequence[bool]) -> dict[str, float]:
    """Shares by aspect, in alphabetical order, after the one over all."""
    aspect: Callable[[tuple[str, bool]], str] = lambda pair: pair[0]  # noqa: E731
    pairs = sorted(zip((q[1] for q in questions), right, strict=True))
    shares = {name: float(np.mean([r for _, r in group])) for name, group in itertools.groupby(pairs, aspect)}
    return {"all": float(np.mean(right)), **shares}
