"""The commands ``abc-rag store ...``, which need no model: check, repair, copy, reduce, index, compact and export."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from abc_rag.cli.options import (
    JsonOption,
    KeywordStoreFlags,
    ShardsOption,
    StoreFlags,
    expanded,
    grouped,
    is_store,
    open_place,
)
from abc_rag.cli.output import print_json, say, tell
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from abc_rag.store.base import Store
    from abc_rag.store.copying import CopyReport
    from abc_rag.store.lance.store import LanceStore

__all__ = ["store"]

store = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look after a store: check, repair, copy, reduce, index, compact, export.",
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


FromArgument = Annotated[str, typer.Argument(metavar="FROM", help="A store: all that --store takes.")]
ToArgument = Annotated[
    str, typer.Argument(metavar="TO", help="Likewise; made if missing. What it holds already stays.")
]
ToCollectionOption = Annotated[str | None, typer.Option(help="Its name in TO. Default: the same.")]
CopiedOption = Annotated[str, typer.Option("--collection", "-c", help="Collection to copy.")]
DtypeOption = Annotated[Literal["float32", "float16"], typer.Option(help="How a new Lance store keeps vectors.")]


@store.command()
def copy(
    source: FromArgument,
    target: ToArgument,
    collection: CopiedOption = "abc",
    to_collection: ToCollectionOption = None,
    dtype: DtypeOption = "float32",
    shards: ShardsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a store, such as Chroma to Lance, and compare both; the same command goes on after an interruption."""
    from abc_rag.store.copying import copy_store

    with (
        _source(source, collection) as opened,
        _target(target, to_collection or collection, opened.fingerprint, dtype, shards) as other,
    ):
        report = copy_store(opened, other, progress=None if as_json else _told(opened.count()))
        total = other.count()
    _finish(report, total, target, as_json)


@store.command()
def reduce(
    source: FromArgument,
    target: ToArgument,
    dims: Annotated[int, typer.Option(help="Length of the shorter vectors.")],
    collection: CopiedOption = "abc",
    to_collection: ToCollectionOption = None,
    dtype: DtypeOption = "float32",
    shards: ShardsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a store with shorter vectors (PCA), which 'ask' and others project queries for; a second run goes on."""
    from abc_rag.store.projection import fit_projection, kept_projection, reduce_store

    name = to_collection or collection
    with _source(source, collection) as opened:
        projection = None
        if is_store(target):
            with open_place(target, collection=name) as there:
                projection = kept_projection(there)
        if projection is None or projection.of != opened.fingerprint or projection.axes.shape[1] != dims:
            projection = fit_projection(opened, dims)
        with _target(target, name, projection.fingerprint, dtype, shards) as other:
            report = reduce_store(opened, other, projection, progress=None if as_json else _told(opened.count()))
            total = other.count()
    _finish(report, total, target, as_json)


def _source(place: str, collection: str) -> Store:
    if not is_store(place):
        raise InputError(f"{place}: no store here; give one that was indexed")
    opened = open_place(place, collection=collection)
    if opened.count() == 0:
        opened.close()
        raise InputError(f"collection {collection!r} in {place} is empty, so there is nothing to copy")
    return opened


def _told(count: int) -> Callable[[int], None]:
    last = 0

    def progress(done: int) -> None:
        nonlocal last
        if done - last >= _TOLD:
            last = done
            tell(f"{done} of {count}")

    return progress


def _finish(report: CopyReport, total: int, target: str, as_json: bool) -> None:
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


def _target(
    place: str, collection: str, fingerprint: str | None, dtype: Literal["float32", "float16"], shards: int | None
) -> Store:
    opened = open_place(place, collection=collection, fingerprint=fingerprint, shards=shards)
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
