"""The commands ``abc-rag index | ask | embed | info | demo``."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from abc_rag import __version__
from abc_rag.cli.options import (
    _DEFAULT_STORE,
    PARTIAL,
    CollectionOption,
    DeviceOption,
    JsonOption,
    MaxTokensOption,
    MinTokensOption,
    ModelOption,
    ResolutionOption,
    StoreOption,
    UrlOption,
    WeightsOption,
    WorkersOption,
    _console,
    _embedder,
    _expanded,
    _is_store,
    _print_json,
    _require_filled,
    _say,
    _store,
)
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.search.answer import Answer
    from abc_rag.types import Trace
from abc_rag.cli.options import app


@app.command()
def index(
    paths: Annotated[list[Path], typer.Argument(help="Pictures, .txt and .md files, and folders of them.")],
    facet: Annotated[
        list[str] | None,
        typer.Option("--facet", "-f", help="Also store each picture as seen under this instruction; repeat for more."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what came from files of the folders that are gone.")
    ] = False,
    model: ModelOption = None,
    store: StoreOption = _DEFAULT_STORE,
    url: UrlOption = None,
    collection: CollectionOption = "abc",
    device: DeviceOption = "auto",
    min_tokens: MinTokensOption = None,
    max_tokens: MaxTokensOption = None,
    resolution: ResolutionOption = None,
    weights: WeightsOption = "full",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed pictures and passages into a store. What is there already is not embedded again."""
    from abc_rag.ingest.paths import index_paths

    embedder = _embedder(model, device, min_tokens, max_tokens, weights, workers=workers, resolution=resolution)
    for path in paths:
        if not os.path.exists(_expanded(path)):
            raise InputError(f"{path}: no such file or folder")
    with _store(store, url, collection, embedder.fingerprint) as opened:
        report = index_paths(paths, embedder, opened, facets=facet or [], prune=prune, progress=not as_json)
        total = opened.count()
    if as_json:
        failed = [{"file": file, "reason": reason} for file, reason in report.failed]
        _print_json({**report.__dict__, "failed": failed, "total": total})
    else:
        _say(
            f"{report.added} added, {report.unchanged} unchanged, {report.removed} removed, "
            f"{len(report.failed)} failed; "
            + (f"{report.facets} facets added; " if facet else "")
            + f"{total} in {url or store}"
        )
        for file, reason in report.failed:
            typer.echo(f"failed: {file}: {reason}", err=True)
    if report.failed:
        raise typer.Exit(PARTIAL)


@app.command()
def ask(
    question: Annotated[str | None, typer.Argument(help="A question or a description; or only --image.")] = None,
    image: Annotated[Path | None, typer.Option("--image", "-i", help="Picture that the question is about.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Most hits.")] = 4,
    only: Annotated[str | None, typer.Option("--only", help="image or text: search only these.")] = None,
    rerank: Annotated[
        bool | None,
        typer.Option(
            "--rerank/--no-rerank",
            help="Look at found pictures again under the instruction. Default: where the question names an aspect.",
        ),
    ] = None,
    mmr: Annotated[
        float | None, typer.Option("--mmr", help="Choose diverse hits: 1 only by score, 0 only by difference.")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Leave out hits below this, in [0, 1].")
    ] = None,
    query_instruction: Annotated[
        str | None,
        typer.Option("--query-instruction", help="What the question is for, for models that are told (VLM2Vec)."),
    ] = None,
    as_asked: Annotated[bool, typer.Option("--as-asked", help="Do not rewrite the question.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Show how each score came about.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with the pictures here.")] = None,
    model: ModelOption = None,
    store: StoreOption = _DEFAULT_STORE,
    url: UrlOption = None,
    collection: CollectionOption = "abc",
    device: DeviceOption = "auto",
    min_tokens: MinTokensOption = None,
    max_tokens: MaxTokensOption = None,
    resolution: ResolutionOption = None,
    weights: WeightsOption = "full",
    as_json: JsonOption = False,
) -> None:
    """Ask a question of what was indexed, or of one picture against it."""
    from abc_rag.search.page import Shown, render_html, write_html
    from abc_rag.search.retriever import Retriever
    from abc_rag.search.rewriting.rewriter import AsAsked

    # What can be wrong without the model is looked at before it is loaded, or even fetched.
    if only not in (None, "image", "text"):
        raise InputError(f"--only takes image or text, not {only!r}")
    if question is None and image is None:
        raise InputError("nothing to search for: give a question, --image FILE, or both")
    if question is not None and not question.strip():
        raise InputError("the question is empty; ask something")
    for name, value in (("--mmr", mmr), ("--min-score", min_score)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise InputError(f"{name} takes a number between 0 and 1, not {value}")
    if image is not None and not os.path.exists(_expanded(image)):
        raise InputError(f"{image}: no such picture")
    _require_filled(store, url, collection)
    embedder = _embedder(model, device, min_tokens, max_tokens, weights, resolution=resolution)
    with _store(store, url, collection, embedder.fingerprint) as opened:
        source = str(_expanded(image)) if image is not None else None
        rewriter = AsAsked() if as_asked else None
        retriever = Retriever(embedder, opened, rewriter=rewriter, query_instruction=query_instruction)
        answer = retriever.search(
            question,
            image=source,
            k=k,
            modality=only,  # type: ignore[arg-type]
            rerank="auto" if rerank is None else rerank,
            mmr=mmr,
            min_score=min_score,
            trace=trace,
        )
    page = None
    if html is not None:
        page = write_html(
            html,
            render_html(
                [Shown(answer, source)],
                title=question or f"pictures and passages like {image}",
                subtitle=str(embedder.fingerprint),
            ),
        )
    if as_json:
        _print_json(answer.as_dict() | ({"html": str(page)} if page else {}))
        return
    _show(answer, image.name if image else None)
    if page is not None:
        _say(f"page: {page}")


def _show(answer: Answer, picture: str | None) -> None:
    console = _console()
    console.print()
    console.print(
        f"[bold]{escape(answer.question or '')}[/bold]" + (f"   [dim]about {escape(picture)}[/dim]" if picture else "")
    )
    if answer.rewrite is not None and picture is None and answer.rewrite.target != answer.question:
        console.print(f"[dim]searched for:[/dim] {escape(answer.rewrite.target)}")
    if answer.instruction is not None:
        console.print(f"[dim]instruction:[/dim] {escape(answer.instruction)}")
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
            what = Path(hit.record.source).name or hit.record.id
        row = [str(rank), f"{hit.score:.3f}", hit.record.modality, escape(what)]
        table.add_row(*row, *([] if hit.trace is None else [escape(_how(hit.trace))]))
    console.print(table)


def _how(trace: Trace) -> str:
    parts = [f"first {trace.first:.3f}"]
    if trace.facet is not None:
        parts.append(f"facet {trace.facet!r}")
    if trace.second is not None:
        parts.append(f"second {trace.second:.3f}")
    return ", ".join([*parts, *([trace.note] if trace.note else [])])


@app.command()
def embed(
    text: Annotated[list[str] | None, typer.Argument(help="Texts.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="A picture; repeat for more.")] = None,
    instruction: Annotated[str | None, typer.Option("--instruction", help="What to look at in the pictures.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a NumPy .npy file instead.")] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    min_tokens: MinTokensOption = None,
    max_tokens: MaxTokensOption = None,
    resolution: ResolutionOption = None,
    weights: WeightsOption = "full",
) -> None:
    """Print the vectors of texts and pictures, one JSON object a line: {"input": ..., "vector": [...]}."""
    import numpy as np

    from abc_rag.types import Image, Input, InstructedImage, Text

    pictures = [str(_expanded(p)) for p in image or []]
    if instruction is not None and not pictures:
        raise InputError("--instruction needs at least one --image")
    inputs: list[Input] = [Text(t) for t in text or []]
    inputs += [Image(p) if instruction is None else InstructedImage(p, instruction) for p in pictures]
    if not inputs:
        raise InputError("nothing to embed: give texts, or --image FILE")
    for one in [*(text or []), instruction or ""]:
        try:
            one.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{one!r} is not valid Unicode ({error.reason}); is the terminal set to UTF-8?") from error
    embedder = _embedder(model, device, min_tokens, max_tokens, weights, resolution=resolution)
    vectors = embedder.embed(inputs, progress=True)
    if out is not None:
        try:
            with _expanded(out).open("wb") as handle:
                np.save(handle, vectors, allow_pickle=False)
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror})") from error
        _say(f"{vectors.shape[0]} vectors of {vectors.shape[1]} in {out}")
        return
    for name, vector in zip([*(text or []), *pictures], vectors, strict=True):
        _print_json({"input": name, "vector": [round(float(x), 7) for x in vector]}, indent=None)


@app.command()
def info(
    model: ModelOption = None,
    store: StoreOption = _DEFAULT_STORE,
    url: UrlOption = None,
    collection: CollectionOption = "abc",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show versions, the device, the model and what a store holds. Downloads nothing."""
    import chromadb
    import torch
    import transformers

    from abc_rag.embedding.load import default_model, local_revision

    name = model or default_model()
    facts: dict[str, Any] = {
        "abc-rag": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "chromadb": chromadb.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "model": name,
    }
    try:
        here = local_revision(name) is not None
    except InputError:
        here = True  # what is wrong with the name is said by who loads it
    if here:
        embedder = _embedder(name, device, None, None)
        facts |= {"fingerprint": str(embedder.fingerprint), "dim": embedder.dim}
    if url is not None or _is_store(store):
        with _store(store, url, collection, None) as opened:
            facts["store"] = {
                "where": url or str(store),
                "collection": collection,
                "count": opened.count(),
                "fingerprint": opened.fingerprint,
            }
    if as_json:
        _print_json(facts)
        return
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in facts.items():
        rows = {f"{key} {inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
        for label, shown in rows.items():
            table.add_row(label, escape("none" if shown is None else str(shown)))
    _console().print(table)


@app.command()
def demo(
    html: Annotated[Path | None, typer.Option("--html", help="Where the page goes; default: a temporary file.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Most hits.")] = 4,
    model: Annotated[str, typer.Option("--model", "-m", help="abc-mini, or a checkpoint folder.")] = "abc-mini",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Index the demo pictures and passages into a temporary store and ask several questions of them."""
    from abc_rag.cli.demo import run_demo
    from abc_rag.search.page import render_html, write_html

    embedder = _embedder(model, device, None, None)
    report, shown = run_demo(embedder, k=k, progress=not as_json)
    if html is None:
        html = Path(tempfile.mkdtemp(prefix="abc-rag-")) / "demo.html"
    subtitle = f"{len(shown)} questions, answered by {embedder.fingerprint}"
    page = write_html(html, render_html(shown, title="abc-rag demo", subtitle=subtitle))
    if as_json:
        _print_json({"indexed": report.added, "html": str(page), "questions": [s.answer.as_dict() for s in shown]})
        return
    _say(f"indexed {report.added} pictures and passages with {embedder.fingerprint}")
    for one in shown:
        _show(one.answer, Path(str(one.image)).name if one.image is not None else None)
    _say()
    _say(f"the same with the pictures: {page}")
