"""Image-text retrieval: pictures by caption and captions by picture (MSCOCO, Flickr30K, your own files)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from abc_rag.embedding.embedder import Embedder
from abc_rag.evaluation.captions import CaptionedRow, read_captioned
from abc_rag.evaluation.datasets import check_limit, existing
from abc_rag.evaluation.metrics import MOST_MISTAKES, Ranking, rank_candidates, recall_at, worst
from abc_rag.evaluation.results import Mistake, Plot, Results, ResultTable, settings
from abc_rag.evaluation.vectors import KnownTexts, VectorCache, require_left
from abc_rag.training.data.rows import BadRows
from abc_rag.types import Image

__all__ = ["evaluate_retrieval"]

_KS = (1, 5, 10)
_WAYS = {"picture -> caption": "image_to_text", "caption -> picture": "text_to_image"}


def evaluate_retrieval(
    embedder: Embedder,
    data: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    captions: int | None = None,
    out: Path | None = None,
    limit: int | None = None,
    max_bad: int = 100,
    progress: bool = False,
) -> Results:
    """Find each picture's captions among all captions, and each caption's picture among all pictures.

    Args:
        embedder: The model.
        data: JSON lines ``{"image": ..., "captions": [...]}`` or ``{"image": ..., "caption": ...}``; MSCOCO
            annotations; or a Karpathy split file, the usual one for MSCOCO and Flickr30K. The content tells the format.
        images: Folder of the pictures; the folder of the file if None.
        split: Split of a Karpathy file; ``"test"`` if None.
        captions: Use the first ``captions`` captions of each picture (published figures: 5); all if None.
        out: Folder for vectors, from which a later run resumes.
        limit: Use the first ``limit`` pictures.
        max_bad: Maximum number of unusable rows, captions and pictures.
        progress: Show progress bars.

    Returns:
        R@1, R@5 and R@10 in both directions. Any caption of a picture counts as right.

    Raises:
        DatasetError: The file is of an unknown format, has no usable row, or too many unusable ones.
    """
    check_limit(limit)
    source = existing(data, "annotations or a JSON lines file", is_file=True)
    folder = None if images is None else existing(images, "the folder of the pictures")
    bad = BadRows(str(source), limit=max_bad)
    kind, rows = read_captioned(source, bad, images=folder, split=split, captions=captions, limit=limit)
    cache = VectorCache(embedder, out, progress=progress, limits_bad=bad)
    vectors, ok = cache.embed("pictures", [Image(row.image) for row in rows])
    texts = KnownTexts(
        cache, "captions", (text for row, fine in zip(rows, ok, strict=True) if fine for text in row.captions)
    )
    fine = [number for number, row in enumerate(rows) if ok[number] and any(c in texts.position for c in row.captions)]
    require_left(len(fine), "picture with a caption", cache)
    rows, pictures = [rows[number] for number in fine], vectors[fine]
    owned = [[texts.position[c] for c in row.captions if c in texts.position] for row in rows]
    showing: list[list[int]] = [[] for _ in texts.texts]
    for number, positions in enumerate(owned):
        for position in positions:
            showing[position].append(number)
    # Each caption of each picture is one query; if several pictures have it, any of them is right.
    asked = [position for positions in owned for position in positions]
    to_text = rank_candidates(pictures, texts.vectors, owned)
    by_text = rank_candidates(texts.vectors[asked], pictures, [showing[position] for position in asked])
    metrics = {
        **{f"image_to_text_r{k}": recall_at(to_text.ranks, k) for k in _KS},
        **{f"text_to_image_r{k}": recall_at(by_text.ranks, k) for k in _KS},
    }
    counts = {"pictures": len(rows), "captions": len(asked), "distinct_captions": len(texts.texts)}
    series = {shown: [100 * metrics[f"{way}_r{k}"] for k in _KS] for shown, way in _WAYS.items()}
    columns = [f"R@{k}" for k in _KS]
    title = f"retrieval: {len(rows)} pictures, {len(asked)} captions"
    return Results(
        benchmark="retrieval",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(
            embedder, data=source, images=folder, split=split, captions=captions, limit=limit, max_bad=max_bad
        )
        | {"format": kind, "counts": counts},
        tables=[ResultTable(title, ["%", *columns], [[shown, *values] for shown, values in series.items()])],
        plots=[Plot("A right one among the first k", "bars", columns, series)],
        mistakes=_mistakes(rows, texts.texts, asked, to_text, by_text),
        bad=bad.as_dict(),
        notes=_notes(counts),
        details={
            "pictures": [{"image": row.name, "rank": int(rank)} for row, rank in zip(rows, to_text.ranks, strict=True)],
            "captions": [
                {"caption": texts.texts[position], "image": rows[showing[position][0]].name, "rank": int(rank)}
                for position, rank in zip(asked, by_text.ranks, strict=True)
            ],
        },
    )


def _notes(counts: dict[str, int]) -> list[str]:
    notes = [
        "R@k: share with a right answer among the k nearest; any caption of a picture counts; ties count as misses."
    ]
    shared = counts["captions"] - counts["distinct_captions"]
    if shared:
        notes.append(
            f"Captions that repeat that of another picture word for word: {shared}. Each is one candidate, and every "
            "picture with it counts as right."
        )
    return notes


def _mistakes(
    rows: Sequence[CaptionedRow], texts: Sequence[str], asked: Sequence[int], to_text: Ranking, by_text: Ranking
) -> list[Mistake]:
    half = MOST_MISTAKES // 2
    found: list[Mistake] = []
    for at in worst(by_text.margins, by_text.ranks, most=half):
        expected, wrong = rows[by_text.expected[at]], rows[by_text.found[at]]
        shown: dict[str, Any] = {"expected_image": expected.image, "found_image": wrong.image}
        found.append(Mistake(texts[asked[at]], expected.name, wrong.name, **shown, **by_text.figures(at)))
    for at in worst(to_text.margins, to_text.ranks, most=half):
        expected_text, wrong_text = texts[to_text.expected[at]], texts[to_text.found[at]]
        found.append(Mistake("", expected_text, wrong_text, image=rows[at].image, **to_text.figures(at)))
    return sorted(found, key=lambda one: (one.expected_score or 0.0) - (one.score or 0.0))
