"""The command ``abc-rag index``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from abc_rag.cli.options import (
    DEFAULT_STORE,
    PARTIAL,
    BackgroundOption,
    CollectionOption,
    DepthOption,
    DeviceOption,
    DimsOption,
    DocumentInstructionOption,
    ImageLimitOption,
    JsonOption,
    MaxTokensOption,
    MinTokensOption,
    ModelOption,
    QueryInstructionOption,
    ResolutionOption,
    StoreOption,
    UrlOption,
    WeightsOption,
    WorkersOption,
    expanded,
    image_limits,
    open_embedder,
    open_store,
)
from abc_rag.cli.output import in_options, print_json, say, tell
from abc_rag.errors import InputError

__all__ = ["index"]


def index(
    paths: Annotated[list[Path], typer.Argument(help="Pictures, documents, .txt and .md files, and folders of them.")],
    facet: Annotated[
        list[str] | None,
        typer.Option("--facet", "-f", help="Also embed each picture under this instruction; repeat for more."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", "-x", help="Leave out what matches, as in .gitignore; repeat for more. Also: .abcignore files."
        ),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Also read what links point to outside the folders.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what came from files of the folders that are gone.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Prune even where more than half of a folder's files are gone.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file, even if size and time of change are as before.")
    ] = False,
    dpi: Annotated[
        int, typer.Option("--dpi", min=20, max=600, help="Resolution of the pages of documents, in pixels per inch.")
    ] = 110,
    password: Annotated[
        str | None,
        typer.Option("--document-password", envvar="ABC_RAG_DOCUMENT_PASSWORD", help="Opens encrypted documents."),
    ] = None,
    background: BackgroundOption = None,
    depth: DepthOption = "published",
    image_limit: ImageLimitOption = None,
    model: ModelOption = None,
    store: StoreOption = DEFAULT_STORE,
    url: UrlOption = None,
    collection: CollectionOption = "abc",
    device: DeviceOption = "auto",
    min_tokens: MinTokensOption = None,
    max_tokens: MaxTokensOption = None,
    resolution: ResolutionOption = None,
    dims: DimsOption = None,
    query_instruction: QueryInstructionOption = None,
    document_instruction: DocumentInstructionOption = None,
    weights: WeightsOption = "full",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed pictures, documents and passages into a store. What is stored already is not embedded again."""
    from abc_rag.ingest.documents.options import DocumentOptions
    from abc_rag.ingest.paths import index_paths

    limits = image_limits(image_limit)
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
        workers=workers,
        limits=limits,
        background=background,
        depth=depth,
    )
    for path in paths:
        if not os.path.exists(expanded(path)):
            raise InputError(f"{path}: no such file or folder")
    with open_store(store, url, collection, embedder.fingerprint) as opened:
        before = opened.count()
        try:
            report = index_paths(
                paths,
                embedder,
                opened,
                facets=facet or [],
                exclude=exclude or [],
                follow_links=follow_links,
                prune=prune,
                prune_most=1.0 if yes else 0.5,
                verify=verify,
                limits=limits,
                documents=DocumentOptions(dpi=dpi, password=password),
                progress=not as_json,
            )
        except KeyboardInterrupt:
            kept = opened.count() - before
            tell(f"{kept} added are kept; the same command goes on from there")
            raise
        total = opened.count()
    if as_json:
        failed = [{"file": file, "reason": in_options(reason)} for file, reason in report.failed]
        print_json({**report.__dict__, "failed": failed, "total": total})
    else:
        say(
            f"{report.added} added, {report.unchanged} unchanged, {report.removed} removed, "
            f"{len(report.failed)} failed, {sum(report.left_out.values())} left out; "
            + (f"{report.facets} facets added; " if facet else "")
            + f"{total} in {url or store}"
        )
        if report.left_out:
            reasons = sorted(report.left_out.items(), key=lambda pair: (-pair[1], pair[0]))
            say("left out: " + ", ".join(f"{count} {reason}" for reason, count in reasons))
        for file, reason in report.failed:
            tell(f"failed: {file}: {reason}")
    if report.failed:
        raise typer.Exit(PARTIAL)
