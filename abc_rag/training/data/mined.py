"""Captions with negatives from ``abc-rag train mine-negatives``."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from abc_rag.errors import DatasetError
from abc_rag.training.data.lines import LineFile
from abc_rag.training.data.rows import Unusable
from abc_rag.training.data.sources import Candidate, CaptionRow, CaptionSource, one_of_each_group

if TYPE_CHECKING:
    from abc_rag.training.data.folder import FolderCaptions
    from abc_rag.training.data.hub import HubCaptions

__all__ = ["WithNegatives"]


class WithNegatives(CaptionSource):
    """A source with mined negatives in place of its own: lines ``{"id": ID, "negatives": [ID, ...]}``, nearest first.

    Lines stay on disk until their rows are read.

    Args:
        source: The captions; ids are its.
        path: The file.

    Raises:
        DatasetError: The file cannot be read, or too many ids are not the source's.
    """

    def __init__(self, source: FolderCaptions | HubCaptions, path: Path) -> None:
        self._source = source
        self.name, self.bad = source.name, source.bad
        self._file = LineFile(path.expanduser())
        self._offsets = array("q", [-1]) * len(source)
        found = 0
        for offset, number, raw in self._file.scan(self.bad):
            where = f"{self._file.path.name}:{number}"
            with self.bad.leaving_out(where):
                self._offsets[self._checked(raw, where)] = offset
                found += 1
        if found == 0:
            raise DatasetError(f"{path}: no line belongs to a row of {source.name}; mine negatives for these data")

    def _checked(self, raw: dict[str, Any], where: str) -> int:
        """The row that a line belongs to; unusable negatives are counted."""
        id, negatives = raw.get("id"), raw.get("negatives")
        if not isinstance(id, str):
            raise Unusable("wrong type", f"id is {type(id).__name__}, not text")
        if not isinstance(negatives, list) or not all(isinstance(one, str) for one in negatives):
            raise Unusable("wrong type", "negatives is not a list of ids")
        index = int(self._source.ids.positions([id])[0])
        if index < 0:
            raise Unusable("unknown id", id)
        if self._offsets[index] >= 0:
            raise Unusable("duplicate id", id)
        places = self._source.ids.positions(negatives)
        for one, place in zip(negatives, places, strict=True):
            if place < 0:
                self.bad.add(where, "unknown id", one[:200])
            elif place == index:
                self.bad.add(where, "negative is the positive", one[:200])
        return index

    def __len__(self) -> int:
        return len(self._source)

    def bare(self, index: int) -> CaptionRow:
        """See `CaptionSource.bare`."""
        return self._source.bare(index)

    def row(self, index: int) -> CaptionRow:
        """See `CaptionSource.row`."""
        row = self._source.bare(index)
        return replace(row, negatives=self._resolved(row, self._places(index)))

    def negatives_of(self, index: int, count: int, rng: random.Random) -> list[Candidate]:
        """See `CaptionSource.negatives_of`. Reads the drawn captions only."""
        places = self._places(index)
        drawn = [places[place] for place in one_of_each_group(len(places), count, rng)]
        return list(self._resolved(self._source.bare(index), drawn))

    def _places(self, index: int) -> list[int]:
        offset = self._offsets[index]
        if offset < 0:
            return []
        places = self._source.ids.positions(self._file.read(offset)["negatives"])
        return list(dict.fromkeys(int(place) for place in places if place >= 0 and place != index))

    def _resolved(self, row: CaptionRow, places: Sequence[int]) -> tuple[Candidate, ...]:
        captions = {caption.text: caption for caption in (self._source.bare(place).caption for place in places)}
        return tuple(caption for caption in captions.values() if caption.key != row.caption.key)

    def excluded(self, rows: Sequence[CaptionRow], candidates: Sequence[Candidate]) -> npt.NDArray[np.bool_]:
        """See `CaptionSource.excluded`."""
        return self._source.excluded(rows, candidates)

    def describe(self) -> dict[str, Any]:
        """See `CaptionSource.describe`."""
        mined = sum(offset >= 0 for offset in self._offsets)
        return self._source.describe() | {"negatives": self._file.describe() | {"rows": mined}}
