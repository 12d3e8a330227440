"""Evaluates abc-mini in its small world: 1,000 held-out scenes of two objects, in pairs that it never saw."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.results import Results, ResultTable, settings
from abc_rag.evaluation.wordings import wording_groups
from abc_rag.scenes.captions import captions
from abc_rag.scenes.drawing import render
from abc_rag.scenes.questions import Question, questions
from abc_rag.scenes.wide import as_wide
from abc_rag.scenes.world import Scene, held_out_scenes, phrase, phrases
from abc_rag.types import Image, Input, InstructedImage, Text, Vectors

__all__ = ["evaluate_mini"]

_SEED = 20_261
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


_SHOWN = {
    "accuracy": "picture + instruction -> phrase",
    "accuracy_unseen_wording": "the same, in wordings never trained on",
    "both_sides": "both sides of a picture answered correctly",
    "without_instruction": "without the instruction -> phrase",
    "order_with_instruction": "asked object before the other, with the instruction",
    "order_without_instruction": "asked object before the other, without it (chance: 50)",
    "caption_to_picture": "caption -> picture, R@1",
    "picture_to_caption": "picture -> caption, R@1",
}
_WORDINGS = "unseen forms, unseen words"


def evaluate_mini(embedder: Embedder, *, scenes: int = 1000, progress: bool = False) -> Results:
    """Ask about every aspect of held-out scenes, and compare with every phrase of the world.

    Args:
        embedder: Usually ``load_embedder("abc-mini")``.
        scenes: Number of scenes: the first of a fixed set of 1,000.
        progress: Show progress bars.

    Returns:
        Shares of right answers: over all questions, and in wordings that training never used; of pictures with both
        sides (left and right, or top and bottom) answered correctly; with the picture alone; of questions about a side
        for which the object on that side scores above the other one; R@1 of captions and pictures.
        ``details["by_aspect"]`` has the first by aspect; ``details["wordings"]`` that of the first quarter of the
        scenes, asked as people type, by group of wordings (forms and words that the grammar gives to training or leaves
        out), over ``"all"`` and by aspect.

    Raises:
        InputError: ``scenes`` is not between 2 and 1,000.
    """
    if not 2 <= scenes <= 1000:
        raise InputError(f"scenes must be between 2 and 1000, not {scenes}")
    drawn = held_out_scenes(1000, seed=_SEED)[:scenes]
    pictures = [render(scene) for scene in drawn]
    answers = phrases()
    position = {p: i for i, p in enumerate(answers)}
    candidates = embedder.embed_texts(answers)
    rng = random.Random(_SEED)

    asked = [(i, q) for i, scene in enumerate(drawn) for q in questions(scene, rng)]
    unseen = [(i, q) for i, scene in enumerate(drawn) for q in questions(scene, rng, held_out=True)]

    def ask(pairs: Sequence[tuple[int, Question]]) -> tuple[Vectors, Vectors]:
        inputs: list[Input] = [InstructedImage(pictures[i], q.instruction) for i, q in pairs]
        scores = embedder.embed(inputs, progress=progress) @ candidates.T
        right = scores.argmax(axis=1) == [position[q.answer] for _, q in pairs]
        return scores, right.astype(np.float32)

    scores, right = ask(asked)
    _, right_unseen = ask(unseen)
    alone = embedder.embed([Image(p) for p in pictures], progress=progress)
    alone_scores = (alone @ candidates.T)[[i for i, _ in asked]]
    alone_right = alone_scores.argmax(axis=1) == [position[q.answer] for _, q in asked]
    texts = embedder.embed([Text(captions(scene, rng)) for scene in drawn], progress=progress)
    similarity = texts @ alone.T
    own = np.arange(scenes)
    metrics = {
        "accuracy": float(right.mean()),
        "accuracy_unseen_wording": float(right_unseen.mean()),
        "both_sides": _both_sides(asked, right),
        "without_instruction": float(alone_right.mean()),
        "order_with_instruction": _order(drawn, asked, scores, position),
        "order_without_instruction": _order(drawn, asked, alone_scores, position),
        "caption_to_picture": float((similarity.argmax(axis=1) == own).mean()),
        "picture_to_caption": float((similarity.argmax(axis=0) == own).mean()),
    }
    aspects = _by_aspect(asked, right)
    wide = [as_wide(scene) for scene in drawn[: max(2, scenes // 4)]]
    wordings = wording_groups(embedder, wide, pictures, answers, seed=_SEED, progress=progress)
    shares = {
        **{f"as people type: {group}": found["all"] for group, found in wordings.items()},
        **{f"{_WORDINGS}: {name}": share for name, share in wordings[_WORDINGS].items() if name != "all"},
        **{_SHOWN[name]: share for name, share in metrics.items()},
        **{f"aspect: {aspect}": share for aspect, share in aspects.items()},
    }
    title = f"mini: {scenes} held-out scenes, {len(asked)} questions, {len(answers)} candidate phrases"
    counts = {"scenes": scenes, "questions": len(asked), "candidates": len(answers)}
    return Results(
        benchmark="mini",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, scenes=scenes) | {"counts": counts},
        tables=[ResultTable(title, ["measure", "%"], [[name, 100 * share] for name, share in shares.items()])],
        details={"by_aspect": aspects, "wordings": wordings},
    )


def _by_aspect(asked: Sequence[tuple[int, Question]], right: Vectors) -> dict[str, float]:
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for (_, question), one in zip(asked, right, strict=True):
        found[question.aspect] += int(one)
        total[question.aspect] += 1
    return {aspect: found[aspect] / total[aspect] for aspect in sorted(total)}


def _both_sides(asked: Sequence[tuple[int, Question]], right: Vectors) -> float:
    sides: dict[int, list[float]] = {}
    for (scene, question), one in zip(asked, right, strict=True):
        if question.aspect in _OPPOSITE:
            sides.setdefault(scene, []).append(float(one))
    return float(np.mean([min(both) for both in sides.values()]))


def _order(
    scenes: Sequence[Scene],
    asked: Sequence[tuple[int, Question]],
    scores: Vectors,
    position: dict[str, int],
) -> float:
    """Share of questions about a side for which the object on that side scores above the other one."""
    found = []
    for (scene, question), row in zip(asked, scores, strict=True):
        if question.aspect in _OPPOSITE:
            (other,) = (p for o in scenes[scene].objects if (p := phrase(o.kind)) != question.answer)
            found.append(row[position[question.answer]] > row[position[other]])
    return float(np.mean(found))
