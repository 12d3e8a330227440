"""The commands ``abc-rag store ...``, which need no model: check, repair, copy, index, compact and export."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from abc_rag.cli.options import JsonOption, KeywordStoreFlags, StoreFlags, expanded, grouped, is_store, open_place
from abc_rag.cli.output import print_json, say, tell
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.store.base import Store
    from abc_rag.store.lance.store import LanceStore

__all__ = ["store"]

store = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look after a store: check, repair, copy, index, compact, export."
)

_SHOWN = 20
_TOLD = 100_000


@store.command()
@grouped
def check(
    *,
    place: KeywordStoreFlags,
    as_json: JsonOption = False,
) -> None:
    """Check records, vectors, facets, kept pictures and indexes; exit status 1 if something is wrong."""
    with place.filled() as opened:
        problems, count = opened.check(), opened.count()
        facts = {"records": count, "dim": opened.dim, "fingerprint": opened.fingerprint}
    if as_json:
        print_json({**facts, "problems": problems})
    else:
        _tell_problems(problems)
        say(f"{count} records, {len(problems)} problems" if problems else f"{count} records, all are found")
    if problems:
        raise typer.Exit(1)


@store.command()
@grouped
def repair(
    *,
    place: KeywordStoreFlags,
) -> None:
    """Build a store's indexes anew from what is safe (of a server, its keyword index here), without the model."""
    with place.filled() as opened:
        say(f"{opened.repair()} records, the index is built anew")


@store.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A store: all that --store takes.")],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="Likewise; made if missing. What it holds already stays.")
    ],
    collection: Annotated[str, typer.Option("--collection", "-c", help="Collection to copy.")] = "abc",
    to_collection: Annotated[str | None, typer.Option(help="Its name in TO. Default: the same.")] = None,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="How a new Lance store keeps vectors.")
    ] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Copy a store, such as Chroma to Lance, and compare both; the same command goes on after an interruption."""
    from abc_rag.store.copying import copy_store

    if not is_store(source):
        raise InputError(f"{source}: no store here; give one that was indexed")
    with open_place(source, collection=collection) as opened:
        if opened.count() == 0:
            raise InputError(f"collection {collection!r} in {source} is empty, so there is nothing to copy")
        with _target(target, to_collection or collection, opened, dtype) as other:
            last = 0

            def progress(done: int) -> None:
                nonlocal last
                if done - last >= _TOLD and not as_json:
                    last = done
                    tell(f"{done} of {opened.count()}")

            report = copy_store(opened, other, progress=progress)
            total = other.count()
    if as_json:
        print_json({**report.__dict__, "total": total})
    else:
        _tell_problems(report.problems)
        say(
            f"{report.copied} copied, {report.unchanged} unchanged, {report.facets} facets copied, "
            f"{len(report.problems)} problems; {total} in {target}"
        )
    if report.problems:
        raise typer.Exit(1)


def _target(place: str, collection: str, source: Store, dtype: Literal["float32", "float16"]) -> Store:
    opened = open_place(place, collection=collection, fingerprint=source.fingerprint)
    if dtype == "float32":
        return opened
    opened.close()
    return _lance(opened).like(dtype=dtype)


@store.command()
@grouped
def index(
    kind: Annotated[
        Literal["int8", "binary", "pq", "hnsw"] | None,
        typer.Option(help="What stands for a vector. Default: binary from 256 dimensions on, else int8."),
    ] = None,
    *,
    place: StoreFlags,
) -> None:
    """Build a Lance store's index of neighbours, or bring it up to date; without one, searches compare with all."""
    with place.filled() as opened:
        built = _lance(opened).build_index(kind)
    say(f"{built['records']} records and {built['facets']} facets are indexed")


@store.command()
@grouped
def compact(
    keep_hours: Annotated[
        float, typer.Option(min=0.0, help="Keep versions that are younger, for who reads them.")
    ] = 24.0,
    *,
    place: StoreFlags,
) -> None:
    """Join a Lance store's small files, drop what was deleted, and remove old versions."""
    with place.filled() as opened:
        freed = _lance(opened).compact(timedelta(hours=keep_hours))
    say(f"{freed / 1e6:.1f} MB freed")


@store.command()
@grouped
def export(
    file: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    *,
    place: StoreFlags,
) -> None:
    """Write every record and facet with its vector into a Parquet file."""
    from abc_rag.store.parquet import export_parquet

    if os.path.isdir(expanded(file)):
        raise InputError(f"{file}: is a folder; name a file")
    with place.filled() as opened:
        say(f"{export_parquet(opened, expanded(file))} rows in {file}")


def _lance(opened: Store) -> LanceStore:
    from abc_rag.store.lance.store import LanceStore

    if not isinstance(opened, LanceStore):
        raise InputError(
            f"{opened!r} looks after its own index and files; this is for Lance stores (abc-rag store copy makes one)"
        )
    return opened


def _tell_problems(problems: list[str]) -> None:
    for problem in problems[:_SHOWN]:
        say(problem)
    if len(problems) > _SHOWN:
        say(f"and {len(problems) - _SHOWN} more")
