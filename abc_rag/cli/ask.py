"""The command ``abc-rag ask``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from abc_rag.cli.answering import AnsweringFlags
from abc_rag.cli.options import (
    EmbedderFlags,
    JsonOption,
    KeywordStoreFlags,
    OnlyOption,
    WhereOption,
    expanded,
    filter_of,
    grouped,
)
from abc_rag.cli.output import cell, console, heading, labelled, place_of, print_json, say, tell
from abc_rag.errors import ImageError, InputError

if TYPE_CHECKING:
    from abc_rag.answering.generator import Generator
    from abc_rag.answering.retriever import Retriever
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.images.limits import ImageLimits
    from abc_rag.search.answer import Answer
    from abc_rag.search.evidence import Evidence
    from abc_rag.store.base import Store
    from abc_rag.types import Trace

__all__ = ["Asking", "Respects", "ask", "picture_of", "show_answer", "show_hits", "show_question"]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How questions are answered: the options that ``ask`` and ``shell`` share.

    Raises:
        InputError: An option is out of its range.
    """

    k: Annotated[int, typer.Option("-k", min=1, help="Maximum number of hits.")] = 4
    where: WhereOption = None
    only: OnlyOption = None
    itself: Annotated[bool, typer.Option("--itself", help="Let the picture of the question be found as well.")] = False
    rerank: Annotated[
        bool | None,
        typer.Option(
            "--rerank/--no-rerank",
            help="Rerank pictures under the instruction. Default: where the question looks for pictures.",
        ),
    ] = None
    keywords: Annotated[
        bool | None,
        typer.Option(
            "--keywords/--no-keywords",
            help="Search for words too, counting hits with any of them. Default: counting hits with all of them.",
        ),
    ] = None
    facet_map: Annotated[
        bool | None,
        typer.Option(
            "--facet-map/--no-facet-map",
            help="Also rerank what a facet map of the instruction finds; where there is none, one is made of 512 "
            "pictures. Default: where there is one, in a store of more than 20 records a candidate.",
        ),
    ] = None
    mmr: Annotated[float | None, typer.Option(help="Diversify the hits: 1 ranks by score alone, 0 by difference.")] = (
        None
    )
    min_score: Annotated[float | None, typer.Option(help="Leave out hits below this, in [0, 1].")] = None
    as_asked: Annotated[bool, typer.Option("--as-asked", help="Do not rewrite the question.")] = False
    trace: Annotated[bool, typer.Option("--trace", help="Show how each score came about.")] = False
    root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder whose pictures may be opened although they were not indexed on this machine; repeat for more."
        ),
    ] = None

    def __post_init__(self) -> None:
        """Checks what can be checked without a model."""
        for name, value in (("--mmr", self.mmr), ("--min-score", self.min_score)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise InputError(f"{name} takes a number between 0 and 1, not {value}")

    def retriever(
        self, embedder: Embedder, store: Store, limits: ImageLimits, generator: Generator | None = None
    ) -> Retriever:
        """What answers."""
        from abc_rag.answering.retriever import Retriever
        from abc_rag.search.rewriting.rewriter import AsAsked

        return Retriever(
            embedder,
            store,
            generator=generator,
            rewriter=AsAsked() if self.as_asked else None,
            image_limits=limits,
            roots=self.root or (),
        )

    def filter(
        self, image: Path | None, condition: dict[str, Any] | None, limits: ImageLimits
    ) -> dict[str, Any] | None:
        """The filter of a question, which by itself leaves out the very picture that is asked about."""
        return condition if image is None or self.itself else _without(image, condition, limits)

    def keywords_of(self, image: Path | None, condition: dict[str, Any] | None) -> dict[str, Any]:
        """What `Retriever.search` and `Retriever.answer` take; ``condition`` is from `filter`."""
        return {
            "image": None if image is None else str(image),
            "k": self.k,
            "where": condition,
            "modality": self.only,
            "rerank": "auto" if self.rerank is None else self.rerank,
            "keywords": "auto" if self.keywords is None else self.keywords,
            "facet_map": "auto" if self.facet_map is None else self.facet_map,
            "mmr": self.mmr,
            "min_score": self.min_score,
            "trace": self.trace,
        }


@dataclass(frozen=True, kw_only=True)
class Respects:
    """In what pictures are to be like another, and in what unlike it."""

    same: Annotated[
        list[str] | None,
        typer.Option(help="With --image alone: find pictures like it under this instruction; repeat for more."),
    ] = None
    different: Annotated[
        list[str] | None, typer.Option(help="Likewise: pictures unlike it under this instruction; repeat for more.")
    ] = None

    def keywords(self) -> dict[str, list[str]]:
        """The options as `abc_rag.Retriever.search` takes them."""
        return {name: value for name, value in (("same", self.same), ("different", self.different)) if value}

    def check(self, question: str | None, image: Path | None, explain: int) -> None:
        """Check them against what else was given.

        Raises:
            InputError: An instruction is unusable, or something else does not go with them.
        """
        if not (self.same or self.different):
            return
        from abc_rag.search.alike import checked_respects

        checked_respects(self.same or (), self.different or ())
        if question is not None or image is None:
            raise InputError("--same and --different compare with a picture: give --image FILE, and no question")
        if explain:
            raise InputError("--explain is for what is nearest to a question or a picture; leave one of them out")


def picture_of(image: Path) -> Path:
    """The picture of a question.

    Raises:
        InputError: There is none.
    """
    if not os.path.exists(expanded(image)):
        raise InputError(f"{image}: no such picture")
    return expanded(image)


@grouped
def ask(
    question: Annotated[str | None, typer.Argument(help="A question or a description; or only --image.")] = None,
    image: Annotated[Path | None, typer.Option("--image", "-i", help="Picture that the question is about.")] = None,
    *,
    respects: Respects,
    asking: Asking,
    answering: AnsweringFlags,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page with the pictures.")] = None,
    explain: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Say of the first N pictures found whether a part of them speaks for the answer; --html shows which.",
        ),
    ] = 0,
    embedding: EmbedderFlags,
    place: KeywordStoreFlags,
    as_json: JsonOption = False,
) -> None:
    """Ask a question of what was indexed, alone or about a picture."""
    # Everything that can be checked without the model is checked before it is loaded, or even fetched.
    _check_question(question, image, answering)
    respects.check(question, image, explain)
    picture = None if image is None else picture_of(image)
    condition = asking.filter(picture, filter_of(asking.where), embedding.limits)
    place.filled().close()
    embedder, generator = answering.open(embedding)
    name = image.name if image else None
    embedder, store = place.open_for(embedder)
    with store as opened:
        retriever = asking.retriever(embedder, opened, embedding.limits, generator)
        aloud = answering.answer and not as_json
        if aloud:
            show_question(question, name)
        options = asking.keywords_of(picture, condition) | respects.keywords()
        answer = answering.ask(retriever, question, options, aloud=aloud)
        evidence = _explained(retriever, answer, picture, explain) if explain else {}
        page = None if html is None else _page(html, answer, picture, evidence, embedder, retriever)
    if as_json:
        told = {"evidence": {id_: one.as_dict() for id_, one in evidence.items()}} if explain else {}
        print_json(answer.as_dict() | told | ({"html": str(page)} if page else {}))
        return
    if aloud:
        show_hits(answer)
    else:
        show_answer(answer, name, respects)
    for rank, hit in enumerate(answer.hits, 1):
        if hit.id in evidence:
            one = evidence[hit.id]
            console().print(labelled(f"evidence in {rank}:", one.reason or f"yes, {one.gain:+.2f} of its similarity"))
    if page is not None:
        say(f"page: {page}")


def _check_question(question: str | None, image: Path | None, answering: AnsweringFlags) -> None:
    if question is None and image is None:
        raise InputError("nothing to search for: give a question, --image FILE, or both")
    if question is not None and not question.strip():
        raise InputError("the question is empty; ask something")
    if question is None and (answering.answer or answering.judge or answering.min_confidence is not None):
        raise InputError("answering and judging need a question; give one besides --image")


def _page(
    file: Path,
    answer: Answer,
    picture: Path | None,
    evidence: dict[str, Evidence],
    embedder: Embedder,
    retriever: Retriever,
) -> Path:
    """Write the page of an answer while the store is open: pages of documents are looked up in it."""
    from abc_rag.search.page import Shown, render_html, write_html

    page = render_html(
        [Shown(answer, None if picture is None else str(picture), evidence)],
        title=answer.question or f"pictures and passages like {picture}",
        subtitle=f"answered by {embedder.fingerprint.model}",
        pictures=retriever.pictures,
    )
    return write_html(file, page)


def _explained(retriever: Retriever, answer: Answer, picture: Path | None, most: int) -> dict[str, Evidence]:
    """Where the answer lies in the first pictures that were found, by id; one that cannot be opened costs itself."""
    query = retriever.prepare(answer.question, image=None if picture is None else str(picture), keywords=False)
    found: dict[str, Evidence] = {}
    for hit in [hit for hit in answer.hits if hit.modality == "image"][:most]:
        try:
            found[hit.id] = retriever.explain(hit, query)
        except ImageError as error:
            tell(f"not explained: {error}")
    return found


def _without(image: Path, condition: dict[str, Any] | None, limits: ImageLimits) -> dict[str, Any]:
    """The filter, which a picture's own record does not pass: whoever asks with it does not look for it."""
    from abc_rag.images.open import content_hash
    from abc_rag.store.filters import SHA256

    others = {SHA256: {"$ne": content_hash(image, limits=limits)}}
    return others if not condition else {"$and": [condition, others]}


def show_answer(answer: Answer, picture: str | None, respects: Respects | None = None) -> None:
    """Print an answer: the question, what became of it, and a table of the hits.

    Args:
        answer: What was found.
        picture: Name of the picture that the question is about, if there was one.
        respects: In what hits were to be like it.
    """
    show_question(answer.question, picture)
    out = console()
    for label, instructions in () if respects is None else respects.keywords().items():
        for instruction in instructions:
            out.print(labelled(f"{label}:", instruction))
    if answer.rewrite is not None and picture is None and answer.rewrite.target != answer.question:
        out.print(labelled("searched for:", answer.rewrite.target))
    if answer.instruction is not None:
        out.print(labelled("instruction:", answer.instruction))
    show_hits(answer)


def show_question(question: str | None, picture: str | None) -> None:
    """Print what is asked.

    Args:
        question: The question, if there is one.
        picture: Name of the picture that it is about, if there is one.
    """
    out = console()
    out.print()
    out.print(heading(question or "", note=f"about {picture}" if picture else ""))


def show_hits(answer: Answer) -> None:
    """Print the hits of an answer as a table, and what is to be said about it.

    Args:
        answer: What was found. A hit's number is that of the source that an answer in words cites.
    """
    out = console()
    for sentence in answer.unsupported:
        out.print(labelled("without a source:", sentence))
    for note in answer.notes:
        out.print(labelled("note:", note))
    judged = any(hit.confidence is not None for hit in answer.hits)
    traced = any(hit.trace is not None for hit in answer.hits)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    if judged:
        table.add_column("confidence", justify="right")
    table.add_column("kind")
    table.add_column("what", overflow="fold")
    if traced:
        table.add_column("how", overflow="fold")
    for rank, hit in enumerate(answer.hits, 1):
        what = hit.record.text or hit.record.source
        if hit.record.modality == "image":
            what = place_of(hit.record)
            if hit.document and hit.text:
                what += f"\n{hit.text}"
        elif hit.document:
            what = f"{place_of(hit.record)}\n{hit.text}"
        row = [rank, f"{hit.score:.3f}"]
        if judged:
            row.append("-" if hit.confidence is None else f"{hit.confidence:.3f}")
        row += [hit.record.modality, what, *([] if hit.trace is None else [_how(hit.trace)])]
        table.add_row(*map(cell, row))
    out.print(table)


def _how(trace: Trace) -> str:
    parts = [f"first {trace.first:.3f}"]
    if trace.rank_by_words is not None or trace.rank_by_vectors is not None:
        parts.append(f"rank by vectors {trace.rank_by_vectors or '-'}, by words {trace.rank_by_words or '-'}")
    if trace.facet is not None:
        parts.append(f"facet {trace.facet!r}")
    if trace.second is not None:
        parts.append(f"second {trace.second:.3f}")
    if trace.judged is not None:
        parts.append(f"judged {trace.judged:.3f}")
    return ", ".join([*parts, *([trace.note] if trace.note else [])])
