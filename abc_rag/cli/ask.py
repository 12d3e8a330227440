"""The command ``abc-rag ask``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from abc_rag.cli.options import (
    DEFAULT_STORE,
    AsAskedOption,
    BackgroundOption,
    CollectionOption,
    DepthOption,
    DeviceOption,
    DimsOption,
    DocumentInstructionOption,
    ImageLimitOption,
    ItselfOption,
    JsonOption,
    KeywordIndexOption,
    KeywordsOption,
    KOption,
    MaxTokensOption,
    MinScoreOption,
    MinTokensOption,
    MmrOption,
    ModelOption,
    OnlyOption,
    QueryInstructionOption,
    RerankOption,
    ResolutionOption,
    RootOption,
    StoreOption,
    TraceOption,
    UrlOption,
    WeightsOption,
    WhereOption,
    expanded,
    filter_of,
    image_limits,
    open_embedder,
    open_store,
    require_filled,
)
from abc_rag.cli.output import cell, console, heading, labelled, place_of, print_json, say
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.images.limits import ImageLimits
    from abc_rag.search.answer import Answer
    from abc_rag.search.retriever import Retriever
    from abc_rag.store.chroma.store import ChromaStore
    from abc_rag.types import Modality, Trace

__all__ = ["Asking", "ask", "picture_of", "show_answer"]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How questions are answered: the options that ``ask`` and ``shell`` share.

    Raises:
        InputError: An option is out of its range.
    """

    k: int
    only: Modality | None
    itself: bool
    rerank: bool | None
    keywords: bool | None
    mmr: float | None
    min_score: float | None
    as_asked: bool
    trace: bool
    roots: Sequence[Path]
    limits: ImageLimits

    def __post_init__(self) -> None:
        """Checks what can be checked without a model."""
        for name, value in (("--mmr", self.mmr), ("--min-score", self.min_score)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise InputError(f"{name} takes a number between 0 and 1, not {value}")

    def retriever(self, embedder: Embedder, store: ChromaStore) -> Retriever:
        """What answers."""
        from abc_rag.search.retriever import Retriever
        from abc_rag.search.rewriting.rewriter import AsAsked

        return Retriever(
            embedder,
            store,
            rewriter=AsAsked() if self.as_asked else None,
            image_limits=self.limits,
            roots=self.roots,
        )

    def filter(self, image: Path | None, condition: dict[str, Any] | None) -> dict[str, Any] | None:
        """The filter of a question, which by itself leaves out the very picture that is asked about."""
        return condition if image is None or self.itself else _without(image, condition, self.limits)

    def answer(
        self, retriever: Retriever, question: str | None, image: Path | None, condition: dict[str, Any] | None
    ) -> Answer:
        """Ask one question; ``condition`` is from `filter`."""
        return retriever.search(
            question,
            image=None if image is None else str(image),
            k=self.k,
            where=condition,
            modality=self.only,
            rerank="auto" if self.rerank is None else self.rerank,
            keywords="auto" if self.keywords is None else self.keywords,
            mmr=self.mmr,
            min_score=self.min_score,
            trace=self.trace,
        )


def picture_of(image: Path) -> Path:
    """The picture of a question.

    Raises:
        InputError: There is none.
    """
    if not os.path.exists(expanded(image)):
        raise InputError(f"{image}: no such picture")
    return expanded(image)


def ask(
    question: Annotated[str | None, typer.Argument(help="A question or a description; or only --image.")] = None,
    image: Annotated[Path | None, typer.Option("--image", "-i", help="Picture that the question is about.")] = None,
    k: KOption = 4,
    where: WhereOption = None,
    only: OnlyOption = None,
    itself: ItselfOption = False,
    rerank: RerankOption = None,
    keywords: KeywordsOption = None,
    mmr: MmrOption = None,
    min_score: MinScoreOption = None,
    as_asked: AsAskedOption = False,
    trace: TraceOption = False,
    html: Annotated[Path | None, typer.Option("--html", help="Also write an HTML page with the pictures.")] = None,
    root: RootOption = None,
    model: ModelOption = None,
    store: StoreOption = DEFAULT_STORE,
    url: UrlOption = None,
    keyword_index: KeywordIndexOption = None,
    collection: CollectionOption = "abc",
    device: DeviceOption = "auto",
    min_tokens: MinTokensOption = None,
    max_tokens: MaxTokensOption = None,
    resolution: ResolutionOption = None,
    dims: DimsOption = None,
    query_instruction: QueryInstructionOption = None,
    document_instruction: DocumentInstructionOption = None,
    weights: WeightsOption = "full",
    background: BackgroundOption = None,
    depth: DepthOption = "published",
    image_limit: ImageLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question of what was indexed, alone or about a picture."""
    # Everything that can be checked without the model is checked before it is loaded, or even fetched.
    if question is None and image is None:
        raise InputError("nothing to search for: give a question, --image FILE, or both")
    if question is not None and not question.strip():
        raise InputError("the question is empty; ask something")
    asking = Asking(
        k=k,
        only=only,
        itself=itself,
        rerank=rerank,
        keywords=keywords,
        mmr=mmr,
        min_score=min_score,
        as_asked=as_asked,
        trace=trace,
        roots=root or (),
        limits=image_limits(image_limit),
    )
    picture = None if image is None else picture_of(image)
    condition = asking.filter(picture, filter_of(where))
    require_filled(store, url, collection)
    embedder = open_embedder(
        model,
        device,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        resolution=resolution,
        dims=dims,
        query_instruction=query_instruction,
        document_instruction=document_instruction,
        weights=weights,
        limits=asking.limits,
        background=background,
        depth=depth,
    )
    with open_store(store, url, collection, embedder.fingerprint, keyword_index) as opened:
        retriever = asking.retriever(embedder, opened)
        answer = asking.answer(retriever, question, picture, condition)
    page = None
    if html is not None:
        from abc_rag.search.page import Shown, render_html, write_html

        page = write_html(
            html,
            render_html(
                [Shown(answer, None if picture is None else str(picture))],
                title=question or f"pictures and passages like {image}",
                subtitle=f"answered by {embedder.fingerprint.model}",
                pictures=retriever.pictures,
            ),
        )
    if as_json:
        print_json(answer.as_dict() | ({"html": str(page)} if page else {}))
        return
    show_answer(answer, image.name if image else None)
    if page is not None:
        say(f"page: {page}")


def _without(image: Path, condition: dict[str, Any] | None, limits: ImageLimits) -> dict[str, Any]:
    """The filter, which a picture's own record does not pass: whoever asks with it does not look for it."""
    from abc_rag.images.open import content_hash
    from abc_rag.store.filters import SHA256

    others = {SHA256: {"$ne": content_hash(image, limits=limits)}}
    return others if not condition else {"$and": [condition, others]}


def show_answer(answer: Answer, picture: str | None) -> None:
    """Print an answer: the question, what became of it, and a table of the hits.

    Args:
        answer: What was found.
        picture: Name of the picture that the question is about, if there was one.
    """
    out = console()
    out.print()
    out.print(heading(answer.question or "", note=f"about {picture}" if picture else ""))
    if answer.rewrite is not None and picture is None and answer.rewrite.target != answer.question:
        out.print(labelled("searched for:", answer.rewrite.target))
    if answer.instruction is not None:
        out.print(labelled("instruction:", answer.instruction))
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    table.add_column("kind")
    table.add_column("what", overflow="fold")
    if any(hit.trace is not None for hit in answer.hits):
        table.add_column("how", overflow="fold")
    for rank, hit in enumerate(answer.hits, 1):
        what = hit.record.text or hit.record.source
        if hit.record.modality == "image":
            what = place_of(hit.record)
            if hit.document and hit.text:
                what += f"\n{hit.text}"
        elif hit.document:
            what = f"{place_of(hit.record)}\n{hit.text}"
        row = [rank, f"{hit.score:.3f}", hit.record.modality, what, *([] if hit.trace is None else [_how(hit.trace)])]
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
    return ", ".join([*parts, *([trace.note] if trace.note else [])])
