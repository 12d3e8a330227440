"""The commands ``abc-rag serve`` and ``abc-rag serve keys add | list | remove``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from abc_rag.cli.options import EmbedderFlags, JsonOption, expanded, grouped
from abc_rag.cli.output import cell, console, print_json, say, tell
from abc_rag.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.embedding.options import EmbedderKeywords
    from abc_rag.images.limits import ImageLimits

__all__ = ["serve"]

serve = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="Serve the model and the collections of a store over HTTP.",
)
keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="API keys, which any address but loopback takes.")
serve.add_typer(keys, name="keys")


_DEFAULT = Path("abc-rag-store")
_StoreOption = Annotated[
    Path,
    typer.Option("--store", "-s", envvar="ABC_RAG_STORE", help="Folder of the store and the server's own files."),
]


def _folder(store: Path) -> Path:
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(store)):  # a URL has lost a slash as a path
        raise InputError(
            f"{store}: the server serves Chroma's stores; give --store FOLDER, or --url for a Chroma server"
        )
    return expanded(store) / "abc-server"


@dataclass(frozen=True, kw_only=True)
class _ServedFlags(EmbedderFlags):
    workers: Annotated[int | None, typer.Option(help="Number of workers that open pictures.")] = None

    def default_limits(self) -> ImageLimits:
        from abc_rag.server.settings import DEFAULT_LIMITS

        return DEFAULT_LIMITS

    def keywords(self) -> EmbedderKeywords:
        from abc_rag.embedding.settings import EngineSettings

        return {**super().keywords(), "engine": EngineSettings(workers=self.workers)}


@serve.callback()
@grouped
def _serve(
    context: typer.Context,
    store: _StoreOption = _DEFAULT,
    host: Annotated[str, typer.Option(help="Address; any but loopback takes API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help="Port to listen on; 0 takes a free one.")] = 8000,
    name: Annotated[
        list[str] | None, typer.Option(help="Further name of the model for clients; repeat for more.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(envvar="ABC_RAG_URL", help="Chroma server for the collections; the folder keeps the rest."),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Also judge, answer and chat with the model's own base, where it can.")
    ] = False,
    *,
    embedding: _ServedFlags,
) -> None:
    if context.invoked_subcommand is not None:
        return
    from abc_rag.embedding.load import default_model
    from abc_rag.models.hub import is_folder

    with _needs_server():
        from abc_rag.server import Keys, ServerSettings, chroma, json_logs
        from abc_rag.server import serve as run
    from abc_rag.store.chroma.journal import collections_in

    generator = None
    if generate:
        from abc_rag.answering import load_generator

        generator = load_generator(embedding.model, **embedding.keywords())
        embedder: Embedder = generator.embedder
    else:
        embedder = embedding.open()
    place = expanded(store)
    opened = chroma(place) if url is None else chroma(url=url, beside=_folder(store))
    asked = embedding.model or default_model()
    # A folder's path is nobody else's business; its name is the model's own.
    names = tuple(dict.fromkeys([*(name or []), *([] if is_folder(asked) else [asked])]))
    settings = ServerSettings(host=host, port=port, folder=_folder(store), names=names, image_limits=embedding.limits)
    known = Keys(_folder(store) / "keys.json")
    with json_logs():
        run(
            embedder,
            settings,
            keys=known if known.all() else None,
            stores=opened,
            existing=partial(collections_in, str(place)) if url is None else list,
            generator=generator,
            started=lambda address: tell(f"listening on {address}"),
        )


@contextmanager
def _needs_server() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_module(error, "the server", extra="server") from error


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    store: _StoreOption = _DEFAULT,
    scope: Annotated[
        Literal["read", "write", "admin"],
        typer.Option(help="read: embed and search. write: also add. admin: also delete, and read metrics."),
    ] = "read",
    tenant: Annotated[
        str, typer.Option(help="Whose the key is; collections of other tenants are invisible to it.")
    ] = "default",
    per_minute: Annotated[int | None, typer.Option(help="Maximum requests in a minute.")] = None,
    at_once: Annotated[int | None, typer.Option(help="Maximum requests in progress.")] = None,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    with _needs_server():
        from abc_rag.server import Keys
    key, token = Keys(_folder(store) / "keys.json").add(
        name, scope=scope, tenant=tenant, per_minute=per_minute, at_once=at_once
    )
    tell(f"key {key.id}; keep it, as it cannot be shown again:")
    say(token)


@keys.command("list")
def list_keys(store: _StoreOption = _DEFAULT, as_json: JsonOption = False) -> None:
    """List the keys; none is shown itself."""
    with _needs_server():
        from abc_rag.server import Keys
    found = Keys(_folder(store) / "keys.json").all()
    shown = ("id", "name", "tenant", "scope", "per_minute", "at_once")
    if as_json:
        print_json([{field: getattr(key, field) for field in shown} for key in found])
        return
    table = Table(*shown, box=None)
    for key in found:
        table.add_row(*(cell("" if (value := getattr(key, field)) is None else value) for field in shown))
    console().print(table)


@keys.command("remove")
def remove_key(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As abc-rag serve keys list shows it.")],
    store: _StoreOption = _DEFAULT,
) -> None:
    """Remove a key; a running server refuses it from the next request on."""
    with _needs_server():
        from abc_rag.server import Keys
    Keys(_folder(store) / "keys.json").remove(id_)
    say(f"removed {id_}")
