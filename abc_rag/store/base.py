"""The seam between this package and a vector store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from abc_rag.errors import InputError
from abc_rag.store.facets import Facets
from abc_rag.store.filters import SOURCE, Test, parse
from abc_rag.store.keywords import Keywords
from abc_rag.store.pictures import KEPT, KeptPictures
from abc_rag.store.records import checked_ids, checked_records, unit_rows
from abc_rag.store.roots import Roots, state_folder
from abc_rag.store.table import Table
from abc_rag.types import Hit, Modality, Record, Vectors

__all__ = ["Store"]


class Store(ABC):
    """Records with their vectors, found by vector, id and metadata.

    This class holds all rules that are the same for every store: checks, unit vectors, facets, kept pictures, filters
    and order. A backend brings two tables (`abc_rag.store.table.Table`), one for the records and one for the facets,
    and implements `fingerprint`, `close` and ``__reduce__``. The contract, which ``tests/store/test_base.py`` runs
    over every store there is:

    **Records.** An id names one record. Adding an id again replaces the record whole, metadata included. What comes
    back equals what went in; what cannot come back is refused on the way in, with the record's id and the field or
    key. A damaged record, which something else wrote, is left out with a logged warning, and breaks nothing else.
    `add` returns once everything is safe on the disk: a process that is killed at any moment loses nothing that was
    acknowledged and doubles nothing.

    **Vectors.** All of a store's vectors have one length. They are kept with unit length, and searched by cosine.

    **Facets.** A picture may have further vectors, each under an instruction; a search takes the best of them and
    returns each picture once. They follow their picture: its deletion deletes them, another vector drops them,
    another source or other metadata becomes theirs too.

    **Keywords.** A store may have a keyword index of passages, captions and file names, for `search_words`. It is
    exact: what is added is found at once, and what is replaced or deleted is not found any more. A query is data:
    whatever is in it, it does not fail.

    **Kept pictures.** A store may have a folder of its own for copies of pictures. A record refers to its copy
    relative to that folder; the copy goes when the last record that refers to it is deleted.

    **Roots.** Pictures that are not kept stay where they are. A store knows from which files and folders they may be
    opened again on this machine (`abc_rag.store.roots`), whatever its records say.

    **Filters.** `abc_rag.store.filters` says what a filter may ask, for every store alike.

    **Fingerprints.** A store remembers whose vectors it holds. It is marked by the first `add`, and no store can be
    opened for another fingerprint from then on.

    **Writers.** All methods may be called from many threads. Whether several processes may write at once is the
    backend's affair: one that takes a single writer refuses the second with `StoreLockedError`, which names the
    holder. Readers never wait for a writer of another process unless it has written since they looked last.

    **Errors.** Everything that is raised is one of `abc_rag.errors`, and says what to do.

    Args:
        records: The table of records.
        facets: The table of facets.
        pictures: The folder for kept pictures, if there is one.
        roots: From where pictures may be opened again.
    """

    def __init__(self, records: Table, facets: Table, pictures: KeptPictures | None, roots: Roots) -> None:
        self._records = records
        self._facets = Facets(facets, records)
        self._pictures = pictures
        self._roots = roots

    # -- what a backend implements, besides the tables -----------------------------------------

    @property
    @abstractmethod
    def fingerprint(self) -> str | None:
        """The model whose vectors are stored; before there are any, the one that the store was opened for, if any."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent; any other method raises `StoreError` afterwards."""

    @abstractmethod
    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles travel as the store's settings, and open the same place again."""

    @abstractmethod
    def repair(self) -> int:
        """Build everything that serves to find records anew from what is safe; return how many records there are.

        Raises:
            StoreError: The backend keeps no copy of its own, such as a server, which looks after itself.
        """

    def check(self) -> list[str]:
        """Compare what is stored with what can be found; takes a search for every record, where an index is searched.

        Returns:
            A line for each problem: records that are damaged, there twice, or not found by their own vector, vectors
            without unit length, facets without their picture, copies of pictures that are missing, damaged or nobody's,
            and what the keyword index lacks. None if all is well.
        """
        found = [*self._records.problems("record"), *self._facets.rows.problems("facet"), *self._facets.orphans()]
        found += [*self._records.unfound("record"), *self._facets.rows.unfound("facet")]
        if self._pictures is not None:
            found += self._pictures.problems(
                record for page in self._records.scan("records") for record in page.records
            )
        return [*found, *self._records.word_problems()]

    # -- opening and closing -------------------------------------------------------------------

    def __copy__(self) -> Self:
        make, arguments = self.__reduce__()
        copied: Self = make(*arguments)
        return copied

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what is there -------------------------------------------------------------------------

    @property
    def roots(self) -> Roots:
        """The files and folders from which pictures of this store may be opened again on this machine."""
        return self._roots

    @property
    def notes_file(self) -> Path:
        """Where `abc_rag.ingest.index_paths` notes which files it has read: beside the user's state on this machine."""
        return state_folder() / "files.sqlite3"

    @property
    def dim(self) -> int | None:
        """Length of the stored vectors; None while there are none."""
        return self._records.dim()

    def count(self) -> int:
        """How many records there are."""
        return self._records.count()

    def ids(self) -> Iterator[str]:
        """Every id, a page at a time. Do not write meanwhile: pages would shift."""
        for page in self._records.scan("ids"):
            yield from page.ids

    def records(self, where: Mapping[str, Any] | None = None, *, modality: Modality | None = None) -> Iterator[Record]:
        """Every record that a filter lets through, a page at a time. Do not write meanwhile: pages would shift.

        Args:
            where: As for `search`.
            modality: Only pictures, or only passages.

        Raises:
            InputError: The filter cannot be used.
            StoreError: The store cannot be read.
        """
        for page in self._records.scan("records", parse(where, modality)):
            yield from map(self._public, page.records)

    def pages(self) -> Iterator[tuple[list[Record], Vectors]]:
        """Every record with its vector, some at a time. Do not write meanwhile: pages would shift."""
        for page in self._records.scan("records"):
            vectors = self._records.vectors(record.id for record in page.records)
            records = [record for record in page.records if record.id in vectors]
            if records:
                yield [self._public(record) for record in records], np.stack([vectors[r.id] for r in records])

    def facet_pages(self) -> Iterator[tuple[str, list[str], Vectors]]:
        """Every facet, some at a time: the instruction, the ids of pictures, and a vector of each."""
        yield from self._facets.pages()

    def kept(self, vectors: Vectors) -> Vectors:
        """Unit vectors as they come back: where numbers are kept with less precision, they are rounded."""
        return self._records.kept(vectors)

    def is_copy(self, record: Record) -> bool:
        """Whether a record's picture is a copy that `keep_picture` made."""
        return self._pictures is not None and self._pictures.to_stored(record).source_type == KEPT

    def has(self, ids: Iterable[str]) -> set[str]:
        """Which of ``ids`` are stored."""
        return self._records.has(checked_ids(ids))

    def get(self, ids: Iterable[str]) -> list[Record]:
        """The records of ``ids``, in the order asked; ids that are not stored are left out."""
        asked = checked_ids(ids)
        found = self._records.get(asked)
        return [self._public(found[id_]) for id_ in asked if id_ in found]

    def vectors(self, ids: Iterable[str]) -> dict[str, Vectors]:
        """The vectors of those of ``ids`` that are stored: float32 unit vectors of shape ``(dim,)``."""
        return self._records.vectors(checked_ids(ids))

    # -- writing -------------------------------------------------------------------------------

    def add(self, records: Sequence[Record], vectors: npt.ArrayLike) -> list[str]:
        """Store records with their vectors. A record whose id is stored already is replaced whole.

        Of records with the same id in one call the last one counts. Nothing is written unless all
        records are sound. They are written in several requests: if one fails, those before it stay,
        and adding everything again is safe.

        Args:
            records: What to store; ids are required (see `text_id` and `image_id`). Metadata values
                are str, int, float, bool, or lists of one of these; numpy's scalars count as Python's. Keys
                starting with ``abc:`` or ``chroma:`` are reserved.
            vectors: Shape ``(len(records), dim)``. Rows need not have unit length; they are stored so.

        Returns:
            The ids, in the order of ``records``.

        Raises:
            InputError: A record or a vector cannot be stored; the message names its id. Or ``dim``
                is not that of the stored vectors.
            FingerprintMismatchError: Meanwhile the store got another model's mark.
            StoreLockedError: Another process is writing.
            StoreError: The store cannot be written to.
        """
        checked = checked_records(records)
        rows = unit_rows(vectors, [record.id for record in checked])
        last = {record.id: position for position, record in enumerate(checked)}
        if not last:
            return []
        if len(last) < len(checked):
            checked, rows = [checked[position] for position in last.values()], rows[list(last.values())]
        if self._pictures is not None:
            checked = [self._pictures.to_stored(record) for record in checked]
        self._facets.forget_changed(checked, rows)
        self._records.put(checked, rows)
        self._facets.follow(checked)
        return [record.id for record in records]

    def delete(self, ids: Iterable[str]) -> int:
        """Delete records; return how many of ``ids`` were there.

        Raises:
            StoreLockedError: Another process is writing.
            StoreError: The store cannot be written to.
        """
        asked = list(dict.fromkeys(checked_ids(ids)))
        if not asked:
            return 0
        # Facets first, so that a deletion that is cut short leaves none without its picture.
        self._facets.delete(asked)
        kept = {}
        if self._pictures is not None:
            kept = {r.source: None for r in self._records.get(asked).values() if r.source_type == KEPT}
        removed = self._records.remove(asked)
        for source in kept:
            if self._pictures is not None and self._records.read("ids", where=Test(SOURCE, "$eq", source)) is None:
                self._pictures.forget(source)
        return removed

    # -- facets and pictures -------------------------------------------------------------------

    def add_facets(self, ids: Sequence[str], instruction: str, vectors: npt.ArrayLike) -> None:
        """Store a further vector of each of some pictures: what it is under ``instruction``.

        A search takes the best of a picture's vectors. Facets go with their picture: they are deleted with it, and
        dropped when it is stored again with another vector. Storing one again replaces it.

        Args:
            ids: Stored pictures.
            instruction: What was looked at.
            vectors: Shape ``(len(ids), dim)``.

        Raises:
            InputError: The instruction is blank, or an id is not that of a stored picture.
            StoreError: As `add` does.
        """
        self._facets.add(ids, instruction, vectors)

    def facet_names(self, ids: Iterable[str]) -> dict[str, set[str]]:
        """The instructions under which each of ``ids`` has a facet; ids without any are left out."""
        return self._facets.names(ids)

    def facet_vectors(self, ids: Iterable[str], instruction: str) -> dict[str, Vectors]:
        """The vectors of those of ``ids`` that have a facet of exactly this instruction."""
        return self._facets.vectors(ids, instruction)

    @property
    def keeps_pictures(self) -> bool:
        """Whether `keep_picture` has a folder to copy into."""
        return self._pictures is not None

    def keep_picture(self, data: bytes, mime_type: str) -> str:
        """Copy a picture's encoded bytes into the store's folder; return the path, to be a record's source.

        The copy is named by its content, and goes when the last record that has it as its source is deleted.
        Records refer to it relative to that folder, so a store's directory can be moved.

        Args:
            data: The encoded bytes.
            mime_type: Their type, such as ``"image/jpeg"``.

        Raises:
            InputError: The type is not that of a picture that is read, or the store has no folder for pictures.
            StoreError: The copy cannot be written.
        """
        if self._pictures is None:
            raise InputError(f"{self!r} holds no pictures; open the store with pictures=FOLDER to keep them")
        return self._pictures.keep(data, mime_type)

    # -- searching -----------------------------------------------------------------------------

    def search(
        self,
        vector: npt.ArrayLike,
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        *,
        modality: Modality | None = None,
    ) -> list[Hit]:
        """The ``k`` records nearest to a vector, best first; equal scores in the order of their ids.

        Args:
            vector: Shape ``(dim,)``; need not have unit length.
            k: How many; all there are where that is fewer.
            where: A filter over metadata, such as ``{"page": {"$gte": 3}}``; see `abc_rag.store.filters`.
            modality: Only pictures, or only passages.

        Returns:
            Hits with scores ``(1 + cosine) / 2``, in [0, 1]. An empty store gives none.

        Raises:
            InputError: The vector, ``k`` or the filter cannot be used.
            StoreError: The store cannot be read.
        """
        row = np.asarray(vector)
        if row.ndim != 1:
            raise InputError(f"vector must have shape (dim,), not {row.shape}; for several use search_many")
        return self.search_many(row[None], k, where, modality=modality)[0]

    def search_many(
        self,
        vectors: npt.ArrayLike,
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        *,
        modality: Modality | None = None,
    ) -> list[list[Hit]]:
        """`search` for each row of ``vectors``, shape ``(n, dim)``; one list of hits a row."""
        k = _checked_k(k)
        condition = parse(where, modality)
        rows = unit_rows(vectors)
        hits = self._records.nearest(rows, k, condition)
        if modality != "text" and any(hits):
            hits = self._facets.merged(rows, k, condition, hits)
        return [self._shown(found) for found in hits]

    @property
    def has_words(self) -> bool:
        """Whether there is a keyword index, which `search_words` needs."""
        return self._records.has_words()

    def search_words(
        self,
        query: str | Keywords,
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        *,
        modality: Modality | None = None,
    ) -> list[Hit]:
        """The ``k`` records that match the words of a query best, by BM25; equal scores in the order of their ids.

        Passages, captions and file names are searched. One word of the query is enough for a match. A phrase in
        quotation marks has to be there word for word, and a word or phrase after a minus sign must not be there. Case
        and diacritics do not count. Scripts without spaces and parts of names such as ``MX-4471-B`` are found as well.

        Args:
            query: A question, or one that `abc_rag.store.keywords.Keywords` has read.
            k: Maximum number of hits.
            where: As for `search`.
            modality: Only pictures, or only passages.

        Returns:
            Hits with scores ``bm25 / (1 + bm25)``, in [0, 1). None where no word matches.

        Raises:
            InputError: ``query``, ``k`` or the filter cannot be used.
            StoreError: There is no keyword index, or the store cannot be read.
        """
        condition = parse(where, modality)
        return self._shown(self._records.matching(_read(query), _checked_k(k), condition))

    def allowed_by(self, query: str | Keywords, ids: Iterable[str]) -> set[str]:
        """Which of ``ids`` have every quoted phrase of a query, and nothing that it excludes by a minus sign.

        Raises:
            InputError: ``query`` is no str.
            StoreError: As `search_words` does.
        """
        return self._records.meeting(_read(query), checked_ids(ids))

    def _shown(self, hits: list[Hit]) -> list[Hit]:
        if self._pictures is None:
            return hits
        return [replace(h, record=self._public(h.record)) if h.record.source_type == KEPT else h for h in hits]

    def _public(self, record: Record) -> Record:
        if self._pictures is None or record.source_type != KEPT:
            return record
        return self._pictures.to_public(record)


def _checked_k(k: object) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k must be a positive int, not {k!r}")
    return int(k)


def _read(query: object) -> Keywords:
    if isinstance(query, Keywords):
        return query
    if not isinstance(query, str):
        raise InputError(f"a query of words must be a str, not {type(query).__name__}")
    return Keywords.of(query)
