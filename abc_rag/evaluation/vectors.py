"""Embedding for evaluations: each input once, what is done is kept, and a bad picture costs only itself."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.progress import Progress, progress_bar
from abc_rag.errors import ImageError, ImageFetchError, ImageFormatError, ImageLimitError, InputError
from abc_rag.images.open import content_hash
from abc_rag.images.read import describe_source
from abc_rag.training.data.rows import BadRows
from abc_rag.types import URL, DataURI, ImageSource, Input, Vectors

__all__ = ["VectorCache", "compute_of"]

_SHARD = 512
_LEAST = 8
_SAVE_AFTER_S = 30.0  # what a kill may cost
_CALL_S = 5.0  # about how long one call of the embedder should take: the bar moves, and batches stay full


def compute_of(embedder: Embedder) -> tuple[str, str]:
    """The device and the number format that an embedder computes with; ``"unknown"`` where it does not say."""
    if not isinstance(embedder, LocalEmbedder):
        return "unknown", "unknown"
    facts = embedder.family.facts
    return str(facts.device), str(facts.dtype).removeprefix("torch.")


class VectorCache:
    """Embeds inputs, and with a folder takes up where an earlier run stopped.

    Each distinct input is embedded once. With a folder, vectors go to ``folder/vectors/NAME-MODEL/NNNN-INPUTS.npy``,
    512 a file, as they are made. The hashes cover the model, its resolution, device and number format, and every input
    of the file (a picture on disk by its path, size and time of change), so what no longer fits is never used. Inputs
    that cannot be embedded are zero rows, in the files too, and are tried again by the next run.

    Args:
        embedder: Makes the vectors.
        folder: Where they are kept; None keeps nothing.
        progress: Show progress bars.
        limits_bad: Where unusable inputs are counted; raises `DatasetError` past its limit. If not given, a new one.

    Attributes:
        bad: Where unusable inputs are counted; a picture once, however often it is used.
    """

    def __init__(
        self,
        embedder: Embedder,
        folder: Path | None = None,
        *,
        progress: bool = False,
        limits_bad: BadRows | None = None,
    ) -> None:
        self.embedder = embedder
        self.folder = folder
        self.progress = progress
        self.bad = BadRows("inputs") if limits_bad is None else limits_bad
        self._bad_pictures: set[str] = set()
        self._counted: set[str] = set()

    def embed(self, name: str, inputs: Sequence[Input]) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """Embed inputs, in order.

        Args:
            name: What they are, for the bar and the folder: ``"queries"``.
            inputs: Any mix; equal ones are embedded once.

        Returns:
            float32 ``(n, dim)``, and bool ``(n,)``: which inputs could be embedded. The rows of the others are zero.

        Raises:
            DatasetError: Too many inputs are unusable.
            InputError: The folder cannot be written to.
        """
        keys = _keys(inputs)
        first: dict[str, int] = {}
        for position, key in enumerate(keys):
            first.setdefault(key, position)
        distinct = [(key, inputs[position]) for key, position in first.items()]
        where = self._place(name)
        rows = np.zeros((len(distinct), self.embedder.dim), dtype=np.float32)
        with progress_bar(f"embedding {name}", total=len(distinct), enabled=self.progress) as bar:
            for start in range(0, len(distinct), _SHARD):
                items = distinct[start : start + _SHARD]
                inside = _digest("\n".join(key for key, _ in items))[:16]
                file = where / f"{start // _SHARD:04}-{inside}.npy" if where else None
                shard = _Shard(file, rows[start : start + _SHARD])
                bar.advance(shard.load())
                self._fill(name, items, shard, bar)
        numbers = {key: number for number, key in enumerate(first)}
        chosen = np.array([numbers[key] for key in keys], dtype=np.int64)
        vectors = rows[chosen]
        return vectors, _filled(vectors)

    def _place(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        model = _digest(repr((self.embedder.fingerprint, compute_of(self.embedder))))[:16]
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:80]
        place = self.folder / "vectors" / f"{safe}-{model}"
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{place}: cannot be made ({error.strerror or error}); choose another folder") from error
        return place

    def _fill(self, name: str, items: Sequence[tuple[str, Input]], shard: _Shard, bar: Progress) -> None:
        """Embed what the shard does not have yet, in calls of about `_CALL_S`; save even when interrupted."""
        todo = shard.missing()
        size = _LEAST if len(todo) > 2 * _LEAST else max(1, len(todo))
        saved = time.monotonic()
        try:
            while todo:
                now, todo = todo[:size], todo[size:]
                start = time.monotonic()
                self._embed(name, items, now, shard.rows)
                shard.changed = True
                bar.advance(len(now))
                took = time.monotonic() - start
                size = min(_SHARD, 2 * size) if took < _CALL_S else max(_LEAST, size // 2)
                if time.monotonic() - saved > _SAVE_AFTER_S:
                    shard.save()
                    saved = time.monotonic()
        finally:
            shard.save()

    def _embed(self, name: str, items: Sequence[tuple[str, Input]], positions: Sequence[int], rows: Vectors) -> None:
        """Embed some; when one cannot be, halve until it is alone."""
        positions = [p for p in positions if not self._is_known_bad(items[p][1])]
        if not positions:
            return
        try:
            rows[list(positions)] = self.embedder.embed([items[p][1] for p in positions])
        except InputError as error:
            if len(positions) == 1:
                self._leave_out(name, *items[positions[0]], error)
                return
            middle = len(positions) // 2
            self._embed(name, items, positions[:middle], rows)
            self._embed(name, items, positions[middle:], rows)

    def _is_known_bad(self, item: Input) -> bool:
        return bool(self._bad_pictures) and any(_source_key(s) in self._bad_pictures for s in item.pictures)

    def _leave_out(self, name: str, key: str, item: Input, error: InputError) -> None:
        reason = str(error)
        sources = item.pictures
        if isinstance(error, ImageError) and len(sources) == 1:
            self._bad_pictures.add(_source_key(sources[0]))
            reason = error.reason
        where = describe_source(sources[0]) if len(sources) == 1 else f"{name}: {item.words[:60]!r}"
        if key not in self._counted:
            self._counted.add(key)
            self.bad.add(where, _problem(error), reason)


class _Shard:
    """Some rows, and the file that keeps them. A zero row is one that is still to be made."""

    def __init__(self, file: Path | None, rows: Vectors) -> None:
        self.file = file
        self.rows = rows
        self.changed = False

    def load(self) -> int:
        """Read what the file has; how many rows that were."""
        if self.file is None or not self.file.is_file():
            return 0
        try:
            kept = np.load(self.file, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # cut short by a crash: made anew
            return 0
        if kept.shape != self.rows.shape or kept.dtype != np.float32:
            return 0
        self.rows[:] = np.where(_filled(kept)[:, None], kept, 0.0)
        return int(_filled(self.rows).sum())

    def missing(self) -> list[int]:
        """Rows that are still to be made."""
        return [int(p) for p in np.flatnonzero(~_filled(self.rows))]

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.file is None or not self.changed:
            return
        part = self.file.with_suffix(f".{os.getpid()}.part")
        try:
            with part.open("wb") as handle:
                np.save(handle, self.rows, allow_pickle=False)
            os.replace(part, self.file)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise InputError(f"{self.file}: cannot be written ({error.strerror or error}); make room") from error
        self.changed = False


def _filled(rows: Vectors) -> npt.NDArray[np.bool_]:
    """Which rows hold a unit vector (NaN included: those do not)."""
    filled: npt.NDArray[np.bool_] = np.abs(np.linalg.norm(rows, axis=1) - 1) < 0.1
    return filled


def _keys(inputs: Sequence[Input]) -> list[str]:
    """For each input a string that is equal for equal inputs, in one process and the next."""
    sources: dict[int, str] = {}  # hashing pixels takes a while, and many instructions share a picture
    keys = []
    for item in inputs:
        pictures = []
        for source in item.pictures:
            if id(source) not in sources:
                sources[id(source)] = _source_key(source)
            pictures.append(sources[id(source)])
        keys.append(_digest(item.content(pictures)))
    return keys


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _source_key(source: ImageSource) -> str:
    if isinstance(source, URL):
        return "url " + _digest(source.url)
    if isinstance(source, DataURI):
        return "data " + _digest(source.uri)
    if isinstance(source, bytes):
        return "bytes " + hashlib.sha256(source).hexdigest()
    if isinstance(source, (str, os.PathLike)):
        path = os.path.abspath(os.fsdecode(source))
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return "missing " + _digest(path)
        return f"file {_digest(path)} {found.st_size} {found.st_mtime_ns}"
    try:
        return "pixels " + content_hash(source)
    except ImageError:  # the embedder will say why
        return f"unreadable {id(source)}"


def _problem(error: InputError) -> str:
    kinds = ((ImageLimitError, "picture exceeds a limit"), (ImageFormatError, "picture is broken"),
             (ImageFetchError, "picture cannot be read"), (ImageError, "picture cannot be used"))  # fmt: skip
    return next((words for kind, words in kinds if isinstance(error, kind)), "cannot be embedded")
