"""The command ``abc-rag index``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_rag.cli.cluster import ClusterFlags
from abc_rag.cli.options import PARTIAL, EmbedderFlags, JsonOption, NewStoreFlags, expanded, grouped
from abc_rag.cli.output import in_options, print_json, say, tell
from abc_rag.errors import InputError
from abc_rag.types import URL

if TYPE_CHECKING:
    from abc_rag.embedding.options import EmbedderKeywords
    from abc_rag.ingest.report import IndexReport

__all__ = ["index"]


@dataclass(frozen=True, kw_only=True)
class _IndexingFlags(EmbedderFlags):
    workers: Annotated[int | None, typer.Option(help="Number of workers that open pictures.")] = None

    def keywords(self) -> EmbedderKeywords:
        from abc_rag.embedding.settings import EngineSettings

        return {**super().keywords(), "engine": EngineSettings(workers=self.workers)}


@grouped
def index(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, documents, .txt and .md files, folders of them, patterns, and URLs (--allow-web)."
        ),
    ],
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
        int, typer.Option(min=20, max=600, help="Resolution of the pages of documents, in pixels per inch.")
    ] = 110,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Then wait for changes, and follow them, until Ctrl-C; prunes (extra watch)."),
    ] = False,
    ocr: Annotated[
        bool, typer.Option("--ocr", help="Read the words on pictures, and on pages without text (extra ocr).")
    ] = False,
    allow_web: Annotated[
        bool,
        typer.Option("--allow-web", help="Fetch documents that are given by a URL, from public addresses (extra web)."),
    ] = False,
    password: Annotated[
        str | None,
        typer.Option("--document-password", envvar="ABC_RAG_DOCUMENT_PASSWORD", help="Opens encrypted documents."),
    ] = None,
    *,
    embedding: _IndexingFlags,
    place: NewStoreFlags,
    cluster: ClusterFlags,
    as_json: JsonOption = False,
) -> None:
    """Embed pictures, documents and passages into a store. What is stored already is not embedded again."""
    from abc_rag.ingest.documents.options import DocumentOptions
    from abc_rag.ingest.paths import index_paths

    documents = DocumentOptions(dpi=dpi, ocr=ocr, allow_web=allow_web, password=password)
    if cluster.ray is not None:
        wrong = [name for name, given in (("--prune", prune), ("--watch", watch), ("--verify", verify)) if given]
        if wrong:
            raise InputError(f"{wrong[0]} is not for --ray: a cluster adds, and compares contents; leave it out")
        if place.shards is not None:
            raise InputError("--shards is for a Chroma server, and a cluster writes Lance; leave it out")
        done, lake = cluster.index(
            paths,
            embedding,
            collection=place.collection,
            facets=facet or [],
            exclude=exclude or [],
            follow_links=follow_links,
            documents=documents,
            progress=not as_json,
        )
        with replace(place, store=lake, url=None).open() as opened:
            _Shown(lake, bool(facet), as_json).show(done, opened.count())
        if done.failed:
            raise typer.Exit(PARTIAL)
        return
    if cluster.out is not None:
        raise InputError("--out is for --ray; to index on this machine, use --store")
    given: list[Path | URL] = []
    for path in paths:
        given += _given(path, exclude or [], follow_links=follow_links)
    embedder = embedding.open()
    local = [path for path in given if isinstance(path, Path)]
    embedder, store = place.open_for(embedder)
    with store as opened:

        def indexed(*, pruned: bool) -> IndexReport:
            before = opened.count()
            try:
                return index_paths(
                    given,
                    embedder,
                    opened,
                    facets=facet or [],
                    exclude=exclude or [],
                    follow_links=follow_links,
                    prune=pruned,
                    prune_most=1.0 if yes else 0.5,
                    verify=verify,
                    limits=embedding.limits,
                    documents=documents,
                    progress=not as_json,
                )
            except KeyboardInterrupt:
                kept = opened.count() - before
                tell(f"{kept} added are kept; the same command goes on from there")
                raise

        shown = _Shown(str(place.url or place.store), bool(facet), as_json)
        if watch:
            _follow(local, place.store, indexed, lambda report: shown.show(report, opened.count()))
            return
        report = indexed(pruned=prune)
        shown.show(report, opened.count())
    if report.failed:
        raise typer.Exit(PARTIAL)


def _follow(
    paths: Sequence[Path], store: str, indexed: Callable[..., IndexReport], show: Callable[[IndexReport], None]
) -> None:
    """Index now, and again after each change, until Ctrl-C."""
    from abc_rag.ingest.watch import changes

    told: set[tuple[str, str]] = set()
    waiting = changes([expanded(path) for path in paths], leave_out=[expanded(Path(store.removeprefix("lance://")))])
    first = True
    while True:
        try:
            if next(waiting, None) is None:
                return
        except KeyboardInterrupt:
            return
        try:
            report = indexed(pruned=True)
        except InputError as error:
            # A folder that was emptied looks like a disk that is not connected.
            tell(f"not pruned: {in_options(str(error))}")
            report = indexed(pruned=False)
        new = [failure for failure in report.failed if failure not in told]
        told.update(report.failed)
        if first or report.added or report.removed or report.facets or new:
            show(replace(report, failed=new))
        first = False


@dataclass(frozen=True)
class _Shown:
    place: str
    facets: bool
    as_json: bool

    def show(self, report: IndexReport, total: int) -> None:
        if self.as_json:
            failed = [{"file": file, "reason": in_options(reason)} for file, reason in report.failed]
            print_json({**report.__dict__, "failed": failed, "total": total})
            return
        say(
            f"{report.added} added, {report.unchanged} unchanged, {report.removed} removed, "
            f"{len(report.failed)} failed, {sum(report.left_out.values())} left out; "
            + (f"{report.facets} facets added; " if self.facets else "")
            + f"{total} in {self.place}"
        )
        if report.left_out:
            reasons = sorted(report.left_out.items(), key=lambda pair: (-pair[1], pair[0]))
            say("left out: " + ", ".join(f"{count} {reason}" for reason, count in reasons))
        for file, reason in report.failed:
            tell(f"failed: {file}: {reason}")


def _given(path: str, exclude: list[str], *, follow_links: bool) -> list[Path | URL]:
    """What an argument means: a URL, a path, or what a pattern matches that the shell has left as it is."""
    from abc_rag.ingest.files import files_matching

    if path.startswith(("http://", "https://")):
        return [URL(path)]
    if os.path.exists(expanded(Path(path))):
        return [Path(path)]
    found = files_matching(path, exclude=exclude, follow_links=follow_links)
    if not found:
        raise InputError(f"{path}: no such file or folder" + (", and no file matches it" if "*" in path else ""))
    return [*found]
