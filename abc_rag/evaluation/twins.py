"""Measures what rewriting, a second look and facets are worth: `abc-rag evaluate twins`.

A second look is instruction-conditioned reranking: candidates are embedded again under the instruction. The collection
is 1,000 pictures: 500 held-out scenes of abc-mini's world, each with a twin that differs in one aspect only (which
object is on which side, which is bigger, the background, which animal or other thing of a category it shows). Every
picture is searched by a question that names that aspect alone, such as "could you show me the picture with a pig on the
left?". Every picture for which the question's statement is true is a right answer; the twin never is.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from abc_rag.answering.generator import Generator
from abc_rag.answering.judge import GenerativeJudge
from abc_rag.answering.rewriter import GenerativeRewriter
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import InputError
from abc_rag.evaluation.results import Results, ResultTable, settings
from abc_rag.ingest.pictures import index_images
from abc_rag.scenes.drawing import render
from abc_rag.scenes.searching import searched
from abc_rag.scenes.typing import typed
from abc_rag.scenes.wide import as_wide
from abc_rag.scenes.world import (
    BACKGROUNDS,
    CATEGORIES,
    CATEGORY_OF,
    Placed,
    Scene,
    Side,
    SizeName,
    background_phrase,
    held_out_scenes,
    is_held_out,
    phrase,
)
from abc_rag.search.judging import Judge
from abc_rag.search.retriever import Retriever
from abc_rag.search.rewriting.rewriter import AsAsked, Rewriter
from abc_rag.search.rewriting.rules import RuleRewriter
from abc_rag.store.base import Store
from abc_rag.store.chroma.store import ChromaStore

__all__ = ["AskedScene", "PathReport", "ask_all", "draw_all", "evaluate_twins", "twin_scenes"]

Rerank = bool | Literal["auto", "judge"]

_SEED = 20_262
_SIZE = 168
_K = 10
_SHARES = ("recall_at_1", "recall_at_10", "before_twin")
_COSTS = {"ms": 0, "ms_p90": 0, "second_looks": 1, "vectors": 0}  # with so many decimal places

# Wordings that people use, written without looking at the rules. The rules then got four wordings that they lacked ("at
# the top there is", "the food shown is", "which is the picture where", "for my slides").
_STATE_SIDE = ("{a} {on}", "{on} there is {a}", "{a} that is {on}")
_ON = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_STATE_SIZE = ("the {size} object is {a}", "the {size} thing is {a}", "the {size} one is {a}")
_STATE_CATEGORY = ("the {category} is {a}", "the {category} shown is {a}")
_STATE_BACKGROUND = ("the background is {colour}", "the background colour is {colour}")
_ASK_THING = (
    "show me a picture with {}", "which picture has {}?", "find the photo with {}", "is there a picture of {}?",
    "could you please show me the picture with {}? Thanks!", "Hi, I'm looking for an image with {}.",
    "I need a picture of {} for my slides, please", "do you have any pictures with {}?",
)  # fmt: skip
_ASK_CLAUSE = (
    "show me a picture where {}", "which is the picture where {}?", "find the photo in which {}",
    "is there a picture where {}?", "could you please show me the picture in which {}? Thanks!",
    "Hi, I'm looking for an image where {}.", "I need a picture where {}, please",
    "do you have any pictures in which {}?",
)  # fmt: skip


@dataclass(frozen=True)
class AskedScene:
    """A scene, the question that searches for it, and the condition for a right answer.

    Attributes:
        scene: The scene.
        aspect: ``"side"``, ``"size"``, ``"category"`` or ``"background"``.
        question: The user's question.
        fits: Whether the question's statement is true of a scene.
        told: What the statement says, by name: ``a`` (``"a pig"``), ``kind``, ``side``, ``er`` (``"bigger"``), ``est``,
            ``category``, ``colour``; those that its aspect has.
    """

    scene: Scene
    aspect: str
    question: str
    fits: Callable[[Scene], bool] = field(compare=False)
    told: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class PathReport:
    """The figures of one way to search.

    Attributes:
        name: The way to search.
        recall_at_1: Share of questions whose first hit is right.
        recall_at_10: Share of questions with a right hit among the first ten.
        before_twin: Among questions that find the picture or its twin in the first ten hits, the share that ranks the
            picture first. Chance is 0.5.
        by_aspect: ``recall_at_1`` by aspect.
        ms: Median milliseconds per question, everything included.
        ms_p90: 90th percentile of the same.
        second_looks: Pictures embedded again per question.
        vectors: Stored vectors per picture.
    """

    name: str
    recall_at_1: float
    recall_at_10: float
    before_twin: float
    by_aspect: dict[str, float]
    ms: float
    ms_p90: float
    second_looks: float
    vectors: float


def twin_scenes(count: int = 1000, *, seed: int = _SEED) -> list[AskedScene]:
    """``count`` held-out scenes; each pair of neighbours differs in one aspect only, which their questions name."""
    rng = random.Random(seed)
    bases = held_out_scenes(2 * count, seed=seed)
    asked: list[AskedScene] = []
    makers = (_side, _size, _category, _background)
    for number, base in enumerate(bases):
        if len(asked) >= count:
            break
        pair = makers[number % len(makers)](base, rng)
        if pair is not None:
            asked += pair
    return asked[:count]


def _has(kind: str, scene: Scene) -> bool:
    return any(o.kind == kind for o in scene.objects)


def _has_at(kind: str, side: Side, scene: Scene) -> bool:
    return any((o.kind, o.side) == (kind, side) for o in scene.objects)


def _has_as(kind: str, size: SizeName, scene: Scene) -> bool:
    """Whether the bigger (or smaller) of two objects is of this kind."""
    sizes = {o.size for o in scene.objects}
    return len(sizes) == 2 and any((o.kind, o.size) == (kind, size) for o in scene.objects)


def _is_on(background: str, scene: Scene) -> bool:
    return scene.background == background


def _told(kind: str, **rest: str) -> dict[str, str]:
    return {"a": phrase(kind), "kind": kind, **rest}


def _ask(statement: str, templates: Sequence[str], rng: random.Random) -> str:
    return rng.choice(templates).format(statement)


def _side(scene: Scene, rng: random.Random) -> list[AskedScene]:
    first, second = scene.objects
    swapped = replace(scene, objects=(replace(first, kind=second.kind), replace(second, kind=first.kind)))

    def ask(one: Scene, placed: Placed) -> AskedScene:
        said = rng.choice(_STATE_SIDE)
        statement = said.format(a=phrase(placed.kind), on=_ON[placed.side])
        templates = _ASK_CLAUSE if "there is" in said else _ASK_THING
        fits = partial(_has_at, placed.kind, placed.side)
        return AskedScene(one, "side", _ask(statement, templates, rng), fits, _told(placed.kind, side=placed.side))

    position = rng.randrange(2)
    return [ask(scene, scene.objects[position]), ask(swapped, swapped.objects[position])]


def _size(scene: Scene, rng: random.Random) -> list[AskedScene]:
    first, second = scene.objects
    scenes = [
        replace(scene, objects=(replace(first, size="big"), replace(second, size="small"))),
        replace(scene, objects=(replace(first, size="small"), replace(second, size="big"))),
    ]
    word = rng.choice(("bigger", "smaller"))

    def ask(one: Scene) -> AskedScene:
        size: SizeName = "big" if word == "bigger" else "small"
        (placed,) = (o for o in one.objects if o.size == size)
        statement = rng.choice(_STATE_SIZE).format(size=word, a=phrase(placed.kind))
        fits = partial(_has_as, placed.kind, size)
        told = _told(placed.kind, er=word, est="biggest" if size == "big" else "smallest")
        return AskedScene(one, "size", _ask(statement, _ASK_CLAUSE, rng), fits, told)

    return [ask(one) for one in scenes]


def _category(scene: Scene, rng: random.Random) -> list[AskedScene] | None:
    position = rng.randrange(2)
    placed, other = scene.objects[position], scene.objects[1 - position]
    category = CATEGORY_OF[placed.kind]
    if CATEGORY_OF[other.kind] == category:
        return None
    kinds = [k for k in CATEGORIES[category] if k != placed.kind and is_held_out(k, other.kind)]
    if not kinds:
        return None
    changed = tuple(replace(o, kind=rng.choice(kinds)) if o is placed else o for o in scene.objects)

    def ask(one: Scene) -> AskedScene:
        kind = one.objects[position].kind
        statement = rng.choice(_STATE_CATEGORY).format(category=category, a=phrase(kind))
        question = _ask(statement, _ASK_CLAUSE, rng)
        return AskedScene(one, "category", question, partial(_has, kind), _told(kind, category=category))

    return [ask(scene), ask(replace(scene, objects=changed))]


def _background(scene: Scene, rng: random.Random) -> list[AskedScene]:
    twin = replace(scene, background=rng.choice([b for b in BACKGROUNDS if b != scene.background]))

    def ask(one: Scene) -> AskedScene:
        if rng.random() < 0.5:
            question = _ask(background_phrase(one.background), _ASK_THING, rng)
        else:
            question = _ask(rng.choice(_STATE_BACKGROUND).format(colour=one.background), _ASK_CLAUSE, rng)
        fits = partial(_is_on, one.background)
        return AskedScene(one, "background", question, fits, {"colour": one.background})

    return [ask(scene), ask(twin)]


class _Counting(Embedder):
    """Counts the inputs of another embedder."""

    def __init__(self, inner: Embedder) -> None:
        self.inner = inner
        self.inputs = 0

    @property
    def dim(self) -> int:
        return self.inner.dim

    @property
    def fingerprint(self) -> Any:  # noqa: ANN401
        return self.inner.fingerprint

    def _embed(self, inputs: Any, *, batch_size: Any, progress: bool) -> Any:  # noqa: ANN401
        self.inputs += len(inputs)
        return self.inner.embed(inputs, batch_size=batch_size, progress=progress)


def evaluate_twins(
    embedder: Embedder,
    *,
    generator: Generator | None = None,
    scenes: int = 1000,
    candidates: int = 50,
    progress: bool = False,
) -> Results:
    """Ask every question in five ways, from the plain search to rewriting, second look and facets together.

    Args:
        embedder: Usually ``load_embedder("abc-mini")``.
        generator: With one, there are two more ways: it judges, after the rules and after its own rewriting.
        scenes: Number of pictures and of questions; even.
        candidates: Number of pictures that get a second look.
        progress: Show progress bars.

    Returns:
        Recall, and what each way costs. ``details["paths"]`` has a `PathReport` for each way, in the project's own
        wordings; ``details["unseen"]`` the same with words that abc-mini's training never uses, capitals and slips (see
        `abc_rag.scenes`); ``details["facets"]`` the instructions under which pictures are stored, where they are.

    Raises:
        InputError: ``scenes`` is not an even number between 2 and 1,000.
    """
    if not 2 <= scenes <= 1000 or scenes % 2:
        raise InputError(f"scenes must be an even number between 2 and 1000, not {scenes}")
    asked = twin_scenes(scenes)
    rules = RuleRewriter()
    facets = sorted({rules.rewrite(one.question, has_image=False).instruction for one in twin_scenes()})
    judge = None if generator is None else GenerativeJudge(generator)
    paths: list[PathReport] = []
    unseen: list[PathReport] = []  # the same in words that training never uses
    reworded = [_reworded(one, random.Random(f"{_SEED} {n}")) for n, one in enumerate(asked)]
    with tempfile.TemporaryDirectory(prefix="abc-rag-evaluate-") as scratch:
        files = draw_all(asked, Path(scratch))
        # Two stores, so that searches without facets find none.
        for name, stored in (("plain", []), ("facets", facets)):
            with ChromaStore(path=Path(scratch, name), fingerprint=embedder.fingerprint) as store:
                index_images(files, embedder, store, ids=[f.stem for f in files], facets=stored, progress=progress)
                ways: list[tuple[str, Rewriter, Rerank]] = [
                    ("rules, facets", rules, False),
                    ("rules, facets and second look", rules, "auto"),
                ]
                if name == "plain":
                    ways = [
                        ("as asked", AsAsked(), False),
                        ("rules", rules, False),
                        ("rules and second look", rules, "auto"),
                    ]
                    if generator is not None:
                        own = GenerativeRewriter(generator)
                        ways += [("rules and judge", rules, "judge"), ("generator and judge", own, "judge")]
                for label, rewriter, look in ways:
                    for questions, found in ((asked, paths), (reworded, unseen)):
                        path = ask_all(
                            label, questions, embedder, store, rewriter, look, judge,
                            candidates=candidates, progress=progress,
                        )  # fmt: skip
                        found.append(replace(path, vectors=1.0 + len(stored)))
    shown = [*paths, *(replace(path, name=f"{path.name}, unseen words") for path in unseen)]
    columns = ["path", "R@1", "R@10", "before its twin", "ms/query", "p90", "second looks", "vectors/picture"]
    return Results(
        benchmark="twins",
        model=str(embedder.fingerprint),
        metrics={f"{path.name}: {name}": getattr(path, name) for path in shown for name in _SHARES},
        settings=settings(
            embedder, scenes=scenes, candidates=candidates, generator=None if generator is None else generator.model
        ),
        tables=[
            ResultTable(
                f"twins: {len(asked)} pictures, {len(asked)} questions",
                columns,
                [
                    [
                        path.name,
                        *(100 * getattr(path, name) for name in _SHARES),
                        *(f"{getattr(path, name):.{places}f}" for name, places in _COSTS.items()),
                    ]
                    for path in shown
                ],
            ),
            ResultTable(
                "R@1 by aspect",
                ["path", *paths[0].by_aspect],
                [[path.name, *(100 * share for share in path.by_aspect.values())] for path in shown],
            ),
        ],
        details={"facets": facets, "paths": [asdict(path) for path in paths], "unseen": [asdict(u) for u in unseen]},
    )


def draw_all(asked: Iterable[AskedScene], folder: Path) -> list[Path]:
    """Draw scenes into files that are numbered with four digits."""
    files = []
    for number, one in enumerate(asked):
        files.append(folder / f"{number:04}.png")
        render(one.scene, _SIZE).save(files[-1])
    return files


def _reworded(one: AskedScene, rng: random.Random) -> AskedScene:
    """The same question in the grammar's wordings, with words that training never uses; it names nothing else."""
    told = one.told
    size: dict[str, str] = {"bigger": "big", "smaller": "small"}
    aspect = told.get("side") or size.get(told.get("er", "")) or one.aspect
    kinds = {told["kind"]} if "kind" in told else set()
    scene = as_wide(one.scene)
    for _ in range(500):
        search = searched(scene, rng, aspect=aspect, synonym=True)
        if search.aspect == aspect and {placed.kind for placed in search.objects} == kinds:
            return replace(one, question=typed(search.text, rng))
    return one


def ask_all(
    label: str,
    asked: Sequence[AskedScene],
    embedder: Embedder,
    store: Store,
    rewriter: Rewriter,
    rerank: Rerank,
    judge: Judge | None = None,
    *,
    candidates: int = 50,
    progress: bool = False,
) -> PathReport:
    """Ask every question in one way.

    Args:
        label: The name of the way, for the report.
        asked: The questions; each twin is beside its picture.
        embedder: Embeds the questions and, in a second look, the candidates.
        store: The pictures. The id of each is the number of its question, with four digits.
        rewriter: What becomes of the questions.
        rerank: Whether to take a second look, and to judge; see `abc_rag.Retriever.search`.
        judge: Judges, if ``rerank`` says so.
        candidates: Number of pictures that get a second look.
        progress: Show a progress bar.
    """
    counted = _Counting(embedder)
    retriever = Retriever(counted, store, rewriter=rewriter, judge=judge, candidates=candidates)
    first, among, before, times = [], [], [], []
    with progress_bar(label, total=len(asked), enabled=progress) as bar:
        for number, one in enumerate(asked):
            start = time.perf_counter()
            hits = retriever.search(one.question, k=_K, rerank=rerank)
            times.append(1000.0 * (time.perf_counter() - start))
            found = [int(hit.id) for hit in hits]
            right = [one.fits(asked[other].scene) for other in found]
            first.append(float(right[0]))
            among.append(float(any(right)))
            rank = {other: place for place, other in enumerate(found)}
            if number in rank or number ^ 1 in rank:
                before.append(float(rank.get(number, _K) < rank.get(number ^ 1, _K)))
            bar.advance()
    aspects = sorted({one.aspect for one in asked})
    return PathReport(
        name=label,
        recall_at_1=float(np.mean(first)),
        recall_at_10=float(np.mean(among)),
        before_twin=float(np.mean(before)) if before else float("nan"),
        by_aspect={
            a: float(np.mean([r for r, one in zip(first, asked, strict=True) if one.aspect == a])) for a in aspects
        },
        ms=float(np.median(times)),
        ms_p90=float(np.percentile(times, 90)),
        # One of the inputs is the question itself.
        second_looks=counted.inputs / len(asked) - 1.0,
        vectors=1.0,
    )
