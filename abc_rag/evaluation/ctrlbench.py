"""Does the instruction steer the embedding? CtrlBench (arXiv 2503.00329) on any pictures.

Each picture has several instructions, and for each the phrase that answers it. A picture under an instruction is
compared with the phrases of all pictures. A model that ignores the instruction gives one answer per picture, and so is
right for one of its phrases at most; the results include that ceiling. Pairs whose phrase is found by the instruction
alone, without the picture, are a flaw of the file; the results count and name them.

The paper's own pictures have not been released; its figures are shown for orientation only.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.datasets import InstructedRow, check_limit, existing, read_instructed
from abc_rag.evaluation.metrics import TIE, Ranking, rank_candidates, recall_at, share, worst
from abc_rag.evaluation.results import Cell, Mistake, Plot, Results, ResultTable, settings
from abc_rag.evaluation.vectors import KnownTexts, VectorCache, require_left
from abc_rag.files import refused_as, write
from abc_rag.scenes.drawing import render
from abc_rag.scenes.questions import questions
from abc_rag.scenes.world import held_out_scenes
from abc_rag.training.data.rows import BadRows
from abc_rag.types import Image, Input, InstructedImage, Vectors

__all__ = ["SCENES", "evaluate_ctrlbench", "scene_rows", "write_scenes_ctrlbench"]

SCENES = "scenes"
"""In place of a file: 200 held-out scenes of abc-mini's world, drawn on demand."""

_SCENES = 200
_SCENES_SEED = 20_264
_NAMED = 10  # pairs named in the notes
_KS = (1, 5, 10)
_WAYS = {
    "picture + instruction": "",
    "picture alone": "without_instruction_",
    "instruction alone, no picture": "instruction_alone_",
}
_CEILING = "ceiling of picture alone"
_PUBLISHED = (
    ("ABC (Qwen2-VL-7B)", 50.9, 78.4, 87.5),
    ("GME-Qwen2-VL-7B", 24.8, 54.5, 65.3),
    ("ABC before instruction finetuning", 11.7, None, None),
)


@dataclass(frozen=True)
class _Query:
    """One (picture, instruction, phrase).

    Attributes:
        alone: Position of the vector of the picture alone.
        instructed: Position of the vector of the picture under the instruction.
        words: Position of the vector of the instruction alone.
        target: Position of the phrase.
        own: Positions of the picture's phrases.
    """

    row: InstructedRow
    instruction: str
    phrase: str
    alone: int
    instructed: int
    words: int
    target: int
    own: tuple[int, ...]


def evaluate_ctrlbench(
    embedder: Embedder,
    data: str | os.PathLike[str],
    *,
    out: Path | None = None,
    limit: int | None = None,
    max_bad: int = 100,
    progress: bool = False,
) -> Results:
    """Find the phrase that answers an instruction about a picture, among the phrases of all pictures.

    Args:
        embedder: The model.
        data: JSON lines ``{"image": ..., "pairs": [{"instruction": ..., "phrase": ...}, ...]}``, or `SCENES`.
        out: Folder for vectors, from which a later run resumes.
        limit: Use the first ``limit`` pictures.
        max_bad: Maximum number of unusable rows and pictures.
        progress: Show progress bars.

    Returns:
        R@1, R@5 and R@10 of picture + instruction, of the picture alone and of the instruction alone; the ceiling of
        R@1 for the picture alone; R@1 among a picture's own phrases. ``details["answered_by_instruction"]`` names the
        pairs whose phrase the instruction alone finds.

    Raises:
        DatasetError: The file cannot be read, has no usable row, or too many unusable ones.
    """
    check_limit(limit)
    bad = BadRows(str(data), limit=max_bad)
    if data == SCENES:
        rows = scene_rows(_SCENES if limit is None else min(limit, _SCENES))
        source: Any = {"scenes": len(rows), "seed": _SCENES_SEED}
    else:
        source = existing(data, f"a JSON lines file, or {SCENES!r}", is_file=True)
        rows = read_instructed(source, bad, limit=limit)
    cache = VectorCache(embedder, out, progress=progress, limits_bad=bad)
    queries, vectors, phrases, words = _embed(rows, cache)
    require_left(len(queries), "picture with an instruction", cache)
    targets = [[query.target] for query in queries]
    instructed = vectors[[query.instructed for query in queries]]
    alone = vectors[[query.alone for query in queries]]
    with_ = rank_candidates(instructed, phrases.vectors, targets)
    without = rank_candidates(alone, phrases.vectors, targets)
    blind_vectors = words.vectors[[query.words for query in queries]]
    blind = rank_candidates(blind_vectors, phrases.vectors, targets)
    leaked = [query for query, rank in zip(queries, blind.ranks, strict=True) if rank == 1]
    places = [place for place, query in enumerate(queries) if len(query.own) > 1]
    choices = [queries[place] for place in places]
    metrics = {
        **{f"r{k}": recall_at(with_.ranks, k) for k in _KS},
        **{f"without_instruction_r{k}": recall_at(without.ranks, k) for k in _KS},
        "without_instruction_ceiling": _ceiling(queries),
        **{f"instruction_alone_r{k}": recall_at(blind.ranks, k) for k in _KS},
        "own_phrases_r1": _own(choices, instructed[places], phrases.vectors),
        "own_phrases_without_instruction_r1": _own(choices, alone[places], phrases.vectors),
        "own_phrases_instruction_alone_r1": _own(choices, blind_vectors[places], phrases.vectors),
        "own_phrases_ceiling": _ceiling(choices),
        "own_phrases_chance": share([1 / len(query.own) for query in choices]),
    }
    counts = {
        "pictures": len({query.alone for query in queries}),
        "queries": len(queries),
        "candidates": len(phrases.texts),
    }
    return Results(
        benchmark="ctrlbench",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, data=source, limit=limit, max_bad=max_bad) | {"counts": counts},
        tables=_tables(metrics, counts),
        plots=_plots(metrics),
        mistakes=[_mistake(queries[p], phrases.texts, with_, p) for p in worst(with_.margins, with_.ranks)],
        bad=bad.as_dict(),
        notes=_notes(counts, len(choices), leaked),
        details={
            "queries": _details(queries, phrases.texts, with_, without, blind),
            "answered_by_instruction": [_named(query) for query in leaked],
        },
    )


def _embed(rows: Sequence[InstructedRow], cache: VectorCache) -> tuple[list[_Query], Vectors, KnownTexts, KnownTexts]:
    """The queries, the vectors of pictures, the phrases, and the instructions."""
    # A picture and its instructions are adjacent, so that the vision tower processes it once.
    inputs: list[Input] = []
    places: list[tuple[InstructedRow, int]] = []
    for row in rows:
        places.append((row, len(inputs)))
        inputs += [Image(row.image), *(InstructedImage(row.image, instruction) for instruction, _ in row.pairs)]
    vectors, ok = cache.embed("pictures", inputs)
    # Phrases of an unusable picture are not candidates either.
    usable = [(row, place) for row, place in places if ok[place]]
    phrases = KnownTexts(cache, "phrases", (phrase for row, _ in usable for _, phrase in row.pairs))
    words = KnownTexts(cache, "instructions", (instruction for row, _ in usable for instruction, _ in row.pairs))
    queries = []
    for row, place in usable:
        own = tuple(dict.fromkeys(phrases.position[p] for _, p in row.pairs if p in phrases.position))
        for offset, (instruction, phrase) in enumerate(row.pairs, 1):
            if ok[place + offset] and phrase in phrases.position and instruction in words.position:
                target, said = phrases.position[phrase], words.position[instruction]
                queries.append(_Query(row, instruction, phrase, place, place + offset, said, target, own))
    return queries, vectors, phrases, words


def _ceiling(queries: Sequence[_Query]) -> float:
    """The R@1 of a model that ignores instructions and answers with each picture's most frequent phrase.

    With n distinct phrases per picture it is 1 / n, as in the paper (five: 20 %).
    """
    answers: dict[int, Counter[int]] = {}
    for query in queries:
        answers.setdefault(query.alone, Counter())[query.target] += 1
    return sum(max(counter.values()) for counter in answers.values()) / len(queries) if queries else float("nan")


def _own(queries: Sequence[_Query], vectors: Vectors, phrases: Vectors) -> float:
    """Share of queries whose phrase is the nearest of the picture's own phrases; ties are misses."""
    right = []
    for query, vector in zip(queries, vectors, strict=True):
        others = [target for target in query.own if target != query.target]
        right.append(float((phrases[others] @ vector).max()) < float(phrases[query.target] @ vector) - TIE)
    return share(right)


def _tables(metrics: dict[str, float], counts: dict[str, int]) -> list[ResultTable]:
    title = (
        f"ctrlbench: {counts['queries']} instructions on {counts['pictures']} pictures, {counts['candidates']} phrases"
    )
    columns = ["%", *(f"R@{k}" for k in _KS)]
    rows: list[list[Cell]] = [
        [shown, *_percents(metrics, way), 100 * metrics[f"own_phrases_{way}r1"]] for shown, way in _WAYS.items()
    ]
    ceilings = (100 * metrics[name] for name in ("without_instruction_ceiling", "own_phrases_ceiling"))
    rows.insert(2, [_CEILING, next(ceilings), None, None, next(ceilings)])
    rows.append(["chance", None, None, None, 100 * metrics["own_phrases_chance"]])
    return [
        ResultTable(title, [*columns, "R@1 among own phrases"], rows),
        ResultTable(
            "published (arXiv 2503.00329), on the paper's own unreleased pictures: not comparable",
            columns,
            _PUBLISHED,
        ),
    ]


def _percents(metrics: dict[str, float], way: str) -> list[float]:
    return [100 * metrics[f"{way}r{k}"] for k in _KS]


def _plots(metrics: dict[str, float]) -> list[Plot]:
    series = {shown: _percents(metrics, way) for shown, way in _WAYS.items()}
    series[_CEILING] = [100 * metrics["without_instruction_ceiling"], float("nan"), float("nan")]
    return [Plot("The right phrase among the first k", "bars", [f"R@{k}" for k in _KS], series)]


def _notes(counts: dict[str, int], choices: int, leaked: Sequence[_Query]) -> list[str]:
    notes = [
        "R@k: share of instructions whose phrase is among the k nearest of all phrases; ties count as misses.",
        "Ceiling of picture alone: the highest R@1 of a model that ignores the instruction, as it gives one phrase per "
        "picture; 1 / n with n distinct phrases per picture.",
        f"Equal phrases are one candidate; there are {counts['candidates']}.",
    ]
    if leaked:
        shown = "; ".join(f"{query.row.name}: {query.instruction!r} -> {query.phrase!r}" for query in leaked[:_NAMED])
        more = f"; and {len(leaked) - _NAMED} more (see results.json)" if len(leaked) > _NAMED else ""
        notes.append(
            f"{len(leaked)} of {counts['queries']} pairs are answered by the instruction alone, without the "
            f"picture; reword or drop them: {shown}{more}."
        )
    if not choices:
        notes.append("No picture has two distinct phrases, so this says nothing about instructions.")
    return notes


def _mistake(query: _Query, texts: Sequence[str], ranking: Ranking, at: int) -> Mistake:
    return Mistake(
        query=query.instruction,
        expected=query.phrase,
        found=texts[ranking.found[at]],
        image=query.row.image,
        **ranking.figures(at),
    )


def _named(query: _Query) -> dict[str, str]:
    return {"image": query.row.name, "instruction": query.instruction, "phrase": query.phrase}


def _details(
    queries: Sequence[_Query], texts: Sequence[str], with_: Ranking, without: Ranking, blind: Ranking
) -> list[dict[str, Any]]:
    return [
        {
            **_named(query),
            "rank": int(with_.ranks[at]),
            "rank_without_instruction": int(without.ranks[at]),
            "rank_of_instruction_alone": int(blind.ranks[at]),
            "nearest_other": None if with_.found[at] < 0 else texts[with_.found[at]],
        }
        for at, query in enumerate(queries)
    ]


# --- Scenes -----------------------------------------------------------------------------------------------


def scene_rows(count: int = _SCENES) -> list[InstructedRow]:
    """The first of a fixed set of scenes, with one question per aspect, in wordings that training never used."""
    rng = random.Random(_SCENES_SEED)
    rows = []
    for number, scene in enumerate(held_out_scenes(_SCENES, seed=_SCENES_SEED)[:count]):
        asked = questions(scene, rng, held_out=True)
        pairs = {question.instruction: question.answer for question in asked}
        aspects = {question.instruction: question.aspect for question in asked}
        rows.append(InstructedRow(f"scene {number:03}", render(scene), tuple(pairs.items()), aspects))
    return rows


def write_scenes_ctrlbench(folder: str | os.PathLike[str], *, scenes: int = 100) -> Path:
    """Write held-out scenes of abc-mini's world as a CtrlBench file with its pictures, for experiments.

    Args:
        folder: Receives ``ctrlbench.jsonl`` and the pictures; created if missing.
        scenes: Number of scenes, at most 200.

    Returns:
        The JSON lines file.

    Raises:
        InputError: ``scenes`` is out of range, or the folder cannot be written to.
    """
    if not 1 <= scenes <= _SCENES:
        raise InputError(f"scenes must be between 1 and {_SCENES}, not {scenes}")
    target = Path(os.path.expanduser(folder))
    lines = []
    with refused_as(InputError, f"{target}: cannot be written", "choose another folder"):
        target.mkdir(parents=True, exist_ok=True)
        for row in scene_rows(scenes):
            name = f"{row.name.replace(' ', '-')}.png"
            row.image.save(target / name)  # type: ignore[union-attr]
            pairs = [{"instruction": instruction, "phrase": phrase} for instruction, phrase in row.pairs]
            lines.append(json.dumps({"image": name, "pairs": pairs}) + "\n")
        write(target / "ctrlbench.jsonl", "".join(lines))
    return target / "ctrlbench.jsonl"
