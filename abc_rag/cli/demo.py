"""The command ``abc-rag demo``: pictures and passages that ship with the package, and questions about them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_rag.cli.ask import show_answer, show_hits, show_question
from abc_rag.cli.options import DeviceOption, JsonOption, MiniOption, open_embedder
from abc_rag.cli.output import print_json, put, say
from abc_rag.errors import CheckpointError, InputError
from abc_rag.types import Modality, Record

if TYPE_CHECKING:
    from abc_rag.answering.generator import Generator
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.ingest.report import IndexReport
    from abc_rag.search.answer import Answer
    from abc_rag.search.page import Shown
    from abc_rag.store.chroma.store import ChromaStore

__all__ = [
    "DEMO_ANSWERS",
    "DEMO_QUESTIONS",
    "DemoQuestion",
    "DemoRun",
    "demo",
    "demo_folder",
    "index_demo",
    "run_demo",
]


@dataclass(frozen=True)
class DemoQuestion:
    """A question of the demo; ``picture`` is a file's name in the demo's folder."""

    question: str
    picture: str | None = None
    modality: Modality | None = None


DEMO_QUESTIONS = (
    DemoQuestion("a small crown on the left of a big pineapple", modality="image"),
    DemoQuestion("show me a helicopter", modality="image"),
    DemoQuestion("what is on the left?", "burger-rabbit.jpg", "text"),
    DemoQuestion("what is on the right?", "burger-rabbit.jpg", "text"),
    DemoQuestion("which animal is in the picture?", "pig-car.jpg", "text"),
    DemoQuestion("which vehicle is in the picture?", "pig-car.jpg", "text"),
    DemoQuestion("what colour is the background?", "pig-car.jpg", "text"),
)

DEMO_ANSWERS = (
    *(one for one in DEMO_QUESTIONS if one.question in ("what is on the left?", "which animal is in the picture?")),
    DemoQuestion("in the picture with a crown, what is on the right?", modality="image"),
    DemoQuestion("what is next to the zebra?", modality="image"),
)
"""Questions that are answered in words, by a model that can; to the last one there is no answer."""


@dataclass(frozen=True)
class DemoRun:
    """What the demo found.

    Attributes:
        report: What was indexed.
        searches: Every one of `DEMO_QUESTIONS` with its hits.
        answers: Every one of `DEMO_ANSWERS` with its answer in words; none without a generator.
    """

    report: IndexReport
    searches: list[Shown]
    answers: list[Shown]


_LEAD = (
    "Each question searches the same pictures and passages. A question about a picture becomes an instruction, under "
    "which the model embeds the picture anew: so one picture finds the burger for one question and the rabbit for "
    "another. "
    "The blue card is the best answer; every bar is the cosine of question and hit, on one scale from 0 to 1."
)
_ANSWERED = " The last questions are answered in words, from the sources that each citation leads to."


@contextmanager
def demo_folder() -> Iterator[Path]:
    """The folder of the demo's pictures and passages."""
    with as_file(files("abc_rag.models.bundled").joinpath("demo")) as folder:
        yield Path(folder)


def index_demo(folder: Path, embedder: Embedder, store: ChromaStore, *, progress: bool = False) -> IndexReport:
    """Index the demo's pictures, and its passages from ``passages.json``."""
    from abc_rag.ingest.paths import index_paths
    from abc_rag.store.records import text_id

    report = index_paths(sorted(folder.glob("*.jpg")), embedder, store, progress=progress)
    passages = [p["text"] for p in json.loads((folder / "passages.json").read_text(encoding="utf-8"))]
    records = [Record(text_id(text), "text", text=text, source="passages.json") for text in passages]
    store.add(records, embedder.embed_texts(passages, progress=progress))
    report.added += len(records)
    return report


def run_demo(embedder: Embedder, *, generator: Generator | None = None, k: int = 4, progress: bool = False) -> DemoRun:
    """Index the demo into a temporary store and ask its questions. The store is gone when this returns.

    Args:
        embedder: Embeds.
        generator: Judges what is found and answers in words. It need not hold to a schema: the rules rewrite.
        k: Maximum number of hits.
        progress: Show progress bars.
    """
    from abc_rag.answering.retriever import Retriever
    from abc_rag.search.page import Shown
    from abc_rag.search.rewriting.rules import RuleRewriter
    from abc_rag.store.chroma.store import ChromaStore

    with demo_folder() as folder, tempfile.TemporaryDirectory(prefix="abc-rag-demo-") as scratch:
        with ChromaStore(path=scratch, fingerprint=embedder.fingerprint) as store:
            report = index_demo(folder, embedder, store, progress=progress)
            retriever = Retriever(embedder, store, generator=generator, rewriter=RuleRewriter())

            def asked(ask: Callable[..., Answer], one: DemoQuestion) -> Shown:
                image = str(folder / one.picture) if one.picture else None
                return Shown(ask(one.question, image=image, k=k, modality=one.modality), image)

            searches = [asked(retriever.search, one) for one in DEMO_QUESTIONS]
            answers = [] if generator is None else [asked(retriever.answer, one) for one in DEMO_ANSWERS]
            store.roots.forget()
    return DemoRun(report, searches, answers)


def _open(model: str, device: str) -> tuple[Embedder, Generator | None]:
    """The embedder of a model and, if its base can speak, its generator."""
    from abc_rag.answering.load import load_generator

    try:
        generator = load_generator(model, device=device)
        _ = generator.model  # loads it
    except (InputError, CheckpointError):
        # If more is wrong with the model than that it cannot speak, the embedder says so.
        return open_embedder(model, device), None
    return generator.embedder, generator


def demo(
    html: Annotated[Path | None, typer.Option(help="File for the page. Default: a temporary file.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Maximum number of hits.")] = 4,
    model: MiniOption = "abc-mini",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Index the demo pictures and passages into a temporary store and ask several questions of them."""
    from abc_rag.search.page import render_html, write_html

    embedder, generator = _open(model, device)
    found = run_demo(embedder, generator=generator, k=k, progress=not as_json)
    shown, name = [*found.searches, *found.answers], embedder.fingerprint.model
    if html is None:
        html = Path(tempfile.mkdtemp(prefix="abc-rag-")) / "demo.html"
    subtitle = f"{len(shown)} questions, answered by {name}"
    lead = _LEAD + (_ANSWERED if found.answers else "")
    page = write_html(html, render_html(shown, title="abc-rag demo", subtitle=subtitle, lead=lead))
    if as_json:
        asked = {"questions": found.searches, "answers": found.answers}
        told = {key: [one.answer.as_dict() for one in group] for key, group in asked.items()}
        print_json({"indexed": found.report.added, "html": str(page), **told})
        return
    say(f"indexed {found.report.added} pictures and passages with {name}")
    for one in found.searches:
        show_answer(one.answer, _name_of(one))
    for one in found.answers:
        show_question(one.answer.question, _name_of(one))
        put(f"{one.answer.text}\n")
        show_hits(one.answer)
    say()
    if generator is None:
        say(f"{name} finds, but does not answer in words: its base does not generate")
    say(f"the same with the pictures: {page}")


def _name_of(shown: Shown) -> str | None:
    return Path(str(shown.image)).name if shown.image is not None else None
