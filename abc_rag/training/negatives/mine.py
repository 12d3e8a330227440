"""Mining hard negatives: for each picture of a caption corpus, captions that nearly describe it (arXiv 2503.00329).

A row's negatives are its nearest neighbours among the captions of other pictures, nearest first. Neighbours at or above
``epsilon`` times the positive's own score are left out, as they probably describe the picture too. The query is
either of two vectors:

*   ``query="text"``: the caption's vector. The positive is the caption itself, with cosine 1, so the bar is
    ``epsilon``. No picture is opened.
*   ``query="image"``: the picture's vector. The positive's score is the cosine of picture and caption, and the bar is
    ``epsilon`` times that; it differs from row to row.

Equal captions are one candidate, named by the first row that has it. They are never negatives of one another, nor are
the captions of one picture file.

Every caption is embedded once, into a file of float16. If the vectors fit into memory, each row is compared with all
captions; otherwise an HNSW index on disk is searched, and its recall is measured on a sample of rows. Both steps
resume where they stopped. Intermediate results of another model, other data or other settings are never used.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.errors import InputError
from abc_rag.training.data.sources import CaptionSource
from abc_rag.training.negatives.corpus import Corpus
from abc_rag.training.negatives.files import MiningFiles, SearchProgress, embed_corpus, tag_of
from abc_rag.training.negatives.job import MiningJob
from abc_rag.training.negatives.neighbours import ApproximateSearch, ExactSearch, Search

__all__ = ["MiningReport", "mine_negatives"]

_LOG = logging.getLogger(__name__)
_WORK_BYTES = 512 * 2**20  # an upper bound for comparing some rows with a block of candidates


@dataclass(frozen=True)
class MiningReport:
    """The outcome of mining.

    Attributes:
        model: The model whose vectors were compared.
        data: The description of the corpus.
        query: ``"text"`` or ``"image"``.
        epsilon: The score bar, as a fraction of the positive's own score.
        count: Negatives wanted per row.
        index: ``"exact"`` or ``"approximate"``.
        rows: Rows of the corpus. Each has a line in the file; rows that could not be embedded have no negatives.
        captions: Distinct captions.
        negatives: Total number of negatives.
        short: Rows with fewer than ``count`` negatives.
        at_or_above_bar: Neighbours left out as probably true, among those that were examined.
        recall: The share of the exact negatives of 200 rows that an approximate index found; None if exact.
        bad: The unusable rows; see `abc_rag.training.data.rows.BadRows.as_dict`.
    """

    model: str
    data: Mapping[str, Any]
    query: Literal["text", "image"]
    epsilon: float
    count: int
    index: Literal["exact", "approximate"]
    rows: int
    captions: int
    negatives: int
    short: int
    at_or_above_bar: int
    recall: float | None
    bad: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)


def mine_negatives(
    source: CaptionSource,
    out: str | os.PathLike[str],
    embedder: Embedder,
    *,
    epsilon: float = 0.95,
    count: int = 35,
    query: Literal["text", "image"] = "text",
    index: Literal["auto", "exact", "approximate"] = "auto",
    memory_gb: float | None = None,
    keep_vectors: bool = False,
    progress: bool = False,
) -> MiningReport:
    """Write the negatives of each row of a corpus: JSON lines ``{"id": ID, "negatives": [ID, ...]}``, nearest first.

    Intermediate results are in the folder ``OUT.work`` and in ``OUT.part``; an interrupted run resumes from them.
    ``OUT.json`` holds the report and the settings.

    Args:
        source: The corpus; see `abc_rag.training.data.open.open_captions`.
        out: The file to write.
        embedder: The model whose vectors are compared.
        epsilon: Above 0, at most 1: neighbours at or above this fraction of the positive's own score are left out.
        count: Negatives wanted per row.
        query: The vectors that search, those of captions or of pictures; see the module.
        index: ``"exact"`` compares with all captions, ``"approximate"`` searches an index, ``"auto"`` is exact if the
            vectors fit into memory.
        memory_gb: Memory for the vectors, in GiB; half of what is free if None.
        keep_vectors: Keep ``OUT.work``, so that mining again with another ``epsilon``, ``count`` or ``index`` embeds
            nothing.
        progress: Show progress bars.

    Returns:
        The report; read from ``OUT.json`` if an earlier run had the same settings and data.

    Raises:
        InputError: A setting is unusable, ``out`` is another file, or it cannot be written.
        DatasetError: Too many rows are unusable.
        MissingExtraError: usearch is needed but not installed.
    """
    _check(epsilon, count, query, index, memory_gb)
    files = MiningFiles(Path(out).expanduser())
    with files.claimed():
        corpus = Corpus(source, progress=progress)
        made_of = {
            "model": str(embedder.fingerprint), "dim": embedder.dim, "data": corpus.digest, "rows": len(corpus),
        }  # fmt: skip
        settings = {**made_of, "query": query, "epsilon": epsilon, "count": count}
        before = files.finished(settings, index)
        if before is not None:
            return MiningReport(**before)
        memory = int(memory_gb * 2**30) if memory_gb is not None else _free_memory() // 2
        chosen = _choose(index, len(corpus) * embedder.dim * 2, memory)
        state = SearchProgress(files, settings, index, chosen)
        texts, pictures = embed_corpus(files, made_of, source, embedder, pictures=query == "image", progress=progress)
        job = MiningJob(corpus, texts, pictures, epsilon=epsilon, count=count)
        exact = partial(ExactSearch, texts.values, job.candidates, device=_device(embedder))
        search: Search
        if state.index == "exact":
            search = exact()
        else:
            search = ApproximateSearch(
                texts.values, job.candidates, folder=files.work, memory=memory, tag=tag_of(made_of), progress=progress
            )
        state.search(job, search, progress=progress)
        recall = job.recall(search, exact) if state.index == "approximate" else None
        report = MiningReport(
            model=str(embedder.fingerprint), data=source.describe(), query=query, epsilon=epsilon, count=count,
            index=state.index, rows=len(corpus), captions=len(job.candidates), **state.counts, recall=recall,
            bad=source.bad.as_dict(),
        )  # fmt: skip
        if report.short:
            _LOG.warning("%d of %d rows have fewer than %d negatives", report.short, report.rows, count)
        # Indexes are memory-mapped, and some systems cannot remove mapped files.
        del search
        files.finish(report.as_dict(), settings, keep_vectors=keep_vectors)
    return report


def _check(epsilon: object, count: object, query: object, index: object, memory_gb: object) -> None:
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 < epsilon <= 1:
        raise InputError(f"epsilon must be above 0 and at most 1, not {epsilon!r}")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"count must be a positive whole number, not {count!r}")
    if query not in ("text", "image"):
        raise InputError(f"query must be 'text' or 'image', not {query!r}")
    if index not in ("auto", "exact", "approximate"):
        raise InputError(f"index must be 'auto', 'exact' or 'approximate', not {index!r}")
    usable = isinstance(memory_gb, (int, float)) and not isinstance(memory_gb, bool) and memory_gb > 0
    if memory_gb is not None and not usable:
        raise InputError(f"memory_gb must be a positive number of GiB, not {memory_gb!r}")


def _choose(
    index: Literal["auto", "exact", "approximate"], vectors: int, memory: int
) -> Literal["exact", "approximate"]:
    """Exact if the vectors fit into memory."""
    if index != "auto":
        return index
    return "exact" if vectors + _WORK_BYTES <= memory else "approximate"


def _free_memory() -> int:
    """Free memory in bytes; 8 GiB if the system does not tell."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return 8 * 2**30


def _device(embedder: Embedder) -> str:
    """The device of an embedder; the CPU if it is not a local one."""
    return str(embedder.family.facts.device) if isinstance(embedder, LocalEmbedder) else "cpu"
