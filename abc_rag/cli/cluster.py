"""Options of commands that embed on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from abc_rag.cli.options import EmbedderFlags, expanded
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.ingest.cluster import Engines
    from abc_rag.ingest.documents.options import DocumentOptions
    from abc_rag.ingest.report import IndexReport

__all__ = ["ClusterFlags", "EngineFlags"]

_SCHEMES = ("lance://", "s3://", "gs://", "az://")


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """A Ray cluster, and the engines on it."""

    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Embed on a Ray cluster: HOST:PORT of its head, auto, or local (extra ray).",
        ),
    ] = None
    engines: Annotated[int | None, typer.Option("--engines", min=1, help="With --ray: maximum number of engines.")] = (
        None
    )
    engine_cpus: Annotated[float, typer.Option("--engine-cpus", help="With --ray: CPUs of an engine.")] = 1.0
    engine_gpus: Annotated[float, typer.Option("--engine-gpus", help="With --ray: GPUs of an engine.")] = 0.0

    @contextmanager
    def embedder(self, opened: Embedder) -> Iterator[Embedder]:
        """The embedder itself or, with ``--ray``, one whose engines are on the cluster."""
        if self.ray is None:
            yield opened
            return
        from abc_rag.ingest.cluster import ClusterEmbedder

        with ClusterEmbedder(opened, address=self.ray, engines=self.wanted) as spread:
            yield spread

    @property
    def wanted(self) -> Engines:
        """The engines that the options describe."""
        from abc_rag.ingest.cluster import Engines

        return Engines(most=self.engines, cpus=self.engine_cpus, gpus=self.engine_gpus)


@dataclass(frozen=True, kw_only=True)
class ClusterFlags(EngineFlags):
    """A cluster, what it reads, and the store in Lance datasets that it fills."""

    out: Annotated[
        str | None, typer.Option("--out", help="With --ray: the store, lance://FOLDER (seen by all nodes) or s3://...")
    ] = None
    vectors: Annotated[
        Literal["float32", "float16"], typer.Option("--vectors", help="With --ray: how a new store keeps vectors.")
    ] = "float32"
    image_column: Annotated[
        str, typer.Option("--image-column", help="With --ray: column of tables with encoded pictures or URLs.")
    ] = "image"
    text_column: Annotated[
        str | None, typer.Option("--text-column", help="With --ray: column of tables with captions.")
    ] = None
    metadata_column: Annotated[
        list[str] | None,
        typer.Option("--metadata-column", help="With --ray: column to store with each picture; repeat for more."),
    ] = None
    keep: Annotated[
        bool, typer.Option("--keep", help="With --ray: copy pictures of tables and archives into the store's folder.")
    ] = False

    def index(
        self,
        paths: Sequence[str],
        embedding: EmbedderFlags,
        *,
        collection: str,
        facets: Sequence[str],
        exclude: Sequence[str],
        follow_links: bool,
        documents: DocumentOptions,
        progress: bool,
    ) -> tuple[IndexReport, str]:
        """Index on the cluster; what was done, and the store's place."""
        from abc_rag.ingest.cluster import Columns, Reading, index_on_cluster

        if self.out is None or not self.out.startswith(_SCHEMES):
            given = "nothing" if self.out is None else repr(self.out)
            raise InputError(f"--ray needs --out lance://FOLDER, or an object store such as s3://..., not {given}")
        kind, _, rest = self.out.partition("://")
        place = f"lance://{expanded(Path(rest))}" if kind == "lance" else self.out
        report = index_on_cluster(
            [path if "://" in path else os.path.expanduser(path) for path in paths],
            embedding.open(),
            place,
            address=self.ray,
            collection=collection,
            facets=facets,
            dtype=self.vectors,
            engines=self.wanted,
            reading=Reading(
                limits=embedding.limits,
                documents=documents,
                columns=Columns(
                    image=self.image_column, text=self.text_column, metadata=tuple(self.metadata_column or ())
                ),
                keep=self.keep,
            ),
            exclude=exclude,
            follow_links=follow_links,
            progress=progress,
        )
        return report, place
