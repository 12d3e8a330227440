"""What mining keeps of a caption corpus: a few numbers a row in memory, and the vectors in a file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import ImageError, InputError
from abc_rag.training.data.rows import BadRows
from abc_rag.training.data.sources import CaptionSource
from abc_rag.types import Input, Text

__all__ = ["Corpus", "VectorFile", "embed_rows", "read_json", "write_json"]

_LOG = logging.getLogger(__name__)
_Codes = npt.NDArray[np.uint64]


class Corpus:
    """The rows of a source, read once: about 40 bytes each.

    Attributes:
        digest: Hash of every id, caption and picture's name, in order.
        texts: uint64 ``(rows,)``, equal for equal captions.
        pictures: uint64 ``(rows,)``, equal for equal picture files; pictures in memory are taken for different ones.
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
    """Vectors in float16 in a file that grows block by block; a run that was killed goes on after the last whole one.

    A zero row stands for an input that cannot be embedded.

    Args:
        path: The file; beside it lies a ``.json`` with what it holds.
        settings: What the vectors depend on. A file that was made with other settings is begun anew.
        rows: How many there will be.
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
            _LOG.warning("%s: made by another model or of other data; begun anew", path)

    def append(self, vectors: npt.NDArray[np.float32], bad: Sequence[tuple[int, str, str]]) -> None:
        """Add the next rows, and what could not be embedded of them: (row, problem, detail).

        Raises:
            InputError: The file cannot be written; what it had before is kept.
        """
        try:
            with self.path.open("r+b" if self.path.exists() else "w+b") as handle:
                handle.truncate(self._bytes(self.done))
                handle.seek(0, os.SEEK_END)
                handle.write(np.ascontiguousarray(vectors, dtype=np.float16).data)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        bad = [*self.bad, *bad]
        done = self.done + len(vectors)
        write_json(self._state, {"settings": self._settings, "done": done, "bad": bad})
        self.done, self.bad = done, bad

    def view(self) -> npt.NDArray[np.float16]:
        """All vectors, float16 ``(rows, dim)``, read from disk as they are used."""
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
    """Fill a file with the vectors of its rows, from where it stops.

    Args:
        file: Where they go.
        embedder: Makes them.
        input_of: A row's input.
        name_of: What to call a row in messages.
        bad: Where inputs that cannot be embedded are counted, those of earlier runs too.
        what: What they are, for the progress bar.
        block: Rows that are saved at once.
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
            # Captions repeat; each is embedded once a block.
            known: dict[object, int] = {}
            first = [known.setdefault(_key(item, place), place) for place, item in enumerate(inputs)]
            vectors = np.zeros((len(inputs), file.dim), dtype=np.float32)
            refused: dict[int, InputError] = {}
            _embed(embedder, inputs, sorted(known.values()), vectors, refused)
            vectors = vectors[first]
            left_out = [(rows[place], *_why(refused[one])) for place, one in enumerate(first) if one in refused]
            for row, problem, detail in left_out:
                bad.add(name_of(row), problem, detail)
            file.append(vectors, left_out)
            bar.advance(len(inputs))


def _key(item: Input, place: int) -> object:
    return item.text if isinstance(item, Text) else place


def _embed(
    embedder: Embedder,
    inputs: Sequence[Input],
    places: Sequence[int],
    out: npt.NDArray[np.float32],
    refused: dict[int, InputError],
) -> None:
    """Embed some; when one cannot be, halve until it is alone."""
    try:
        out[list(places)] = embedder.embed([inputs[place] for place in places])
    except InputError as error:
        if len(places) == 1:
            refused[places[0]] = error
            return
        middle = len(places) // 2
        _embed(embedder, inputs, places[:middle], out, refused)
        _embed(embedder, inputs, places[middle:], out, refused)


def _why(error: InputError) -> tuple[str, str]:
    return "unusable picture" if isinstance(error, ImageError) else "cannot be embedded", str(error)[:300]


def read_json(path: Path) -> dict[str, Any] | None:
    """An object from a file; None if there is none, or it is no JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object, whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    """What to raise when a file cannot be written."""
    return InputError(
        f"{path}: cannot be written ({error.strerror or error}); what is done is kept: make room and run it again"
    )
