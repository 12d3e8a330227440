"""Measures groups and duplicates by an instruction on scenes whose answers are known: `abc-rag evaluate groups`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from tempfile import TemporaryDirectory

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.metrics import share
from abc_rag.evaluation.results import Cell, Results, ResultTable, settings
from abc_rag.ingest.pictures import index_images
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import Scene, background_phrase, held_out_scenes, phrase, phrases
from abc_rag.search.retriever import Retriever
from abc_rag.store.chroma.store import ChromaStore

__all__ = ["ANSWERS", "evaluate_groups", "survey_scenes"]

_SEED = 20_267
_SIZE = 168
_BLOCK = 100  # pictures that are drawn at a time


def _left(scene: Scene) -> str:
    return next(phrase(one.kind) for one in scene.objects if one.side == "left")


def _bigger(scene: Scene) -> str:
    return next(phrase(one.kind) for one in scene.objects if one.size == "big")


ANSWERS: Mapping[str, Callable[[Scene], str]] = {
    "what colour is the background?": lambda scene: background_phrase(scene.background),
    "what is on the left?": _left,
    "which thing is bigger?": _bigger,
}
"""Instruction -> the phrase that answers it."""


def survey_scenes(count: int) -> list[Scene]:
    """Scenes of two things beside each other, of which one is bigger, in pairs that training never sees.

    Raises:
        InputError: ``count`` is below 20.
    """
    if count < 20:
        raise InputError(f"groups needs at least 20 pictures, not {count}")
    found: list[Scene] = []
    for scene in held_out_scenes(6 * count + 100, seed=_SEED):
        sides, sizes = ({getattr(one, name) for one in scene.objects} for name in ("side", "size"))
        if sides == {"left", "right"} and len(sizes) == 2:
            found.append(scene)
    return found[:count]


def evaluate_groups(embedder: Embedder, *, scenes: int = 500) -> Results:
    """Group scenes by each instruction, and find the pairs that are the same under it.

    Args:
        embedder: Usually ``load_embedder("abc-mini")``.
        scenes: How many; at least 20.

    Returns:
        For each instruction: how many answers and groups there are, the share of pictures whose group has the right
        phrase, and precision and recall of pairs with a threshold that is found; for the background also of pairs that
        have different things on the left.

    Raises:
        InputError: ``scenes`` is below 20.
    """
    drawn = survey_scenes(scenes)
    with TemporaryDirectory() as folder, ChromaStore(folder, fingerprint=embedder.fingerprint) as store:
        ids = [f"scene-{number:05}" for number in range(len(drawn))]
        for start in range(0, len(drawn), _BLOCK):
            pictures = [render(scene, _SIZE) for scene in drawn[start : start + _BLOCK]]
            index_images(pictures, embedder, store, ids=ids[start : start + _BLOCK], facets=list(ANSWERS))
        retriever = Retriever(embedder, store)
        answers = {name: {id_: told(scene) for id_, scene in zip(ids, drawn, strict=True)}
                   for name, told in ANSWERS.items()}  # fmt: skip
        tables = [_grouped(retriever, answers), _paired(retriever, answers)]
    metrics = {
        f"{row[0]}: {column}": float(value)
        for table in tables
        for row in table.rows
        for column, value in zip(table.columns[1:], row[1:], strict=True)
        if isinstance(value, (int, float))
    }
    return Results(
        benchmark="groups",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, scenes=scenes),
        tables=tables,
        notes=[f"Phrases are chosen among the {len(phrases())} of abc-mini's world."],
    )


def _grouped(retriever: Retriever, answers: Mapping[str, Mapping[str, str]]) -> ResultTable:
    rows: list[list[Cell]] = []
    for instruction, known in answers.items():
        found = retriever.groups(instruction, phrases=phrases())
        right = [known[id_] == group.phrase for group in found for id_ in group.ids]
        rows.append([instruction, len(set(known.values())), len(found), found.silhouette, 100 * share(right)])
    return ResultTable(
        f"groups of {len(known):,} pictures", ["instruction", "answers", "groups", "silhouette", "right phrase %"], rows
    )


def _paired(retriever: Retriever, answers: Mapping[str, Mapping[str, str]]) -> ResultTable:
    rows: list[list[Cell]] = []
    ground, left, _ = answers
    for same, different in (*((one, None) for one in answers), (ground, left)):
        known = answers[same]
        apart = None if different is None else answers[different]
        right = {
            (a, b)
            for a, b in combinations(known, 2)
            if known[a] == known[b] and (apart is None or apart[a] != apart[b])
        }
        found = retriever.duplicates(
            [same], different=[] if different is None else [different], most=len(known) * (len(known) - 1) // 2
        )
        hits = len(right & {(min(pair.first, pair.second), max(pair.first, pair.second)) for pair in found.pairs})
        rows.append(
            [
                same if different is None else f"{same} and another answer to: {different}",
                len(right),
                found.count,
                None if not found.count else 100 * hits / found.count,
                None if not right else 100 * hits / len(right),
                found.thresholds.get(same),
            ]
        )
    columns = ["the same under", "pairs", "found", "precision %", "recall %", "threshold"]
    return ResultTable("pairs that are the same", columns, rows)
