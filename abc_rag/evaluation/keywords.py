"""Measures what keywords add to vectors: `abc-rag evaluate keywords`.

The corpus: passages of Python's own manual, as it comes with every Python (``pydoc_data``); generated data sheets with
part numbers that differ in one character; generated figures with captions; and pictures of abc-mini's held-out world
without any words. There are 50 questions of each of four kinds:

- identifier: a part number, of which there are near misses;
- phrase: six consecutive words of a passage of the manual;
- paraphrase: a question about what a picture shows, in none of the corpus' words (`abc_rag.evaluation.twins`);
- figure: some words of a figure's caption, in another order.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.metrics import figure_of_each
from abc_rag.evaluation.results import Cell, Results, ResultTable, settings
from abc_rag.evaluation.twins import draw_all, twin_scenes
from abc_rag.ingest.pictures import index_images
from abc_rag.search.retriever import Retriever
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.types import Hit, Record

__all__ = ["WordQuestion", "evaluate_keywords", "manual_passages", "word_questions"]

_SEED = 20_263
_EACH = 50
_DEPTH = 10
_PHRASE = 6
_PARTS = ("gearbox", "pump", "valve", "bearing", "manifold", "turbine", "rotor", "coupling", "filter", "piston")
_PLACES = ("inlet", "outlet", "housing", "shaft", "flange", "gasket", "bracket", "cover", "spring", "seal")
_VIEWS = ("exploded view", "cross-section", "wiring diagram", "side elevation", "thermal map", "flow chart")
KINDS = ("identifier", "phrase", "paraphrase", "figure")


@dataclass(frozen=True)
class WordQuestion:
    """A question of one of the four kinds.

    Attributes:
        kind: ``"identifier"``, ``"phrase"``, ``"paraphrase"`` or ``"figure"``.
        question: What is asked.
        right: The ids of right answers.
    """

    kind: str
    question: str
    right: frozenset[str] = field(compare=False)


def manual_passages(count: int) -> list[str]:
    """``count`` different paragraphs of Python's manual, of 8 to 120 words each; fewer where there are fewer."""
    from pydoc_data.topics import topics

    said = (" ".join(part.split()) for _, text in sorted(topics.items()) for part in text.split("\n\n"))
    found = list(dict.fromkeys(one for one in said if 8 <= len(one.split()) <= 120))
    random.Random(_SEED).shuffle(found)
    return found[:count]


def word_questions(passages: list[str]) -> tuple[list[Record], list[Record], list[WordQuestion]]:
    """Passages, figures (without their pictures), and the questions of three kinds about them."""
    rng = random.Random(_SEED)
    texts = [Record(f"manual-{n}", "text", text, "manual.txt") for n, text in enumerate(passages)]
    asked: list[WordQuestion] = []
    everything = "\n".join(passages)
    for record in texts:
        words = record.text.split()
        start = rng.randrange(len(words) - _PHRASE + 1)
        said = " ".join(words[start : start + _PHRASE])
        if (
            len(asked) < _EACH
            and everything.count(said) == 1
            and said.isascii()
            and '"' not in said
            and " -" not in said
        ):
            asked.append(WordQuestion("phrase", said, frozenset([record.id])))
    for n in range(_EACH):
        number = 4000 + 7 * n
        for letter in "ABC":  # two near misses for each
            name = f"MX-{number}-{letter}"
            text = f"Part {name}: {rng.choice(_PARTS)} {rng.choice(_PLACES)}, torque {rng.randrange(5, 90)} Nm."
            texts.append(Record(f"sheet-{name}", "text", text, "parts.txt"))
        name = f"MX-{number}-{rng.choice('ABC')}"
        asked.append(WordQuestion("identifier", name, frozenset([f"sheet-{name}"])))
    kinds = [(view, part, place) for view in _VIEWS for part in _PARTS for place in _PLACES]
    figures = []
    for n, (view, part, place) in enumerate(rng.sample(kinds, 2 * _EACH)):
        figures.append(Record(f"figure-{n}", "image", f"Figure {n + 1}: {view} of the {part} with its {place}"))
        if n < _EACH:
            asked.append(WordQuestion("figure", f"{place} and {part}, {view}", frozenset([f"figure-{n}"])))
    return texts, figures, asked


def evaluate_keywords(embedder: Embedder, *, passages: int = 600, progress: bool = False) -> Results:
    """Ask 200 questions by vectors alone, by keywords alone, and by both.

    Args:
        embedder: The model.
        passages: Number of the manual's passages in the corpus.
        progress: Show progress bars.

    Returns:
        Recall at 1 and at 10, by kind of question.

    Raises:
        InputError: ``passages`` is below 100.
    """
    if passages < 100:
        raise InputError(f"passages must be at least 100, not {passages}")
    texts, figures, asked = word_questions(manual_passages(passages))
    scenes = twin_scenes(2 * _EACH + len(figures))
    shown = scenes[: 2 * _EACH]
    ids = [f"scene-{n}" for n in range(len(shown))]
    for one in shown[::2]:
        right = frozenset(id_ for id_, other in zip(ids, shown, strict=True) if one.fits(other.scene))
        asked.append(WordQuestion("paraphrase", one.question, right))
    with tempfile.TemporaryDirectory(prefix="abc-rag-evaluate-") as scratch:
        files = draw_all(scenes, Path(scratch))
        with ChromaStore(Path(scratch, "store"), fingerprint=embedder.fingerprint) as store:
            store.add(texts, embedder.embed_texts([record.text for record in texts]))
            index_images(files[: len(ids)], embedder, store, ids=ids, progress=progress)
            captions = [record.text for record in figures]
            index_images(
                files[len(ids) :],
                embedder,
                store,
                ids=[record.id for record in figures],
                captions=captions,
                progress=progress,
            )
            retriever = Retriever(embedder, store)

            def searched(keywords: bool | Literal["auto"]) -> Callable[[str], Sequence[Hit]]:
                return lambda asked: retriever.search(asked, k=_DEPTH, rerank=False, keywords=keywords).hits

            ways = {
                "vectors alone": searched(False),
                "keywords alone": lambda question: store.search_words(question, _DEPTH),
                "both (auto)": searched("auto"),
                "both (any word)": searched(True),
            }
            rows: list[list[Cell]] = []
            metrics: dict[str, float] = {}
            for way, search in ways.items():
                ranks = figure_of_each(way, asked, partial(_ranked, search), progress=progress)
                row: list[Cell] = [way]
                for kind in KINDS:
                    of_kind = np.array([r for r, one in zip(ranks, asked, strict=True) if one.kind == kind])
                    for at in (1, _DEPTH):
                        share = float(np.mean(of_kind <= at))
                        metrics[f"{way}: {kind}, recall@{at}"] = share
                        row.append(100 * share)
                rows.append(row)
    columns = ["%", *(f"{kind} R@{at}" for kind in KINDS for at in (1, _DEPTH))]
    counts = f"{len(texts)} passages, {len(figures)} figures, {len(ids)} pictures, {len(asked)} questions"
    return Results(
        benchmark="keywords",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, passages=passages),
        tables=[ResultTable(f"keywords: {counts}", columns, rows)],
        notes=[
            "Passages: the manual of this Python (pydoc_data). Data sheets, figures and pictures are generated.",
            "What the picture of a figure shows has nothing to do with its caption.",
            "No second look. A right answer to a paraphrase is any picture of which the question is true.",
        ],
    )


def _ranked(search: Callable[[str], Sequence[Hit]], one: WordQuestion) -> float:
    """The place of the first right hit; infinity where there is none."""
    return min((place for place, hit in enumerate(search(one.question), 1) if hit.id in one.right), default=np.inf)
