"""Evaluates on MMEB: 36 data sets of queries, each with one right candidate and up to 999 others.

hit@1 of a data set is the share of its queries whose right candidate has a higher cosine than all others. Candidates
that equal the right one, in text and picture, are ignored. A tie (scores within `abc_rag.evaluation.metrics.TIE`)
counts as a miss. The benchmark's own script takes the first of equal scores, and the right candidate always comes
first, so that a model which cannot tell candidates apart gets full marks; ``ties`` counts the hits that would add.

Means are over data sets with equal weights, as in the benchmark's paper (arXiv 2410.05160).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import DatasetError, InputError
from abc_rag.evaluation.metrics import TIE
from abc_rag.evaluation.mmeb.data import HUB_ID, Split, dataset_files, download_mmeb, image_folder, read_split
from abc_rag.evaluation.mmeb.tasks import (
    DATASETS,
    GROUPS,
    META_TASKS,
    PROMPTS,
    PUBLISHED,
    PromptName,
    Prompts,
    chosen_datasets,
    meta_task,
    plain,
)
from abc_rag.evaluation.results import Cell, Mistake, Plot, Results, ResultTable, settings
from abc_rag.evaluation.vectors import VectorCache, as_query
from abc_rag.training.data.mmeb import Side
from abc_rag.training.data.rows import BadRows
from abc_rag.types import Interleaved, Vectors

__all__ = ["DATASETS", "GROUPS", "META_TASKS", "PROMPTS", "DatasetScore", "Prompts", "download_mmeb", "evaluate_mmeb"]

_BLOCK = 64  # queries compared with all candidates at once: 64 x 10,000 scores are 2.5 MB
_MISTAKES = 36
_TITLES = {"classification": "Classification", "vqa": "VQA", "retrieval": "Retrieval", "grounding": "Grounding",
           "ind": "IND", "ood": "OOD", "overall": "Overall"}  # fmt: skip
# Column titles: all seven fit into a terminal of 80 characters.
_SHORT = {**_TITLES, "classification": "Class.", "retrieval": "Retr.", "grounding": "Ground.", "overall": "All"}
_SOURCES = list(dict.fromkeys(one.source for one in PUBLISHED))


@dataclass(frozen=True)
class DatasetScore:
    """The scores of one data set.

    Attributes:
        dataset: Name of the data set.
        hit_at_1: Share of queries answered correctly, in [0, 1].
        queries: Number of queries.
        candidates: Number of distinct candidates.
        ties: Queries whose right candidate ties for the first place, which counts as a miss.
        dropped: Number of unusable candidates removed from the queries' lists, which makes them easier.
        same: Rows that list the right candidate among the wrong ones too, where it is ignored.
        where: The row of each query.
        ranks: The rank of each query's right candidate; 1 is first.
    """

    dataset: str
    hit_at_1: float
    queries: int
    candidates: int
    ties: int
    dropped: int
    same: Sequence[str]
    where: Sequence[str]
    ranks: Sequence[int]


@dataclass(frozen=True)
class _Judged:
    row: int
    rank: int
    tie: bool
    found: int
    score: float
    expected_score: float


def evaluate_mmeb(
    embedder: Embedder,
    root: Path,
    *,
    datasets: Sequence[str] | None = None,
    images: Path | None = None,
    prompts: PromptName | Prompts | Literal["auto"] = "auto",
    out: Path | None = None,
    limit: int | None = None,
    max_bad: int = 100,
    download: bool = False,
    progress: bool = False,
) -> Results:
    """Measure hit@1 on MMEB, from files in the format of ``TIGER-Lab/MMEB-eval``.

    Args:
        embedder: The model.
        root: A folder with a folder per data set: a copy of the hub's data set, what ``datasets.save_to_disk`` wrote,
            or JSON lines with its columns ``qry_text``, ``qry_img_path``, ``tgt_text`` and ``tgt_img_path``.
        datasets: Names of data sets, or of groups: ``classification``, ``vqa``, ``retrieval``, ``grounding``, ``ind``,
            ``ood``, ``overall``. If None, all data sets in ``root``.
        images: The folder of the unpacked ``images.zip``; if None, ``images`` or ``eval_images`` in ``root``, else
            ``root``.
        prompts: Makes inputs of texts and pictures: ``"mmeb"``, the benchmark's words in the model's own prompt;
            ``"abc"``, the prompts of ABC's authors; ``"vlm2vec"``, the benchmark's texts verbatim, for models that
            accept `Interleaved`; or your own (see `Prompts`). ``"auto"`` is ``"vlm2vec"`` for models that accept it,
            else ``"mmeb"``.
        out: Folder for vectors, from which a later run resumes.
        limit: Use the first ``limit`` queries of each data set.
        max_bad: Maximum number of unusable rows, candidates and pictures, over all data sets.
        download: Download what is missing in ``root`` from the hub first.
        progress: Show progress bars.

    Returns:
        Metrics ``"hit@1"`` (the mean over all data sets that were run), ``"hit@1/GROUP"`` and ``"hit@1/NAME"``.

    Raises:
        InputError: A name is unknown, a data set named in ``datasets`` is missing, or an argument is unusable.
        DatasetError: A file cannot be read, or too many rows are unusable.
        MissingExtraError: pyarrow is not installed.
    """
    chosen = prompts if not isinstance(prompts, str) else _named_prompts(prompts, embedder)
    if limit is not None and limit < 1:
        raise InputError(f"limit must be positive, not {limit}")
    wanted = chosen_datasets(datasets) if datasets else list(DATASETS)
    if download:
        download_mmeb(root, wanted)
    files = _files(root, wanted, required=datasets or ())
    folder = image_folder(root, images)
    bad = BadRows("MMEB", limit=max_bad)
    # All files are read before anything is embedded: a broken file shows at once, not hours later.
    splits = _read(files, folder, bad, limit=limit, progress=progress)
    cache = VectorCache(embedder, out, progress=progress, limits_bad=bad)
    scores: list[DatasetScore] = []
    mistakes: list[tuple[int, float, Mistake]] = []
    for split in splits:
        score, wrong = _evaluate_split(cache, split, folder, chosen)
        scores.append(score)
        worst = sorted(wrong, key=lambda one: one[0], reverse=True)[:_MISTAKES]
        mistakes += [(place, -margin, mistake) for place, (margin, mistake) in enumerate(worst)]
    means = _means(scores)
    model = str(embedder.fingerprint)
    missing = [name for name in wanted if name not in files]
    # The worst mistake of each data set first, then the second worst of each, and so on.
    mistakes.sort(key=lambda one: one[:2])
    return Results(
        benchmark="mmeb",
        model=model,
        metrics=_metrics(scores, means),
        settings=settings(
            embedder,
            root=root,
            images=folder,
            datasets=list(files),
            prompts=chosen.name,
            limit=limit,
            max_bad=max_bad,
            **{f"file {file.relative_to(root)}": file for found in files.values() for file in found},
        ),
        tables=[_table_of_datasets(scores), _table_of_means(embedder.fingerprint.model, means)],
        plots=[Plot("hit@1", "bars", [s.dataset for s in scores], {"hit@1": [100 * s.hit_at_1 for s in scores]})],
        mistakes=[mistake for _, _, mistake in mistakes[:_MISTAKES]],
        bad=bad.as_dict(),
        notes=_notes(scores, missing, chosen, limit),
        details={"datasets": [dict(score.__dict__) for score in scores], "missing": missing},
    )


def _named_prompts(name: str, embedder: Embedder) -> Prompts:
    if name == "auto":
        name = "vlm2vec" if Interleaved in embedder.accepts else "mmeb"
    if name not in PROMPTS:
        raise InputError(f"prompts must be one of auto, {', '.join(PROMPTS)}, not {name!r}")
    if name == "vlm2vec" and Interleaved not in embedder.accepts:
        model = embedder.fingerprint.model
        raise InputError(f"{model} does not accept Interleaved, which prompts='vlm2vec' needs; use 'mmeb'")
    return PROMPTS[name]


def _files(root: Path, wanted: Sequence[str], *, required: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each data set found; data sets in ``required`` must be found."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; download MMEB ({HUB_ID}) into it with --download")
    files = {name: found for name in wanted if (found := dataset_files(root, name))}
    absent = [name for name in required if name in DATASETS and name not in files]
    if absent or not files:
        raise InputError(
            f"{root}: holds no files of {', '.join(absent) or 'any data set of MMEB'} (such as "
            f"{(absent or wanted)[0]}/test-00000-of-00001.parquet); download them with --download"
        )
    return files


def _read(
    files: Mapping[str, Sequence[Path]], images: Path, bad: BadRows, *, limit: int | None, progress: bool
) -> list[Split]:
    splits = []
    with progress_bar("reading", total=len(files), enabled=progress) as bar:
        for name, found in files.items():
            splits.append(read_split(name, found, images, bad, limit=limit))
            bar.advance()
    return splits


def _evaluate_split(
    cache: VectorCache, split: Split, images: Path, prompts: Prompts
) -> tuple[DatasetScore, list[tuple[float, Mistake]]]:
    """The score of one data set, and its mistakes with the margin of the wrong candidate."""
    name = split.dataset

    def place(item: Side) -> Path | None:
        return images / item.image if item.image else None

    queries, asked = cache.embed(
        f"{name}-queries", [as_query(prompts.query(name, q.text, place(q))) for q in split.queries]
    )
    candidates, offered = cache.embed(
        f"{name}-candidates", [prompts.candidate(name, c.text, place(c)) for c in split.candidates]
    )
    judged = list(_judge(split, queries, asked, candidates, offered))
    if not judged:
        raise DatasetError(f"{name}: none of its {len(split.rows)} queries could be embedded; {cache.bad.summary()}")
    wrong = [(one.score - one.expected_score, _mistake(split, one, images)) for one in judged if one.rank > 1]
    return DatasetScore(
        dataset=name,
        hit_at_1=float(np.mean([one.rank == 1 for one in judged])),
        queries=len(judged),
        candidates=int(offered.sum()),
        ties=sum(one.tie for one in judged),
        dropped=split.dropped + sum(int((~offered[row.others]).sum()) for row in split.rows),
        same=tuple(split.same),
        where=[split.rows[one.row].where for one in judged],
        ranks=[one.rank for one in judged],
    ), wrong


def _judge(
    split: Split,
    queries: Vectors,
    asked: npt.NDArray[np.bool_],
    candidates: Vectors,
    offered: npt.NDArray[np.bool_],
) -> Iterator[_Judged]:
    """Rank the right candidate of each row whose query and right candidate could be embedded."""
    for start in range(0, len(split.rows), _BLOCK):
        rows = split.rows[start : start + _BLOCK]
        block = queries[[row.query for row in rows]] @ candidates.T
        for number, row in enumerate(rows):
            rivals = row.others[offered[row.others]]
            if not (asked[row.query] and offered[row.right] and len(rivals)):
                continue  # counted by the cache
            scores = block[number, rivals]
            expected = float(block[number, row.right])
            best = int(scores.argmax())
            ahead = int((scores >= expected - TIE).sum())
            tie = ahead > 0 and float(scores[best]) <= expected + TIE
            yield _Judged(start + number, 1 + ahead, tie, int(rivals[best]), float(scores[best]), expected)


def _mistake(split: Split, judged: _Judged, images: Path) -> Mistake:
    row = split.rows[judged.row]
    asked, expected, found = split.queries[row.query], split.candidates[row.right], split.candidates[judged.found]
    pictures = [images / item.image if item.image else None for item in (asked, expected, found)]
    return Mistake(
        query=f"{split.dataset}: {plain(asked.text)}",
        expected=_described(expected),
        found=_described(found),
        image=pictures[0],
        expected_image=pictures[1],
        found_image=pictures[2],
        score=judged.score,
        expected_score=judged.expected_score,
        rank=judged.rank,
    )


def _described(item: Side) -> str:
    return " ".join(part for part in (plain(item.text), f"({item.image})" if item.image else "") if part)


def _means(scores: Sequence[DatasetScore]) -> dict[str, tuple[float, int]]:
    """Group -> mean over its data sets that were run (NaN if none), and their number."""
    by_name = {score.dataset: score.hit_at_1 for score in scores}
    found = {group: [by_name[name] for name in names if name in by_name] for group, names in GROUPS.items()}
    return {group: (float(np.mean(values)) if values else math.nan, len(values)) for group, values in found.items()}


def _metrics(scores: Sequence[DatasetScore], means: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    metrics = {"hit@1": means["overall"][0]}
    metrics |= {f"hit@1/{group}": mean for group, (mean, count) in means.items() if count and group != "overall"}
    return metrics | {f"hit@1/{score.dataset}": score.hit_at_1 for score in scores} | _abc_metric(scores)


def _abc_metric(scores: Sequence[DatasetScore]) -> dict[str, float]:
    """ABC's authors leave N24News out of their classification mean."""
    nine = [s.hit_at_1 for s in scores if s.dataset in META_TASKS["classification"] and s.dataset != "N24News"]
    with_it = any(s.dataset == "N24News" for s in scores)
    return {"hit@1/classification without N24News": float(np.mean(nine))} if nine and with_it else {}


def _table_of_datasets(scores: Sequence[DatasetScore]) -> ResultTable:
    rows: list[list[Cell]] = []
    for one in scores:
        task = _TITLES[meta_task(one.dataset)]
        seen = "OOD" if one.dataset in GROUPS["ood"] else "IND"
        rows.append([one.dataset, task, seen, 100 * one.hit_at_1, one.queries, one.candidates, one.ties])
    return ResultTable(
        "MMEB", ["data set", "meta-task", "IND or OOD", "hit@1 %", "queries", "candidates", "ties"], rows
    )


def _table_of_means(model: str, means: Mapping[str, tuple[float, int]]) -> ResultTable:
    """This model's means above published ones."""
    mine: list[Cell] = [model, *(100 * mean for mean, _ in means.values())]
    over: list[Cell] = ["  data sets run", *(count for _, count in means.values())]
    all_of_them: list[Cell] = ["  data sets in all", *(len(names) for names in GROUPS.values())]
    published: list[list[Cell]] = [
        [f"{one.model} [{_SOURCES.index(one.source) + 1}]", *one.scores] for one in PUBLISHED
    ]
    columns = ["mean hit@1 %", *(_SHORT[group] for group in GROUPS)]
    return ResultTable("Beside published figures", columns, [mine, over, all_of_them, *published])


def _notes(scores: Sequence[DatasetScore], missing: Sequence[str], prompts: Prompts, limit: int | None) -> list[str]:
    notes = [f"prompts: {prompts.name}"]
    notes += [f"{name.removeprefix('hit@1/')}: {100 * mean:.1f}" for name, mean in _abc_metric(scores).items()]
    if len(scores) < len(DATASETS):
        notes.append("Means are over the data sets that were run; they compare with published ones only if all were.")
    if missing:
        notes.append(f"missing, and not run: {', '.join(missing)}")
    if limit is not None:
        notes.append(f"only the first {limit} queries of each data set were used")
    dropped = {score.dataset: score.dropped for score in scores if score.dropped}
    if dropped:
        places = ", ".join(f"{name} {count}" for name, count in dropped.items())
        notes.append(f"unusable candidates were removed from lists, which makes them easier: {places}")
    same = {score.dataset: score.same for score in scores if score.same}
    if same:
        rows = ", ".join(f"{name} {len(where)} (first: {where[0]})" for name, where in same.items())
        notes.append(f"rows that list the right candidate among the wrong ones too, where it is ignored: {rows}")
    notes += [f"[{number}] {source}" for number, source in enumerate(_SOURCES, 1)]
    return notes + [f"{one.model}: {one.note}" for one in PUBLISHED if one.note]
