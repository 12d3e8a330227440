"""The driver of a run: it starts the pipeline, and commits what workers have written."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import Progress, progress_bar
from abc_rag.errors import ABCRagError, InputError, StoreError
from abc_rag.ingest.cluster.client import connected, translated
from abc_rag.ingest.cluster.lake import Lake, Written, lake_of
from abc_rag.ingest.cluster.ledger import Asked, Ledger
from abc_rag.ingest.cluster.options import Engines, Reading
from abc_rag.ingest.cluster.sources import units_of
from abc_rag.ingest.cluster.stages import Engine, Facts, facts_of, read, write
from abc_rag.ingest.report import IndexReport
from abc_rag.store.lance.rows import Dtype
from abc_rag.store.lance.store import LanceStore

if TYPE_CHECKING:
    import ray.data

__all__ = ["index_on_cluster"]

_NAMESPACE = "abc-rag"
_MOST_BLOCKS = 10_000
_BLOCK_BYTES = 4 * 2**20
_LEAST_SHARE = 0.001
# How long a run that has just been killed may be noticed as one.
_PATIENCE_S = 60.0


def index_on_cluster(
    sources: Sequence[str | os.PathLike[str]],
    embedder: Embedder,
    place: str,
    *,
    address: str | None = None,
    collection: str = "abc",
    facets: Sequence[str] = (),
    dtype: Dtype = "float32",
    engines: Engines = Engines(),  # noqa: B008  (frozen)
    reading: Reading = Reading(),  # noqa: B008
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    commit_rows: int = 4096,
    progress: bool = False,
) -> IndexReport:
    """Embed pictures, passages and documents on a Ray cluster, into a store in Lance datasets.

    Tasks read, each engine is an actor with a model of its own, other tasks write fragments, and this process commits
    them. What is stored already is not embedded again, whatever its name: a run that was killed goes on behind its last
    commit, and one over sources that have grown embeds what is new. Content that occurs several times is stored once. A
    worker or a node that is lost costs what it was at; a node that joins is used. What cannot be used is in the table
    ``COLLECTION.failed.lance`` beside the store, with the reason, and is tried again by the next run.

    A run adds, and never removes. One run at a time may fill a collection. Memory, on each node, is bounded by Ray's
    object store: reading waits for the engines.

    Args:
        sources: Files and folders that all nodes see; ``s3://...``, ``gs://...`` and whatever fsspec reads; archives
            (``.tar``) in WebDataset's form; tables (``.parquet``, ``.lance``).
        embedder: Is sent to the engines without weights; each loads its own. It is not loaded here.
        place: The store: ``lance://FOLDER`` with a folder that all nodes see, or an object store.
        address: Of the cluster; see `abc_rag.ingest.cluster.client.connected`.
        collection: Name of the collection within the store.
        facets: Instructions under which each picture gets a further vector.
        dtype: How vectors are kept, where the store is made.
        engines: How many, and what they take.
        reading: How sources are read.
        exclude: Patterns of what to leave out of local folders, in the syntax of ``.gitignore``.
        follow_links: Also read what links in local folders point to outside of them.
        commit_rows: Items that are written and committed together: a run that is killed loses no more of each
            engine's work than that, and what is on its way.
        progress: Show a progress bar.

    Returns:
        What was done, with everything that failed.

    Raises:
        InputError: There is no such source or cluster, an argument is unusable, or another run fills the collection.
        FingerprintMismatchError: The collection holds another model's vectors.
        MissingExtraError: Ray or Lance is not installed.
        StoreError: The store cannot be written to.
    """
    if type(commit_rows) is not int or commit_rows < 1:
        raise InputError(f"commit_rows must be a positive int, not {commit_rows!r}")
    report = IndexReport()
    with LanceStore(place.removeprefix("lance://"), collection=collection, dtype=dtype) as store:
        lake = lake_of(place, collection)
        if store.keeps_pictures and reading.pictures is None:
            reading = Reading(**{**reading.__dict__, "pictures": str(Path(lake.place, "pictures", collection))})
        how: Any = {"exclude": exclude, "follow_links": follow_links, "most": engines.batch}
        units = [json.dumps(unit) for unit in units_of(sources, report, **how)]
        store.roots.add(source for source in sources if os.path.exists(source))
    with connected(address) as ray, translated(), progress_bar("indexing", total=None, enabled=progress) as bar:
        facts = _facts(ray, embedder, facets, lake, dtype, engines)
        versions = lake.versions()  # before the ledger reads what is stored
        ledger = _ledger(ray, lake)
        try:
            if units:
                rows = _pipeline(ray, units, embedder, ledger, lake, facts, facets, engines, reading, commit_rows)
                _commit(rows, ledger, lake, versions, report, bar)
            report.unchanged, failures, passed = ledger.result()
        finally:
            ledger.close()
    lake.put_failed(failures, passed)
    report.failed += [(place, reason) for place, _, reason in failures]
    return report


def _facts(
    ray: ModuleType, embedder: Embedder, facets: Sequence[str], lake: Lake, dtype: Dtype, engines: Engines
) -> Facts:
    task = ray.remote(facts_of).options(num_cpus=engines.cpus, num_gpus=engines.gpus)
    found = ray.get(task.remote(embedder, list(facets), lake, dtype))
    if isinstance(found, ABCRagError):
        raise found
    return found  # type: ignore[no-any-return]


def _ledger(ray: ModuleType, lake: Lake) -> Asked:
    """The ledger of this run, which lives and dies with the driver's node and process."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name = hashlib.sha256(lake.uri().encode()).hexdigest()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": f"ledger-{name}", "namespace": _NAMESPACE, "num_cpus": 0, "scheduling_strategy": here}
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return Asked(ray.remote(Ledger).options(**options).remote(lake))
        except ValueError as error:  # the name is taken
            if time.monotonic() > until:
                raise InputError(
                    f"{lake.uri()}: another run on this cluster fills it; wait for its end, or stop it"
                ) from error
            time.sleep(0.5)


def _pipeline(
    ray: ModuleType,
    units: Sequence[str],
    embedder: Embedder,
    ledger: Asked,
    lake: Lake,
    facts: Facts,
    facets: Sequence[str],
    engines: Engines,
    reading: Reading,
    commit_rows: int,
) -> ray.data.Dataset:
    data = ray.data
    # An engine gives on what it makes of a block as a whole: blocks are small, or many small pictures would be one.
    context = data.DataContext.get_current()
    before = context.target_max_block_size, context.enable_progress_bars
    context.target_max_block_size, context.enable_progress_bars = _BLOCK_BYTES, False
    try:
        dataset = data.from_items([{"unit": unit} for unit in units], override_num_blocks=min(len(units), _MOST_BLOCKS))
    finally:
        context.target_max_block_size, context.enable_progress_bars = before
    facets = list(dict.fromkeys(facets))
    # Ray would put what takes the same into one process, where an engine waits for files.
    reader_cpus = engines.reader_cpus + (_LEAST_SHARE if engines.reader_cpus == engines.cpus else 0.0)
    return (
        dataset.map_batches(
            read,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=reader_cpus,
            fn_kwargs={"ledger": ledger, "reading": reading, "facets": facets},
        )
        .map_batches(
            Engine,
            batch_size=engines.batch,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(min_size=engines.least, max_size=engines.most),
            num_cpus=engines.cpus,
            num_gpus=engines.gpus or None,
            fn_constructor_args=(embedder, ledger),
        )
        .map_batches(
            write,
            batch_size=commit_rows,
            batch_format="pyarrow",
            num_cpus=engines.reader_cpus,
            fn_kwargs={"lake": lake, "dim": facts.dim},
        )
    )


def _commit(
    dataset: ray.data.Dataset,
    ledger: Asked,
    lake: Lake,
    versions: dict[bool, int],
    report: IndexReport,
    bar: Progress,
) -> None:
    for row in _rows(dataset):
        # Records first: a run that is killed in between lacks facets, which the next one makes.
        for facets in (False, True):
            prefix = "facet_" if facets else ""
            written = Written(row[f"{prefix}fragments"], row[f"{prefix}ids"])
            if not written.ids:
                continue
            if again := ledger.done(written.ids):
                raise StoreError(f"{lake.place}: {again[0]} was embedded twice; run it again, it goes on from here")
            versions[facets] = lake.commit(written, versions[facets], facets=facets)
            lake.tidy(facets=facets)
        report.added += len(row["ids"])
        report.facets += len(row["facet_ids"])
        bar.advance(len(row["ids"]))


def _rows(dataset: ray.data.Dataset) -> Iterator[dict[str, list[str]]]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()
