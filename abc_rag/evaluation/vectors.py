"""Embeds the inputs of an evaluation: each once, resumable, and a bad picture costs only itself."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.progress import Progress, progress_bar
from abc_rag.embedding.usable import embed_usable
from abc_rag.errors import DatasetError, ImageError, InputError
from abc_rag.files import new_file, refused_as
from abc_rag.images.open import content_hash
from abc_rag.images.read import describe_source
from abc_rag.training.data.rows import BadRows, problem_of
from abc_rag.types import URL, DataURI, ImageSource, Input, InstructedText, Text, Vectors

__all__ = ["KnownTexts", "VectorCache", "as_query", "compute_of", "require_left"]

_SHARD = 512
_LEAST = 8
_SAVE_AFTER_S = 30.0  # the work that a kill may cost
_CALL_S = 5.0  # target time of one call of the embedder: the bar moves, and batches stay full


def as_query(item: Input) -> Input:
    """An input as what is searched with; an `InstructedText` says in its own words what it is for."""
    return item if isinstance(item, InstructedText) else replace(item, role="query")


def compute_of(embedder: Embedder) -> tuple[str, str]:
    """Device and number format of an embedder; ``"unknown"`` if it is not a local one."""
    if not isinstance(embedder, LocalEmbedder):
        return "unknown", "unknown"
    facts = embedder.family.facts
    return str(facts.device), str(facts.dtype).removeprefix("torch.")


class VectorCache:
    """Embeds inputs; with a folder, it resumes where an earlier run stopped.

    Each distinct input is embedded once. With a folder, vectors are saved as they are made to
    ``folder/vectors/NAME-MODEL/NNNN-INPUTS.npy``, 512 per file. The hashes in the names cover the model, its
    resolution, device and number format, and every input of the file (a picture on disk by path, size and modification
    time), so outdated vectors are never used. Inputs that cannot be embedded are zero rows, in the files too; the next
    run tries them again.

    Args:
        embedder: The model.
        folder: Where vectors are kept; None keeps nothing.
        progress: Show progress bars.
        limits_bad: Counts unusable inputs, and raises `DatasetError` past its limit; a new one if None.

    Attributes:
        bad: The unusable inputs; a picture counts once, however often it is used.
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
            name: Names them in the progress bar and the folder: ``"queries"``.
            inputs: Any mix; equal ones are embedded once.

        Returns:
            float32 ``(n, dim)``, and bool ``(n,)``: which inputs could be embedded. The other rows are zero.

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
        with refused_as(InputError, f"{place}: cannot be created", "choose another folder"):
            place.mkdir(parents=True, exist_ok=True)
        return place

    def _fill(self, name: str, items: Sequence[tuple[str, Input]], shard: _Shard, bar: Progress) -> None:
        """Embed what the shard lacks, in calls of about `_CALL_S`; save even when interrupted."""
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
        positions = [p for p in positions if not self._is_known_bad(items[p][1])]
        vectors, errors = embed_usable(self.embedder, [items[p][1] for p in positions])
        rows[positions] = vectors
        for place, error in errors.items():
            key, item = items[positions[place]]
            if not self._is_known_bad(item):  # a picture counts once, however many inputs show it
                self._leave_out(name, key, item, error)

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
            self.bad.add(where, problem_of(error), reason)


class KnownTexts:
    """Distinct texts and their vectors, without those that cannot be embedded.

    Attributes:
        texts: In order of first occurrence.
        vectors: float32 ``(texts, dim)``, unit rows.
        position: Text -> its row.
    """

    def __init__(self, cache: VectorCache, name: str, texts: Iterable[str]) -> None:
        distinct = list(dict.fromkeys(texts))
        vectors, ok = cache.embed(name, [Text(text) for text in distinct])
        self.texts = [text for text, fine in zip(distinct, ok, strict=True) if fine]
        self.vectors: Vectors = vectors[ok]
        self.position = {text: number for number, text in enumerate(self.texts)}


def require_left(count: int, what: str, cache: VectorCache) -> None:
    """Refuse an evaluation in which nothing is left.

    Raises:
        DatasetError: ``count`` is 0; the message says why.
    """
    if count == 0:
        first = f"; first: {cache.bad.rows[0]}" if cache.bad.rows else ""
        raise DatasetError(f"{cache.bad.name}: no {what} could be embedded ({cache.bad.summary()}{first})")


class _Shard:
    """Some rows, and the file that keeps them. Zero rows are still missing."""

    def __init__(self, file: Path | None, rows: Vectors) -> None:
        self.file = file
        self.rows = rows
        self.changed = False

    def load(self) -> int:
        """Read the file; return how many rows it had."""
        if self.file is None or not self.file.is_file():
            return 0
        try:
            kept = np.load(self.file, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # damaged: computed again
            return 0
        if kept.shape != self.rows.shape or kept.dtype != np.float32:
            return 0
        self.rows[:] = np.where(_filled(kept)[:, None], kept, 0.0)
        return int(_filled(self.rows).sum())

    def missing(self) -> list[int]:
        """Rows that are still missing."""
        return [int(p) for p in np.flatnonzero(~_filled(self.rows))]

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.file is None or not self.changed:
            return
        refused = refused_as(InputError, f"{self.file}: cannot be written", "free some space and run it again")
        with refused, new_file(self.file) as draft, draft.open("wb") as handle:
            np.save(handle, self.rows, allow_pickle=False)
        self.changed = False


def _filled(rows: Vectors) -> npt.NDArray[np.bool_]:
    """Which rows hold a unit vector; a row of NaN does not."""
    filled: npt.NDArray[np.bool_] = np.abs(np.linalg.norm(rows, axis=1) - 1) < 0.1
    return filled


def _keys(inputs: Sequence[Input]) -> list[str]:
    """One string per input, equal for equal inputs, also in another process."""
    sources: dict[int, str] = {}  # hashing pixels is slow, and many instructions share a picture
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
