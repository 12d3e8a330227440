"""Reads the files of ``TIGER-Lab/MMEB-eval`` into checked queries with numbered candidates."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.errors import DatasetError, InputError, MissingExtraError
from abc_rag.files import new_folder, remove_drafts
from abc_rag.training.data.lines import read_jsonl
from abc_rag.training.data.mmeb import Side, require_columns
from abc_rag.training.data.rows import BadRows, Unusable

__all__ = ["HUB_ID", "Row", "Split", "dataset_files", "download_mmeb", "image_folder", "read_split"]

HUB_ID = "TIGER-Lab/MMEB-eval"
_COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
_LAYOUTS = ("{0}/test-*.parquet", "{0}/test/*.parquet", "{0}/*.parquet", "{0}.parquet", "{0}/test/data-*.arrow",
            "{0}/data-*.arrow", "{0}/test*.jsonl", "{0}/*.jsonl", "{0}.jsonl")  # fmt: skip
_IMAGE_FOLDERS = ("images", "eval_images")
_NONE_FOUND = 20  # if none of the first pictures is found, the folder is the wrong one


@dataclass(frozen=True)
class Row:
    """A query and its candidates, as positions in their `Split`.

    Attributes:
        where: Names the row in messages.
        query: The query.
        right: The right candidate.
        others: The other candidates, each once, without those that equal the right one.
    """

    where: str
    query: int
    right: int
    others: npt.NDArray[np.int32]


@dataclass
class Split:
    """The usable rows of a data set. Equal queries are kept once, and so are equal candidates.

    Attributes:
        dataset: Name of the data set.
        queries: Distinct queries.
        candidates: Distinct candidates of all rows.
        rows: The rows.
        dropped: Number of unusable candidates that were removed from the rows' lists.
        same: Rows that list the right candidate among the wrong ones too, where it is ignored.
    """

    dataset: str
    queries: list[Side] = field(default_factory=list)
    candidates: list[Side] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    dropped: int = 0
    same: list[str] = field(default_factory=list)


def dataset_files(root: Path, dataset: str) -> list[Path]:
    """The files of a data set below ``root``, in order, in the first layout that matches; empty if none does.

    Layouts are those of the hub (``NAME/test-00000-of-00001.parquet``), of its parquet branch
    (``NAME/test/0000.parquet``), of ``datasets.save_to_disk`` (``NAME/test/data-*.arrow`` or ``NAME/data-*.arrow``),
    and JSON lines with the same columns (``NAME.jsonl``, ``NAME/test.jsonl``).
    """
    for layout in _LAYOUTS:
        found = sorted(root.glob(layout.format(dataset)))
        if found:
            return found
    return []


def image_folder(root: Path, images: Path | None) -> Path:
    """The folder that picture paths are relative to: ``images``, else ``images`` or ``eval_images`` in root, else root.

    Raises:
        InputError: The given folder does not exist.
    """
    if images is not None:
        if not images.is_dir():
            raise InputError(f"{images}: no such folder; unpack MMEB's images.zip and pass its folder")
        return images
    return next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), root)


def read_split(dataset: str, files: Sequence[Path], images: Path, bad: BadRows, *, limit: int | None = None) -> Split:
    """Read a data set's rows.

    A row whose query or right candidate is unusable is left out. Any other unusable candidate is removed from all lists
    and counted once: MMEB's lists share candidates, so that one lost picture would otherwise cost hundreds of rows.

    Args:
        dataset: Name of the data set.
        files: See `dataset_files`.
        images: The folder that picture paths are relative to.
        bad: Counts unusable rows.
        limit: Read the first ``limit`` rows only.

    Raises:
        DatasetError: A file cannot be read or lacks a column, no picture can be found, or too many rows are unusable.
        MissingExtraError: pyarrow is needed but not installed.
    """
    builder = _Builder(dataset, images, bad)
    for number, (where, row) in enumerate(_rows(dataset, files, bad)):
        if limit is not None and number >= limit:
            break
        builder.add(where, row)
    if not builder.split.rows:
        raise builder.nothing_usable(bad.summary() if bad.count else "no rows")
    return builder.split


class _Builder:
    """Numbers queries and candidates, and checks each picture once."""

    def __init__(self, dataset: str, images: Path, bad: BadRows) -> None:
        self.split = Split(dataset)
        self._images = images
        self._bad = bad
        self._queries: dict[Side, int] = {}
        self._candidates: dict[Side, int] = {}
        self._problems: dict[str, tuple[str, str] | None] = {}
        self._seen_bad: set[Side] = set()
        self._found_any = False
        self._missing = 0

    def nothing_usable(self, why: str) -> DatasetError:
        """The error for a data set without usable rows; usually its pictures have not been unpacked."""
        return DatasetError(
            f"{self.split.dataset}: {why}; pictures are expected in {self._images}: unpack images.zip of {HUB_ID} "
            "and pass its folder with --images"
        )

    def add(self, where: str, row: dict[str, Any]) -> None:
        """Add a row, or count it as unusable."""
        try:
            _check_shape(row)
        except Unusable as error:
            self._bad.add(where, error.problem, error.detail)
            return
        query = Side(row["qry_text"] or "", row["qry_img_path"] or "")
        listed = [Side(text or "", path or "") for text, path in zip(row["tgt_text"], row["tgt_img_path"], strict=True)]
        for what, item in (("query", query), ("right candidate", listed[0])):
            problem = self._problem(item)
            if problem:
                self._bad.add(where, problem[0], f"{what}: {problem[1]}")
                return
        others = [item for item in listed[1:] if item != listed[0]]
        if len(others) < len(listed) - 1:
            self.split.same.append(where)
        usable = [item for item in others if self._is_usable(where, item)]
        if not usable:
            self._bad.add(where, "no wrong candidate", "all candidates equal the right one or are unusable")
            return
        self.split.dropped += len(others) - len(usable)
        numbers = np.array([self._candidate(item) for item in dict.fromkeys(usable)], dtype=np.int32)
        number = self._number(query, self._queries, self.split.queries)
        self.split.rows.append(Row(where, number, self._candidate(listed[0]), numbers))

    def _candidate(self, item: Side) -> int:
        return self._number(item, self._candidates, self.split.candidates)

    @staticmethod
    def _number(item: Side, numbers: dict[Side, int], items: list[Side]) -> int:
        number = numbers.setdefault(item, len(items))
        if number == len(items):
            items.append(item)
        return number

    def _is_usable(self, where: str, item: Side) -> bool:
        problem = self._problem(item)
        if problem and item not in self._seen_bad:
            self._seen_bad.add(item)
            self._bad.add(where, problem[0], f"a candidate, removed from all lists: {problem[1]}")
        return problem is None

    def _problem(self, item: Side) -> tuple[str, str] | None:
        if not item.image:
            try:
                item.check()
            except Unusable as error:
                return error.problem, error.detail
            return None
        if item.image not in self._problems:
            self._problems[item.image] = self._image_problem(item.image)
        return self._problems[item.image]

    def _image_problem(self, image: str) -> tuple[str, str] | None:
        # The paths come from the data set: none may lead to other files, which the report would show.
        path = PurePosixPath(image.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
            return "picture outside the image folder", image
        if os.path.isfile(self._images / image):
            self._found_any = True
            return None
        self._missing += 1
        if self._missing == _NONE_FOUND and not self._found_any:
            raise self.nothing_usable(f"none of the first {_NONE_FOUND} pictures exists, such as {image}")
        return "missing image", image


def _check_shape(row: dict[str, Any]) -> None:
    require_columns(row, _COLUMNS)
    for name in _COLUMNS[:2]:
        if row[name] is not None and not isinstance(row[name], str):
            raise Unusable("wrong type", f"{name} is {type(row[name]).__name__}, not text")
    for name in _COLUMNS[2:]:
        if not isinstance(row[name], list) or not all(one is None or isinstance(one, str) for one in row[name]):
            raise Unusable("wrong type", f"{name} is not a list of texts")
    texts, paths = len(row["tgt_text"]), len(row["tgt_img_path"])
    if texts != paths:
        raise Unusable("candidates of two lengths", f"{texts} texts, {paths} pictures")
    if not texts:
        raise Unusable("no candidates")


def _rows(dataset: str, files: Sequence[Path], bad: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) for every row of all files."""
    number = 0
    for file in files:
        if file.suffix == ".jsonl":
            for where, row in read_jsonl(file, bad):
                yield f"{dataset}/{where}", row
            continue
        for batch in _batches(file):
            for row in batch.to_pylist():
                yield f"{dataset}[{number}]", row
                number += 1


def _batches(file: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("reading MMEB's files needs pyarrow; pip install 'abc-rag[evaluate]'") from error
    try:
        if file.suffix == ".arrow":
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                _require_columns(file, stream.schema.names)
                yield from stream
            return
        with pyarrow.parquet.ParquetFile(file) as table:
            _require_columns(file, table.schema_arrow.names)
            # A row has up to a thousand candidates.
            yield from table.iter_batches(batch_size=64, columns=list(_COLUMNS))
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{file}: cannot be read ({error}); fetch it again") from error


def _require_columns(file: Path, names: Sequence[str]) -> None:
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise DatasetError(f"{file}: has no column {', '.join(missing)}; MMEB's files have {', '.join(_COLUMNS)}")


def download_mmeb(root: Path, datasets: Sequence[str], *, endpoint: str | None = None) -> None:
    """Download data sets, and all of MMEB's pictures (one archive of several GB), from the hub into ``root``.

    Existing files are not downloaded again. The pictures go to ``root/images``.

    Args:
        root: The folder; created if missing.
        datasets: Names of data sets.
        endpoint: URL of another hub.

    Raises:
        DatasetError: The hub cannot be reached, or the archive is broken.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"{name}/*" for name in datasets]
    images = root / "images"
    if not images.is_dir():
        patterns.append("images.zip")
    try:
        snapshot_download(HUB_ID, repo_type="dataset", local_dir=root, allow_patterns=patterns, endpoint=endpoint)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DatasetError(
            f"{HUB_ID}: cannot be fetched into {root} ({reason}); check the network and the disk"
        ) from error
    if not images.is_dir():
        _unpack(root / "images.zip", images)


def _unpack(archive: Path, folder: Path) -> None:
    remove_drafts(folder.parent)
    try:
        # The archive stays, so a power cut costs no more than unpacking it again.
        with new_folder(folder, durable=False) as draft, zipfile.ZipFile(archive) as opened:
            opened.extractall(draft)  # drops roots and ".." from the names of members
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{archive}: cannot be unpacked ({error}); delete it and fetch it again") from error
