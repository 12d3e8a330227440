"""How many image tokens are enough? Quality and time at several resolutions, on the user's own data."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import DatasetError, ImageError, InputError
from abc_rag.evaluation.captions import read_captioned
from abc_rag.evaluation.classification import evaluate_classification
from abc_rag.evaluation.ctrlbench import SCENES, evaluate_ctrlbench, scene_rows
from abc_rag.evaluation.datasets import existing, read_instructed, read_labelled, read_questions
from abc_rag.evaluation.results import Cell, Plot, Results, ResultTable, settings
from abc_rag.evaluation.retrieval import evaluate_retrieval
from abc_rag.evaluation.vqa import evaluate_vqa
from abc_rag.training.data.rows import BadRows
from abc_rag.types import Image, ImageSource

__all__ = ["TOKENS", "Task", "evaluate_resolution", "resolutions"]

TOKENS = (32, 64, 128, 256, 512, 1024)
"""The default numbers of image tokens; each token is 28 x 28 pixels."""

Task = Literal["ctrlbench", "retrieval", "classification", "vqa"]
_BASE = 256  # as in the paper; times are relative to it
_FIGURES: dict[Task, dict[str, str]] = {
    "ctrlbench": {"r1": "R@1", "own_phrases_r1": "R@1 among own"},
    "retrieval": {"image_to_text_r1": "R@1 to caption", "text_to_image_r1": "R@1 to picture"},
    "classification": {"top1": "top 1"},
    "vqa": {"hit1": "hit@1"},
}
_EVALUATIONS: dict[Task, Callable[..., Results]] = {
    "ctrlbench": evaluate_ctrlbench,
    "retrieval": evaluate_retrieval,
    "classification": evaluate_classification,
    "vqa": evaluate_vqa,
}
_COUNTED = {"ctrlbench": "queries", "retrieval": "pictures", "classification": "pictures", "vqa": "questions"}


@dataclass(frozen=True)
class _Measured:
    """One resolution; ``results`` is None if the model cannot embed pictures with this number of tokens."""

    asked: int
    embedder: Embedder
    results: Results | None
    image_tokens: float
    seconds: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Median seconds per picture; NaN if not measured."""
        return float(np.median(self.seconds)) if self.seconds else math.nan

    @property
    def fastest(self) -> float:
        """Seconds per picture in the fastest pass."""
        return min(self.seconds, default=math.nan)


def resolutions(embedder: Embedder) -> Callable[[int], Embedder]:
    """The same model at any number of image tokens, its weights in memory once.

    Args:
        embedder: From `abc_rag.load_embedder`.

    Returns:
        Number of image tokens -> embedder. They share a network, so use one at a time. Raises `InputError` if the
        embedder's resolution cannot be set.
    """

    def at(tokens: int) -> Embedder:
        if not isinstance(embedder, LocalEmbedder):
            raise InputError(
                f"the resolution of a {type(embedder).__name__} cannot be set; pass a function from tokens to embedder"
            )
        again = embedder.family.at(min_tokens=tokens, max_tokens=tokens)
        again.facts = replace(again.facts, rendering=embedder.family.facts.rendering)
        return LocalEmbedder(lambda: again)

    return at


def evaluate_resolution(
    load: Callable[[int], Embedder],
    data: str | os.PathLike[str],
    *,
    task: Task = "ctrlbench",
    tokens: Sequence[int] = TOKENS,
    images: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    timed: int = 16,
    passes: int = 5,
    out: Path | None = None,
    limit: int | None = None,
    max_bad: int = 100,
    progress: bool = False,
) -> Results:
    """Measure quality and time at each number of image tokens.

    The time is that of a single picture, from file to vector, in batches that the model chooses. The same pictures are
    embedded once for warmup and then in several passes over all resolutions, every second one in reverse order, so that
    other load on the machine affects all resolutions alike; the median counts. Caches of picture features are off.

    Args:
        load: Number of image tokens -> embedder; see `resolutions`.
        data: The task's data.
        task: The evaluation that measures quality, by name.
        tokens: Numbers of image tokens.
        images: For the task ``"retrieval"``: the folder of the pictures.
        labels: For the task ``"classification"``: the file of labels.
        timed: Maximum number of pictures whose time is measured.
        passes: Number of timed passes.
        out: Folder for vectors, from which a later run resumes.
        limit: See the task.
        max_bad: See the task.
        progress: Show progress bars.

    Returns:
        For each number of tokens: the task's main figures, the mean number of tokens that pictures really have, the
        seconds per picture, and their ratio to those at 256 tokens.

    Raises:
        DatasetError: See the task.
        InputError: An argument is unusable, or no resolution can be used.
    """
    _check(task, tokens, timed, passes, images, labels)
    pictures = _pictures(task, data, images, max_bad)
    own = {"images": images} if task == "retrieval" else {"labels": labels} if task == "classification" else {}
    measured: list[_Measured] = []
    notes: list[str] = []
    for asked in sorted(set(tokens)):
        embedder = load(asked)
        try:
            if not any(one.results for one in measured):
                pictures = _openable(embedder, pictures, timed)
            embedder.embed([Image(pictures[0])])
        except InputError as error:
            if isinstance(error, ImageError | DatasetError):
                raise
            notes.append(
                f"{asked} tokens: left out, the model takes no pictures of so many ({str(error).split(';')[0]})."
            )
            measured.append(_Measured(asked, embedder, None, math.nan))
            continue
        results = _EVALUATIONS[task](embedder, data, **own, out=out, limit=limit, max_bad=max_bad, progress=progress)
        _forget(embedder)
        measured.append(_Measured(asked, embedder, results, _image_tokens(embedder, pictures)))
    if not any(one.results for one in measured):
        raise InputError(f"no resolution can be used: {'; '.join(notes)}")
    measured = _time(measured, pictures, passes, progress)
    return _results(measured, task, notes, len(pictures), {
        "data": data if data == SCENES else existing(data, "the data of the task"),
        "task": task, "tokens": sorted(set(tokens)),
        "images": None if images is None else existing(images, "the folder of the pictures"),
        "labels": None if labels is None else existing(labels, "a file of labels"),
        "timed": timed, "passes": passes, "limit": limit, "max_bad": max_bad,
    })  # fmt: skip


def _check(
    task: str,
    tokens: Sequence[int],
    timed: int,
    passes: int,
    images: str | os.PathLike[str] | None,
    labels: str | os.PathLike[str] | None,
) -> None:
    if task not in get_args(Task):
        raise InputError(f"task must be one of {', '.join(get_args(Task))}, not {task!r}")
    if not tokens or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in tokens):
        raise InputError(f"tokens must be positive numbers of image tokens, not {tokens!r}")
    if timed < 1 or passes < 1:
        raise InputError(f"timed and passes must be at least 1, not {timed} and {passes}")
    for name, given, needs in (("images", images, "retrieval"), ("labels", labels, "classification")):
        if given is not None and task != needs:
            raise InputError(f"{name} are of the task {needs!r}; leave them out of {task!r}")


def _pictures(
    task: Task, data: str | os.PathLike[str], images: str | os.PathLike[str] | None, max_bad: int
) -> list[ImageSource]:
    """The task's pictures, each once, shuffled so that the first ones represent the whole file."""
    if data == SCENES:
        found: list[ImageSource] = [row.image for row in scene_rows()]
    else:
        path = existing(data, "the data of the task")
        bad = BadRows(path.name, limit=max_bad)
        if task == "retrieval":
            folder = None if images is None else existing(images, "the folder of the pictures")
            rows = read_captioned(path, bad, images=folder)[1]
            found = [row.image for row in rows]
        elif task == "classification":
            found = [row.image for row in read_labelled(path, bad)]
        elif task == "vqa":
            found = list(dict.fromkeys(row.image for row in read_questions(path, bad)))
        else:
            found = [row.image for row in read_instructed(path, bad)]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[int(position)] for position in order]


def _openable(embedder: Embedder, pictures: Sequence[ImageSource], most: int) -> list[ImageSource]:
    """The first pictures that can be embedded.

    Raises:
        InputError: The model cannot take this number of tokens, or no picture can be opened.
    """
    found: list[ImageSource] = []
    problem: ImageError | None = None
    for picture in pictures:
        try:
            embedder.embed([Image(picture)])
        except ImageError as error:
            problem = error
            continue
        found.append(picture)
        if len(found) == most:
            break
    if not found:
        raise DatasetError(f"no picture can be opened; the last one: {problem}")
    return found


def _image_tokens(embedder: Embedder, pictures: Sequence[ImageSource]) -> float:
    """Mean number of image tokens of the pictures; as sides are whole tokens, rarely the requested number."""
    if not isinstance(embedder, LocalEmbedder):
        return math.nan
    prepared = [embedder.family.prepare(Image(picture)).pictures[0] for picture in pictures]
    return float(np.mean([picture.tokens for picture in prepared]))


def _forget(embedder: Embedder) -> None:
    """Clear the cache of picture features: half a gigabyte per resolution."""
    if isinstance(embedder, LocalEmbedder):
        embedder.forget()


@contextmanager
def _remembering_nothing(embedder: Embedder) -> Iterator[None]:
    """Switch off the cache of picture features, which repeated passes would measure instead of the model."""
    if not isinstance(embedder, LocalEmbedder):
        yield
        return
    with embedder.remembering_nothing():
        yield


def _time(measured: list[_Measured], pictures: Sequence[ImageSource], passes: int, progress: bool) -> list[_Measured]:
    usable = [one for one in measured if one.results is not None]
    seconds: dict[int, list[float]] = {one.asked: [] for one in measured}
    inputs = [Image(picture) for picture in pictures]
    with progress_bar("timing", total=(1 + passes) * len(usable), enabled=progress) as bar:
        for number in range(-1, passes):
            for one in usable if number % 2 else reversed(usable):
                with _remembering_nothing(one.embedder):
                    start = time.perf_counter()
                    one.embedder.embed(inputs)
                    took = time.perf_counter() - start
                if number >= 0:  # the first pass warms up
                    seconds[one.asked].append(took / len(inputs))
                bar.advance()
    return [replace(one, seconds=tuple(seconds[one.asked])) for one in measured]


def _results(
    measured: Sequence[_Measured], task: Task, notes: Sequence[str], timed: int, arguments: dict[str, Any]
) -> Results:
    shown = _FIGURES[task]
    usable = [(one, one.results) for one in measured if one.results is not None]
    main = next(iter(shown))
    best, quality = max(usable, key=lambda pair: pair[1].metrics[main])
    base = next((one for one, _ in usable if one.asked == _BASE), usable[0][0])
    metrics: dict[str, float] = {}
    for one, results in usable:
        metrics |= {f"{name}@{one.asked}": results.metrics[name] for name in shown}
        metrics[f"seconds@{one.asked}"] = one.median
    labels = [str(one.asked) for one in measured]
    lines = {
        words: [100 * metrics.get(f"{name}@{one.asked}", math.nan) for one in measured] for name, words in shown.items()
    }
    times = {
        "median": [1000 * one.median for one in measured],
        "fastest pass": [1000 * one.fastest for one in measured],
    }
    count = int(quality.settings["counts"][_COUNTED[task]])
    columns = ["tokens", "mean, really", *(f"{words} %" for words in shown.values())]
    rows: list[list[Cell]] = [
        [str(one.asked), one.image_tokens, *(values[at] for values in lines.values()), 1000 * one.median,
         1000 * one.fastest, f"{one.median / base.median:.2f}" if one.seconds else None]
        for at, one in enumerate(measured)
    ]  # fmt: skip
    return Results(
        benchmark="resolution",
        model=f"{best.embedder.fingerprint.model}@{best.embedder.fingerprint.revision}",
        metrics=metrics,
        settings=settings(base.embedder, **arguments) | {"counts": quality.settings["counts"], "timed_pictures": timed},
        tables=[
            ResultTable(
                f"resolution: {task}, {count} {_COUNTED[task]}; time of one picture",
                [*columns, "ms, median", "ms, fastest", f"time / {base.asked}"],
                rows,
            )
        ],
        plots=[
            Plot("Quality by image tokens", "lines", labels, lines),
            Plot("Time of one picture by image tokens", "lines", labels, times, unit="ms"),
        ],
        mistakes=quality.mistakes,
        bad=quality.bad,
        notes=[*notes, *_notes([one for one, _ in usable], metrics, main, shown[main], count, timed, best)],
        details={
            "resolutions": [
                {
                    "tokens": one.asked,
                    "mean_image_tokens": one.image_tokens,
                    "metrics": {} if one.results is None else one.results.metrics,
                    "seconds": list(one.seconds),
                }
                for one in measured
            ]
        },
    )


def _notes(
    usable: Sequence[_Measured],
    metrics: dict[str, float],
    main: str,
    words: str,
    count: int,
    timed: int,
    best: _Measured,
) -> list[str]:
    top = metrics[f"{main}@{best.asked}"]
    enough = next(one.asked for one in usable if metrics[f"{main}@{one.asked}"] >= top - 0.01)
    # At 0 or 1 the usual formula gives zero; assume at least one miss.
    sure = 100 * 1.96 * math.sqrt(max(top * (1 - top), 1 / count) / count)
    notes = [
        f"Fewest tokens within one point of the best {words}: {enough}. With {count} queries, a figure is accurate to "
        f"about "
        f"+-{sure:.1f} points (95 %).",
        f"Times: the same {timed} pictures, file to vector, in {len(best.seconds)} passes that alternate between the "
        "resolutions, after a warmup pass; files come from the system's cache.",
    ]
    disturbed = max(one.median / one.fastest for one in usable)
    if disturbed > 1.3:
        notes.append(
            f"The machine was busy: medians are up to {disturbed:.1f} times the fastest pass. Compare times with care, "
            "or repeat this on an idle machine."
        )
    notes.append(f"The mistakes are those at {best.asked} tokens.")
    if not isinstance(best.embedder, LocalEmbedder):
        notes.append("It is unknown whether this embedder caches pictures from pass to pass; if so, times are too low.")
    return notes
