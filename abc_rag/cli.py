"""The command line: ``abc-rag index | ask | embed | info | demo | evaluate | train``.

Exit status: 0 done; 1 failed; 2 the command line or an input is wrong; 3 done, but some files could not be used;
130 interrupted.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from abc_rag import __version__
from abc_rag.errors import ABCRagError, InputError

if TYPE_CHECKING:
    from abc_rag.embedder import Embedder
    from abc_rag.retriever import Answer
    from abc_rag.store import ChromaStore
    from abc_rag.types import Fingerprint

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Ask questions of your pictures.",
)
evaluate = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a model.")
train = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train a model.")
app.add_typer(evaluate, name="evaluate")
app.add_typer(train, name="train")

PARTIAL = 3

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="abc-mini, abc, or a checkpoint folder. Default: $ABC_RAG_MODEL, else abc."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")]
StoreOption = Annotated[
    Path, typer.Option("--store", "-s", envvar="ABC_RAG_STORE", help="Folder of the embedded Chroma store.")
]
UrlOption = Annotated[
    str | None, typer.Option("--url", envvar="ABC_RAG_URL", help="Chroma server instead of a folder.")
]
CollectionOption = Annotated[str, typer.Option("--collection", "-c", help="Collection within the store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
MinTokensOption = Annotated[int | None, typer.Option("--min-tokens", help="Fewest image tokens of a picture.")]
MaxTokensOption = Annotated[int | None, typer.Option("--max-tokens", help="Most image tokens of a picture.")]

_DEFAULT_STORE = Path("abc-rag-store")


def _console(*, soft_wrap: bool = False) -> Console:
    # Without emoji, as a file's name or a passage may well hold ":key:".
    return Console(highlight=False, emoji=False, soft_wrap=soft_wrap)


def _say(message: str = "") -> None:
    _console(soft_wrap=True).print(escape(message))


def _print_json(value: object, *, indent: int | None = 2) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a terminal that is not UTF-8, or a file's name that is not
        text = json.dumps(value, indent=indent)
    typer.echo(text)


def _expanded(path: Path) -> Path:
    # Shells expand neither --store=~/pictures nor a "~" in a variable. No error for a user that does not exist.
    return Path(os.path.expanduser(path))


def _embedder(model: str | None, device: str, min_tokens: int | None, max_tokens: int | None) -> Embedder:
    from abc_rag.models.load import load_embedder

    return load_embedder(model, device=device, min_tokens=min_tokens, max_tokens=max_tokens)


def _store(path: Path, url: str | None, collection: str, fingerprint: Fingerprint | None) -> ChromaStore:
    from abc_rag.store import ChromaStore

    if url is not None:
        return ChromaStore(url=url, collection=collection, fingerprint=fingerprint)
    return ChromaStore(path=_expanded(path), collection=collection, fingerprint=fingerprint)


def _is_store(path: Path) -> bool:
    # Opening would make one, even in a folder of pictures.
    return os.path.isfile(_expanded(path) / "chroma.sqlite3")


def _require_filled(path: Path, url: str | None, collection: str) -> None:
    """Refuse a store without content, as an empty answer looks like a question that found nothing."""
    if url is None and not _is_store(path):
        raise InputError(f"{path}: no store here; make one with: abc-rag index FOLDER --store {path}")
    with _store(path, url, collection, None) as opened:
        if opened.count() == 0:
            raise InputError(f"collection {collection!r} in {url or path} is empty; fill it with: abc-rag index FOLDER")


@app.command()
def index(
    paths: Annotated[list[Path], typer.Argument(help="Pictures, .txt and .md files, and folders of them.")],
    model: ModelOption = None,
    store: StoreOption = _DEFAULT_STORE,
    url: UrlOption = None,
    collection: CollectionOption = "abc",
    device: DeviceOption = "auto",
    min_tokens: MinTokensOption = None,
    max_tokens: MaxTokensOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed pictures and passages into a store. What is there already is not embedded again."""
    from abc_rag.ingest import index_paths

    embedder = _embedder(model, device, min_tokens, max_tokens)
    for path in paths:
        if not os.path.exists(_expanded(path)):
            raise InputError(f"{path}: no such file or folder")
    with _store(store, url, collection, embedder.fingerprint) as opened:
        report = index_paths(paths, embedder, opened, progress=not as_json)
        total = opened.count()
    if as_json:
        failed = [{"file": file, "reason": reason} for file, reason in report.failed]
        _print_json({**report.__dict__, "failed": failed, "total": total})
    else:
        _say(
            f"{report.added} added, {report.unchanged} unchanged, {report.removed} removed, "
            f"{len(report.failed)} failed; {total} in {url or store}"
        )
        for file, reason in report.failed:
            typer.echo(f"failed: {file}: {reason}", err=True)
    if report.failed:
        raise typer.Exit(PARTIAL)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="A question or a description.")],
    image: Annotated[Path | None, typer.Option("--image", "-i", help="Picture that the question is about.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Most hits.")] = 4,
    only: Annotated[str | None, typer.Option("--only", help="image or text: search only these.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with the pictures here.")] = None,
    model: ModelOption = None,
    store: StoreOption = _DEFAULT_STORE,
    url: UrlOption = None,
    collection: CollectionOption = "abc",
    device: DeviceOption = "auto",
    min_tokens: MinTokensOption = None,
    max_tokens: MaxTokensOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question of what was indexed, or of one picture against it."""
    from abc_rag.report import Shown, render_html, write_html
    from abc_rag.retriever import Retriever

    # What can be wrong without the model is looked at before it is loaded, or even fetched.
    if only not in (None, "image", "text"):
        raise InputError(f"--only takes image or text, not {only!r}")
    if not question.strip():
        raise InputError("the question is empty; ask something")
    if image is not None and not os.path.exists(_expanded(image)):
        raise InputError(f"{image}: no such picture")
    _require_filled(store, url, collection)
    embedder = _embedder(model, device, min_tokens, max_tokens)
    with _store(store, url, collection, embedder.fingerprint) as opened:
        source = str(_expanded(image)) if image is not None else None
        answer = Retriever(embedder, opened).search(question, image=source, k=k, modality=only)  # type: ignore[arg-type]
    page = None
    if html is not None:
        page = write_html(
            html, render_html([Shown(answer, source)], title=question, subtitle=str(embedder.fingerprint))
        )
    if as_json:
        _print_json(_answer_json(answer) | ({"html": str(page)} if page else {}))
        return
    _show(answer, image.name if image else None)
    if page is not None:
        _say(f"page: {page}")


def _answer_json(answer: Answer) -> dict[str, Any]:
    return {
        "question": answer.question,
        "instruction": answer.instruction,
        "hits": [
            {
                "score": round(hit.score, 6),
                "id": hit.record.id,
                "modality": hit.record.modality,
                "source": hit.record.source,
                "text": hit.record.text,
                "metadata": dict(hit.record.metadata),
            }
            for hit in answer.hits
        ],
    }


def _show(answer: Answer, picture: str | None) -> None:
    console = _console()
    console.print()
    console.print(
        f"[bold]{escape(answer.question or '')}[/bold]" + (f"   [dim]about {escape(picture)}[/dim]" if picture else "")
    )
    if answer.instruction is not None:
        console.print(f"[dim]instruction:[/dim] {escape(answer.instruction)}")
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    table.add_column("kind")
    table.add_column("what", overflow="fold")
    for rank, hit in enumerate(answer.hits, 1):
        what = hit.record.text or hit.record.source
        if hit.record.modality == "image":
            what = Path(hit.record.source).name or hit.record.id
        table.add_row(str(rank), f"{hit.score:.3f}", hit.record.modality, escape(what))
    console.print(table)


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
    vectors = _embedder(model, device, min_tokens, max_tokens).embed(inputs, progress=True)
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

    from abc_rag.models.load import default_model

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
    if name != "abc":
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
    from abc_rag.demo import run_demo
    from abc_rag.report import render_html, write_html

    embedder = _embedder(model, device, None, None)
    report, shown = run_demo(embedder, k=k, progress=not as_json)
    if html is None:
        html = Path(tempfile.mkdtemp(prefix="abc-rag-")) / "demo.html"
    subtitle = f"{len(shown)} questions, answered by {embedder.fingerprint}"
    page = write_html(html, render_html(shown, title="abc-rag demo", subtitle=subtitle))
    if as_json:
        _print_json({"indexed": report.added, "html": str(page), "questions": [_answer_json(s.answer) for s in shown]})
        return
    _say(f"indexed {report.added} pictures and passages with {embedder.fingerprint}")
    for one in shown:
        _show(one.answer, Path(str(one.image)).name if one.image is not None else None)
    _say()
    _say(f"the same with the pictures: {page}")


@evaluate.command("mini")
def evaluate_mini_command(
    scenes: Annotated[int, typer.Option("--scenes", help="How many of the 1,000 held-out scenes.")] = 1000,
    model: Annotated[str, typer.Option("--model", "-m", help="abc-mini, or a checkpoint folder.")] = "abc-mini",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Ask held-out scenes everything, and compare with every phrase that abc-mini knows."""
    from abc_rag.evaluation.mini import evaluate_mini

    report = evaluate_mini(_embedder(model, device, None, None), scenes=scenes, progress=not as_json)
    if as_json:
        _print_json(report.as_dict())
        return
    table = Table(title=f"{report.model}: {report.scenes} held-out scenes, {report.questions} questions, "
                        f"{report.candidates} candidate phrases")  # fmt: skip
    table.add_column("measure")
    table.add_column("%", justify="right")
    rows = [
        ("picture + instruction -> phrase", report.accuracy),
        ("the same, in wordings never trained on", report.accuracy_unseen_wording),
        ("both sides of a picture answered rightly", report.both_sides),
        ("without the instruction -> phrase", report.without_instruction),
        ("asked object before the other, with the instruction", report.order_with_instruction),
        ("asked object before the other, without it (chance: 50)", report.order_without_instruction),
        ("caption -> picture, R@1", report.caption_to_picture),
        ("picture -> caption, R@1", report.picture_to_caption),
        *((f"aspect: {aspect}", share) for aspect, share in report.by_aspect.items()),
    ]
    for label, share in rows:
        table.add_row(escape(label), f"{100 * share:.1f}")
    _console().print(table)


@train.command("mini")
def train_mini_command(
    out: Annotated[Path, typer.Argument(help="Folder that receives base/, pretrain/ and instruct/.")],
    seed: Annotated[int, typer.Option("--seed")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the base stage, for a trial.")] = None,
) -> None:
    """Train abc-mini from nothing. A stage whose result is in OUT already is not repeated."""
    from dataclasses import replace

    from abc_rag.training.mini import MiniConfig, train_mini

    config = MiniConfig(seed=seed)
    if steps is not None:
        config = replace(config, base_steps=steps)
    train_mini(out, config, say=lambda line: typer.echo(line, err=True))
    _say(f"abc-mini is in {out}; its figures: abc-rag evaluate mini --model {out}")


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on standard error, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name may hold what cannot be printed.
            stream.reconfigure(errors="backslashreplace")
    try:
        _run(arguments)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except ABCRagError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # The system's refusals that no message above foresaw: a full disk, a name too long, no permission.
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def _run(arguments: list[str] | None) -> None:
    try:
        app(args=arguments, standalone_mode=True)
    except SystemExit as end:
        # Typer turns an interrupt into this exit, and says nothing.
        if end.code == 130:
            raise KeyboardInterrupt from None
        raise


if __name__ == "__main__":
    main()
