"""Facets: further vectors of a picture, each under an instruction, in a table beside the pictures' own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from abc_rag.errors import InputError
from abc_rag.store.filters import OF, Condition, Test
from abc_rag.store.records import checked_ids, checked_instruction, unit_rows
from abc_rag.store.table import Column, Page, Table, pages
from abc_rag.types import Hit, Record, Vectors

__all__ = ["Facets", "facet_id", "facet_row"]

# Facet rows asked for at first, per picture wanted.
_PER_PICTURE = 4


class Facets:
    """The rows of facets: id ``PICTURE#HASH``, the instruction as the text, everything else as the picture has it.

    Args:
        rows: The facets.
        pictures: The table of the pictures.
    """

    def __init__(self, rows: Table, pictures: Table) -> None:
        self.rows = rows
        self._pictures = pictures

    def add(self, ids: Sequence[str], instruction: str, vectors: npt.ArrayLike) -> None:
        """See `abc_rag.store.base.Store.add_facets`."""
        checked_instruction(instruction)
        asked = checked_ids(ids)
        records = self._pictures.get(asked)
        for id_ in asked:
            if id_ not in records:
                raise InputError(f"record {id_!r} is not stored; add it before its facets")
            if records[id_].modality != "image":
                raise InputError(f"record {id_!r} is a passage; only pictures have facets")
        rows, dim = unit_rows(vectors, asked), self._pictures.dim()
        if asked and rows.shape[1] != dim:
            raise InputError(f"the facets have {rows.shape[1]} dimensions, but their pictures {dim}; use one model")
        last = {id_: position for position, id_ in enumerate(asked)}
        if last:
            facets = [facet_row(records[id_], instruction) for id_ in last]
            self.rows.put(facets, rows[list(last.values())])

    def names(self, ids: Iterable[str]) -> dict[str, set[str]]:
        """The instructions of each picture that has facets."""
        found: dict[str, set[str]] = {}
        for page in self._belonging("records", ids):
            for record in page.records:
                found.setdefault(_picture_of(record.id), set()).add(record.text)
        return found

    def vectors(self, ids: Iterable[str], instruction: str) -> dict[str, Vectors]:
        """The vector of each picture that has a facet of exactly this instruction."""
        checked_instruction(instruction)
        names = {facet_id(id_, instruction): id_ for id_ in checked_ids(ids)}
        return {names[row]: vector for row, vector in self.rows.vectors(names).items()}

    def delete(self, ids: Iterable[str]) -> None:
        """Delete the facets of pictures."""
        if rows := [id_ for page in self._belonging("ids", ids) for id_ in page.ids]:
            self.rows.remove(rows)

    def forget_changed(self, records: Sequence[Record], vectors: Vectors) -> None:
        """Before records are stored anew: drop the facets of those that change their vector, or become passages."""
        have = self.names(record.id for record in records)
        rows = self._pictures.kept(vectors)
        new = {record.id: (record, row) for record, row in zip(records, rows, strict=True) if record.id in have}
        old = self._pictures.vectors(new)
        self.delete(
            id_
            for id_, (record, row) in new.items()
            if record.modality != "image" or id_ not in old or _changed(row, old[id_])
        )

    def follow(self, records: Sequence[Record]) -> None:
        """After pictures were stored anew: give their facets the same source and metadata."""
        new = {record.id: record for record in records}
        # By their ids, as the pages of a filter might shift under what is written.
        names = [id_ for page in self._belonging("ids", new) for id_ in page.ids]
        for some in pages(names):
            facets = self.rows.get(some)
            vectors = self.rows.vectors(facets)
            parents = [_picture_of(id_) for id_ in facets]
            rows = [facet_row(new[of], old.text) for of, old in zip(parents, facets.values(), strict=True)]
            if rows:
                self.rows.put(rows, np.stack([vectors[id_] for id_ in facets]))

    def pages(self) -> Iterator[tuple[str, list[str], Vectors]]:
        """See `abc_rag.store.base.Store.facet_pages`."""
        for page in self.rows.scan("records"):
            vectors = self.rows.vectors(record.id for record in page.records)
            instructions: dict[str, list[str]] = {}
            for record in page.records:
                if record.id in vectors:
                    instructions.setdefault(record.text, []).append(record.id)
            for instruction, names in instructions.items():
                yield instruction, list(map(_picture_of, names)), np.stack([vectors[name] for name in names])

    def orphans(self) -> Iterator[str]:
        """A line for each facet without its picture."""
        for page in self.rows.scan("ids"):
            there = self._pictures.has(map(_picture_of, page.ids))
            for id_ in page.ids:
                if _picture_of(id_) not in there:
                    yield f"facet {id_!r} has no picture"

    def merged(self, rows: Vectors, k: int, where: Condition | None, hits: list[list[Hit]]) -> list[list[Hit]]:
        """``hits`` with each picture at the best of its own vector and its facets, and pictures that facets found."""
        records = {hit.record.id: hit.record for found in hits for hit in found}
        best = self._nearest(rows, k, where, records)
        if not any(best):
            return hits
        merged = []
        for mine, near in zip(hits, best, strict=True):
            found = {hit.record.id: hit for hit in mine}
            for id_, (score, instruction) in near.items():
                if id_ in records and (id_ not in found or score > found[id_].score):
                    found[id_] = Hit(records[id_], score, instruction)
            merged.append(sorted(found.values(), key=lambda hit: (-hit.score, hit.record.id))[:k])
        return merged

    def _nearest(
        self, rows: Vectors, k: int, where: Condition | None, records: dict[str, Record]
    ) -> list[dict[str, tuple[float, str]]]:
        """For each row: the best facet of each of at least ``k`` pictures, where there are as many.

        The pictures are added to ``records``, except those that are gone (by a deletion that was cut short).
        """
        best: list[dict[str, tuple[float, str]]] = [{} for _ in rows]
        gone: set[str] = set()
        numbers, wanted = list(range(len(rows))), _PER_PICTURE * k
        while numbers:
            found = self.rows.nearest(rows[numbers], wanted, where)
            for number, hits in zip(numbers, found, strict=True):
                for hit in hits:
                    best[number].setdefault(_picture_of(hit.record.id), (hit.score, hit.record.text))
            new = {id_ for number in numbers for id_ in best[number] if id_ not in records and id_ not in gone}
            if new:
                pictures = self._pictures.get(new)
                records.update((id_, record) for id_, record in pictures.items() if record.modality == "image")
                gone |= new - records.keys()
            numbers = [
                number
                for number, hits in zip(numbers, found, strict=True)
                if len(hits) == wanted and len(best[number].keys() - gone) < k
            ]
            wanted *= 4
        return best

    def _belonging(self, column: Column, ids: Iterable[str]) -> Iterator[Page]:
        asked = list(dict.fromkeys(checked_ids(ids)))
        if not asked or self.rows.dim() is None:
            return
        for some in pages(asked):
            yield from self.rows.scan(column, Test(OF, "$in", tuple(some)))


def facet_id(picture: str, instruction: str) -> str:
    """The id of a facet's row."""
    return f"{picture}#{hashlib.sha256(instruction.encode()).hexdigest()[:16]}"


def _picture_of(row: str) -> str:
    return row.rpartition("#")[0]


def facet_row(picture: Record, instruction: str) -> Record:
    """A facet's row: everything but its id and its text is as the picture has it."""
    return replace(picture, id=facet_id(picture.id, instruction), text=instruction)


def _changed(new: Vectors, old: Vectors) -> bool:
    # One of another length will be refused when it is written.
    return new.shape == old.shape and not np.allclose(new, old, rtol=0, atol=1e-4)
