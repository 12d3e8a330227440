"""Which model follows instructions on one's own pictures, and what that costs: CtrlBench for several models at once.

The gain of the instruction is R@1 with it, less the ceiling without it: the best that a model could reach that gives
one answer per picture. A gain of nothing says that instructions are lost on a model, or that the pairs need none.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.errors import ABCRagError, DatasetError, InputError
from abc_rag.evaluation.ctrlbench import SCENES, evaluate_ctrlbench, scene_rows
from abc_rag.evaluation.datasets import InstructedRow, existing, read_instructed
from abc_rag.evaluation.results import Cell, Plot, Results, ResultTable
from abc_rag.training.data.rows import BadRows
from abc_rag.types import Image, Input, InstructedImage, Text

__all__ = ["Costs", "evaluate_steering"]

_OTHERS = "others"


@dataclass(frozen=True)
class Costs:
    """Median seconds of one input at a time, from file to vector.

    Attributes:
        picture: A picture that was not seen before.
        again: The same picture under an instruction.
        query: An instruction as a question in words.
    """

    picture: float
    again: float
    query: float


def evaluate_steering(
    models: Mapping[str, Callable[[], Embedder]],
    data: str | os.PathLike[str],
    *,
    timed: int = 8,
    out: Path | None = None,
    limit: int | None = None,
    max_bad: int = 100,
    progress: bool = False,
) -> Results:
    """Compare how far instructions steer several models, by aspect, with what a picture and a query cost.

    Args:
        models: Name -> what opens its embedder; one is open at a time.
        data: As for `abc_rag.evaluation.ctrlbench.evaluate_ctrlbench`. A pair may name its ``"aspect"``; one that does
            not counts under its instruction where that is asked of several pictures, else under ``"others"``.
        timed: Maximum number of pictures whose time is measured.
        out: Folder for vectors, from which a later run resumes.
        limit: Use the first ``limit`` pictures.
        max_bad: Maximum number of unusable rows and pictures.
        progress: Show progress bars.

    Returns:
        For each model R@1 with the instruction, the ceiling without it, the gain, and costs; then the gain by aspect.
        A model that cannot be used has a note in place of figures.

    Raises:
        DatasetError: The file cannot be read, has no usable row, or too many unusable ones.
        InputError: No model is named, or none can be used.
    """
    if not models:
        raise InputError("no model is named; give at least one, such as abc-mini")
    rows = _rows(data, limit, max_bad)
    aspects = _aspects(rows)
    found: dict[str, tuple[Results, Costs, dict[str, float]]] = {}
    refused: dict[str, ABCRagError] = {}
    for name, opened in models.items():
        try:
            embedder = opened()
            with closing(embedder) if isinstance(embedder, LocalEmbedder) else nullcontext():
                costs = _costs(embedder, rows[:timed])
                results = evaluate_ctrlbench(embedder, data, out=out, limit=limit, max_bad=max_bad, progress=progress)
        except DatasetError:
            raise
        except ABCRagError as error:
            refused[name] = error
        else:
            found[name] = (results, costs, _gains(results, aspects))
    if not found:
        raise InputError("no model can be used: " + "; ".join(f"{name}: {error}" for name, error in refused.items()))
    first = next(iter(found.values()))[0]
    return Results(
        benchmark="steering",
        model=", ".join(results.model for results, _, _ in found.values()),
        metrics={
            f"{name}: {what}": value
            for name, (results, costs, _) in found.items()
            for what, value in _figures(results, costs).items()
        },
        settings={
            "models": {name: dict(results.settings) for name, (results, _, _) in found.items()},
            "counts": first.settings["counts"],
            "timed": min(timed, len(rows)),
        },
        tables=_tables(found, first, aspects),
        plots=[_plot(found)],
        bad=first.bad,
        notes=_notes(refused),
        details={
            "by_aspect": {name: gains for name, (_, _, gains) in found.items()},
            "refused": {name: str(error) for name, error in refused.items()},
        },
    )


def _rows(data: str | os.PathLike[str], limit: int | None, max_bad: int) -> list[InstructedRow]:
    if data == SCENES:
        return scene_rows() if limit is None else scene_rows(limit)
    source = existing(data, f"a JSON lines file, or {SCENES!r}", is_file=True)
    return read_instructed(source, BadRows(str(data), limit=max_bad), limit=limit)


def _aspects(rows: Sequence[InstructedRow]) -> dict[tuple[str, str], str]:
    """(Picture's name, instruction) -> aspect."""
    asked = Counter(instruction for row in rows for instruction, _ in row.pairs)
    return {
        (row.name, instruction): row.aspects.get(instruction) or (instruction if asked[instruction] > 1 else _OTHERS)
        for row in rows
        for instruction, _ in row.pairs
    }


def _costs(embedder: Embedder, rows: Sequence[InstructedRow]) -> Costs:
    seconds: list[list[float]] = []
    for row in rows:
        instruction = row.pairs[0][0]
        inputs: list[Input] = [
            Image(row.image),
            InstructedImage(row.image, instruction),
            Text(instruction, role="query"),
        ]
        try:
            if isinstance(embedder, LocalEmbedder):
                embedder.forget()
            seconds.append([_seconds(embedder, one) for one in inputs])
        except ABCRagError:  # counted and named by the evaluation
            continue
    # The first one warms up, where there are others.
    counted = seconds[1:] or seconds
    return Costs(*(statistics.median(column) for column in zip(*counted, strict=True))) if counted else _UNKNOWN


_UNKNOWN = Costs(math.nan, math.nan, math.nan)


def _seconds(embedder: Embedder, item: Input) -> float:
    start = time.perf_counter()
    embedder.embed([item])
    return time.perf_counter() - start


def _gains(results: Results, aspects: Mapping[tuple[str, str], str]) -> dict[str, float]:
    """R@1 of each aspect, less the ceiling of all pairs; the most frequent aspect first."""
    right: dict[str, list[bool]] = {}
    for query in results.details["queries"]:
        right.setdefault(aspects[query["image"], query["instruction"]], []).append(query["rank"] == 1)
    ceiling = results.metrics["without_instruction_ceiling"]
    ordered = sorted(right.items(), key=lambda pair: (pair[0] == _OTHERS, -len(pair[1]), pair[0]))
    return {aspect: sum(ones) / len(ones) - ceiling for aspect, ones in ordered}


def _figures(results: Results, costs: Costs) -> dict[str, float]:
    metrics = results.metrics
    return {
        "r1": metrics["r1"],
        "without_instruction_ceiling": metrics["without_instruction_ceiling"],
        "gain": metrics["r1"] - metrics["without_instruction_ceiling"],
        "without_instruction_r1": metrics["without_instruction_r1"],
        "own_phrases_r1": metrics["own_phrases_r1"],
        "seconds_picture": costs.picture,
        "seconds_known_picture": costs.again,
        "seconds_query": costs.query,
    }


def _tables(
    found: Mapping[str, tuple[Results, Costs, dict[str, float]]],
    first: Results,
    aspects: Mapping[tuple[str, str], str],
) -> list[ResultTable]:
    counts = first.settings["counts"]
    rows: list[list[Cell]] = []
    for name, (results, costs, _) in found.items():
        figures = _figures(results, costs)
        shares = ("r1", "without_instruction_ceiling", "gain", "without_instruction_r1", "own_phrases_r1")
        times = ("seconds_picture", "seconds_known_picture", "seconds_query")
        rows.append([name, *(100 * figures[one] for one in shares), *(f"{figures[one]:.3g}" for one in times)])
    title = f"steering: {counts['queries']} instructions on {counts['pictures']} pictures"
    columns = ["model", "R@1 %", "ceiling without", "gain", "R@1 without", "R@1 among own phrases"]
    columns += ["s a picture", "s a known picture", "s a query"]
    sizes = Counter(aspects.values())
    named = list(next(iter(found.values()))[2])
    by_aspect: list[list[Cell]] = [
        [aspect, sizes[aspect], *(100 * gains.get(aspect, math.nan) for _, _, gains in found.values())]
        for aspect in named
    ]
    return [
        ResultTable(title, columns, rows),
        ResultTable("gain by aspect, in points of R@1 over the ceiling", ["aspect", "pairs", *found], by_aspect),
    ]


def _plot(found: Mapping[str, tuple[Results, Costs, dict[str, float]]]) -> Plot:
    labels = list(next(iter(found.values()))[2])[:12]
    series = {name: [100 * gains.get(label, math.nan) for label in labels] for name, (_, _, gains) in found.items()}
    return Plot("Gain of the instruction over the ceiling without it, by aspect", "bars", labels, series)


def _notes(refused: Mapping[str, ABCRagError]) -> list[str]:
    notes: list[Any] = [
        "Gain: R@1 with the instruction, less the highest R@1 of a model that ignores it (one answer per picture, over "
        "all aspects). Below nothing, the instruction does not steer.",
        "Seconds: one input at a time, median. A known picture is one whose vision features are kept.",
    ]
    notes += [f"{name} could not be used: {error}" for name, error in refused.items()]
    return notes
