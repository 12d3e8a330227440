"""Rows in the format of ``TIGER-Lab/MMEB-train``: a query and what answers it, each a text, a picture, or both.

A data set is a folder with subsets in it, ``SUBSET/original-00000-of-00001.parquet`` or ``SUBSET.jsonl`` and the like,
or a single such file. Its columns are ``qry``, ``qry_image_path``, ``pos_text`` and ``pos_image_path``; where
``neg_text`` and ``neg_image_path`` have something, that is a further candidate, or several where they are lists.
``<|image_1|>`` stands in a text where its picture goes; texts are otherwise taken as they are.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import DatasetError, MissingExtraError
from abc_rag.training.data.folder import Note, Pictures, require_rows
from abc_rag.training.data.lines import LineFile, describe_files
from abc_rag.training.data.rows import BadRows, Unusable
from abc_rag.types import Image, Input, Interleaved, Text

__all__ = ["PLACEHOLDER", "MMEBRows", "PairRow", "Side", "open_mmeb_rows"]

PLACEHOLDER = "<|image_1|>"
"""Where in a text its picture goes."""

_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
_NEGATIVES = ("neg_text", "neg_image_path")
_SHAPE = '{"qry": "<|image_1|> ...", "qry_image_path": "a.jpg", "pos_text": "...", "pos_image_path": ""}'
_KINDS = ("parquet", "jsonl")
_BATCH = 10_000
_LARGE = 100_000  # rows that take a while to read


@dataclass(frozen=True)
class Side:
    """A query or a candidate.

    Attributes:
        text: As the data have it, placeholder included.
        image: Path of its picture; empty without one.
    """

    text: str
    image: str = ""

    def as_input(self) -> Input:
        """The input that a model takes: nothing is added to what the data say."""
        if not self.image:
            return Text(self.text)
        before, _, after = self.text.partition(PLACEHOLDER)
        return Interleaved([*_worded(before), Image(self.image), *_worded(after)])


def _worded(text: str) -> list[Text]:
    return [Text(text)] if text else []


@dataclass(frozen=True)
class PairRow:
    """A query, what answers it, and what does not.

    Attributes:
        id: Unique within the source.
        query: What is asked.
        target: What answers it.
        negatives: What nearly does.
    """

    id: str
    query: Side
    target: Side
    negatives: tuple[Side, ...] = ()


class _File(Protocol):
    """A file of rows: an index is all that is kept of them."""

    name: str

    def __len__(self) -> int: ...
    def read(self, index: int) -> tuple[str, dict[str, Any]]: ...


class MMEBRows:
    """The usable rows of some subsets, one subset after the other. Safe to use from several threads at once.

    Args:
        files: The files of each subset, by its name.
        name: What to call all of it in messages.
        pictures: Finds picture files.
        per_subset: Most rows of a subset; None for all.
        max_bad: Most unusable rows, and negatives.

    Raises:
        DatasetError: A file cannot be read, a subset has no usable row, or too much cannot be used.
        MissingExtraError: The `datasets` library is needed and not installed.
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
        self._files: list[_File] = []
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
        """How many usable rows there are."""
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
        """What the data are, for JSON: which files, how many rows, what was left out."""
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
    """A file of JSON lines; of each usable row its place in the file is kept."""

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
    """A parquet file; the `datasets` library keeps its rows on the disk, and of each usable one its number is kept."""

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
        data: Its folder, or one parquet file or file of JSON lines.
        images: Folder that picture paths are relative to; that of ``data`` if not given.
        subsets: Names of subsets; all in the folder if not given.
        split: The files of a subset that are meant, where it has several kinds: those whose names begin so.
        per_subset: Most rows of a subset, the first ones; all if not given.
        max_bad: Most unusable rows, and negatives.

    Raises:
        DatasetError: There is nothing to read, nothing usable, or too much that is not.
        MissingExtraError: The `datasets` library is needed and not installed.
    """
    path = Path(os.path.expanduser(data))
    if path.is_file():
        if path.suffix not in (".jsonl", ".parquet"):
            raise DatasetError(f"{path}: is neither a .jsonl nor a .parquet file; rows must be like {_SHAPE}")
        files = {path.stem: [path]}
        folder = path.parent
    elif path.is_dir():
        own = [file for kind in _KINDS for file in sorted(path.glob(f"{split}*.{kind}"))]
        if own and subsets is None:  # the folder of a single subset
            files = {path.resolve().name: own}
        else:
            files = {name: _files_of(path, name, split) for name in subsets or _subsets_of(path)}
        folder = path
    else:
        raise DatasetError(f"{path}: no such file or folder; give a folder in the layout of TIGER-Lab/MMEB-train")
    if not files:
        raise DatasetError(f"{path}: holds neither .parquet nor .jsonl files, nor folders of them")
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
                    f"{root / subset}: has {', '.join(sorted(others))} and no {split}; say which is meant (split)"
                )
            return found
    raise DatasetError(f"{root}: has no subset {subset!r}; it has {', '.join(_subsets_of(root)[:30]) or 'none'}")


# --- What rows hold -------------------------------------------------------------------------------


def _row(raw: dict[str, Any], id: str, pictures: Pictures, check: bool, note: Note) -> PairRow:
    missing = [name for name in _COLUMNS if name not in raw]
    if missing:
        raise Unusable("missing column", ", ".join(missing))
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
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair; tokenizers cannot read it
        raise Unusable("not text", f"{column}: {error.reason}") from error
    places = text.count(PLACEHOLDER)
    if not image:
        if places:
            raise Unusable("no picture for its placeholder", f"{column}: {text[:80]}")
        if not text.strip():
            raise Unusable("neither text nor picture", column)
        return Side(text)
    if places > 1 or (text.strip() and not places):
        raise Unusable("several places for a picture" if places else "no place for a picture", f"{column}: {text[:80]}")
    return Side(text if places else "", pictures.path(image, check=check))


def _negatives(raw: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(text, picture) of each negative; an empty one is none."""
    texts, images = (raw.get(name) for name in _NEGATIVES)
    if not isinstance(texts, list) and not isinstance(images, list):
        texts, images = [texts], [images]
    # Where one of both is missing altogether, it is so for each.
    texts, images = texts or [None] * len(images or ()), images or [None] * len(texts or ())
    if not (isinstance(texts, list) and isinstance(images, list) and len(texts) == len(images)):
        raise Unusable("wrong type", "neg_text and neg_image_path are not of one length")
    return [(text, image) for text, image in zip(texts, images, strict=True) if text or image]
