"""Measures words and vectors over documents, and what weights they should have: `abc-rag evaluate documents`.

The command makes the documents, HTML files, and indexes them as `abc-rag index` does: a document for each topic of
Python's own manual, as it comes with every Python (``pydoc_data``), generated data sheets with part numbers that differ
in one character, and generated figures with captions. There are up to 50 questions of each of four kinds:

- identifier: a part number, of which there are near misses;
- phrase: six consecutive words of a passage of the manual;
- paraphrase: what a topic of the manual is about, in none of its words, so that no keyword search finds it;
- figure: some words of a figure's caption, in another order.

Every other question of a kind is for choosing the weight of keywords, and the rest for reporting.
"""

from __future__ import annotations

import html
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import InputError
from abc_rag.evaluation.keywords import KINDS, WordQuestion, word_questions
from abc_rag.evaluation.paraphrases import PARAPHRASES
from abc_rag.evaluation.results import Cell, Results, ResultTable, settings
from abc_rag.evaluation.twins import twin_scenes
from abc_rag.ingest.documents import DocumentOptions
from abc_rag.ingest.paths import index_paths
from abc_rag.scenes.drawing import render
from abc_rag.search.fusion import KEYWORD_WEIGHT, demanding, fused, two_lists
from abc_rag.search.retriever import Retriever
from abc_rag.store.base import Store
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.store.keywords import Keywords
from abc_rag.types import Hit, Image, Record

__all__ = ["evaluate_documents", "manual_topics", "paraphrases"]

_SEED = 20_264
_EACH = 50
_DEPTH = 10
_SIZE = 168
_WORDS = 8  # of a passage that phrases are taken from, at least
_TOPIC_CHARS = 3000  # what is left of a long topic, cut between two paragraphs
_CHARS = 500  # of a passage: below 256 tokens, which is all that small text models read
_WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Topics that repeat others word for word.
_MODES = ("both (auto)", "both (any word)")
Lists = tuple[list[Hit], list[Hit], dict[str, float], bool]
"""What `two_lists` returns, and whether keywords come first."""
Shares = dict[tuple[bool, str, int], float]
"""Whether the half for choosing, kind, depth -> recall."""
_REPEATING = frozenset({"compound", "specialnames", "else", "execmodel", "typesseq", "types", "exceptions"})


def manual_topics() -> dict[str, str]:
    """The beginnings of topics of this Python's manual, by name, without those that repeat others."""
    from pydoc_data.topics import topics

    shown = {name: text for name, text in sorted(topics.items()) if name not in _REPEATING}
    return {name: text[:_TOPIC_CHARS].rpartition("\n\n")[0] or text for name, text in shown.items()}


def paraphrases(topics: dict[str, str]) -> list[tuple[str, frozenset[str]]]:
    """Questions and the topics that answer them, which have none of the question's words in this Python's manual."""
    asked = []
    for question, names in PARAPHRASES.items():
        words = {word.lower() for word in Keywords.of(question).words}
        said = {word for name in names for word in _words_of(topics.get(name, ""))}
        if said and not words & said:
            asked.append((question, frozenset(names)))
    return asked[:_EACH]


def _words_of(text: str) -> set[str]:
    return set("".join(char.lower() if char.isalnum() else " " for char in text).split())


def evaluate_documents(embedder: Embedder, *, weights: Sequence[float] = _WEIGHTS, progress: bool = False) -> Results:
    """Ask up to 200 questions of documents: by vectors alone, by keywords alone, and by both under several weights.

    Args:
        embedder: The model. One that takes no pictures gets the captions of figures as passages.
        weights: Of keywords, in [0, 1]; see `abc_rag.search.fusion.fused`.
        progress: Show progress bars.

    Returns:
        Recall at 1 and at 10, by kind of question, over the half of the questions for reporting; and, over the other
        half, the mean of the kinds for each weight.

    Raises:
        InputError: There are no weights, or a document cannot be indexed.
        MissingExtraError: The extra ``documents`` is not installed.
    """
    if not weights:
        raise InputError("no weights to choose from: pass some numbers in [0, 1]")
    topics = manual_topics()
    with tempfile.TemporaryDirectory(prefix="abc-rag-evaluate-") as scratch:
        folder = Path(scratch, "documents")
        folder.mkdir()
        for name, text in topics.items():
            (folder / f"{name}.html").write_text(_page(name, text), encoding="utf-8")
        with ChromaStore(Path(scratch, "store"), fingerprint=embedder.fingerprint) as store:
            _index(folder, embedder, store, progress)
            manual = sorted(store.records(modality="text"), key=lambda one: (one.document, str(one.metadata["order"])))
            random.Random(_SEED).shuffle(manual)
            said = [" ".join(one.text.split()) for one in manual]
            texts, figures, asked = word_questions([text for text in said if len(text.split()) >= _WORDS])
            _write_made(folder, texts, figures, pictures=Image in embedder.accepts)
            _index(folder, embedder, store, progress)
            questions = [*_found(asked, texts, figures, store), *_about(topics, store)]
            tables, metrics = _measured(questions, embedder, store, weights, progress)
            counts = f"{store.count()} parts of {len(list(folder.iterdir()))} documents, {len(questions)} questions"
    table, choice = tables
    return Results(
        benchmark="documents",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, weights=list(weights)),
        tables=[replace(table, title=f"documents: {counts}, half of them reported here"), choice],
        notes=[
            "Documents: the manual of this Python (pydoc_data), a topic each; data sheets and figures are generated.",
            "A paraphrase has none of the words of the topics that answer it; any passage of these is right.",
            "The weight is that of keywords; 0.5 counts keywords and vectors alike.",
            "It is chosen by the mean of the kinds, at 1 and then at 10, on the half of the questions for choosing.",
            "No second look.",
        ],
    )


def _page(title: str, text: str) -> str:
    paragraphs = "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n") if part.strip())
    return f"<!doctype html><html><body><h1>{html.escape(title)}</h1>{paragraphs}</body></html>"


def _write_made(folder: Path, texts: list[Record], figures: list[Record], *, pictures: bool) -> None:
    """Data sheets and figures, as a document each."""
    sheets = [record for record in texts if record.id.startswith("sheet-")]
    listed = "".join(f"<h2>{one.id[6:]}</h2><p>{html.escape(one.text)}</p>" for one in sheets)
    (folder / "sheets.html").write_text(f"<!doctype html><html><body>{listed}</body></html>", encoding="utf-8")
    drawn = []
    for number, (figure, scene) in enumerate(zip(figures, twin_scenes(len(figures)), strict=True)):
        caption = html.escape(figure.text)
        if pictures:
            data = BytesIO()
            render(scene.scene, _SIZE).save(data, "PNG")
            (folder / f"{number}.png").write_bytes(data.getvalue())
            caption = f'<figure><img src="{number}.png"><figcaption>{caption}</figcaption></figure>'
        drawn.append(
            f"<h2>Sheet {number}</h2><p>{caption}</p>" if not pictures else f"<h2>Sheet {number}</h2>{caption}"
        )
    (folder / "figures.html").write_text(f"<!doctype html><html><body>{''.join(drawn)}</body></html>", encoding="utf-8")


def _index(folder: Path, embedder: Embedder, store: Store, progress: bool) -> None:
    options = DocumentOptions(max_chars=_CHARS)
    report = index_paths(sorted(folder.glob("*.html")), embedder, store, documents=options, progress=progress)
    if report.failed:
        file, reason = report.failed[0]
        raise InputError(f"{file}: {reason}; the documents of this evaluation must be readable")


def _found(asked: list[WordQuestion], texts: list[Record], figures: list[Record], store: Store) -> list[WordQuestion]:
    """Questions whose right answers are the stored parts that say what the generated record says."""
    said = {record.id: record.text for record in (*texts, *figures)}
    parts = [(record.id, " ".join(record.text.split())) for record in store.records()]
    return [
        replace(one, right=frozenset(id_ for id_, text in parts for right in one.right if said[right] in text))
        for one in asked
    ]


def _about(topics: dict[str, str], store: Store) -> list[WordQuestion]:
    parts = [(record.id, Path(record.document).stem) for record in store.records()]
    return [
        WordQuestion("paraphrase", question, frozenset(id_ for id_, name in parts if name in names))
        for question, names in paraphrases(topics)
    ]


def _measured(
    questions: list[WordQuestion], embedder: Embedder, store: Store, weights: Sequence[float], progress: bool
) -> tuple[tuple[ResultTable, ResultTable], dict[str, float]]:
    retriever = Retriever(embedder, store)
    prepared = [retriever.prepare(one.question) for one in questions]
    vectors = embedder.embed([input_ for query in prepared for input_ in query.inputs], progress=progress)
    # Every other question of a kind is for choosing.
    seen: Counter[str] = Counter()
    chooses = []
    for one in questions:
        chooses.append(seen[one.kind] % 2 == 0)
        seen[one.kind] += 1

    def ranked(answers: Sequence[Sequence[Hit]]) -> Shares:
        ranks = []
        for one, hits in zip(questions, answers, strict=True):
            places = [place for place, hit in enumerate(hits[:_DEPTH], 1) if hit.id in one.right]
            ranks.append(float(min(places, default=np.inf)))
        return _shares(questions, chooses, ranks)

    lists: dict[str, list[Lists]] = {name: [] for name in _MODES}
    named = []
    with progress_bar("searching", total=len(questions), enabled=progress) as bar:
        for one, vector in zip(questions, vectors, strict=True):
            words = Keywords.of(one.question)
            named.append(store.search_words(words, _DEPTH))
            for mode, asked in zip(_MODES, (demanding(store, words), words), strict=True):
                lists[mode].append((*two_lists(store, vector, asked, _DEPTH), words.identifier))
            bar.advance()
    ways = {
        "vectors alone": ranked([store.search(vector, _DEPTH) for vector in vectors]),
        "keywords alone": ranked(named),
    }
    choice: list[list[Cell]] = []
    best: dict[str, float] = {}
    for mode in _MODES:
        results = {weight: ranked([_fused(one, weight) for one in lists[mode]]) for weight in weights}
        means = {weight: [_mean(shares, True, at) for at in (1, _DEPTH)] for weight, shares in results.items()}
        # Of equals, the one that is nearest to counting both alike.
        best[mode] = max(weights, key=lambda weight: (*means[weight], -abs(weight - 0.5)))
        choice += [[mode, weight, *(100 * mean for mean in means[weight])] for weight in weights]
        shown = sorted({KEYWORD_WEIGHT, best[mode]} & set(weights))
        ways |= {f"{mode}, weight {weight:g}": results[weight] for weight in shown}
    rows: list[list[Cell]] = []
    metrics: dict[str, float] = {}
    for way, shares in ways.items():
        row: list[Cell] = [way]
        for kind in KINDS:
            for at in (1, _DEPTH):
                metrics[f"{way}: {kind}, recall@{at}"] = shares[False, kind, at]
                row.append(100 * shares[False, kind, at])
        rows.append([*row, *(100 * _mean(shares, False, at) for at in (1, _DEPTH))])
    metrics |= {f"best weight, {mode}": weight for mode, weight in best.items()}
    columns = ["%", *(f"{kind} R@{at}" for kind in (*KINDS, "mean") for at in (1, _DEPTH))]
    means_of = ["for choosing, %", "weight", f"mean R@{1}", f"mean R@{_DEPTH}"]
    return (ResultTable("", columns, rows), ResultTable("the other half: weights", means_of, choice)), metrics


def _fused(lists: Lists, weight: float) -> list[Hit]:
    near, named, scores, words_first = lists
    return fused(near, named, scores, words_first=words_first, weight=weight) if named else near


def _shares(questions: Sequence[WordQuestion], chooses: Sequence[bool], ranks: Sequence[float]) -> Shares:
    found: Shares = {}
    for half in (True, False):
        for kind in KINDS:
            of_kind = [
                rank
                for one, chosen, rank in zip(questions, chooses, ranks, strict=True)
                if (one.kind, chosen) == (kind, half)
            ]
            for at in (1, _DEPTH):
                found[half, kind, at] = float(np.mean(np.array(of_kind) <= at))
    return found


def _mean(shares: Shares, chooses: bool, at: int) -> float:
    return float(np.mean([shares[chooses, kind, at] for kind in KINDS]))
