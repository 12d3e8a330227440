"""The command ``abc-rag index``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from abc_rag.cli.options import (
    DEFAULT_STORE,
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
    expanded,
    open_embedder,
    open_store,
)
from abc_rag.cli.output import print_json, say, tell
from abc_rag.errors import InputError

__all__ = ["index"]


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
    store: StoreOption = DEFAULT_STORE,
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

    embedder = open_embedder(
        model,
        device,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        resolution=resolution,
        weights=weights,
        workers=workers,
    )
    for path in paths:
        if not os.path.exists(expanded(path)):
            raise InputError(f"{path}: no such file or folder")
    with open_store(store, url, collection, embedder.fingerprint) as opened:
        report = index_paths(paths, embedder, opened, facets=facet or [], prune=prune, progress=not as_json)
        total = opened.count()
    if as_json:
        failed = [{"file": file, "reason": reason} for file, reason in report.failed]
        print_json({**report.__dict__, "failed": failed, "total": total})
    else:
        say(
            f"{report.added} added, {report.unchanged} unchanged, {report.removed} removed, "
            f"{len(report.failed)} failed; "
            + (f"{report.facets} facets added; " if facet else "")
            + f"{total} in {url or store}"
        )
        for file, reason in report.failed:
            tell(f"failed: {file}: {reason}")
    if report.failed:
        raise typer.Exit(PARTIAL)
