"""The command ``abc-rag ask``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from abc_rag.cli.options import (
    DEFAULT_STORE,
    BackgroundOption,
    CollectionOption,
    DepthOption,
    DeviceOption,
    ImageLimitOption,
    JsonOption,
    MaxTokensOption,
    MinTokensOption,
    ModelOption,
    OnlyOption,
    ResolutionOption,
    StoreOption,
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
    from abc_rag.images.limits import ImageLimits
    from abc_rag.search.answer import Answer
    from abc_rag.types import Trace

__all__ = ["ask", "show_answer"]


def ask(
    question: Annotated[str | None, typer.Argument(help="A question or a description; or only --image.")] = None,
    image: Annotated[Path | None, typer.Option("--image", "-i", help="Picture that the question is about.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Maximum number of hits.")] = 4,
    where: WhereOption = None,
    only: OnlyOption = None,
    itself: Annotated[bool, typer.Option("--itself", help="Let the picture of --image be found as well.")] = False,
    rerank: Annotated[
        bool | None,
        typer.Option(
            "--rerank/--no-rerank",
            help="Rerank pictures under the instruction. Default: if the question names an aspect.",
        ),
    ] = None,
    mmr: Annotated[
        float | None,
        typer.Option("--mmr", help="Diversify the hits: 1 ranks by score alone, 0 by difference."),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Leave out hits below this, in [0, 1].")
    ] = None,
    query_instruction: Annotated[
        str | None,
        typer.Option("--query-instruction", help="Task instruction of a text, for models trained with one (VLM2Vec)."),
    ] = None,
    as_asked: Annotated[bool, typer.Option("--as-asked", help="Do not rewrite the question.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Show how each score came about.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Also write an HTML page with the pictures.")] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            "--root",
            help="Folder whose pictures may be opened although they were not indexed on this machine; repeat for more.",
        ),
    ] = None,
    model: ModelOption = None,
    store: StoreOption = DEFAULT_STORE,
    url: UrlOption = None,
    collection: CollectionOption = "abc",
    device: DeviceOption = "auto",
    min_tokens: MinTokensOption = None,
    max_tokens: MaxTokensOption = None,
    resolution: ResolutionOption = None,
    weights: WeightsOption = "full",
    background: BackgroundOption = None,
    depth: DepthOption = "published",
    image_limit: ImageLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question of what was indexed, alone or about a picture."""
    from abc_rag.search.retriever import Retriever
    from abc_rag.search.rewriting.rewriter import AsAsked

    # Everything that can be checked without the model is checked before it is loaded, or even fetched.
    if question is None and image is None:
        raise InputError("nothing to search for: give a question, --image FILE, or both")
    if question is not None and not question.strip():
        raise InputError("the question is empty; ask something")
    for name, value in (("--mmr", mmr), ("--min-score", min_score)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise InputError(f"{name} takes a number between 0 and 1, not {value}")
    if image is not None and not os.path.exists(expanded(image)):
        raise InputError(f"{image}: no such picture")
    condition = filter_of(where)
    limits = image_limits(image_limit)
    if image is not None and not itself:
        condition = _without(expanded(image), condition, limits)
    require_filled(store, url, collection)
    embedder = open_embedder(
        model,
        device,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        resolution=resolution,
        weights=weights,
        limits=limits,
        background=background,
        depth=depth,
    )
    with open_store(store, url, collection, embedder.fingerprint) as opened:
        source = str(expanded(image)) if image is not None else None
        rewriter = AsAsked() if as_asked else None
        retriever = Retriever(
            embedder,
            opened,
            rewriter=rewriter,
            image_limits=limits,
            roots=root or (),
            query_instruction=query_instruction,
        )
        answer = retriever.search(
            question,
            image=source,
            k=k,
            where=condition,
            modality=only,
            rerank="auto" if rerank is None else rerank,
            mmr=mmr,
            min_score=min_score,
            trace=trace,
        )
    page = None
    if html is not None:
        from abc_rag.search.page import Shown, render_html, write_html

        page = write_html(
            html,
            render_html(
                [Shown(answer, source)],
                title=question or f"pictures and passages like {image}",
                subtitle=str(embedder.fingerprint),
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
        row = [rank, f"{hit.score:.3f}", hit.record.modality, what, *([] if hit.trace is None else [_how(hit.trace)])]
        table.add_row(*map(cell, row))
    out.print(table)


def _how(trace: Trace) -> str:
    parts = [f"first {trace.first:.3f}"]
    if trace.facet is not None:
        parts.append(f"facet {trace.facet!r}")
    if trace.second is not None:
        parts.append(f"second {trace.second:.3f}")
    return ", ".join([*parts, *([trace.note] if trace.note else [])])
