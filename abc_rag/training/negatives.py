"""Mining hard negatives: for each picture of a caption corpus, captions that nearly describe it (arXiv 2503.00329).

A row's negatives are its nearest neighbours among the captions of other pictures, nearest first, without those at or
above ``epsilon`` times the positive's own score, as they are probably true of the picture too. What searches, and so
what the positive's own score is, can be chosen:

*   ``query="text"``: the caption's vector. The positive is the caption itself, with which its cosine is 1, so the bar
    is a cosine of ``epsilon``. No picture is opened.
*   ``query="image"``: the picture's vector. The positive's score is the cosine of the picture and its caption, and the
    bar is ``epsilon`` times that: another one for each row.

Captions of equal text are one candidate, named by the first row that has it. They are never negatives of one another,
nor are captions of one picture file.

Every caption is embedded once, into a file of float16. Where that file fits into memory, each row is compared with all
captions; otherwise an HNSW index on disk is searched, and its recall is measured on a sample of rows. Both steps are
taken up where they stopped. What was done with another model, of other data or with other settings is not used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from abc_rag import __version__
from abc_rag._progress import progress_bar
from abc_rag.embedder import Embedder
from abc_rag.engine.local import LocalEmbedder
from abc_rag.errors import InputError
from abc_rag.training._corpus import Corpus, VectorFile, embed_rows, read_json, unwritable, write_json
from abc_rag.training._mining import MiningJob, Vectors16
from abc_rag.training._neighbours import ApproximateSearch, ExactSearch, Found, Search
from abc_rag.training.data import CaptionSource
from abc_rag.types import Image, Input, Text

__all__ = ["MiningReport", "mine_negatives"]

_LOG = logging.getLogger(__name__)
_EMBEDDED = 2048  # rows that are saved at once: what a kill may cost
_ASKED = 1024  # rows that are searched at once
_WORK_BYTES = 512 * 2**20  # of one comparison of `_ASKED` rows with a block of candidates, generously


@dataclass(frozen=True)
class MiningReport:
    """What was mined.

    Attributes:
        model: Whose vectors were compared.
        data: The corpus, as it describes itself.
        query: What searched: ``"text"`` or ``"image"``.
        epsilon: The bar, as a part of the positive's own score.
        count: Negatives wanted for each row.
        index: ``"exact"`` or ``"approximate"``.
        rows: Rows of the corpus; each has a line, those that could not be embedded an empty one.
        captions: Different captions among them.
        negatives: Negatives found in all.
        short: Rows with fewer than ``count``.
        at_or_above_bar: Neighbours left out as probably true, of those that were looked at.
        recall: Of the approximate index: what part of the exact negatives of 200 rows it found; otherwise None.
        bad: The rows that could not be used, as `abc_rag._rows.BadRows.as_dict` gives them.
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
        """For JSON."""
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

    While it runs, what it has is in the folder ``OUT.work`` and in ``OUT.part``; called again, it goes on there.
    ``OUT.json`` holds the report and the settings.

    Args:
        source: The corpus, such as `abc_rag.training.data.open_captions` gives.
        out: The file.
        embedder: Whose vectors are compared.
        epsilon: Above 0, at most 1: neighbours at or above this part of the positive's own score are left out.
        count: Negatives wanted for each row.
        query: What searches; see the module.
        index: ``"exact"`` compares with all captions; ``"approximate"`` searches an index; ``"auto"`` is exact where
            the vectors fit into memory.
        memory_gb: What is taken to fit, in GiB; if not given, half of what is free now.
        keep_vectors: Whether ``OUT.work`` stays, so that mining again with another ``epsilon``, ``count``, or
            ``index`` embeds nothing.
        progress: Show progress bars.

    Returns:
        What was mined; read from ``OUT.json`` where the very same has been done before.

    Raises:
        InputError: A setting is unusable, ``out`` is another file, or it cannot be written.
        DatasetError: Too many rows cannot be used.
        MissingExtraError: usearch is needed and not installed.
    """
    _check(epsilon, count, query, index, memory_gb)
    run = _Run(source, Path(out).expanduser(), embedder, progress)
    run.claim()
    corpus = Corpus(source, progress=progress)
    model = str(embedder.fingerprint)
    made_of = {
        "model": model,
        "dim": embedder.dim,
        "data": corpus.digest,
        "rows": len(corpus),
        "query": query,
    }
    memory = int(memory_gb * 2**30) if memory_gb is not None else _free_memory() // 2
    chosen = _choose(index, len(corpus) * embedder.dim * 2, memory)
    settings = {**made_of, "epsilon": epsilon, "count": count}
    before = run.finished(settings, index, corpus)
    if before is not None:
        return before
    texts, pictures = run.embed(made_of)
    state = _SearchState(run, settings, index, chosen)
    job = MiningJob(corpus, texts, pictures, epsilon=epsilon, count=count)
    exact = partial(ExactSearch, texts.values, job.candidates, device=_device(embedder))
    search: Search
    if state.index == "exact":
        search = exact()
    else:
        search = ApproximateSearch(
            texts.values, job.candidates, folder=run.work, memory=memory, tag=_tag(made_of), progress=progress
        )
    state.search(job, search)
    recall = job.recall(search, exact) if state.index == "approximate" else None
    report = MiningReport(
        model=model, data=source.describe(), query=query, epsilon=epsilon, count=count, index=state.index,
        rows=len(corpus), captions=len(job.candidates), negatives=state.counts["negatives"],
        short=state.counts["short"], at_or_above_bar=state.counts["at_or_above_bar"], recall=recall,
        bad=source.bad.as_dict(),
    )  # fmt: skip
    if report.short:
        _LOG.warning("%d of %d rows have fewer than %d negatives", report.short, report.rows, count)
    del search
    run.finish(report, settings, keep_vectors=keep_vectors)
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
    """Exact where vectors of so many bytes fit."""
    if index != "auto":
        return index
    return "exact" if vectors + _WORK_BYTES <= memory else "approximate"


def _tag(made_of: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps({**made_of, "query": ""}).encode()).hexdigest()[:16]


def _free_memory() -> int:
    """Bytes that are free now; 8 GiB where the system does not tell."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return 8 * 2**30


def _device(embedder: Embedder) -> str:
    """Where an embedder computes, as far as it says."""
    return str(embedder.family.device) if isinstance(embedder, LocalEmbedder) else "cpu"


# --- Files ----------------------------------------------------------------------------------------


class _Run:
    """The files of one run, and the inputs of its rows."""

    def __init__(self, source: CaptionSource, out: Path, embedder: Embedder, progress: bool) -> None:
        self.source, self.out, self.embedder, self.progress = source, out, embedder, progress
        self.part = out.with_name(out.name + ".part")
        self.work = out.with_name(out.name + ".work")
        self.sidecar = out.with_name(out.name + ".json")

    def claim(self) -> None:
        """Refuse to replace what is not ours; make the folder."""
        if self.out.is_dir() or (self.out.exists() and "report" not in (read_json(self.sidecar) or {})):
            raise InputError(f"{self.out}: is there already and was not made by mine-negatives; choose another name")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.work, error) from error

    def finished(self, settings: Mapping[str, Any], index: str, corpus: Corpus) -> MiningReport | None:
        """The report of an earlier run that did the very same."""
        kept = read_json(self.sidecar)
        if kept is None or not self.out.exists():
            return None
        if kept.get("settings") != settings or index not in ("auto", kept["report"]["index"]):
            _LOG.warning("%s: was mined with other settings, by another model, or of other data; mined anew", self.out)
            return None
        if kept["sha256"] != _sha256(self.out):
            _LOG.warning("%s: has changed since it was mined; mined anew", self.out)
            return None
        _LOG.info("%s: is there already, with these settings", self.out)
        with suppress(OSError):  # with vectors that were kept
            self.work.rmdir()
        return MiningReport(**kept["report"])

    def embed(self, made_of: Mapping[str, Any]) -> tuple[Vectors16, Vectors16 | None]:
        """Vectors of all captions, and where pictures search of all pictures."""
        shared = {name: value for name, value in made_of.items() if name != "query"}

        def file(name: str, input_of: Callable[[int], Input], what: str) -> Vectors16:
            vectors = VectorFile(self.work / f"{name}.f16", shared, rows=made_of["rows"], dim=made_of["dim"])
            embed_rows(
                vectors, self.embedder, input_of, partial(self._name, what), self.source.bad,
                what=what, block=_EMBEDDED, progress=self.progress,
            )  # fmt: skip
            return Vectors16(vectors.view(), vectors.usable())

        texts = file("texts", self._text, "captions")
        return texts, file("pictures", self._picture, "pictures") if made_of["query"] == "image" else None

    def _text(self, row: int) -> Input:
        return Text(self.source.bare(row).caption.text)

    def _picture(self, row: int) -> Input:
        return Image(self.source.bare(row).image)

    def _name(self, what: str, row: int) -> str:
        return f"{what}: {self.source.bare(row).id}"

    def finish(self, report: MiningReport, settings: Mapping[str, Any], *, keep_vectors: bool) -> None:
        """Put the result in its place; the report first, so that there is no result without one."""
        content = {
            "settings": settings,
            "report": report.as_dict(),
            "sha256": _sha256(self.part),
            "abc-rag": __version__,
        }
        write_json(self.sidecar, content)
        try:
            os.replace(self.part, self.out)
        except OSError as error:
            raise unwritable(self.out, error) from error
        self.clear(everything=not keep_vectors)

    def clear(self, *, everything: bool) -> None:
        """Remove what is left of the search, and the vectors too; only what a run makes."""
        mine = ["search.json", "search.json.part", *(["texts.*", "pictures.*", "*.usearch", "*.part"] * everything)]
        for pattern in mine:
            for path in self.work.glob(pattern):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # kept vectors, or what somebody put there
            self.work.rmdir()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# --- Searching ------------------------------------------------------------------------------------


class _SearchState:
    """How far the search has come: kept in ``search.json``, and in as many bytes of ``OUT.part`` as that says."""

    def __init__(
        self, run: _Run, settings: Mapping[str, Any], index: str, chosen: Literal["exact", "approximate"]
    ) -> None:
        self._run, self._file = run, run.work / "search.json"
        self.index, self._settings = chosen, settings
        self.rows, self.bytes = 0, 0
        self.counts = {"negatives": 0, "short": 0, "at_or_above_bar": 0}
        kept = read_json(self._file)
        if kept is None:
            return
        same = kept["settings"] == settings and index in ("auto", kept["index"])
        if not same or not run.part.is_file() or run.part.stat().st_size < kept["bytes"]:
            _LOG.warning("%s: was begun with other settings, by another model, or of other data; begun anew", run.part)
            return
        # What "auto" stands for may have changed with the memory that is free; a run keeps to what it began with.
        self.index = kept["index"]
        self.rows, self.bytes, self.counts = kept["rows"], kept["bytes"], kept["counts"]

    def search(self, job: MiningJob, search: Search) -> None:
        """Search for the rows that are left, and write what is found."""
        total = len(job.corpus)
        try:
            with (
                self._run.part.open("r+b" if self.bytes else "w+b") as handle,
                progress_bar("searching negatives", total=total, enabled=self._run.progress) as bar,
            ):
                handle.truncate(self.bytes)
                handle.seek(self.bytes)
                bar.advance(self.rows)
                for lines, found, rows in self._batches(job, search, total):
                    handle.write(lines)
                    handle.flush()
                    os.fsync(handle.fileno())
                    self._count(found, rows, job.count, len(lines))
                    bar.advance(len(rows))
        except OSError as error:
            raise unwritable(self._run.part, error) from error

    def _batches(
        self, job: MiningJob, search: Search, total: int
    ) -> Iterator[tuple[bytes, Found, npt.NDArray[np.int64]]]:
        while self.rows < total:
            rows = np.arange(self.rows, min(self.rows + _ASKED, total), dtype=np.int64)
            found = job.find(rows, search)
            lines = []
            for row, positions in zip(rows.tolist(), found.positions, strict=True):
                named = job.candidates[positions[positions >= 0]].tolist()
                line = {"id": job.corpus.id(row), "negatives": [job.corpus.id(other) for other in named]}
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            yield "".join(lines).encode("utf-8", "surrogatepass"), found, rows

    def _count(self, found: Found, rows: npt.NDArray[np.int64], count: int, size: int) -> None:
        had = (found.positions >= 0).sum(axis=1)
        self.counts = {
            "negatives": self.counts["negatives"] + int(had.sum()),
            "short": self.counts["short"] + int((had < count).sum()),
            "at_or_above_bar": self.counts["at_or_above_bar"] + int(found.left_out.sum()),
        }
        self.rows, self.bytes = self.rows + len(rows), self.bytes + size
        write_json(
            self._file,
            {"settings": self._settings, "index": self.index, "rows": self.rows, "bytes": self.bytes,
             "counts": self.counts},
        )  # fmt: skip
