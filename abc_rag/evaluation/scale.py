"""Measures how an instruction reaches all pictures of a large store: `abc-rag evaluate scale`.

In half of the pictures, each of twenty pairs of things has as many pictures as all others: always the same one on the
right, and bigger. In one of them it is on the left, and in another one it is smaller; these two are searched for, by
"a pig on the left" and by what is bigger. The other half are pairs of other things, on any side and of any size.

Five ways to the one right picture are compared: the plain search; a second look at its first hits; one that also gets
the candidates of a facet map (`abc_rag.search.facet_maps`); one that gets those of a projection onto the aspect's
subspace of texts instead, which needs no pictures (after CLAY, arXiv 2604.11539, but with means taken off in place of
its alignment on the sphere); and facets that are stored for all pictures.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import InputError
from abc_rag.evaluation.results import Cell, Results, ResultTable, settings
from abc_rag.files import write
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import BACKGROUNDS, KINDS, Placed, Scene, Side, SizeName, phrase
from abc_rag.search.facet_maps import SEEN, fit_map
from abc_rag.search.retriever import WEIGHT
from abc_rag.types import Image, Input, InstructedImage, Text, Vectors

__all__ = ["INSTRUCTIONS", "ScaleQuery", "evaluate_scale", "projection", "scale_scenes"]

INSTRUCTIONS: Mapping[str, str] = {"side": "what is on the left?", "size": "which thing is bigger?"}
"""Aspect -> the instruction under which it is seen."""
_SEED = 5
_SIZE = 168
_PAIRS = 20
_SIZES: Sequence[tuple[SizeName, SizeName]] = (("big", "small"), ("small", "big"))
_BLOCK = 100  # pictures that are drawn at a time
_ENERGY = 0.95  # of the texts, in the subspace of a projection
_RUNS = 3  # random samples of pictures for a map

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScaleQuery:
    """What is searched for.

    Attributes:
        aspect: ``"side"`` or ``"size"``.
        text: What the picture is compared with.
        right: The position of the one right picture.
    """

    aspect: str
    text: str
    right: int


def scale_scenes(count: int) -> tuple[list[Scene], list[ScaleQuery]]:
    """``count`` scenes, and two queries for each of the twenty pairs of things.

    Raises:
        InputError: ``count`` is below 200.
    """
    if count < 200:
        raise InputError(f"scale needs at least 200 pictures, not {count}")
    rng = random.Random(_SEED)
    kinds = list(KINDS)
    rng.shuffle(kinds)
    others = kinds[2 * _PAIRS :]
    scenes: list[Scene] = []
    queries: list[ScaleQuery] = []
    for pair in range(_PAIRS):
        a, b = kinds[2 * pair], kinds[2 * pair + 1]
        queries += [
            ScaleQuery("side", f"{phrase(a)} on the left", len(scenes)),
            ScaleQuery("size", phrase(b), len(scenes) + 1),
        ]
        scenes.append(_scene(a, b, "big", "small", "left", rng))
        scenes.append(_scene(a, b, "small", "big", "right", rng))
        scenes += [_scene(a, b, "big", "small", "right", rng) for _ in range(count // 2 // _PAIRS - 2)]
    while len(scenes) < count:
        a, b = rng.sample(others, 2)
        sizes = rng.choice(_SIZES)
        scenes.append(_scene(a, b, *sizes, rng.choice(("left", "right")), rng))
    return scenes, queries


def _scene(a: str, b: str, a_size: SizeName, b_size: SizeName, a_side: Side, rng: random.Random) -> Scene:
    def shift() -> tuple[float, float]:
        return rng.uniform(-0.03, 0.03), rng.uniform(-0.14, 0.14)

    b_side: Side = "right" if a_side == "left" else "left"
    placed = (Placed(a, a_size, a_side, shift()), Placed(b, b_size, b_side, shift()))
    background = rng.choice(list(BACKGROUNDS))
    tint = (rng.randint(-14, 14), rng.randint(-14, 14), rng.randint(-14, 14))
    return Scene(placed if a_side == "left" else placed[::-1], background, tint)


def projection(texts: Vectors) -> npt.NDArray[np.float32]:
    """The projection ``(dim, dim)`` onto the directions in which texts of an aspect differ.

    Args:
        texts: ``(n, dim)``.
    """
    _, sizes, directions = np.linalg.svd(texts - texts.mean(axis=0), full_matrices=False)
    energy = np.cumsum(sizes**2) / np.sum(sizes**2)
    kept = directions[: int(np.searchsorted(energy, _ENERGY)) + 1]
    found: npt.NDArray[np.float32] = (kept.T @ kept).astype(np.float32)
    return found


def evaluate_scale(
    embedder: Embedder,
    *,
    pictures: int = 20_000,
    candidates: int = 50,
    seen: int = SEEN,
    out: Path | None = None,
    progress: bool = False,
) -> Results:
    """Search a store of scenes for the one picture that differs in what is asked.

    Args:
        embedder: Usually ``load_embedder("abc-mini")``.
        pictures: How many; at least 200.
        candidates: How many of each search get a second look.
        seen: Pictures that a map is fitted to.
        out: Folder for the vectors, which a later run reads instead of embedding again.
        progress: Show a progress bar.

    Returns:
        For each way: how often the right picture is among the candidates, and first; passes and bytes.

    Raises:
        InputError: ``pictures`` is below 200.
    """
    scenes, queries = scale_scenes(pictures)
    plain, instructed, seconds = _vectors(embedder, scenes, out, progress)
    asked = embedder.embed([Text(query.text, role="query") for query in queries])
    texts = {
        "side": embedder.embed_texts([f"{phrase(kind)} on the left" for kind in KINDS]),
        "size": embedder.embed_texts([f"the bigger thing is {phrase(kind)}" for kind in KINDS]),
    }
    centred = plain - plain.mean(axis=0)
    projected = {aspect: _normed(centred @ projection(rows)) for aspect, rows in texts.items()}
    size = min(seen, pictures // 2)
    samples = [np.random.default_rng(run).choice(pictures, size, replace=False) for run in range(_RUNS)]
    maps = {aspect: [fit_map(plain[sample], rows[sample]) for sample in samples] for aspect, rows in instructed.items()}

    def mapped(query: ScaleQuery, vector: Vectors, run: int) -> Scores:
        found: Scores = plain @ maps[query.aspect][run].asked(vector)
        return found

    def onto(query: ScaleQuery, vector: Vectors, run: int) -> Scores:
        # Projected pictures lie in the subspace, so the question need not be projected.
        found: Scores = projected[query.aspect] @ (vector - texts[query.aspect].mean(axis=0))
        return found

    def first(query: ScaleQuery, vector: Vectors, run: int) -> Scores:
        found: Scores = plain @ vector
        return found

    dim = embedder.dim
    sample_bytes = 2 * 4 * size * dim
    ways: list[tuple[str, Sequence[tuple[Callable[..., Scores], int]], int, int]] = [
        (f"second look at {candidates}", [(first, candidates)], 0, 0),
        (f"second look at {2 * candidates}", [(first, 2 * candidates)], 0, 0),
        (f"second look, and {candidates} of a map", [(first, candidates), (mapped, candidates)], size, sample_bytes),
        (f"second look at {2 * candidates} of a map", [(mapped, 2 * candidates)], size, sample_bytes),
        (f"second look, and {candidates} of a projection", [(first, candidates), (onto, candidates)], 0, 4 * dim**2),
    ]
    rows: list[list[Cell]] = []
    metrics: dict[str, float] = {"seconds_a_pass": seconds}
    plain_first = [int(np.argmax(plain @ vector)) == query.right for query, vector in zip(queries, asked, strict=True)]
    rows.append(["plain search", None, *_by_aspect(queries, plain_first), 0, 0, 0.0])
    for name, searches, before, more in ways:
        among, won, passes = [], [], []
        for query, vector in zip(queries, asked, strict=True):
            for run in range(_RUNS if any(search is mapped for search, _ in searches) else 1):
                chosen = np.unique(np.concatenate([_top(find(query, vector, run), k) for find, k in searches]))
                among.append((query, query.right in chosen))
                best = chosen[_looked_at(plain[chosen] @ vector, instructed[query.aspect][chosen] @ vector)]
                won.append((query, int(best) == query.right))
                passes.append(len(chosen))
        shares = _by_aspect([q for q, _ in won], [w for _, w in won])
        found = float(np.mean([yes for _, yes in among]))
        metrics |= {f"{name}: among the candidates": found, f"{name}: first": float(np.mean([w for _, w in won]))}
        rows.append([name, 100 * found, *shares, round(np.mean(passes)), before, more / 1e6])
    facets = [
        int(np.argmax(instructed[q.aspect] @ vector)) == q.right for q, vector in zip(queries, asked, strict=True)
    ]
    metrics["stored facets: first"] = float(np.mean(facets))
    rows.append(["stored facets", None, *_by_aspect(queries, facets), 0, pictures, 4 * dim * pictures / 1e6])
    return Results(
        benchmark="scale",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, pictures=pictures, candidates=candidates, seen=seen),
        tables=[
            ResultTable(
                f"scale: {pictures:,} pictures, {len(queries)} questions with one right picture each",
                ["%", "among the candidates", "R@1", "side", "size", "passes a query", "passes before", "MB"],
                rows,
            )
        ],
        notes=[
            f"{pictures // 2 // _PAIRS:,} pictures share the two things of a question.",
            "Passes before, MB: once for an instruction. Searching itself is one product of the store with a vector.",
            f"Of maps, the mean of {_RUNS} random samples of {size} pictures.",
            *([f"{1000 * seconds:.1f} ms a pass."] if seconds else []),
        ],
    )


def _vectors(
    embedder: Embedder, scenes: Sequence[Scene], out: Path | None, progress: bool
) -> tuple[Vectors, dict[str, Vectors], float]:
    """Vectors of all scenes, plain and under each instruction, and seconds a pass; 0 where they were read."""
    file = None if out is None else out / f"scale-{len(scenes)}.npz"
    if file is not None and file.is_file():
        with np.load(file, allow_pickle=False) as kept:
            if str(kept["model"]) == str(embedder.fingerprint):
                return kept["plain"], {aspect: kept[aspect] for aspect in INSTRUCTIONS}, 0.0
    found = {name: np.empty((len(scenes), embedder.dim), np.float32) for name in ("plain", *INSTRUCTIONS)}
    seconds = 0.0
    with progress_bar("embedding", total=len(scenes), enabled=progress) as bar:
        for start in range(0, len(scenes), _BLOCK):
            drawn = [render(scene, _SIZE) for scene in scenes[start : start + _BLOCK]]
            inputs: list[Input] = [Image(picture) for picture in drawn]
            for instruction in INSTRUCTIONS.values():
                inputs += [InstructedImage(picture, instruction) for picture in drawn]
            begun = time.perf_counter()
            parts = np.split(embedder.embed(inputs), 1 + len(INSTRUCTIONS))
            seconds += time.perf_counter() - begun
            for rows, part in zip(found.values(), parts, strict=True):
                rows[start : start + len(drawn)] = part
            bar.advance(len(drawn))
    if file is not None:
        buffer = BytesIO()
        kept_as: dict[str, Any] = {"model": np.array(str(embedder.fingerprint)), **found}
        np.savez(buffer, **kept_as)
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, buffer.getvalue(), durable=False)
    return found["plain"], {aspect: found[aspect] for aspect in INSTRUCTIONS}, seconds / (3 * len(scenes))


def _normed(rows: npt.NDArray[np.float32]) -> Vectors:
    found: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return found


def _top(scores: Scores, k: int) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = np.argpartition(-scores, min(k, len(scores)) - 1)[:k]
    return found


def _looked_at(first: Scores, second: Scores) -> int:
    """The best after a second look; see `abc_rag.search.second_look`."""
    moved = WEIGHT * (second - second.mean() - (first - first.mean()))
    return int(np.argmax(first + moved))


def _by_aspect(queries: Sequence[ScaleQuery], right: Sequence[bool]) -> list[Cell]:
    shares: list[Cell] = [100 * float(np.mean(right))]
    for aspect in INSTRUCTIONS:
        shares.append(100 * float(np.mean([r for r, q in zip(right, queries, strict=True) if q.aspect == aspect])))
    return shares
