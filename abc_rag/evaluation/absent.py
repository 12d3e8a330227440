"""Measures whether a search knows that nothing matches: `abc-rag evaluate absent`.

The store holds pictures of abc-mini's held-out world. It is asked for what they show, and for what they do not:

- thing: a kind of thing that no picture shows;
- detail: something that pictures show, but not so, such as a pig that is never on the left
  (`abc_rag.evaluation.twins`, of whose pairs only one picture is stored).

Each question has a number by which a caller could tell: the best score of the search, with and without a second look,
and the confidence of a judge. A good one is higher wherever something matches than wherever nothing does (AUROC 1).
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from abc_rag.answering.generator import Generator
from abc_rag.answering.retriever import Retriever
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.metrics import auroc, best_threshold, figure_of_each
from abc_rag.evaluation.results import Cell, Results, ResultTable, settings
from abc_rag.evaluation.twins import AskedScene, draw_all, twin_scenes
from abc_rag.ingest.pictures import index_images
from abc_rag.scenes.world import KINDS, phrase
from abc_rag.search.answer import Answer
from abc_rag.search.rewriting.rules import RuleRewriter
from abc_rag.store.chroma.store import ChromaStore

__all__ = ["AbsenceQuestion", "absence_questions", "evaluate_absent"]

_SEED = 20_264
_ASK = (
    "show me a picture with {}", "which picture has {}?", "is there a picture of {}?", "find the photo with {}",
    "do you have any pictures with {}?", "I need a picture of {} for my slides, please",
)  # fmt: skip

Kind = Literal["present", "thing", "detail"]


@dataclass(frozen=True)
class AbsenceQuestion:
    """A question, and whether something in the store matches it.

    Attributes:
        question: What is asked.
        kind: ``"present"`` if something matches; else what is absent: a ``"thing"`` or a ``"detail"``.
    """

    question: str
    kind: Kind


def absence_questions(scenes: int) -> tuple[list[AskedScene], list[AbsenceQuestion]]:
    """Scenes for the store, and questions: two for each scene, and one for each kind of thing.

    Args:
        scenes: Number of scenes in the store.
    """
    pairs = twin_scenes(2 * scenes, seed=_SEED)
    stored = pairs[::2]
    asked = [
        AbsenceQuestion(one.question, "present" if any(one.fits(other.scene) for other in stored) else "detail")
        for one in pairs
    ]
    rng = random.Random(_SEED)
    shown = {placed.kind for one in stored for placed in one.scene.objects}
    for kind in KINDS:
        question = rng.choice(_ASK).format(phrase(kind))
        asked.append(AbsenceQuestion(question, "present" if kind in shown else "thing"))
    return stored, asked


def evaluate_absent(
    embedder: Embedder, *, generator: Generator | None = None, scenes: int = 40, progress: bool = False
) -> Results:
    """Ask for what is in a store and for what is not.

    Args:
        embedder: The model.
        generator: Judges; without one, only the scores of the search are measured.
        scenes: Number of pictures in the store; the fewer there are, the more things are absent.
        progress: Show progress bars.

    Returns:
        For each number: AUROC, the threshold with the best balanced accuracy, and what it does.

    Raises:
        InputError: ``scenes`` is not between 10 and 200.
        CheckpointError: The generator cannot generate.
    """
    if not 10 <= scenes <= 200:
        raise InputError(f"scenes must be between 10 and 200, not {scenes}")
    stored, asked = absence_questions(scenes)
    with tempfile.TemporaryDirectory(prefix="abc-rag-evaluate-") as scratch:
        files = draw_all(stored, Path(scratch))
        with ChromaStore(path=Path(scratch, "store"), fingerprint=embedder.fingerprint) as store:
            index_images(files, embedder, store, progress=progress)
            rules = Retriever(embedder, store, rewriter=RuleRewriter())
            ways: dict[str, Callable[[str], float]] = {
                "score, first search": lambda question: _best(rules.search(question, k=1, rerank=False)),
                "score, second look": lambda question: _best(rules.search(question, k=1)),
            }
            if generator is not None:
                judging = Retriever(embedder, store, generator=generator)
                ways["confidence"] = lambda question: judging.search(question, k=1, rerank="judge").confidence or 0.0
            questions = [one.question for one in asked]
            found = {way: figure_of_each(way, questions, ask, progress=progress) for way, ask in ways.items()}
    kinds = np.array([one.kind for one in asked])
    metrics: dict[str, float] = {}
    rows: list[list[Cell]] = []
    for way, numbers in found.items():
        yes, no = numbers[kinds == "present"], numbers[kinds != "present"]
        threshold = best_threshold(yes, no)
        row = {
            "AUROC": auroc(yes, no),
            "AUROC, things": auroc(yes, numbers[kinds == "thing"]),
            "AUROC, details": auroc(yes, numbers[kinds == "detail"]),
            "threshold": threshold,
            "present, kept": float(np.mean(yes >= threshold)),
            "absent, refused": float(np.mean(no < threshold)),
        }
        metrics |= {f"{way}: {name}": value for name, value in row.items()}
        rows.append([way, *(f"{threshold:.3f}" if name == "threshold" else 100 * row[name] for name in row)])
    counts = ", ".join(f"{int(np.sum(kinds == kind))} {kind}" for kind in ("present", "thing", "detail"))
    columns = ["%", "AUROC", "things", "details", "threshold", "kept", "refused"]
    notes = [
        "AUROC: of all questions, of things and of details. Kept: present, at or above the threshold; refused: absent, "
        "below it.",
        "Threshold: where the mean of both last columns is highest. It was chosen on these very questions.",
    ]
    if generator is not None:
        notes.append(
            "The threshold of the confidence goes into generation_config.json of the base as abc_rag_min_confidence: "
            "Retriever.answer then refuses below it."
        )
    return Results(
        benchmark="absent",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, scenes=scenes, generator=None if generator is None else generator.model),
        tables=[ResultTable(f"absent: {len(stored)} pictures, {len(asked)} questions ({counts})", columns, rows)],
        notes=notes,
    )


def _best(answer: Answer) -> float:
    return answer[0].score if len(answer) else 0.0
