"""Measures whether maps of evidence lie where the answer does: `abc-rag evaluate evidence`.

Pictures are held-out scenes of two objects, side by side or one above the other. Each is asked about one of its objects
in three ways: by a search ("show me a picture with a pig on the left", through the rules), by an instruction with the
phrase that answers it, and by an instruction with the phrase of a thing that is not there. Of the first two, the share
of the map's weight that lies in the half of the object; of all three, how often the map is said to be evidence. A
question about the background has no half: its answer lies everywhere.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import InputError
from abc_rag.evaluation.results import Cell, Results, ResultTable, settings
from abc_rag.evaluation.twins import twin_scenes
from abc_rag.scenes.drawing import render
from abc_rag.scenes.questions import questions
from abc_rag.scenes.world import KINDS, Scene, Side, phrase
from abc_rag.search.evidence import PASSES, Evidence, explain_picture
from abc_rag.search.rewriting.rules import RuleRewriter
from abc_rag.types import Text

__all__ = ["EvidenceCase", "evaluate_evidence", "evidence_cases", "share_in_half"]

_SEED = 20_265
_SIZE = 168


@dataclass(frozen=True)
class EvidenceCase:
    """A picture, what is asked of it, and where the answer lies.

    Attributes:
        scene: The picture.
        way: How it is asked: ``"searched"``, ``"asked"`` or ``"absent"``, and the aspect.
        instruction: What to look at.
        answer: The text that the picture is compared with.
        side: The half of the object that is asked for; None where the answer is everywhere or nowhere.
    """

    scene: Scene
    way: str
    instruction: str
    answer: str
    side: Side | None


def evidence_cases(scenes: int) -> list[EvidenceCase]:
    """What is asked of so many scenes: one search each, a question for each aspect, and one for an absent thing."""
    rng, rules, found = random.Random(_SEED), RuleRewriter(), []
    for one in twin_scenes(scenes, seed=_SEED):
        scene = one.scene
        side = {phrase(placed.kind): placed.side for placed in scene.objects}
        rewrite = rules.rewrite(one.question, has_image=False)
        where = side.get(one.told.get("a", ""))
        found.append(EvidenceCase(scene, f"searched: {one.aspect}", rewrite.instruction, rewrite.target, where))
        for asked in questions(scene, rng, held_out=True):
            aspect = "side" if asked.aspect == side.get(asked.answer) else asked.aspect
            aspect = "size" if aspect in ("big", "small") else aspect
            where = side.get(asked.answer)
            found.append(EvidenceCase(scene, f"asked: {aspect}", asked.instruction, asked.answer, where))
        absent = phrase(rng.choice([kind for kind in KINDS if phrase(kind) not in side]))
        found.append(EvidenceCase(scene, "absent", asked.instruction, absent, None))
    return found


def share_in_half(drawn: npt.NDArray[np.float32], side: Side) -> float:
    """The share of a map's weight that lies in a half; of a row or column across the middle, half of it counts.

    Args:
        drawn: ``(rows, columns)``.
        side: ``"left"``, ``"right"``, ``"top"`` or ``"bottom"``.
    """
    along = drawn.sum(axis=0 if side in ("left", "right") else 1, dtype=np.float64)
    inside = np.clip(len(along) / 2 - np.arange(len(along)), 0.0, 1.0)
    first = float(along @ inside / along.sum()) if along.any() else 0.5
    return first if side in ("left", "top") else 1.0 - first


def evaluate_evidence(
    embedder: Embedder, *, scenes: int = 200, passes: int = PASSES, progress: bool = False
) -> Results:
    """Explain pictures, and compare the maps with where things are.

    Args:
        embedder: One that can leave out parts of pictures; see `abc_rag.Embedder.grid`.
        scenes: Number of pictures; even.
        passes: Most passes for a map.
        progress: Show a progress bar.

    Raises:
        InputError: ``scenes`` is not an even number between 2 and 1,000, or the embedder cannot leave out parts.
    """
    if not 2 <= scenes <= 1000 or scenes % 2:
        raise InputError(f"scenes must be an even number between 2 and 1000, not {scenes}")
    cases = evidence_cases(scenes)
    drawn: dict[Scene, PIL.Image.Image] = {}
    found: list[Evidence] = []
    seconds = []
    with progress_bar("explaining", total=len(cases), enabled=progress) as bar:
        for case in cases:
            picture = drawn.setdefault(case.scene, render(case.scene, _SIZE))
            (vector,) = embedder.embed([Text(case.answer, role="query")])
            begun = time.perf_counter()
            found.append(explain_picture(embedder, picture, vector, case.instruction, passes=passes))
            seconds.append(time.perf_counter() - begun)
            bar.advance()
    order = ("searched", "asked", "absent")
    ways = sorted({case.way for case in cases}, key=lambda way: (order.index(way.partition(":")[0]), way))
    rows: list[list[Cell]] = []
    for way in ways:
        chosen = [at for at, case in enumerate(cases) if case.way == way]
        rows.append([way, *_figures([cases[at] for at in chosen], [found[at] for at in chosen])])
    placed = [at for at, case in enumerate(cases) if case.side is not None]
    absent = [at for at, case in enumerate(cases) if case.way == "absent"]
    metrics = {
        "mass_in_half": _mass([cases[at] for at in placed], [found[at] for at in placed]),
        "evidence_where_there_is": float(np.mean([found[at].evidence for at in placed])),
        "evidence_where_there_is_none": float(np.mean([found[at].evidence for at in absent])),
        "passes": float(np.mean([one.passes for one in found])),
        "seconds": float(np.median(seconds)),
    }
    columns = ["%", "maps", "weight in its half", "said to be evidence", "passes"]
    rows.append(["all with a place", *_figures([cases[at] for at in placed], [found[at] for at in placed])])
    rows_columns = embedder.grid(render(cases[0].scene, _SIZE))
    return Results(
        benchmark="evidence",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, scenes=scenes, passes=passes),
        tables=[ResultTable(f"evidence: {scenes} pictures of {rows_columns} image tokens", columns, rows)],
        notes=[
            "Weight: mean share of a map in the half of the object that is asked for; chance is 50.",
            "Passes: of the language model, mean; the vision tower sees a picture once.",
            f"Median {metrics['seconds'] * 1000:.0f} ms a map.",
        ],
    )


def _figures(cases: Sequence[EvidenceCase], found: Sequence[Evidence]) -> list[Cell]:
    mass = 100 * _mass(cases, found) if cases[0].side is not None else None
    return [
        len(found),
        mass,
        100 * float(np.mean([one.evidence for one in found])),
        float(np.mean([one.passes for one in found])),
    ]


def _mass(cases: Sequence[EvidenceCase], found: Sequence[Evidence]) -> float:
    pairs = zip(found, cases, strict=True)
    return float(np.mean([share_in_half(one.map, case.side) for one, case in pairs if case.side is not None]))
