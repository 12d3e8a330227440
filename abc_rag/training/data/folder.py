"""Your own training data: a JSONL file beside its pictures."""

from __future__ import annotations

import os
from abc import abstractmethod
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from abc_rag.errors import DatasetError
from abc_rag.training.data.lines import Ids, LineFile
from abc_rag.training.data.rows import BadRows, Unusable, checked_text, require_rows, text_of
from abc_rag.training.data.sources import Candidate, CaptionRow, CaptionSource, Pair, PairsRow, PairsSource, Row, Source

__all__ = [
    "HUB_NAMES",
    "FolderCaptions",
    "FolderPairs",
    "Found",
    "Note",
    "Pictures",
    "find_data",
    "pair_of",
]

HUB_NAMES = {"abc-pretraining": "TIGER-Lab/ABC-Pretraining-Data", "abc-vg-instruct": "TIGER-Lab/ABC-VG-Instruct"}
"""Short names of the published data sets -> their hub ids. A folder of such a name is written ``./abc-pretraining``."""

_CAPTIONS = '{"image": "a.jpg", "caption": "..."}'
_PAIRS = '{"image": "a.jpg", "pairs": [{"instruction": "...", "phrase": "..."}]}'
# Receives (problem, detail) of a part of a row that is left out; the rest of the row is used.
Note = Callable[[str, str], None]


# --- Where the data are ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A data set that was found.

    Attributes:
        kind: A JSONL file, a folder saved by the `datasets` library, a folder of parquet files, or a hub data set.
        path: The file or folder; for a hub data set its hub id.
    """

    kind: Literal["jsonl", "saved", "parquet", "hub"]
    path: Path


def find_data(data: str | os.PathLike[str], *, captions: bool) -> Found:
    """Find a data set by its name or path.

    Raises:
        DatasetError: There is none, or it is ambiguous.
    """
    if isinstance(data, str) and data in HUB_NAMES:
        if captions != (data == "abc-pretraining"):
            has, wants = ("captions", "pairs") if not captions else ("pairs", "captions")
            raise DatasetError(f"{data} holds {has}, but {wants} are needed; use {'|'.join(set(HUB_NAMES) - {data})}")
        return Found("hub", Path(HUB_NAMES[data]))
    if not isinstance(data, (str, os.PathLike)):
        raise DatasetError(f"data must be a path or the name of a published data set, not {type(data).__name__}")
    path = Path(os.path.expanduser(data))
    if path.is_file():
        if path.suffix != ".jsonl":
            raise DatasetError(f"{path}: not a .jsonl file; give one with one row per line: {_shape(captions)}")
        return Found("jsonl", path)
    if not path.is_dir():
        raise DatasetError(
            f"{path}: no such file or folder; give a folder with a JSONL file, a JSONL file, or "
            f"{'abc-pretraining' if captions else 'abc-vg-instruct'!r}"
        )
    return _in_folder(path, captions)


def _in_folder(path: Path, captions: bool) -> Found:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return Found("saved", path)
    lines = sorted(path.glob("*.jsonl"))
    if (path / "train.jsonl") in lines:
        lines = [path / "train.jsonl"]
    tables = any(path.glob("**/*.parquet"))
    if len(lines) == 1 and not tables:
        return Found("jsonl", lines[0])
    if tables and not lines:
        return Found("parquet", path)
    if not lines:
        raise DatasetError(f"{path}: holds neither JSONL nor parquet files; write a JSONL file with {_shape(captions)}")
    names = ", ".join(file.name for file in lines[:5]) + (" and parquet files" if tables else "")
    raise DatasetError(f"{path}: holds {names}; give the path of one file, or name it train.jsonl")


def _shape(captions: bool) -> str:
    return _CAPTIONS if captions else _PAIRS


# --- What rows hold -------------------------------------------------------------------------------


class Pictures:
    """Finds the picture files that rows name.

    Args:
        folder: The folder that names are relative to.

    Raises:
        DatasetError: There is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(os.path.expanduser(folder)))
        if not self.folder.is_dir():
            raise DatasetError(
                f"{folder}: no such folder; images must be the folder that picture names are relative to"
            )
        self._inside = os.path.join(str(self.folder), "")

    def path(self, name: str, *, check: bool) -> str:
        """The path of a picture.

        Args:
            name: The name in the row, relative or absolute.
            check: Require that the file exists.

        Raises:
            Unusable: A relative name leaves the folder, or there is no such file.
        """
        path = os.path.normpath(os.path.join(self._inside, name))
        if not os.path.isabs(name) and not os.path.join(path, "").startswith(self._inside):
            raise Unusable("outside the folder", name)
        try:
            if not check or os.path.isfile(path):
                return path
        except ValueError:  # a null byte
            pass
        raise Unusable("missing image", name)


def _id_of(raw: dict[str, Any], line: int) -> str:
    value = raw.get("id")
    if value is None:
        return f"line {line}"
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Unusable("wrong type", f"id is {type(value).__name__}, not text or a whole number")
    if value == "":
        raise Unusable("empty id")
    return str(value)


def _silent(problem: str, detail: str) -> None:
    """Ignore what is left out: it was counted when the file was opened."""


class _FolderRows(Source[Row]):
    """The rows of a JSONL file. A subclass says what they are called, what they look like, and what they hold."""

    _kind: ClassVar[str]
    _shape: ClassVar[str]

    def __init__(self, path: Path, *, images: Path | None = None, max_bad: int = 100) -> None:
        self.name = str(path)
        self.bad = BadRows(self.name, limit=max_bad)
        self.ids = Ids()
        self._file = LineFile(path)
        self._images = images
        self._pictures = Pictures(path.parent if images is None else images)
        # All that is kept of a row: its offset and its line number.
        self._offsets, self._numbers = array("q"), array("q")
        for offset, number, raw in self._file.scan(self.bad):
            self._take(offset, number, raw)
        self.ids.freeze()
        require_rows(len(self._offsets), self.name, self.bad, self._shape)

    @abstractmethod
    def _parsed(self, raw: dict[str, Any], id: str, check: bool, note: Note) -> Row:
        """The row of an object; ``check`` says whether its picture must exist."""

    def _take(self, offset: int, number: int, raw: dict[str, Any]) -> None:
        where = f"{self._file.path.name}:{number}"
        with self.bad.leaving_out(where):
            id = _id_of(raw, number)
            if id in self.ids:
                raise Unusable("duplicate id", id)
            self._parsed(raw, id, True, lambda problem, detail: self.bad.add(where, problem, detail))
            self.ids.add(id)
            self._offsets.append(offset)
            self._numbers.append(number)

    def __len__(self) -> int:
        """Number of usable rows."""
        return len(self._offsets)

    def row(self, index: int) -> Row:
        """See `Source.row`."""
        raw = self._file.read(self._offsets[index])
        try:
            return self._parsed(raw, _id_of(raw, self._numbers[index]), False, _silent)
        except Unusable as error:
            raise self._file.changed() from error

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`."""
        about = {"kind": self._kind, **self._file.describe(), "rows": len(self)}
        if self._images is not None:
            about["images"] = str(self._images)
        return about | {"bad": self.bad.as_dict()}


# --- Captions -------------------------------------------------------------------------------------


class FolderCaptions(_FolderRows[CaptionRow], CaptionSource):
    """Rows ``{"image": ..., "caption": ..., "negatives": [...], "id": ...}`` of a JSONL file.

    Args:
        path: The file.
        images: Folder that picture names are relative to; the folder of the file if None.
        max_bad: Maximum number of unusable rows.

    Raises:
        DatasetError: The file cannot be read, has no usable row, or too many unusable ones.
    """

    _kind, _shape = "JSONL with captions", _CAPTIONS

    def _parsed(self, raw: dict[str, Any], id: str, check: bool, note: Note) -> CaptionRow:
        if raw.get("pairs") is not None:
            both = raw.get("caption") is not None
            raise Unusable(
                "mixed columns", "caption and pairs in one row" if both else "pairs where captions are expected"
            )
        caption = text_of(raw, "caption")
        image = self._pictures.path(text_of(raw, "image"), check=check)
        negatives = raw.get("negatives")
        if negatives is None:
            return CaptionRow(id, image, Candidate(caption))
        if not isinstance(negatives, list):
            raise Unusable("wrong type", f"negatives is {type(negatives).__name__}, not a list of texts")
        kept: dict[str, None] = {}
        for value in negatives:
            try:
                text = checked_text(value, "negative")
            except Unusable as error:
                note(error.problem, error.detail)
                continue
            if text == caption:
                note("negative is the positive", text)
                continue
            kept[text] = None
        return CaptionRow(id, image, Candidate(caption), tuple(Candidate(text) for text in kept))


# --- Pairs ----------------------------------------------------------------------------------------


class FolderPairs(_FolderRows[PairsRow], PairsSource):
    """Rows ``{"image": ..., "pairs": [{"instruction": ..., "phrase": ...}, ...], "id": ...}`` of a JSONL file.

    Args:
        path: The file.
        images: Folder that picture names are relative to; the folder of the file if None.
        max_bad: Maximum number of unusable rows and pairs.

    Raises:
        DatasetError: The file cannot be read, has no usable row, or too many unusable ones.
    """

    _kind, _shape = "JSONL with pairs", _PAIRS

    def _parsed(self, raw: dict[str, Any], id: str, check: bool, note: Note) -> PairsRow:
        if raw.get("caption") is not None:
            both = raw.get("pairs") is not None
            raise Unusable(
                "mixed columns", "caption and pairs in one row" if both else "a caption where pairs are expected"
            )
        pairs = raw.get("pairs")
        if not isinstance(pairs, list):
            problem = "missing pairs" if pairs is None else "wrong type"
            raise Unusable(
                problem, "pairs is missing" if pairs is None else f"pairs is {type(pairs).__name__}, not a list"
            )
        if not pairs:
            raise Unusable("empty pairs")
        image = self._pictures.path(text_of(raw, "image"), check=check)
        kept = []
        for number, value in enumerate(pairs, 1):
            try:
                kept.append(pair_of(value))
            except Unusable as error:
                note(error.problem, f"pair {number}" + (f": {error.detail}" if error.detail else ""))
        if not kept:
            raise Unusable("no usable pair")
        return PairsRow(id, image, tuple(kept))


def pair_of(value: object) -> Pair:
    """An (instruction, phrase) pair.

    Raises:
        Unusable: ``value`` is not such a pair.
    """
    if not isinstance(value, dict):
        raise Unusable("wrong type", f"a pair is {type(value).__name__}, not an object")
    return Pair(text_of(value, "instruction"), Candidate(text_of(value, "phrase")))
