"""Training data of one's own: a JSONL file beside its pictures."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from abc_rag.errors import DatasetError
from abc_rag.training.data.lines import Ids, LineFile
from abc_rag.training.data.rows import BadRows, Unusable
from abc_rag.training.data.sources import Candidate, CaptionRow, CaptionSource, Pair, PairsRow, PairsSource

__all__ = [
    "HUB_NAMES",
    "FolderCaptions",
    "FolderPairs",
    "Found",
    "Note",
    "Pictures",
    "find_data",
    "pair_of",
    "require_rows",
    "text_of",
]

HUB_NAMES = {"abc-pretraining": "TIGER-Lab/ABC-Pretraining-Data", "abc-vg-instruct": "TIGER-Lab/ABC-VG-Instruct"}
"""Our names of the published data sets, and the hub's. A folder of that name is ``./abc-pretraining``."""

_CAPTIONS = '{"image": "a.jpg", "caption": "..."}'
_PAIRS = '{"image": "a.jpg", "pairs": [{"instruction": "...", "phrase": "..."}]}'
Row = TypeVar("Row")
# Receives (problem, detail) of a part of a row that is left out while the rest of the row is used.
Note = Callable[[str, str], None]


# --- Where the data are ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a data set's name stands for.

    Attributes:
        kind: A JSONL file, a folder saved by the `datasets` library, a folder of parquet files, or a hub data set.
        path: The file or the folder; of a hub data set its id on the hub.
    """

    kind: Literal["jsonl", "saved", "parquet", "hub"]
    path: Path


def find_data(data: str | os.PathLike[str], *, captions: bool) -> Found:
    """What kind of data there is.

    Raises:
        DatasetError: There is none, or it is not clear which.
    """
    if isinstance(data, str) and data in HUB_NAMES:
        if captions != (data == "abc-pretraining"):
            has, wants = ("captions", "pairs") if not captions else ("pairs", "captions")
            raise DatasetError(f"{data} holds {has}, and {wants} are needed: {'|'.join(set(HUB_NAMES) - {data})}")
        return Found("hub", Path(HUB_NAMES[data]))
    if not isinstance(data, (str, os.PathLike)):
        raise DatasetError(f"data must be a path or the name of a published data set, not {type(data).__name__}")
    path = Path(os.path.expanduser(data))
    if path.is_file():
        if path.suffix != ".jsonl":
            raise DatasetError(f"{path}: is no .jsonl file; give one with a row a line: {_shape(captions)}")
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
        raise DatasetError(f"{path}: holds neither JSONL nor parquet files; write a JSONL with {_shape(captions)}")
    names = ", ".join(file.name for file in lines[:5]) + (" and parquet files" if tables else "")
    raise DatasetError(f"{path}: holds {names}; give the file that is meant, or call it train.jsonl")


def _shape(captions: bool) -> str:
    return _CAPTIONS if captions else _PAIRS


# --- What rows hold -------------------------------------------------------------------------------


class Pictures:
    """Finds the picture files that rows name.

    Args:
        folder: What relative names are relative to.

    Raises:
        DatasetError: It is no folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(os.path.expanduser(folder)))
        if not self.folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; images must be the one that picture names are relative to")
        self._inside = os.path.join(str(self.folder), "")

    def path(self, name: str, *, check: bool) -> str:
        """The path of a picture.

        Args:
            name: As the row has it: relative, or absolute.
            check: Whether the file must exist.

        Raises:
            Unusable: It leaves the folder, or there is no such file.
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


def text_of(raw: dict[str, Any], column: str, shown: str | None = None) -> str:
    """A column's text without the white space around it.

    Raises:
        Unusable: There is none, it is empty, or it is something else.
    """
    value, shown = raw.get(column), shown or column
    if value is None:
        raise Unusable(f"missing {shown}", f"columns: {', '.join(sorted(raw)) or 'none'}")
    if not isinstance(value, str):
        raise Unusable("wrong type", f"{shown} is {type(value).__name__}, not text")
    value = value.strip()
    if not value:
        raise Unusable(f"empty {shown}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair; tokenizers cannot read it
        raise Unusable("not text", f"{shown}: {error.reason}") from error
    return value


def require_rows(rows: int, name: str, bad: BadRows, shape: str) -> None:
    """Refuse a data set without usable rows.

    Raises:
        DatasetError: It has none.
    """
    if rows == 0:
        why = f"{bad.summary()}; first: {bad.rows[0]}" if bad.count else "it is empty"
        raise DatasetError(f"{name}: no row can be used ({why}); each must be like {shape}")


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
    """What was left out has been counted when the file was opened."""


class _Lines(Generic[Row]):
    """The rows of a JSONL file, by number.

    Args:
        path: The file.
        images: Folder that picture names are relative to; if not given, that of the file.
        max_bad: Most unusable rows.
        parse: Makes a row: (object, id, whether the picture must exist, where to report what is left out of it).
        shape: What a row looks like, for messages.
    """

    def __init__(
        self,
        path: Path,
        images: Path | None,
        max_bad: int,
        parse: Callable[[dict[str, Any], str, Pictures, bool, Note], Row],
        shape: str,
    ) -> None:
        self.bad = BadRows(str(path), limit=max_bad)
        self.ids = Ids()
        self._file = LineFile(path)
        self._images = images
        self._pictures = Pictures(path.parent if images is None else images)
        self._parse = parse
        # Two numbers a row: all that is kept of it.
        self._offsets, self._numbers = array("q"), array("q")
        for offset, number, raw in self._file.scan(self.bad):
            self._take(offset, number, raw)
        self.ids.freeze()
        require_rows(len(self._offsets), str(path), self.bad, shape)

    def _take(self, offset: int, number: int, raw: dict[str, Any]) -> None:
        where = f"{self._file.path.name}:{number}"
        try:
            id = _id_of(raw, number)
            if id in self.ids:
                raise Unusable("duplicate id", id)
            self._parse(raw, id, self._pictures, True, lambda problem, detail: self.bad.add(where, problem, detail))
        except Unusable as error:
            self.bad.add(where, error.problem, error.detail)
            return
        self.ids.add(id)
        self._offsets.append(offset)
        self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int) -> Row:
        raw = self._file.read(self._offsets[index])
        try:
            return self._parse(raw, _id_of(raw, self._numbers[index]), self._pictures, False, _silent)
        except Unusable as error:
            raise self._file.changed() from error

    def describe(self, kind: str) -> dict[str, Any]:
        about = {"kind": kind, **self._file.describe(), "rows": len(self)}
        if self._images is not None:
            about["images"] = str(self._images)
        return about | {"bad": self.bad.as_dict()}


# --- Captions -------------------------------------------------------------------------------------


class FolderCaptions(CaptionSource):
    """Rows ``{"image": ..., "caption": ..., "negatives": [...], "id": ...}`` of a JSONL file.

    Args:
        path: The file.
        images: Folder that picture names are relative to; if not given, that of the file.
        max_bad: Most unusable rows.

    Raises:
        DatasetError: The file cannot be read, has no usable row, or too many that are not.
    """

    def __init__(self, path: Path, *, images: Path | None = None, max_bad: int = 100) -> None:
        self._lines = _Lines(path, images, max_bad, _caption_row, _CAPTIONS)
        self.name, self.bad, self.ids = str(path), self._lines.bad, self._lines.ids

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> CaptionRow:
        """See `CaptionSource.row`."""
        return self._lines.row(index)

    def describe(self) -> dict[str, Any]:
        """See `CaptionSource.describe`."""
        return self._lines.describe("JSONL with captions")


def _caption_row(raw: dict[str, Any], id: str, pictures: Pictures, check: bool, note: Note) -> CaptionRow:
    if raw.get("pairs") is not None:
        both = raw.get("caption") is not None
        raise Unusable("mixed columns", "caption and pairs in one row" if both else "pairs where captions are read")
    caption = text_of(raw, "caption")
    image = pictures.path(text_of(raw, "image"), check=check)
    negatives = raw.get("negatives")
    if negatives is None:
        return CaptionRow(id, image, Candidate(caption))
    if not isinstance(negatives, list):
        raise Unusable("wrong type", f"negatives is {type(negatives).__name__}, not a list of texts")
    kept: dict[str, None] = {}
    for value in negatives:
        try:
            text = text_of({"negative": value}, "negative")
        except Unusable as error:
            note(error.problem, error.detail)
            continue
        if text == caption:
            note("negative is the positive", text)
            continue
        kept[text] = None
    return CaptionRow(id, image, Candidate(caption), tuple(Candidate(text) for text in kept))


# --- Pairs ----------------------------------------------------------------------------------------


class FolderPairs(PairsSource):
    """Rows ``{"image": ..., "pairs": [{"instruction": ..., "phrase": ...}, ...], "id": ...}`` of a JSONL file.

    Args:
        path: The file.
        images: Folder that picture names are relative to; if not given, that of the file.
        max_bad: Most unusable rows and pairs.

    Raises:
        DatasetError: The file cannot be read, has no usable row, or too many that are not.
    """

    def __init__(self, path: Path, *, images: Path | None = None, max_bad: int = 100) -> None:
        self._lines = _Lines(path, images, max_bad, _pairs_row, _PAIRS)
        self.name, self.bad = str(path), self._lines.bad

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> PairsRow:
        """See `PairsSource.row`."""
        return self._lines.row(index)

    def describe(self) -> dict[str, Any]:
        """See `PairsSource.describe`."""
        return self._lines.describe("JSONL with pairs")


def _pairs_row(raw: dict[str, Any], id: str, pictures: Pictures, check: bool, note: Note) -> PairsRow:
    if raw.get("caption") is not None:
        both = raw.get("pairs") is not None
        raise Unusable("mixed columns", "caption and pairs in one row" if both else "a caption where pairs are read")
    pairs = raw.get("pairs")
    if not isinstance(pairs, list):
        problem = "missing pairs" if pairs is None else "wrong type"
        raise Unusable(problem, f"pairs is {'not there' if pairs is None else type(pairs).__name__}")
    if not pairs:
        raise Unusable("empty pairs")
    image = pictures.path(text_of(raw, "image"), check=check)
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
        Unusable: It is none.
    """
    if not isinstance(value, dict):
        raise Unusable("wrong type", f"a pair is {type(value).__name__}, not an object")
    return Pair(text_of(value, "instruction"), Candidate(text_of(value, "phrase")))
