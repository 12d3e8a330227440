"""Rows in the format of ``TIGER-Lab/MMEB-train``: a query and its answer, each a text, a picture, or both.

A data set is a folder of subsets (``SUBSET/original-00000-of-00001.parquet``, ``SUBSET.jsonl``) or a single such file.
Its columns are ``qry``, ``qry_image_path``, ``pos_text`` and ``pos_image_path``, and optionally ``neg_text`` and
``neg_image_path``: one further candidate, or several as lists. ``<|image_1|>`` marks the place of the picture in a
text; texts are otherwise used as they are.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import DatasetError, MissingExtraError
from abc_rag.training.data.folder import Note, Pictures
from abc_rag.training.data.lines import LineFile, describe_files
from abc_rag.training.data.rows import BadRows, Unusable, require_rows
from abc_rag.training.data.sources import Source
from abc_rag.types import Image, Input, Interleaved, Text

__all__ = ["PLACEHOLDER", "MMEBRows", "PairRow", "Side", "open_mmeb_rows", "require_columns", "to_the_letter"]

PLACEHOLDER = "<|image_1|>"
"""Marks the place of the picture in a text of MMEB."""

_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
_NEGATIVES = ("neg_text", "neg_image_path")
_SHAPE = '{"qry": "<|image_1|> ...", "qry_image_path": "a.jpg", "pos_text": "...", "pos_image_path": ""}'
_KINDS = ("parquet", "jsonl")
_BATCH = 10_000
_LARGE = 100_000  # rows from which a progress bar is shown


@dataclass(frozen=True)
class Side:
    """A query or a candidate.

    Attributes:
        text: The text as it is in the data, placeholder included.
        image: Path of the picture; empty if there is none.
    """

    text: str
    image: str = ""

    def as_input(self) -> Input:
        """The input for a model; nothing is added to the data."""
        return to_the_letter(self.text, self.image or None)

    def check(self) -> None:
        """Refuse a text that lacks its picture, and a side with neither.

        Raises:
            Unusable: It is one of these.
        """
        if not self.image and PLACEHOLDER in self.text:
            raise Unusable("no picture for its placeholder", self.text[:80])
        if not self.image and not self.text.strip():
            raise Unusable("neither text nor picture")


def to_the_letter(text: str, image: str | Path | None) -> Input:
    """A text with its picture in the place of the placeholder, or before the text if it has none."""
    if image is None:
        return Text(text)
    before, mark, after = text.partition(PLACEHOLDER)
    if not mark:
        before, after = "", text
    return Interleaved([*([Text(before)] if before else []), Image(image), *([Text(after)] if after else [])])


def require_columns(raw: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Refuse a row that lacks a column.

    Raises:
        Unusable: It does.
    """
    missing = [name for name in columns if name not in raw]
    if missing:
        raise Unusable("missing column", ", ".join(missing))


@dataclass(frozen=True)
class PairRow:
    """A query with its target and negatives.

    Attributes:
        id: Unique within the source.
        query: The query.
        target: Its answer.
        negatives: Candidates that are nearly the answer.
    """

    id: str
    query: Side
    target: Side
    negatives: tuple[Side, ...] = ()


class MMEBRows(Source[PairRow]):
    """The usable rows of some subsets, one subset after the other. Safe to use from several threads at once.

    Args:
        files: Files by subset.
        name: Name of the data in messages.
        pictures: Finds picture files.
        per_subset: Maximum rows per subset; None for all.
        max_bad: Maximum number of unusable rows and negatives.

    Raises:
        DatasetError: A file cannot be read, a subset has no usable row, or too many are unusable.
        MissingExtraError: The `datasets` library is needed but not installed.
    """

    def __init__(
        self,
        files: dict[str, list[Path]],
        *,
        name: str,
        pictures: Pictures,
        per_subset: int | None = None,
        max_bad: int = 100,
    ) -> None:
        self.name = name
        self.bad = BadRows(name, limit=max_bad)
        self._pictures = pictures
        self._paths = files
        self._files: list[_Lines | _Table] = []
        self._ends: list[int] = []
        self._counts: dict[str, int] = {}
        for subset, paths in files.items():
            before = len(self)
            self._take(subset, paths, per_subset)
            self._counts[subset] = len(self) - before
            require_rows(self._counts[subset], f"{name}: {subset}", self.bad, _SHAPE)

    def _take(self, subset: str, paths: list[Path], limit: int | None) -> None:
        left = limit
        for path in paths:
            if left == 0:
                return
            found = (_Lines if path.suffix == ".jsonl" else _Table)(subset, path, self._is_usable, self.bad, left)
            self._files.append(found)
            self._ends.append(len(self) + len(found))
            left = None if left is None else left - len(found)

    def _is_usable(self, where: str, raw: dict[str, Any]) -> bool:
        try:
            _row(raw, where, self._pictures, True, lambda problem, detail: self.bad.add(where, problem, detail))
        except Unusable as error:
            self.bad.add(where, error.problem, error.detail)
            return False
        return True

    def __len__(self) -> int:
        """Number of usable rows."""
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> PairRow:
        """A row by number, from 0.

        Raises:
            DatasetError: The data have changed since they were opened.
        """
        place = bisect_right(self._ends, index)
        file = self._files[place]
        where, raw = file.read(index - (self._ends[place] - len(file)))
        try:
            return _row(raw, where, self._pictures, False, lambda problem, detail: None)
        except Unusable as error:
            raise DatasetError(f"{file.name}: has changed since it was opened; start again") from error

    def describe(self) -> dict[str, Any]:
        """Files, number of rows and rows left out, as plain values for JSON."""
        return {
            "kind": "MMEB-train",
            "path": self.name,
            **describe_files([path for paths in self._paths.values() for path in paths]),
            "rows": len(self),
            "subsets": self._counts,
            "images": str(self._pictures.folder),
            "bad": self.bad.as_dict(),
        }


class _Lines:
    """A JSONL file; keeps the offset of each usable row."""

    def __init__(self, subset: str, path: Path, usable: Any, bad: BadRows, limit: int | None) -> None:  # noqa: ANN401
        self.name = str(path)
        self._subset = subset
        self._file = LineFile(path)
        self._offsets, self._numbers = array("q"), array("q")
        if limit == 0:
            return
        for offset, number, raw in self._file.scan(bad):
            if usable(self._where(number), raw):
                self._offsets.append(offset)
                self._numbers.append(number)
                if len(self) == limit:
                    break

    def _where(self, number: int) -> str:
        return f"{self._subset}/{self._file.path.name}:{number}"

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int) -> tuple[str, dict[str, Any]]:
        return self._where(self._numbers[index]), self._file.read(self._offsets[index])


class _Table:
    """A parquet file, which the `datasets` library memory-maps; keeps the number of each usable row."""

    def __init__(self, subset: str, path: Path, usable: Any, bad: BadRows, limit: int | None) -> None:  # noqa: ANN401
        try:
            import datasets
        except ImportError as error:
            raise MissingExtraError(f"{path} needs the datasets library: pip install 'abc-rag[train]'") from error
        self.name = str(path)
        self._prefix = f"{subset}/{path.name}"
        try:
            rows = datasets.Dataset.from_parquet(str(path)).with_format(None)
        except Exception as error:  # the library's errors have no common base
            raise DatasetError(f"{path}: cannot be read as parquet ({type(error).__name__}: {error})") from error
        missing = [name for name in _COLUMNS if name not in rows.column_names]
        if missing:
            raise DatasetError(f"{path}: has no column {', '.join(missing)}; rows must be like {_SHAPE}")
        self._rows = rows.select_columns([name for name in (*_COLUMNS, *_NEGATIVES) if name in rows.column_names])
        self._numbers = array("q")
        with progress_bar(f"reading {path.name}", total=len(rows), enabled=len(rows) > _LARGE) as bar:
            for number, raw in enumerate(self._all(bar)):
                if len(self) == limit:
                    break
                if usable(self._where(number), raw):
                    self._numbers.append(number)

    def _all(self, bar: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
        for start in range(0, len(self._rows), _BATCH):
            columns = self._rows[start : start + _BATCH]
            for values in zip(*columns.values(), strict=True):
                bar.advance(1)
                yield dict(zip(columns, values, strict=True))

    def _where(self, number: int) -> str:
        return f"{self._prefix}[{number}]"

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, index: int) -> tuple[str, dict[str, Any]]:
        number = self._numbers[index]
        return self._where(number), self._rows[number]


# --- Where the files are --------------------------------------------------------------------------


def open_mmeb_rows(
    data: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    subsets: Sequence[str] | None = None,
    split: str = "original",
    per_subset: int | None = None,
    max_bad: int = 100,
) -> MMEBRows:
    """Open a data set in the format of ``TIGER-Lab/MMEB-train``.

    Args:
        data: A folder, a parquet file or a JSONL file.
        images: Folder that picture paths are relative to; the folder of ``data`` if None.
        subsets: Names of subsets; all subsets of the folder if None.
        split: If a subset has files of several kinds, use those whose names begin with this.
        per_subset: Use the first rows of each subset; all rows if None.
        max_bad: Maximum number of unusable rows and negatives.

    Raises:
        DatasetError: There are no data, no usable rows, or too many unusable ones.
        MissingExtraError: The `datasets` library is needed but not installed.
    """
    path = Path(os.path.expanduser(data))
    if path.is_file():
        if path.suffix not in (".jsonl", ".parquet"):
            raise DatasetError(f"{path}: is neither a .jsonl nor a .parquet file; rows must be like {_SHAPE}")
        files = {path.stem: [path]}
        folder = path.parent
    elif path.is_dir():
        own = [file for kind in _KINDS for file in sorted(path.glob(f"{split}*.{kind}"))]
        if own and subsets is None:  # a folder of a single subset
            files = {path.resolve().name: own}
        else:
            files = {name: _files_of(path, name, split) for name in subsets or _subsets_of(path)}
        folder = path
    else:
        raise DatasetError(f"{path}: no such file or folder; give a folder in the layout of TIGER-Lab/MMEB-train")
    if not files:
        raise DatasetError(f"{path}: no .parquet or .jsonl files, nor folders of them; see TIGER-Lab/MMEB-train")
    pictures = Pictures(folder if images is None else Path(images))
    return MMEBRows(files, name=str(path), pictures=pictures, per_subset=per_subset, max_bad=max_bad)


def _subsets_of(root: Path) -> list[str]:
    found = {file.stem for kind in _KINDS for file in root.glob(f"*.{kind}")}
    return sorted(found | {file.parent.name for kind in _KINDS for file in root.glob(f"*/*.{kind}")})


def _files_of(root: Path, subset: str, split: str) -> list[Path]:
    for kind in _KINDS:
        if found := sorted((root / subset).glob(f"{split}*.{kind}")):
            return found
        found = sorted((root / subset).glob(f"*.{kind}"))
        if found or (found := sorted(root.glob(f"{subset}.{kind}"))):
            others = {file.name.split("-")[0].split(".")[0] for file in found}
            if len(others) > 1:
                raise DatasetError(
                    f"{root / subset}: has {', '.join(sorted(others))} but no {split}; choose one of them as split"
                )
            return found
    raise DatasetError(f"{root}: has no subset {subset!r}; it has {', '.join(_subsets_of(root)[:30]) or 'none'}")


# --- What rows hold -------------------------------------------------------------------------------


def _row(raw: dict[str, Any], id: str, pictures: Pictures, check: bool, note: Note) -> PairRow:
    require_columns(raw, _COLUMNS)
    query = _side(raw["qry"], raw["qry_image_path"], "qry", pictures, check)
    target = _side(raw["pos_text"], raw["pos_image_path"], "pos_text", pictures, check)
    kept: dict[Side, None] = {}
    for text, image in _negatives(raw):
        try:
            negative = _side(text, image, "neg_text", pictures, check)
        except Unusable as error:
            note(error.problem, f"a negative: {error.detail}")
            continue
        if negative == target:
            note("negative is the positive", negative.text[:80])
            continue
        kept[negative] = None
    return PairRow(id, query, target, tuple(kept))


def _side(text: Any, image: Any, column: str, pictures: Pictures, check: bool) -> Side:  # noqa: ANN401
    for value in (text, image):
        if value is not None and not isinstance(value, str):
            raise Unusable("wrong type", f"{column} or its picture is {type(value).__name__}, not text")
    text, image = text or "", image or ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair; tokenizers cannot read it
        raise Unusable("not text", f"{column}: {error.reason}") from error
    places = text.count(PLACEHOLDER)
    if not image:
        side = Side(text)
        side.check()
        return side
    if places > 1 or (text.strip() and not places):
        raise Unusable("several places for a picture" if places else "no place for a picture", f"{column}: {text[:80]}")
    return Side(text if places else "", pictures.path(image, check=check))


def _negatives(raw: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(text, picture) of each negative that has either."""
    texts, images = (raw.get(name) for name in _NEGATIVES)
    if not isinstance(texts, list) and not isinstance(images, list):
        texts, images = [texts], [images]
    # A column that is missing is missing for each negative.
    texts, images = texts or [None] * len(images or ()), images or [None] * len(texts or ())
    if not (isinstance(texts, list) and isinstance(images, list) and len(texts) == len(images)):
        raise Unusable("wrong type", "neg_text and neg_image_path differ in length")
    return [(text, image) for text, image in zip(texts, images, strict=True) if text or image]
