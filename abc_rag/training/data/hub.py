"""ABC's published data sets in their own formats: from the hub, its cache, or a folder."""

from __future__ import annotations

import json
import random
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import DatasetError, MissingExtraError
from abc_rag.training.data.folder import Found, Note, Pictures, pair_of
from abc_rag.training.data.lines import Ids, describe_files
from abc_rag.training.data.rows import BadRows, Unusable, require_rows, text_of
from abc_rag.training.data.sources import Candidate, CaptionRow, CaptionSource, PairsRow, PairsSource, one_of_each_group

__all__ = ["HubCaptions", "HubPairs", "Table", "open_table"]

_BATCH = 10_000
_LARGE = 100_000  # rows from which a progress bar is shown
_UNPACK = {
    "captions": "download abc-pretrain.tar.gz.part_* from TIGER-Lab/ABC-Pretraining-Data, unpack them with "
    "'cat abc-pretrain.tar.gz.part_* | tar xzf - -C FOLDER', and give FOLDER, which then holds train/",
    "pairs": "download abc-vg-instruct.tar.gz from TIGER-Lab/ABC-VG-Instruct, unpack it, and give the folder that then "
    "holds the .jpg files",
}


@dataclass(frozen=True)
class Table:
    """Rows of the `datasets` library.

    Attributes:
        name: Name of the data in messages.
        rows: A `datasets.Dataset`.
        about: Origin and version.
    """

    name: str
    rows: Any
    about: dict[str, Any]


def open_table(found: Found, *, allow_download: bool) -> Table:
    """Open a data set with the `datasets` library; its rows stay on disk.

    Args:
        found: A hub data set, a folder of parquet files, or a folder saved by the library.
        allow_download: Fetch a hub data set; without it, the data must be in the library's cache.

    Raises:
        DatasetError: The data cannot be read or fetched, or have several splits and no ``train`` among them.
        MissingExtraError: The library is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"{found.path} needs the datasets library: pip install 'abc-rag[train]'") from error

    name = found.path.as_posix() if found.kind == "hub" else str(found.path)
    if found.kind == "hub":
        opened = _fetched(name) if allow_download else _cached(name)
    else:
        try:
            if found.kind == "saved":
                opened = datasets.load_from_disk(name)
            else:
                files = sorted(str(file) for file in found.path.glob("**/*.parquet"))
                opened = datasets.Dataset.from_parquet(files)
        except Exception as error:  # the library's errors have no common base class
            raise DatasetError(f"{name}: cannot be read as {found.kind} data ({_first_line(error)})") from error
    if isinstance(opened, datasets.DatasetDict):
        splits = list(opened)
        if "train" not in splits and len(splits) != 1:
            raise DatasetError(f"{name}: has the splits {', '.join(splits)} but no 'train'; save one split alone")
        opened = opened["train" if "train" in splits else splits[0]]
    if found.kind == "hub":
        about = {"hub": name, "revision": _revision(opened)}
    else:
        suffix = "parquet" if found.kind == "parquet" else "arrow"
        about = {"path": name, **describe_files(sorted(found.path.glob(f"**/*.{suffix}")))}
    return Table(name, opened.with_format(None), about)


def _fetched(name: str) -> Any:  # noqa: ANN401
    import datasets

    try:
        return datasets.load_dataset(name)
    except Exception as error:  # ConnectionError, HTTP errors, the hub's own, the library's own
        raise DatasetError(
            f"{name} cannot be fetched ({_first_line(error)}); check the connection and HF_TOKEN, or download it "
            "elsewhere and give its folder of parquet files"
        ) from error


def _cached(name: str) -> Any:  # noqa: ANN401
    from datasets.packaged_modules.cache.cache import Cache

    try:
        return Cache(dataset_name=name.partition("/")[2], repo_id=name, version="auto", hash="auto").as_dataset()
    except Exception as error:  # not there, or half there
        raise DatasetError(
            f"{name} is not in the cache of the datasets library; allow the download (--download), or give its folder "
            "of parquet files"
        ) from error


def _revision(dataset: Any) -> str:  # noqa: ANN401
    """The hub commit, after which the library names its cache folder; empty if it does not."""
    folders = [Path(file["filename"]).parent.name for file in dataset.cache_files]
    return next((folder for folder in folders if re.fullmatch(r"[0-9a-f]{40}", folder)), "")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"[:300]


def _pictures(images: Path | None, kind: str, name: str) -> Pictures:
    if images is None:
        raise DatasetError(f"{name}: does not contain its pictures; set images (--images): {_UNPACK[kind]}")
    return Pictures(images)


# --- Captions -------------------------------------------------------------------------------------


class HubCaptions(CaptionSource):
    """Rows of ABC-Pretraining-Data: id, image (a path below ``images``), caption, negatives (row numbers).

    Args:
        table: The rows.
        images: Folder of the unpacked pictures.
        max_bad: Maximum number of unusable rows.

    Raises:
        DatasetError: A column or the pictures' folder is missing, no row is usable, or too many are unusable.
    """

    def __init__(self, table: Table, *, images: Path | None, max_bad: int = 100) -> None:
        self._table, self._dataset = table, table.rows
        columns = self._dataset.column_names
        if "image" not in columns or "caption" not in columns:
            raise DatasetError(
                f"{table.name}: has the columns {', '.join(columns)}; image and caption are needed (and id, negatives)"
            )
        self.name, self.bad = table.name, BadRows(table.name, limit=max_bad)
        self.ids = Ids()
        self._images = images
        self._pictures = _pictures(images, "captions", table.name)
        self._light = self._dataset.select_columns([name for name in ("id", "image", "caption") if name in columns])
        self._captions = self._dataset.select_columns(["caption"])
        self._negatives = self._dataset.select_columns(["negatives"]) if "negatives" in columns else None
        # Row numbers of the usable rows; negatives refer to row numbers.
        self._kept = array("q")
        said = self._scan_rows()
        if self._negatives is not None:
            self._scan_negatives(said)
        self.ids.freeze()
        require_rows(len(self), table.name, self.bad, "id, image, caption, negatives")

    def _scan_rows(self) -> npt.NDArray[np.int64]:
        """Find the usable rows; return a code of every row's caption, equal for equal captions."""
        count = len(self._light)
        said = np.zeros(count, dtype=np.int64)
        with progress_bar(f"reading {self.name}", total=count, enabled=count > _LARGE) as bar:
            for start in range(0, count, _BATCH):
                batch = self._light[start : start + _BATCH]
                length = len(batch["caption"])
                for place in range(length):
                    self._take(start + place, {name: values[place] for name, values in batch.items()}, said)
                bar.advance(length)
        return said

    def _take(self, number: int, raw: dict[str, Any], said: npt.NDArray[np.int64]) -> None:
        with self.bad.leaving_out(f"{self.name}[{number}]"):
            caption = text_of(raw, "caption")
            said[number] = hash(caption)
            id = _id(raw, number)
            if id in self.ids:
                raise Unusable("duplicate id", id)
            self._pictures.path(text_of(raw, "image"), check=True)
            self.ids.add(id)
            self._kept.append(number)

    def _scan_negatives(self, said: npt.NDArray[np.int64]) -> None:
        """Count unusable negatives of usable rows; a row counts once for each problem."""
        kept = np.zeros(len(said), dtype=bool)
        kept[np.array(self._kept, dtype=np.int64)] = True
        for start in range(0, len(said), _BATCH):
            lists = self._negatives[start : start + _BATCH]["negatives"] if self._negatives is not None else []
            lists = [values or [] for values in lists]
            owner = np.repeat(np.arange(start, start + len(lists)), [len(values) for values in lists])
            try:
                named = np.array([value for values in lists for value in values], dtype=np.int64)
            except (TypeError, ValueError) as error:
                raise DatasetError(f"{self.name}: negatives must be row numbers ({error})") from error
            unknown = (named < 0) | (named >= len(said))
            own = ~unknown
            own[own] = said[named[own]] == said[owner[own]]
            for wrong, problem in ((unknown, "unknown negative"), (own, "negative is the positive")):
                for row in np.unique(owner[wrong & kept[owner]]):
                    some = named[wrong & (owner == row)]
                    self.bad.add(f"{self.name}[{row}]", problem, ", ".join(map(str, some[:5])))

    def __len__(self) -> int:
        return len(self._kept)

    def bare(self, index: int) -> CaptionRow:
        """See `CaptionSource.bare`."""
        number = self._kept[index]
        raw = self._light[number]
        image = self._pictures.path(text_of(raw, "image"), check=False)
        return CaptionRow(_id(raw, number), image, Candidate(text_of(raw, "caption")))

    def row(self, index: int) -> CaptionRow:
        """See `CaptionSource.row`."""
        row = self.bare(index)
        negatives = self._resolved(row.caption.text, self._named(index))
        return CaptionRow(row.id, row.image, row.caption, negatives)

    def negatives_of(self, index: int, count: int, rng: random.Random) -> list[Candidate]:
        """See `CaptionSource.negatives_of`. Reads the drawn captions only."""
        named = self._named(index)
        drawn = [named[place] for place in one_of_each_group(len(named), count, rng)]
        own = str(self._captions[self._kept[index]]["caption"]).strip()
        return list(self._resolved(own, drawn))

    def _named(self, index: int) -> list[int]:
        number = self._kept[index]
        named = [] if self._negatives is None else self._negatives[number]["negatives"] or []
        return [other for other in dict.fromkeys(named) if 0 <= other < len(self._captions) and other != number]

    def _resolved(self, own: str, named: Sequence[int]) -> tuple[Candidate, ...]:
        said = self._captions[list(named)]["caption"] if named else []
        texts = dict.fromkeys(text.strip() for text in said if isinstance(text, str))
        return tuple(Candidate(text) for text in texts if text and text != own)

    def describe(self) -> dict[str, Any]:
        """See `CaptionSource.describe`."""
        about = {"kind": "ABC-Pretraining-Data", **self._table.about, "images": str(self._images), "rows": len(self)}
        return about | {"bad": self.bad.as_dict()}


def _id(raw: dict[str, Any], number: int) -> str:
    value = raw.get("id")
    return f"row {number}" if value is None or value == "" else str(value)


# --- Pairs ----------------------------------------------------------------------------------------


class HubPairs(PairsSource):
    """Rows of ABC-VG-Instruct: every column is an item {id, image (``NAME`` for NAME.jpg), instruction, phrase}.

    Args:
        table: The rows.
        images: Folder of the unpacked pictures.
        max_bad: Maximum number of unusable rows and items.

    Raises:
        DatasetError: The pictures' folder is missing, no row is usable, or too many are unusable.
    """

    def __init__(self, table: Table, *, images: Path | None, max_bad: int = 100) -> None:
        self._table, self._dataset = table, table.rows
        if not any(hasattr(feature, "keys") for feature in self._dataset.features.values()):
            raise DatasetError(
                f"{table.name}: has the columns {', '.join(self._dataset.column_names)}; each must be an item with id, "
                "image, instruction and phrase"
            )
        self.name, self.bad = table.name, BadRows(table.name, limit=max_bad)
        self._images = images
        self._pictures = _pictures(images, "pairs", table.name)
        self._kept = array("q")
        self._repeated: set[tuple[int, int]] = set()
        self._scan()
        require_rows(len(self), table.name, self.bad, "items with id, image, instruction, phrase")

    def _scan(self) -> None:
        seen: set[int] = set()
        for number in range(len(self._dataset)):
            where = f"{self.name}[{number}]"
            for place, item in enumerate(self._items(number)):
                # The data set does not say whether an id belongs to the item or its picture: compare whole items.
                code = hash(json.dumps(item, sort_keys=True, default=str))
                if code in seen:
                    self._repeated.add((number, place))
                    self.bad.add(where, "duplicate id", str(item.get("id") if isinstance(item, dict) else item))
                seen.add(code)
            with self.bad.leaving_out(where):
                self._parsed(number, partial(self.bad.add, where))
                self._kept.append(number)

    def _items(self, number: int) -> list[Any]:
        return [item for item in self._dataset[number].values() if item is not None]

    def _parsed(self, number: int, note: Note | None = None) -> PairsRow:
        """A row; with ``note``, its picture must exist, and what is left out of it is reported."""
        items = self._items(number)
        images = dict.fromkeys(_stem(item) for item in items)
        if len(images) > 1:
            raise Unusable("mixed pictures", ", ".join(images))
        if not images:
            raise Unusable("empty row")
        image = self._pictures.path(next(iter(images)) + ".jpg", check=note is not None)
        pairs = []
        for place, item in enumerate(items):
            try:
                if (number, place) not in self._repeated:
                    pairs.append(pair_of(item))
            except Unusable as error:
                if note is not None:
                    note(error.problem, error.detail)
        if not pairs:
            raise Unusable("no usable pair")
        return PairsRow(f"row {number}", image, tuple(pairs))

    def __len__(self) -> int:
        return len(self._kept)

    def row(self, index: int) -> PairsRow:
        """See `PairsSource.row`."""
        return self._parsed(self._kept[index])

    def describe(self) -> dict[str, Any]:
        """See `PairsSource.describe`."""
        about = {"kind": "ABC-VG-Instruct", **self._table.about, "images": str(self._images), "rows": len(self)}
        return about | {"bad": self.bad.as_dict()}


def _stem(item: object) -> str:
    if not isinstance(item, dict):
        raise Unusable("wrong type", f"an item is {type(item).__name__}, not an object")
    image = item.get("image")
    return text_of(item | {"image": str(image)} if isinstance(image, int) else item, "image")
