"""Zero-shot classification: the label whose text is nearest to the picture."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import DatasetError, InputError
from abc_rag.evaluation.datasets import LabelledRow, check_limit, existing, read_labelled, read_labels, sample
from abc_rag.evaluation.metrics import Ranking, rank_candidates, recall_at, share, worst
from abc_rag.evaluation.results import Mistake, Plot, Results, ResultTable, settings
from abc_rag.evaluation.vectors import KnownTexts, VectorCache, require_left
from abc_rag.training.data.rows import BadRows
from abc_rag.types import Image, InstructedImage, Vectors

__all__ = ["TEMPLATE", "evaluate_classification"]

TEMPLATE = "a photo of a {}"
"""The default template that makes a text of a label."""

_SHOWN = 20


def evaluate_classification(
    embedder: Embedder,
    data: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    templates: Sequence[str] = (TEMPLATE,),
    instruction: str | None = None,
    out: Path | None = None,
    limit: int | None = None,
    max_bad: int = 100,
    progress: bool = False,
) -> Results:
    """Give each picture the label whose text is nearest.

    Args:
        embedder: The model.
        data: JSON lines ``{"image": ..., "label": ...}``, or a folder with a subfolder of pictures for each label.
        labels: File with all labels: one per line, a JSON list, or a JSON object of label -> words. If None, the labels
            of ``data`` as they are.
        templates: Texts with ``{}`` in the place of the label. With several, a label's vector is the normalised mean of
            their unit vectors.
        instruction: Instruction for every picture; None embeds pictures alone.
        out: Folder for vectors, from which a later run resumes.
        limit: Use ``limit`` pictures, drawn at random but always the same. The labels are those of all pictures.
        max_bad: Maximum number of unusable rows and pictures.
        progress: Show progress bars.

    Returns:
        Accuracy (top 1), top 5 if there are more than five labels, the mean over labels, and the figures of each label.

    Raises:
        DatasetError: The data or the labels cannot be read, or there are fewer than two labels, no usable row, or too
            many unusable ones.
        InputError: A template has no ``{}``.
    """
    check_limit(limit)
    if isinstance(templates, str) or not templates or not all("{}" in template for template in templates):
        raise InputError(f"templates must be a list of texts with {{}} in the place of the label, not {templates!r}")
    source = existing(data, "a JSON lines file, or a folder with a subfolder for each label")
    bad = BadRows(str(source), limit=max_bad)
    rows = read_labelled(source, bad)
    file = None if labels is None else existing(labels, "a file of labels")
    words = {label: label for label in sorted({row.label for row in rows})} if file is None else read_labels(file)
    if len(words) < 2:
        raise DatasetError(f"{file or source}: {len(words)} label; give two or more to tell apart")
    rows = sample(_known(rows, words, bad), limit)
    cache = VectorCache(embedder, out, progress=progress, limits_bad=bad)
    names = list(words)
    texts = _label_vectors(cache, [words[name] for name in names], templates)
    pictures = [Image(row.image) if instruction is None else InstructedImage(row.image, instruction) for row in rows]
    vectors, ok = cache.embed("pictures", pictures)
    rows = [row for row, fine in zip(rows, ok, strict=True) if fine]
    require_left(len(rows), "picture with a known label", cache)
    position = {name: number for number, name in enumerate(names)}
    ranking = rank_candidates(vectors[ok], texts, [[position[row.label]] for row in rows])
    per_label = _per_label(rows, ranking, names)
    metrics = {
        "top1": recall_at(ranking.ranks, 1),
        **({"top5": recall_at(ranking.ranks, 5)} if len(names) > 5 else {}),
        "mean_over_labels": share([found["accuracy"] for found in per_label.values()]),
        "chance": 1 / len(names),
    }
    given = {"labels": file, "templates": list(templates), "instruction": instruction, "limit": limit}
    counts = {"pictures": len(rows), "labels": len(names)}
    listing = hashlib.sha256("\n".join(f"{row.name}\t{row.label}" for row in rows).encode("utf-8", "replace"))
    return Results(
        benchmark="classification",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, data=source, **given, max_bad=max_bad)
        | {"counts": counts, "pictures_sha256": listing.hexdigest()},
        tables=_tables(metrics, counts, per_label, rows, ranking, names),
        plots=_plots(per_label),
        mistakes=[
            Mistake(instruction or "", row.label, names[ranking.found[at]], image=row.image, **ranking.figures(at))
            for at in worst(ranking.margins, ranking.ranks)
            for row in [rows[at]]
        ],
        bad=bad.as_dict(),
        notes=["Top k: share of pictures whose label is among the k nearest; ties count as misses."],
        details={
            "labels": {name: words[name] for name in names},
            "per_label": per_label,
            "pictures": [
                {"image": row.name, "label": row.label, "rank": int(rank), "nearest_other": names[other]}
                for row, rank, other in zip(rows, ranking.ranks, ranking.found, strict=True)
            ],
        },
    )


def _known(rows: Sequence[LabelledRow], words: Mapping[str, str], bad: BadRows) -> list[LabelledRow]:
    known = []
    for row in rows:
        if row.label in words:
            known.append(row)
        else:
            bad.add(row.name, "unknown label", row.label[:200])
    return known


def _label_vectors(cache: VectorCache, words: Sequence[str], templates: Sequence[str]) -> Vectors:
    """Unit rows ``(labels, dim)``."""
    said = [[template.replace("{}", word) for template in templates] for word in words]
    texts = KnownTexts(cache, "labels", (text for of_one in said for text in of_one))
    missing = next((text for of_one in said for text in of_one if text not in texts.position), None)
    if missing is not None:
        raise DatasetError(f"the label text {missing[:100]!r} cannot be embedded ({cache.bad.rows[-1].detail})")
    means = np.stack([texts.vectors[[texts.position[text] for text in of_one]].mean(axis=0) for of_one in said])
    unit: Vectors = (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return unit


def _per_label(rows: Sequence[LabelledRow], ranking: Ranking, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Figures of each label with pictures, the worst first."""
    of: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        of.setdefault(row.label, []).append(at)
    found: dict[str, dict[str, Any]] = {}
    for label, places in of.items():
        taken = Counter(names[ranking.found[at]] for at in places if ranking.ranks[at] > 1)
        accuracy = share([ranking.ranks[at] == 1 for at in places])
        found[label] = {"pictures": len(places), "accuracy": accuracy, "taken_for": dict(taken.most_common(5))}
    return dict(sorted(found.items(), key=lambda item: (item[1]["accuracy"], -item[1]["pictures"], item[0])))


def _tables(
    metrics: dict[str, float],
    counts: dict[str, int],
    per_label: dict[str, dict[str, Any]],
    rows: Sequence[LabelledRow],
    ranking: Ranking,
    names: Sequence[str],
) -> list[ResultTable]:
    shown = {"top1": "top 1", "top5": "top 5", "mean_over_labels": "top 1, mean over labels", "chance": "chance"}
    tables = [
        ResultTable(
            f"classification: {counts['pictures']} pictures, {counts['labels']} labels",
            ["measure", "%"],
            [[shown[name], 100 * value] for name, value in metrics.items()],
        )
    ]
    which = f"the worst {_SHOWN} of {len(per_label)} labels" if len(per_label) > _SHOWN else "labels"
    tables.append(
        ResultTable(
            which,
            ["label", "pictures", "top 1 %", "most often taken for"],
            [
                [label, one["pictures"], 100 * one["accuracy"], _said(one["taken_for"])]
                for label, one in list(per_label.items())[:_SHOWN]
            ],
        )
    )
    confused = Counter(
        (row.label, names[ranking.found[at]]) for at, row in enumerate(rows) if ranking.ranks[at] > 1
    ).most_common(_SHOWN)
    if confused:
        of_label = {label: one["pictures"] for label, one in per_label.items()}
        tables.append(
            ResultTable(
                "most frequent confusions",
                ["label", "taken for", "pictures", "% of the label"],
                [[label, other, count, 100 * count / of_label[label]] for (label, other), count in confused],
            )
        )
    return tables


def _said(taken: Mapping[str, int]) -> str:
    return ", ".join(f"{label} ({count})" for label, count in list(taken.items())[:3])


def _plots(per_label: dict[str, dict[str, Any]]) -> list[Plot]:
    worst_ = list(per_label.items())[:_SHOWN]
    title = f"Accuracy of the worst {_SHOWN} labels" if len(per_label) > _SHOWN else "Accuracy of each label"
    values = [100 * one["accuracy"] for _, one in worst_]
    return [Plot(title, "bars", [label for label, _ in worst_], {"top 1": values})]
