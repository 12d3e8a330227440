"""The command ``abc-rag demo``: pictures and passages that ship with the package, and questions about them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_rag.cli.ask import show_answer
from abc_rag.cli.options import DeviceOption, JsonOption, MiniOption, open_embedder
from abc_rag.cli.output import print_json, say
from abc_rag.types import Modality, Record

if TYPE_CHECKING:
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.ingest.report import IndexReport
    from abc_rag.search.page import Shown
    from abc_rag.store.chroma.store import ChromaStore

__all__ = ["DEMO_QUESTIONS", "DemoQuestion", "demo", "demo_folder", "index_demo", "run_demo"]


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

_LEAD = (
    "Each question searches the same pictures and passages. A question about a picture becomes an instruction, under "
    "which the model embeds the picture anew: so one picture finds the burger for one question and the rabbit for "
    "another. "
    "The blue card is the best answer; every bar is the cosine of question and hit, on one scale from 0 to 1."
)


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


def run_demo(embedder: Embedder, *, k: int = 4, progress: bool = False) -> tuple[IndexReport, list[Shown]]:
    """Index the demo into a temporary store and ask its questions.

    Returns:
        What was indexed, and every question with its hits. The store is gone when this returns.
    """
    from abc_rag.search.page import Shown
    from abc_rag.search.retriever import Retriever
    from abc_rag.store.chroma.store import ChromaStore

    with demo_folder() as folder, tempfile.TemporaryDirectory(prefix="abc-rag-demo-") as scratch:
        with ChromaStore(path=scratch, fingerprint=embedder.fingerprint) as store:
            report = index_demo(folder, embedder, store, progress=progress)
            retriever = Retriever(embedder, store)
            shown = []
            for asked in DEMO_QUESTIONS:
                image = str(folder / asked.picture) if asked.picture else None
                answer = retriever.search(asked.question, image=image, k=k, modality=asked.modality)
                shown.append(Shown(answer, image))
            store.roots.forget()
    return report, shown


def demo(
    html: Annotated[Path | None, typer.Option(help="File for the page. Default: a temporary file.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Maximum number of hits.")] = 4,
    model: MiniOption = "abc-mini",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Index the demo pictures and passages into a temporary store and ask several questions of them."""
    from abc_rag.search.page import render_html, write_html

    embedder = open_embedder(model, device)
    report, shown = run_demo(embedder, k=k, progress=not as_json)
    if html is None:
        html = Path(tempfile.mkdtemp(prefix="abc-rag-")) / "demo.html"
    subtitle = f"{len(shown)} questions, answered by {embedder.fingerprint.model}"
    page = write_html(html, render_html(shown, title="abc-rag demo", subtitle=subtitle, lead=_LEAD))
    if as_json:
        print_json({"indexed": report.added, "html": str(page), "questions": [s.answer.as_dict() for s in shown]})
        return
    say(f"indexed {report.added} pictures and passages with {embedder.fingerprint.model}")
    for one in shown:
        show_answer(one.answer, Path(str(one.image)).name if one.image is not None else None)
    say()
    say(f"the same with the pictures: {page}")
