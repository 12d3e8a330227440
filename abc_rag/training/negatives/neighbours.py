"""Nearest neighbours below a score bar: exact, or with an index that need not fit into memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from abc_rag.embedding.progress import Progress, progress_bar
from abc_rag.errors import MissingExtraError
from abc_rag.files import new_file
from abc_rag.training.negatives.corpus import writing
from abc_rag.types import Vectors

__all__ = ["ApproximateSearch", "ExactSearch", "Found", "Search"]

_Positions = npt.NDArray[np.int64]
_BLOCK = 8192  # candidates compared at once
_LINKS = 32
_ADD = 4096  # vectors added to an index at once
_SMALL = 20_000
_INDEX_BYTES = 400  # of an index per vector, besides the vector itself
_MOST_FETCHED = 4096


@dataclass
class Found:
    """The neighbours of some queries.

    Attributes:
        scores: float32 ``(queries, count)``, highest first, padded with minus infinity.
        positions: int64 ``(queries, count)``, padded with -1; among equal scores, lower positions come first.
        left_out: int64 ``(queries,)``: how many of the examined candidates were at or above the bar.
    """

    scores: Vectors
    positions: _Positions
    left_out: _Positions

    @classmethod
    def nothing(cls, queries: int, count: int) -> Found:
        """No neighbours for ``queries`` queries."""
        return cls(
            np.full((queries, count), -np.inf, dtype=np.float32),
            np.full((queries, count), -1, dtype=np.int64),
            np.zeros(queries, dtype=np.int64),
        )

    @classmethod
    def ranked(cls, scores: Vectors, positions: _Positions, left_out: _Positions) -> Found:
        """Neighbours in the order of their scores."""
        positions = np.where(np.isfinite(scores), positions, -1)
        order = np.lexsort((positions, -scores), axis=1)
        return cls(np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1), left_out)

    def put(self, queries: npt.NDArray[np.bool_], found: Found) -> None:
        """Insert the neighbours of some of the queries."""
        self.scores[queries], self.positions[queries] = found.scores, found.positions
        self.left_out[queries] = found.left_out


class Search(ABC):
    """Finds the nearest candidates.

    Args:
        vectors: float16 ``(rows, dim)``.
        rows: The rows that are candidates, ascending; a candidate's position is its index in this array.
    """

    def __init__(self, vectors: npt.NDArray[np.float16], rows: _Positions) -> None:
        self._vectors, self._rows = vectors, rows
        # The usual case, no repeated caption: a slice is read faster than single rows.
        self._contiguous = len(rows) == 0 or bool(rows[-1] - rows[0] == len(rows) - 1)

    @abstractmethod
    def nearest(self, queries: Vectors, bars: Vectors, forbidden: Sequence[_Positions], count: int) -> Found:
        """The nearest candidates below each query's bar.

        Args:
            queries: float32 ``(n, dim)``.
            bars: float32 ``(n,)``: candidates that score this or more are left out.
            forbidden: For each query the candidates to leave out whatever their score.
            count: Number of neighbours to find.
        """

    def _block(self, start: int) -> npt.NDArray[np.float16]:
        """The vectors of `_BLOCK` candidates."""
        rows = self._rows[start : start + _BLOCK]
        block: npt.NDArray[np.float16] = (
            self._vectors[rows[0] : rows[-1] + 1] if self._contiguous else self._vectors[rows]
        )
        return block


class ExactSearch(Search):
    """Compares each query with all candidates, in blocks, on the CPU or a GPU.

    Args:
        vectors: See `Search`.
        rows: See `Search`.
        device: Computes the products, in float32.
    """

    def __init__(self, vectors: npt.NDArray[np.float16], rows: _Positions, *, device: str = "cpu") -> None:
        super().__init__(vectors, rows)
        self._device = device

    def nearest(self, queries: Vectors, bars: Vectors, forbidden: Sequence[_Positions], count: int) -> Found:
        """See `Search.nearest`."""
        import torch

        n = len(queries)
        asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self._device)
        bar = torch.from_numpy(np.ascontiguousarray(bars)).to(self._device)
        owner = np.repeat(np.arange(n), [len(positions) for positions in forbidden])
        never = np.concatenate([np.zeros(0, dtype=np.int64), *forbidden])
        best = torch.full((n, count), -torch.inf, device=self._device)
        places = torch.full((n, count), -1, dtype=torch.int64, device=self._device)
        left_out = torch.zeros(n, dtype=torch.int64, device=self._device)
        for start in range(0, len(self._rows), _BLOCK):
            block = torch.from_numpy(np.array(self._block(start))).to(self._device).float()
            scores = asked @ block.T
            here = (never >= start) & (never < start + len(block))
            scores[torch.from_numpy(owner[here]), torch.from_numpy(never[here] - start)] = -torch.inf
            values, at = scores.topk(min(count, len(block)), dim=1)
            # Few rows reach their bar in a block; only those are sorted in full.
            over = torch.nonzero(values[:, 0] >= bar).squeeze(1)
            if len(over):
                some = scores[over]
                near = some >= bar[over, None]
                left_out[over] += near.sum(dim=1)
                values[over], at[over] = some.masked_fill_(near, -torch.inf).topk(values.shape[1], dim=1)
            best, chosen = torch.cat([best, values], dim=1).topk(count, dim=1)
            places = torch.cat([places, at + start], dim=1).gather(1, chosen)
        return Found.ranked(best.cpu().numpy(), places.cpu().numpy(), left_out.cpu().numpy())


class ApproximateSearch(Search):
    """HNSW indexes of parts of the candidates: each is built in memory, then read from disk.

    Finished parts of an interrupted run are reused.

    Args:
        vectors: See `Search`.
        rows: See `Search`.
        folder: Holds the indexes.
        memory: Maximum bytes for building one index.
        tag: Identifies the vectors in the indexes' names, so that indexes of other vectors are not used.
        progress: Show a progress bar.

    Raises:
        MissingExtraError: usearch is not installed.
        InputError: An index cannot be written.
    """

    def __init__(
        self,
        vectors: npt.NDArray[np.float16],
        rows: _Positions,
        *,
        folder: Path,
        memory: int,
        tag: str,
        progress: bool = False,
    ) -> None:
        super().__init__(vectors, rows)
        try:
            import usearch  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("an approximate index needs usearch: pip install 'abc-rag[train]'") from error
        each = max(_BLOCK, memory // (2 * vectors.shape[1] + _INDEX_BYTES) // _BLOCK * _BLOCK)
        with progress_bar("indexing captions", total=len(rows), enabled=progress) as bar:
            bounds = [(start, min(start + each, len(rows))) for start in range(0, len(rows), each)]
            self._parts = [
                self._part(folder / f"{tag}-{start}-{end}.usearch", start, end, bar) for start, end in bounds
            ]

    def _part(self, path: Path, start: int, end: int, bar: Progress) -> Any:  # noqa: ANN401
        from usearch.index import Index

        if not path.is_file():
            index = Index(
                ndim=self._vectors.shape[1], metric="ip", dtype="f16", connectivity=_LINKS, expansion_add=4 * _LINKS
            )
            # Concurrent insertion may leave a vector unreachable, which matters in a small index; it is also not
            # deterministic.
            threads = 1 if end - start <= _SMALL else 0
            for first in range(start, end, _BLOCK):
                block = np.array(self._block(first)[: end - first])
                for begin in range(0, len(block), _ADD):
                    some = block[begin : begin + _ADD]
                    index.add(
                        np.arange(first + begin, first + begin + len(some), dtype=np.uint64), some, threads=threads
                    )
                    bar.advance(len(some))
            with writing(path), new_file(path) as draft:
                try:
                    index.save(str(draft))
                except RuntimeError as error:
                    raise OSError(str(error)) from error
        else:
            bar.advance(end - start)
        return Index.restore(str(path), view=True)

    def nearest(self, queries: Vectors, bars: Vectors, forbidden: Sequence[_Positions], count: int) -> Found:
        """See `Search.nearest`. Fetches more where too many of the first neighbours had to be left out."""
        result = Found.nothing(len(queries), count)
        todo = np.arange(len(queries))
        fetched = min(len(self._rows), count + count // 2 + max((len(one) for one in forbidden), default=0) + 8)
        while len(todo):
            found, at = self._ask(queries[todo], fetched)
            short = []
            for place, query in enumerate(todo.tolist()):
                allowed = np.isfinite(found[place]) & ~np.isin(at[place], forbidden[query])
                below = allowed & (found[place] < bars[query])
                result.left_out[query] = int((allowed & ~below).sum())
                best = np.flatnonzero(below)[:count]
                result.scores[query, : len(best)] = found[place, best]
                result.positions[query, : len(best)] = at[place, best]
                if len(best) < count:
                    short.append(query)
            todo = np.array(short, dtype=np.int64)
            if fetched >= min(len(self._rows), _MOST_FETCHED):
                break
            fetched = min(len(self._rows), 4 * fetched, _MOST_FETCHED)
        return Found.ranked(result.scores, result.positions, result.left_out)

    def _ask(self, queries: Vectors, count: int) -> tuple[Vectors, _Positions]:
        """The ``count`` nearest candidates of all parts, highest score first."""
        scores, positions = [], []
        for index in self._parts:
            index.expansion_search = max(8 * _LINKS, 2 * count)
            wanted = min(count, len(index))
            matches = index.search(queries.astype(np.float16), wanted)
            # The result of a single query lacks the first dimension.
            at = np.asarray(matches.keys, dtype=np.int64).reshape(len(queries), -1)
            distances = np.asarray(matches.distances, dtype=np.float32).reshape(len(queries), -1)
            counts = np.asarray(getattr(matches, "counts", [at.shape[1]]))[:, None]
            missing = np.arange(at.shape[1])[None, :] >= counts
            scores.append(np.where(missing, -np.inf, 1 - distances).astype(np.float32))
            positions.append(np.where(missing, -1, at))
        found, at = np.concatenate(scores, axis=1), np.concatenate(positions, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(at, order, axis=1)
