"""Facets: further vectors of a picture, each under an instruction, in a collection beside the pictures' own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from abc_rag.errors import InputError
from abc_rag.store.base import _check_instruction, _checked_ids, _checked_rows
from abc_rag.store.chroma.records import _OF, _PAGE
from abc_rag.types import Hit, Record, Vectors

if TYPE_CHECKING:
    from abc_rag.store.chroma.store import ChromaStore

_SUFFIX = ".facets"
# Facet rows asked for at first, per picture wanted.
_PER_PICTURE = 4


def _facet_id(parent: str, instruction: str) -> str:
    return f"{parent}#{hashlib.sha256(instruction.encode()).hexdigest()[:16]}"


class _Facets:
    """The rows of facets: id ``PICTURE#HASH``, the instruction as the text, all else as the picture has it.

    Args:
        table: A store of the rows.
        pictures: The store of the pictures.
    """

    def __init__(self, table: ChromaStore, pictures: ChromaStore) -> None:
        self._table = table
        self._pictures = pictures

    def add(self, ids: Sequence[str], instruction: str, vectors: npt.ArrayLike) -> None:
        _check_instruction(instruction)
        asked = _checked_ids(ids)
        records = {record.id: record for record in self._pictures._raw(asked)}
        for id_ in asked:
            if id_ not in records:
                raise InputError(f"record {id_!r} is not stored; add it before its facets")
            if records[id_].modality != "image":
                raise InputError(f"record {id_!r} is a passage; only pictures have facets")
        facets = [_row(records[id_], instruction) for id_ in asked]
        rows, dim = _checked_rows(facets, vectors), self._pictures.dim
        if asked and rows.shape[1] != dim:
            raise InputError(f"the facets have {rows.shape[1]} dimensions, but their pictures {dim}; use one model")
        self._table._put(facets, rows, [{_OF: id_} for id_ in asked])

    def names(self, ids: Iterable[str]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for page in self._rows_of(ids, ["documents", "metadatas"]):
            for metadata, text in zip(page["metadatas"], page["documents"], strict=True):
                found.setdefault(metadata[_OF], set()).add(text)
        return found

    def vectors(self, ids: Iterable[str], instruction: str) -> dict[str, Vectors]:
        _check_instruction(instruction)
        names = {_facet_id(id_, instruction): id_ for id_ in _checked_ids(ids)}
        return {names[row]: vector for row, vector in self._table.vectors(names).items()}

    def delete(self, ids: Iterable[str]) -> None:
        rows = [id_ for page in self._rows_of(ids, []) for id_ in page["ids"]]
        if rows:
            self._table.delete(rows)

    def forget_changed(self, records: Sequence[Record], vectors: Vectors) -> None:
        """Before records are stored anew: drop the facets of those that change their vector, or become passages."""
        have = self.names(record.id for record in records)
        new = {record.id: (record, row) for record, row in zip(records, vectors, strict=True) if record.id in have}
        old = self._pictures.vectors(new)
        self.delete(
            id_
            for id_, (record, row) in new.items()
            if record.modality != "image" or id_ not in old or _changed(row, old[id_])
        )

    def follow(self, records: Sequence[Record]) -> None:
        """After pictures were stored anew: give their facets the same source and metadata."""
        new = {record.id: record for record in records}
        # By their ids, as pages of a filter might shift under what is written.
        facets = [id_ for page in self._rows_of(new, []) for id_ in page["ids"]]
        for page in self._table._fetch(facets, ["documents", "metadatas", "embeddings"]):
            parents = [metadata[_OF] for metadata in page["metadatas"]]
            rows = [_row(new[parent], text) for parent, text in zip(parents, page["documents"], strict=True)]
            self._table._put(rows, page["embeddings"], [{_OF: parent} for parent in parents])

    def merged(self, rows: Vectors, k: int, where: Mapping[str, Any] | None, hits: list[list[Hit]]) -> list[list[Hit]]:
        """``hits`` with each picture at the best of its own vector and its facets, and pictures that facets found."""
        records = {hit.record.id: hit.record for found in hits for hit in found}
        best = self._nearest(rows, k, where, records)
        merged = []
        for mine, near in zip(hits, best, strict=True):
            found = {hit.record.id: hit for hit in mine}
            for id_, (score, instruction) in near.items():
                if id_ in records and (id_ not in found or score > found[id_].score):
                    found[id_] = Hit(records[id_], score, instruction)
            merged.append(sorted(found.values(), key=lambda hit: (-hit.score, hit.record.id))[:k])
        return merged

    def _nearest(
        self, rows: Vectors, k: int, where: Mapping[str, Any] | None, records: dict[str, Record]
    ) -> list[dict[str, tuple[float, str]]]:
        """For each row: the best facet of each of at least ``k`` pictures, where there are so many.

        The pictures are added to ``records``, all but those that are gone (by a deletion that was cut short).
        """
        best: list[dict[str, tuple[float, str]]] = [{} for _ in rows]
        gone: set[str] = set()
        numbers, wanted = list(range(len(rows))), _PER_PICTURE * k
        while numbers:
            found = self._table._search_own(rows[numbers], wanted, where, None)
            for number, hits in zip(numbers, found, strict=True):
                for hit in hits:
                    best[number].setdefault(hit.record.id.rpartition("#")[0], (hit.score, hit.record.text))
            new = {id_ for number in numbers for id_ in best[number] if id_ not in records and id_ not in gone}
            records.update((record.id, record) for record in self._pictures._raw(new) if record.modality == "image")
            gone |= new - records.keys()
            numbers = [
                number
                for number, hits in zip(numbers, found, strict=True)
                if len(hits) == wanted and len(best[number].keys() - gone) < k
            ]
            wanted *= 4
        return best

    def _rows_of(self, ids: Iterable[str], include: list[str]) -> Iterable[dict[str, Any]]:
        asked = list(dict.fromkeys(_checked_ids(ids)))
        for start in range(0, len(asked), _PAGE):
            page = asked[start : start + _PAGE]
            yield from self._table._pages(include, where={_OF: {"$in": page}})


def _row(record: Record, instruction: str) -> Record:
    return replace(record, id=_facet_id(record.id, instruction), text=instruction)


def _changed(new: Vectors, old: Vectors) -> bool:
    # One of another length will be refused when it is written.
    return new.shape == old.shape and not np.allclose(new, old, rtol=0, atol=1e-4)
