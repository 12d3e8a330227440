"""What mining keeps of a caption corpus: a few numbers per row in memory, and vectors in a file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag import files
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.embedding.usable import embed_usable
from abc_rag.errors import InputError
from abc_rag.training.data.rows import BadRows, problem_of
from abc_rag.training.data.sources import CaptionSource
from abc_rag.types import Input, Text

__all__ = ["Corpus", "VectorFile", "embed_rows", "read_json", "write_json"]

_LOG = logging.getLogger(__name__)
_Codes = npt.NDArray[np.uint64]


class Corpus:
    """The rows of a source, read once; about 40 bytes of memory per row.

    Attributes:
        digest: Hash of all ids, captions and picture names, in order.
        texts: uint64 ``(rows,)``, equal for equal captions.
        pictures: uint64 ``(rows,)``, equal for equal picture files; pictures in memory all count as different.
    """

    def __init__(self, source: CaptionSource, *, progress: bool = False) -> None:
        digest = hashlib.sha256()
        texts, pictures = array("Q"), array("Q")
        self._ids, self._ends = bytearray(), array("q")
        with progress_bar("reading captions", total=len(source), enabled=progress) as bar:
            for index in range(len(source)):
                row = source.bare(index)
                text = row.caption.text.encode("utf-8", "surrogatepass")
                id = row.id.encode("utf-8", "surrogatepass")
                is_path = isinstance(row.image, (str, os.PathLike))
                picture = os.fsencode(row.image) if isinstance(row.image, (str, os.PathLike)) else b""
                for part in (id, text, picture):
                    digest.update(len(part).to_bytes(8, "little") + part)
                texts.append(_code(text))
                pictures.append(_code(b"path " + picture if is_path else b"row " + id))
                self._ids += id
                self._ends.append(len(self._ids))
                bar.advance()
        self.digest = digest.hexdigest()
        self.texts: _Codes = np.array(texts, dtype=np.uint64)
        self.pictures: _Codes = np.array(pictures, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._ends)

    def id(self, row: int) -> str:
        """A row's id."""
        start = self._ends[row - 1] if row else 0
        return self._ids[start : self._ends[row]].decode("utf-8", "surrogatepass")


def _code(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


class VectorFile:
    """Vectors in float16 in a file that grows block by block; a killed run resumes after the last whole block.

    Inputs that cannot be embedded are zero rows.

    Args:
        path: The file; a ``.json`` file beside it describes its content.
        settings: What the vectors depend on. A file with other settings is started anew.
        rows: Total number of rows.
        dim: Length of a vector.

    Raises:
        InputError: The file cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, rows: int, dim: int) -> None:
        self.path, self.rows, self.dim = path, rows, dim
        self._state = path.with_suffix(".json")
        self._settings = {**settings, "rows": rows, "dim": dim}
        self.done = 0
        self.bad: list[tuple[int, str, str]] = []
        kept = read_json(self._state)
        if kept is not None and kept.get("settings") == self._settings and self._size() >= self._bytes(kept["done"]):
            self.done = kept["done"]
            self.bad = [(row, problem, detail) for row, problem, detail in kept["bad"]]
        elif kept is not None:
            _LOG.warning("%s: made by another model or from other data; starting anew", path)

    def append(self, vectors: npt.NDArray[np.float32], bad: Sequence[tuple[int, str, str]]) -> None:
        """Add the next rows, and (row, problem, detail) of those that could not be embedded.

        Raises:
            InputError: The file cannot be written; earlier rows are kept.
        """
        with writing(self.path):
            files.append(self.path, vectors.astype(np.float16).tobytes(), at=self._bytes(self.done))
        bad = [*self.bad, *bad]
        done = self.done + len(vectors)
        write_json(self._state, {"settings": self._settings, "done": done, "bad": bad})
        self.done, self.bad = done, bad

    def view(self) -> npt.NDArray[np.float16]:
        """All vectors, float16 ``(rows, dim)``, memory-mapped."""
        return np.memmap(self.path, dtype=np.float16, mode="r", shape=(self.rows, self.dim))

    def usable(self) -> npt.NDArray[np.bool_]:
        """Which rows could be embedded, bool ``(rows,)``."""
        usable = np.ones(self.rows, dtype=bool)
        usable[[row for row, _, _ in self.bad]] = False
        return usable

    def _bytes(self, rows: int) -> int:
        return rows * self.dim * 2

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0


def embed_rows(
    file: VectorFile,
    embedder: Embedder,
    input_of: Callable[[int], Input],
    name_of: Callable[[int], str],
    bad: BadRows,
    *,
    what: str,
    block: int,
    progress: bool,
) -> None:
    """Embed the rows that a file still lacks.

    Args:
        file: Receives the vectors.
        embedder: The model.
        input_of: The input of a row.
        name_of: The name of a row in messages.
        bad: Counts inputs that cannot be embedded, those of earlier runs included.
        what: Names the inputs in the progress bar.
        block: Number of rows saved at once.
        progress: Show a progress bar.

    Raises:
        DatasetError: Too many inputs cannot be embedded.
        InputError: The file cannot be written.
    """
    for row, problem, detail in file.bad:
        bad.add(name_of(row), problem, detail)
    with progress_bar(f"embedding {what}", total=file.rows, enabled=progress) as bar:
        bar.advance(file.done)
        while file.done < file.rows:
            rows = range(file.done, min(file.done + block, file.rows))
            inputs = [input_of(row) for row in rows]
            # Captions repeat; each is embedded once per block.
            keys = [_key(item, row) for item, row in zip(inputs, rows, strict=True)]
            distinct = dict(zip(keys, inputs, strict=True))
            vectors, errors = embed_usable(embedder, list(distinct.values()))
            place_of = {key: place for place, key in enumerate(distinct)}
            places = [place_of[key] for key in keys]
            left_out = [
                (row, problem_of(errors[place]), str(errors[place])[:300])
                for row, place in zip(rows, places, strict=True)
                if place in errors
            ]
            for row, problem, detail in left_out:
                bad.add(name_of(row), problem, detail)
            file.append(vectors[places], left_out)
            bar.advance(len(inputs))


def _key(item: Input, row: int) -> object:
    return item.text if isinstance(item, Text) else row


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no file, or something else in it."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    with writing(path):
        files.write_json(path, value)


def writing(path: Path) -> AbstractContextManager[None]:
    """Turns what the system refuses within the block into an error about ``path``."""
    remedy = "finished work is kept; free some space and run again"
    return files.refused_as(InputError, f"{path}: cannot be written", remedy)
