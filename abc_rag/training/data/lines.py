"""JSONL files of any size: an offset per row in memory, and rows read on demand."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import DatasetError
from abc_rag.files import refused_as
from abc_rag.training.data.rows import BadRows, Unusable

__all__ = ["Ids", "LineFile", "describe_files", "read_jsonl"]

_NOT_JSON = "not JSON"
_LARGE = 64 * 2**20  # bytes from which a progress bar is shown
_MOST_HASHED = 2**30
_ENOUGH = 5  # if none of the first lines is JSON, the file has another format


class Ids:
    """Maps ids to positions, in 16 bytes per id.

    Uses 64 bits of Python's hash, which differs from process to process: not for files.
    """

    def __init__(self) -> None:
        self._codes = array("q")
        self._seen: set[int] = set()
        self._sorted: npt.NDArray[np.int64] | None = None
        self._order: npt.NDArray[np.int64] | None = None

    def __contains__(self, id: str) -> bool:
        return hash(id) in self._seen

    def add(self, id: str) -> None:
        """Add the id of the next position; before `freeze` only."""
        self._seen.add(hash(id))
        self._codes.append(hash(id))

    def freeze(self) -> None:
        """Finish adding, and free the memory that only adding needs."""
        codes = np.array(self._codes, dtype=np.int64)
        self._order = np.argsort(codes, kind="stable")
        self._sorted = codes[self._order]
        self._seen, self._codes = set(), array("q")

    def positions(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The position of each id, -1 for unknown ids; after `freeze` only."""
        if self._sorted is None or self._order is None:
            raise RuntimeError("freeze first")
        codes = np.array([hash(id) for id in ids], dtype=np.int64)
        if not len(self._sorted):
            return np.full(len(codes), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._sorted, codes), len(self._sorted) - 1)
        found: npt.NDArray[np.int64] = np.where(self._sorted[places] == codes, self._order[places], -1)
        return found


class LineFile:
    """A JSONL file that is scanned once and then read at any line.

    The file is opened for each read: that costs microseconds, works with threads and forks, and shows whether the file
    has changed.

    Args:
        path: The file.

    Raises:
        DatasetError: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path):
            found = path.stat()
        self._version = (found.st_size, found.st_mtime_ns)

    def scan(self, bad: BadRows) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield (offset, line number from 1, object) of each JSON object; other lines are counted, blank ones skipped.

        Raises:
            DatasetError: The file cannot be read, is not in JSON lines, or has too many other lines.
        """
        size = self._version[0]
        with (
            _reading(self.path),
            self.path.open("rb") as handle,
            progress_bar(f"reading {self.path.name}", total=size, enabled=size > _LARGE) as bar,
        ):
            offset = wrong = 0
            for number, line in enumerate(handle, 1):
                start, offset = offset, offset + len(line)
                bar.advance(len(line))
                if not line.strip():
                    continue
                try:
                    value = _parsed(line)
                except Unusable as error:
                    wrong += error.problem == _NOT_JSON
                    bad.add(f"{self.path.name}:{number}", error.problem, error.detail)
                    if wrong == number == _ENOUGH:
                        raise DatasetError(
                            f"{self.path}: not in JSON lines, as none of its first {_ENOUGH} lines is JSON "
                            f"({error.detail}); give one object per line"
                        ) from error
                    continue
                yield start, number, value

    def read(self, offset: int) -> dict[str, Any]:
        """The object of the line at an offset.

        Raises:
            DatasetError: The file has changed since it was scanned.
        """
        try:
            with _reading(self.path), self.path.open("rb") as handle:
                self._require_same()
                handle.seek(offset)
                return _parsed(handle.readline())
        except Unusable as error:
            raise self.changed() from error

    def changed(self) -> DatasetError:
        """The error for a file that has changed."""
        return DatasetError(f"{self.path}: has changed since it was opened; start again")

    def describe(self) -> dict[str, Any]:
        """Path, size, and hash unless the file is very large."""
        self._require_same()
        return {"path": str(self.path), **describe_files([self.path])}

    def _require_same(self) -> None:
        found = self.path.stat()
        if (found.st_size, found.st_mtime_ns) != self._version:
            raise self.changed()


def read_jsonl(path: Path, bad: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, object) of each JSON object in a file; see `LineFile.scan`.

    Raises:
        DatasetError: The file cannot be read, is not in JSON lines, or has too many other lines.
    """
    for _, number, value in LineFile(path).scan(bad):
        yield f"{path.name}:{number}", value


def describe_files(paths: Sequence[Path]) -> dict[str, Any]:
    """Total size of some files and, unless they are very large, the hash of their contents in order."""
    size = sum(path.stat().st_size for path in paths)
    if size > _MOST_HASHED:
        return {"bytes": size}
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while block := handle.read(2**20):
                digest.update(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError too
        raise Unusable(_NOT_JSON, str(error)) from error
    if not isinstance(value, dict):
        raise Unusable("not a JSON object", type(value).__name__)
    return value


def _reading(path: Path) -> AbstractContextManager[None]:
    return refused_as(DatasetError, f"{path}: cannot be read", "check the path and the permissions")
