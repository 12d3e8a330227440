"""The files of a mining run: finished work is kept, work with other settings is not used."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from abc_rag import __version__
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import InputError
from abc_rag.files import append, move, remove_drafts
from abc_rag.training.data.lines import describe_files
from abc_rag.training.data.sources import CaptionSource
from abc_rag.training.negatives.corpus import VectorFile, embed_rows, read_json, write_json, writing
from abc_rag.training.negatives.job import MiningJob, Vectors16
from abc_rag.training.negatives.neighbours import Found, Search
from abc_rag.types import Image, Input, Text

__all__ = ["MiningFiles", "SearchProgress", "embed_corpus", "tag_of"]

_LOG = logging.getLogger(__name__)
_EMBEDDED = 2048  # rows saved at once; a kill may cost as many
_ASKED = 1024  # rows searched at once


class MiningFiles:
    """The files of a run: ``OUT.work`` and ``OUT.part`` while it runs, ``OUT.json`` and ``OUT`` when it is finished.

    Args:
        out: The file to write.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.part = out.with_name(out.name + ".part")
        self.work = out.with_name(out.name + ".work")
        self.sidecar = out.with_name(out.name + ".json")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the work folder and lock it for this process.

        Raises:
            InputError: ``out`` is a file of another kind, another process is mining into it, or it cannot be written.
        """
        if self.out.is_dir() or (self.out.exists() and "report" not in (read_json(self.sidecar) or {})):
            raise InputError(f"{self.out}: exists and was not made by mine-negatives; choose another name")
        lock = FileLock(self.work / "lock", blocking=False)
        with writing(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout as error:
                raise InputError(f"{self.out}: another process is mining into it; wait until it ends") from error
        try:
            yield
        finally:
            lock.release()
            with suppress(OSError):
                if [path.name for path in self.work.iterdir()] in ([], ["lock"]):
                    (self.work / "lock").unlink(missing_ok=True)
                    self.work.rmdir()

    def finished(self, settings: Mapping[str, Any], index: str) -> dict[str, Any] | None:
        """The report of an earlier run with the same settings and data."""
        kept = read_json(self.sidecar)
        if kept is None or not self.out.exists():
            return None
        report: dict[str, Any] = kept["report"]
        if kept.get("settings") != settings or index not in ("auto", report["index"]):
            _LOG.warning("%s: mined with other settings, another model or other data; mining anew", self.out)
            return None
        if kept.get("file") != describe_files([self.out]):
            _LOG.warning("%s: has changed since it was mined; mining anew", self.out)
            return None
        _LOG.info("%s: already mined with these settings", self.out)
        return report

    def finish(self, report: Mapping[str, Any], settings: Mapping[str, Any], *, keep_vectors: bool) -> None:
        """Move the result into place, after its report, so that there is no result without one.

        Raises:
            InputError: It cannot be written.
        """
        about = {"abc-rag": __version__, "settings": settings, "report": report, "file": describe_files([self.part])}
        write_json(self.sidecar, about)
        with writing(self.out):
            move(self.part, self.out)
        # Only files of a run: somebody may have put others there.
        for pattern in ["search.*", *([] if keep_vectors else ["texts.*", "pictures.*", "*.usearch"])]:
            for path in self.work.glob(pattern):
                path.unlink(missing_ok=True)
        remove_drafts(self.work)


def embed_corpus(
    files: MiningFiles,
    made_of: Mapping[str, Any],
    source: CaptionSource,
    embedder: Embedder,
    *,
    pictures: bool,
    progress: bool,
) -> tuple[Vectors16, Vectors16 | None]:
    """The vectors of all captions and, if ``pictures`` is set, of all pictures.

    Raises:
        DatasetError: Too many inputs cannot be embedded.
        InputError: The vectors cannot be written.
    """

    def made(name: str, what: str, input_of: Callable[[int], Input]) -> Vectors16:
        file = VectorFile(files.work / f"{name}.f16", made_of, rows=len(source), dim=embedder.dim)
        embed_rows(
            file, embedder, input_of, lambda row: f"{what}: {source.bare(row).id}", source.bad,
            what=what, block=_EMBEDDED, progress=progress,
        )  # fmt: skip
        return Vectors16(file.view(), file.usable())

    texts = made("texts", "captions", lambda row: Text(source.bare(row).caption.text))
    return texts, made("pictures", "pictures", lambda row: Image(source.bare(row).image)) if pictures else None


def tag_of(made_of: Mapping[str, Any]) -> str:
    """A short identifier of what vectors were made from."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


class SearchProgress:
    """The progress of the search: ``search.json``, and the bytes of ``OUT.part`` that it counts.

    Args:
        files: The files of the run.
        settings: What the result depends on. A search with other settings starts anew.
        index: The requested index: ``"exact"``, ``"approximate"`` or ``"auto"``.
        chosen: What ``index`` stands for now.

    Attributes:
        index: The index that the search uses.
        counts: ``negatives``, ``short`` and ``at_or_above_bar``, as in `abc_rag.training.negatives.mine.MiningReport`.
    """

    def __init__(
        self, files: MiningFiles, settings: Mapping[str, Any], index: str, chosen: Literal["exact", "approximate"]
    ) -> None:
        self._files, self._file = files, files.work / "search.json"
        self.index, self._settings = chosen, settings
        self.rows, self.bytes = 0, 0
        self.counts = {"negatives": 0, "short": 0, "at_or_above_bar": 0}
        kept = read_json(self._file)
        if kept is None:
            return
        same = kept["settings"] == settings and index in ("auto", kept["index"])
        if not same or not files.part.is_file() or files.part.stat().st_size < kept["bytes"]:
            _LOG.warning("%s: begun with other settings, another model or other data; starting anew", files.part)
            return
        # "auto" depends on the free memory; a resumed run keeps the index that it began with.
        self.index = kept["index"]
        self.rows, self.bytes, self.counts = kept["rows"], kept["bytes"], kept["counts"]

    def search(self, job: MiningJob, search: Search, *, progress: bool) -> None:
        """Search for the remaining rows, and write their negatives."""
        total = len(job.corpus)
        shown = progress_bar("searching negatives", total=total, enabled=progress)
        with writing(self._files.part), shown as bar:
            bar.advance(self.rows)
            for lines, found, rows in self._batches(job, search, total):
                append(self._files.part, lines, at=self.bytes)
                self._count(found, rows, job.count, len(lines))
                bar.advance(len(rows))

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
