"""Read pictures with captions, from the published formats of image-text retrieval and from JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from abc_rag.errors import DatasetError
from abc_rag.evaluation.datasets import find_image, first_rows, texts_of, usable
from abc_rag.training.data.rows import BadRows, Unusable, text_of
from abc_rag.types import ImageSource

__all__ = ["CaptionedRow", "read_captioned"]

_FORMATS = (
    'JSON lines {"image": "a.jpg", "captions": ["...", ...]} or {"image": "a.jpg", "caption": "..."}, '
    'MSCOCO {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}, '
    'or Karpathy {"images": [{"filename", "split", "sentences": [{"raw"}]}]}'
)


@dataclass(frozen=True)
class CaptionedRow:
    """A picture and its captions.

    Attributes:
        name: Name of the picture.
        image: The picture.
        captions: At least one, without repetitions.
    """

    name: str
    image: ImageSource
    captions: tuple[str, ...]


def read_captioned(
    path: Path,
    bad: BadRows,
    *,
    images: Path | None = None,
    split: str | None = None,
    captions: int | None = None,
    limit: int | None = None,
) -> tuple[str, list[CaptionedRow]]:
    """Read a file in any of the formats, which is detected from its content.

    Args:
        path: The file.
        bad: Counts unusable rows.
        images: Folder of the pictures; the folder of the file if None.
        split: Split of a Karpathy file, ``"test"`` if None; other files have no splits.
        captions: Use the first ``captions`` captions of each picture; all if None.
        limit: Use the first ``limit`` pictures.

    Returns:
        The format, ``"mscoco"``, ``"karpathy"`` or ``"jsonl"``, and the rows.

    Raises:
        DatasetError: The file is of another format, has no usable row, or too many unusable ones.
    """
    if captions is not None and captions < 1:
        raise DatasetError(f"captions must be at least 1, not {captions}")
    folder = path.parent if images is None else images
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; give the one that holds the pictures")
    kind, whole = _recognise(path)
    if split is not None and kind != "karpathy":
        raise DatasetError(f"{path}: has no splits (format: {kind}); leave out the split")
    rows = list(_READERS[kind](path, whole, folder, split or "test", bad))
    if captions is not None:
        rows = [CaptionedRow(row.name, row.image, row.captions[:captions]) for row in rows]
    return kind, first_rows(rows, limit, path, bad, _FORMATS)


def _recognise(path: Path) -> tuple[str, dict[str, Any]]:
    """Detect the format from the content, not the name; also return the content if it is one JSON object."""
    try:
        with path.open("rb") as handle:
            first = next((line for line in handle if line.strip()), b"")
        if _is_row(first):
            return "jsonl", {}
        whole: Any = json.loads(path.read_bytes()) if first else None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DatasetError(f"{path}: is of no known format ({error}); it must be {_FORMATS}") from error
    if not first:
        raise DatasetError(f"{path}: is empty; it must be {_FORMATS}")
    pictures = whole.get("images") if isinstance(whole, dict) else None
    if isinstance(pictures, list):
        if isinstance(whole.get("annotations"), list):
            return "mscoco", whole
        if any(isinstance(one, dict) and "sentences" in one for one in pictures):
            return "karpathy", whole
    keys = f"an object with {', '.join(sorted(whole))[:100] or 'nothing'}" if isinstance(whole, dict) else "no object"
    raise DatasetError(f"{path}: is of no known format ({keys}); it must be {_FORMATS}")


def _is_row(line: bytes) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and ("image" in value or "caption" in value or "captions" in value)


def _jsonl(path: Path, whole: dict[str, Any], folder: Path, split: str, bad: BadRows) -> Iterator[CaptionedRow]:
    joined: dict[Path, tuple[str, dict[str, None]]] = {}
    columns: set[str] = set()
    dropped: list[Unusable] = []
    for where, (name, image, captions) in usable(path, bad, partial(_captioned, folder, columns, dropped)):
        for one in dropped:
            bad.add(where, one.problem, one.detail)
        joined.setdefault(image, (name, {}))[1].update(dict.fromkeys(captions))
    for image, (name, found) in joined.items():
        yield CaptionedRow(name, str(image), tuple(found))


def _captioned(
    folder: Path, columns: set[str], dropped: list[Unusable], raw: dict[str, Any]
) -> tuple[str, Path, tuple[str, ...]]:
    """Read a row. The first usable row decides which column all rows must have.

    An unusable caption does not affect the others: it is added to ``dropped``, which is cleared for each row.
    """
    dropped.clear()
    column = "captions" if "captions" in raw else "caption"
    if ("captions" in raw and "caption" in raw) or (columns and column not in columns):
        raise Unusable("mixed columns", "caption and captions")
    captions = texts_of(raw, column, dropped) if column == "captions" else (text_of(raw, column),)
    if not captions:
        raise dropped[0] if dropped else Unusable("empty captions")
    found = text_of(raw, "image"), find_image(raw, folder), captions
    columns.add(column)
    return found


def _mscoco(path: Path, whole: dict[str, Any], folder: Path, split: str, bad: BadRows) -> Iterator[CaptionedRow]:
    files: dict[Any, Path] = {}
    names: dict[Any, str] = {}
    found: dict[Any, dict[str, None]] = {}
    seen: set[int | str] = set()
    for where, raw in _objects(path, whole, "images", bad):
        with bad.leaving_out(where):
            key = _identity(raw, "id")
            if key in found:
                raise Unusable("duplicate id", str(key))
            found[key] = {}
            names[key] = text_of(raw, "file_name")
            files[key] = find_image({"image": names[key]}, folder)
    for where, raw in _objects(path, whole, "annotations", bad):
        with bad.leaving_out(where):
            key = _identity(raw, "image_id")
            if key not in found:
                raise Unusable("caption of no picture", str(key))
            caption = text_of(raw, "caption")
            _require_new(raw, "id", seen)
            found[key][caption] = None
    for key, file in files.items():
        if found[key]:
            yield CaptionedRow(names[key], str(file), tuple(found[key]))
        else:
            bad.add(f"{path.name}:images", "picture without a caption", names[key])


def _karpathy(path: Path, whole: dict[str, Any], folder: Path, split: str, bad: BadRows) -> Iterator[CaptionedRow]:
    splits: dict[str, int] = {}
    seen: set[int | str] = set()
    for where, raw in _objects(path, whole, "images", bad):
        own = str(raw.get("split"))
        splits[own] = splits.get(own, 0) + 1
        if own != split:
            continue
        with bad.leaving_out(where):
            dropped: list[Unusable] = []
            row = _sentences(raw, folder, dropped)
            _require_new(raw, "imgid", seen)
            for one in dropped:
                bad.add(where, one.problem, one.detail)
            yield row
    if split not in splits:
        known = ", ".join(f"{name} ({count})" for name, count in sorted(splits.items()))
        raise DatasetError(f"{path}: has no split {split!r}; it has {known}")


def _sentences(raw: Mapping[str, Any], folder: Path, dropped: list[Unusable]) -> CaptionedRow:
    name = text_of(raw, "filename")
    sentences = raw.get("sentences")
    if not isinstance(sentences, list):
        raise Unusable("sentences is not a list", type(sentences).__name__)
    texts = [one.get("raw") if isinstance(one, dict) else None for one in sentences]
    captions = texts_of({"raw": texts}, "raw", dropped)
    if not captions:
        raise dropped[0] if dropped else Unusable("picture without a caption", name)
    within = raw.get("filepath")  # MSCOCO's pictures are in train2014/ and val2014/, or all in one folder
    if isinstance(within, str) and within and (folder / within / name).is_file():
        name = f"{within}/{name}"
    return CaptionedRow(name, str(find_image({"image": name}, folder)), captions)


_READERS = {"jsonl": _jsonl, "mscoco": _mscoco, "karpathy": _karpathy}


def _objects(path: Path, whole: Mapping[str, Any], name: str, bad: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, one in enumerate(whole[name]):
        where = f"{path.name}:{name}[{number}]"
        if isinstance(one, dict):
            yield where, one
        else:
            bad.add(where, "not a JSON object", type(one).__name__)


def _require_new(raw: Mapping[str, Any], name: str, seen: set[int | str]) -> None:
    """Refuse an id that another row has; rows may have no id."""
    if raw.get(name) is None:
        return
    key = _identity(raw, name)
    if key in seen:
        raise Unusable("duplicate id", str(key))
    seen.add(key)


def _identity(raw: Mapping[str, Any], name: str) -> int | str:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise Unusable(f"no {name}")
    return value
