"""What the commands share: options, output, and the store that they open."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.store.chroma.store import ChromaStore
    from abc_rag.types import Fingerprint


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Ask questions of your pictures.",
)
evaluate = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a model.")
train = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train a model.")
export = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write a model for other libraries.")
app.add_typer(evaluate, name="evaluate")
app.add_typer(train, name="train")
app.add_typer(export, name="export")

PARTIAL = 3

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A name, a folder, or FAMILY:NAME. Default: $ABC_RAG_MODEL, else abc."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, cuda:* (all GPUs), mps, ...")]
StoreOption = Annotated[
    Path, typer.Option("--store", "-s", envvar="ABC_RAG_STORE", help="Folder of the embedded Chroma store.")
]
UrlOption = Annotated[
    str | None, typer.Option("--url", envvar="ABC_RAG_URL", help="Chroma server instead of a folder.")
]
CollectionOption = Annotated[str, typer.Option("--collection", "-c", help="Collection within the store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")]
MinTokensOption = Annotated[int | None, typer.Option("--min-tokens", help="Fewest image tokens of a picture.")]
WeightsOption = Annotated[
    str, typer.Option("--weights", help="full; int8 or int4: less memory, other vectors (extra 'quantized').")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Threads or processes that open pictures.")]
MaxTokensOption = Annotated[int | None, typer.Option("--max-tokens", help="Most image tokens of a picture.")]
ResolutionOption = Annotated[
    str | None,
    typer.Option("--resolution", help="VLM2Vec: low, mid or high on Qwen2-VL, a number of crops on Phi-3.5-vision."),
]

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


def _embedder(
    model: str | None,
    device: str,
    min_tokens: int | None,
    max_tokens: int | None,
    weights: str = "full",
    *,
    workers: int | None = None,
    resolution: str | None = None,
) -> Embedder:
    from abc_rag.embedding.load import load_embedder
    from abc_rag.embedding.settings import EngineSettings

    return load_embedder(
        model,
        device=device,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        resolution=_resolution(resolution),
        weights=weights,  # type: ignore[arg-type]  # checked by load_embedder
        engine=EngineSettings(workers=workers),
    )


def _resolution(given: str | None) -> int | str | None:
    """What a command line cannot tell apart: a number, or a name."""
    return int(given) if given is not None and given.isascii() and given.isdigit() else given


def _store(path: Path, url: str | None, collection: str, fingerprint: Fingerprint | None) -> ChromaStore:
    from abc_rag.store.chroma.store import ChromaStore

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
