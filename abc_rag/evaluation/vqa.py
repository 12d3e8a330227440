"""Visual question answering as retrieval: the answer nearest to the picture under its question."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.datasets import QuestionRow, check_limit, existing, read_questions
from abc_rag.evaluation.metrics import Ranking, join, rank_candidates, recall_at, share, worst
from abc_rag.evaluation.results import Mistake, Plot, Results, ResultTable, settings
from abc_rag.evaluation.vectors import KnownTexts, VectorCache, require_left
from abc_rag.search.rewriting.rewriter import AsAsked, Rewriter
from abc_rag.search.rewriting.rules import RuleRewriter
from abc_rag.training.data.rows import BadRows
from abc_rag.types import Image, Input, InstructedImage, Vectors

__all__ = ["evaluate_vqa"]

_PLACE = "{question}"
_KS = (1, 5)
_WAYS = {"picture + question": "", "picture alone": "without_question_", "chance": "chance_"}


def evaluate_vqa(
    embedder: Embedder,
    data: str | os.PathLike[str],
    *,
    instruction_template: str = _PLACE,
    rewrite: bool = False,
    out: Path | None = None,
    limit: int | None = None,
    max_bad: int = 100,
    progress: bool = False,
) -> Results:
    """Choose the answer to a question about a picture among candidates.

    Args:
        embedder: The model.
        data: JSON lines ``{"image": ..., "question": ..., "answer": ..., "candidates": [...]}``. All
            rows have ``"candidates"``, or none; then every answer of the file is a candidate.
        instruction_template: The instruction, with ``{question}`` in the place of the question.
        rewrite: Rewrite the question to an instruction with `abc_rag.search.rewriting.rules.RuleRewriter` first.
        out: Folder for vectors, from which a later run resumes.
        limit: Use the first ``limit`` rows.
        max_bad: Maximum number of unusable rows, pictures and answers.
        progress: Show progress bars.

    Returns:
        Hit@1 and hit@5 with the question; the same for the picture alone; chance.

    Raises:
        DatasetError: The file cannot be read, has no usable row, or too many unusable ones.
        InputError: The template has no ``{question}``.
    """
    check_limit(limit)
    if _PLACE not in instruction_template:
        raise InputError(f"the instruction template must have {_PLACE} in it, unlike {instruction_template!r}")
    source = existing(data, "a JSON lines file", is_file=True)
    bad = BadRows(str(source), limit=max_bad)
    rows = read_questions(source, bad, limit=limit)
    cache = VectorCache(embedder, out, progress=progress, limits_bad=bad)
    rewriter: Rewriter = RuleRewriter() if rewrite else AsAsked()
    inputs: list[Input] = []
    for row in rows:
        asked = rewriter.rewrite(row.question, has_image=True).instruction
        instruction = instruction_template.replace(_PLACE, asked)
        # Adjacent, so that the vision tower processes each picture once.
        inputs += [Image(row.image), InstructedImage(row.image, instruction)]
    vectors, ok = cache.embed("pictures", inputs)
    answers = KnownTexts(cache, "answers", (text for row in rows for text in (row.answer, *(row.candidates or ()))))
    chosen = [at for at, row in enumerate(rows) if ok[2 * at] and ok[2 * at + 1] and row.answer in answers.position]
    require_left(len(chosen), "picture with a question", cache)
    rows = [rows[at] for at in chosen]
    asked_ranking = _rank(vectors[[2 * at + 1 for at in chosen]], rows, answers)
    alone_ranking = _rank(vectors[[2 * at for at in chosen]], rows, answers)
    choices = [len(_candidates(row, answers)) for row in rows]
    metrics = {
        **{f"hit{k}": recall_at(asked_ranking.ranks, k) for k in _KS},
        **{f"without_question_hit{k}": recall_at(alone_ranking.ranks, k) for k in _KS},
        **{f"chance_hit{k}": share([min(1.0, k / count) for count in choices]) for k in _KS},
    }
    counts = {"questions": len(rows), "candidates": len(answers.texts)}
    series = {shown: [100 * metrics[f"{way}hit{k}"] for k in _KS] for shown, way in _WAYS.items()}
    columns = [f"hit@{k}" for k in _KS]
    among = " to ".join(map(str, dict.fromkeys((min(choices), max(choices)))))
    title = f"vqa: {len(rows)} questions, each with {among} candidates"
    given = {"instruction_template": instruction_template, "rewrite": rewrite, "limit": limit, "max_bad": max_bad}
    return Results(
        benchmark="vqa",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, data=source, **given) | {"counts": counts},
        tables=[ResultTable(title, ["%", *columns], [[shown, *values] for shown, values in series.items()])],
        plots=[Plot("The answer among the first k", "bars", columns, series)],
        mistakes=[
            _mistake(rows[at], answers, asked_ranking, at) for at in worst(asked_ranking.margins, asked_ranking.ranks)
        ],
        bad=bad.as_dict(),
        notes=["Hit@k: share of questions whose answer is among the k nearest candidates; ties count as misses."],
        details={
            "questions": [
                {
                    "image": row.name,
                    "question": row.question,
                    "answer": row.answer,
                    "candidates": choices[at],
                    "rank": int(asked_ranking.ranks[at]),
                    "rank_without_question": int(alone_ranking.ranks[at]),
                }
                for at, row in enumerate(rows)
            ]
        },
    )


def _candidates(row: QuestionRow, answers: KnownTexts) -> Sequence[int]:
    if row.candidates is None:
        return range(len(answers.texts))
    return [answers.position[text] for text in row.candidates if text in answers.position]


def _rank(vectors: Vectors, rows: Sequence[QuestionRow], answers: KnownTexts) -> Ranking:
    """Rank each row's own candidates, or all answers; positions refer to ``answers``."""
    right = [answers.position[row.answer] for row in rows]
    if rows[0].candidates is None:
        return rank_candidates(vectors, answers.vectors, [[one] for one in right])
    parts = []
    for vector, row, one in zip(vectors, rows, right, strict=True):
        own = np.array(_candidates(row, answers))
        part = rank_candidates(vector[None], answers.vectors[own], [np.flatnonzero(own == one).tolist()])
        parts.append(part.at(own))
    return join(parts)


def _mistake(row: QuestionRow, answers: KnownTexts, ranking: Ranking, at: int) -> Mistake:
    found: dict[str, Any] = ranking.figures(at)
    return Mistake(row.question, row.answer, answers.texts[ranking.found[at]], image=row.image, **found)
