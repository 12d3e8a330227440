"""The datasets that a run fills: fragments are written by workers, and committed by the driver."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from abc_rag.errors import StoreError
from abc_rag.store.facets import facet_row
from abc_rag.store.lance.client import import_lance, is_missing, translated
from abc_rag.store.lance.rows import RECORD, Dtype, check, create, dataset_uri, records_of, table_of, tidy
from abc_rag.store.lance.where import quoted
from abc_rag.store.records import unit_rows
from abc_rag.types import Record, Vectors

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

__all__ = ["Lake", "Made", "Written", "lake_of"]

_PAGE = 10_000
_LOOKED_UP = 1000


class Made(NamedTuple):
    """The vectors of an item.

    Attributes:
        record: The item.
        vectors: Its own, if ``is_new``, then one for each facet: float32 of shape ``(n, dim)``.
        is_new: Whether its own is among them.
        facets: Instructions.
    """

    record: Record
    vectors: Vectors
    is_new: bool
    facets: Sequence[str]


class Written(NamedTuple):
    """Fragments that are no part of a dataset yet.

    Attributes:
        fragments: Of each, Lance's description as JSON.
        ids: Of their rows.
    """

    fragments: list[str]
    ids: list[str]


@dataclass(frozen=True)
class Lake:
    """A collection in Lance datasets.

    Attributes:
        place: A folder, without links and absolute, or an object store.
        collection: Its name.
    """

    place: str
    collection: str

    def uri(self, *, facets: bool = False) -> str:
        """Where the records are, or the facets."""
        return dataset_uri(self.place, self.collection, facets=facets)

    @property
    def failed_uri(self) -> str:
        """Where the table of failed items is."""
        return dataset_uri(self.place, f"{self.collection}.failed")

    def opened(self, *, facets: bool = False) -> lance.LanceDataset | None:
        """A dataset as it is now; None if there is none."""
        return _opened(self.uri(facets=facets), self.place)

    def prepare(self, dim: int, dtype: Dtype, fingerprint: str, *, facets: bool) -> None:
        """Make the datasets, or refuse those of another model.

        Raises:
            FingerprintMismatchError: They hold another model's vectors.
            StoreError: They cannot be written.
        """
        with translated(self.place):
            for kind in (False, True) if facets else (False,):
                made = self.opened(facets=kind) or create(
                    self.uri(facets=kind), dim, dtype=dtype, fingerprint=fingerprint
                )
                check(made, self.place, fingerprint)

    def ids(self, *, facets: bool) -> Iterator[list[str]]:
        """All ids, some at a time."""
        dataset = self.opened(facets=facets)
        with translated(self.place):
            if dataset is not None:
                for batch in dataset.scanner(columns=["id"], batch_size=_PAGE).to_batches():
                    yield batch.column("id").to_pylist()

    def write(self, made: Sequence[Made]) -> tuple[Written, Written]:
        """Write fragments of records and of facets."""
        new = [one for one in made if one.is_new]
        known = self._records([one.record.id for one in made if not one.is_new])
        facets: list[tuple[Record, Vectors]] = []
        for one in made:
            picture = known.get(one.record.id, one.record)
            rows = one.vectors[1:] if one.is_new else one.vectors
            facets += [(facet_row(picture, told), row) for told, row in zip(one.facets, rows, strict=True)]
        return (
            self._fragments([(one.record, one.vectors[0]) for one in new], facets=False),
            self._fragments(facets, facets=True),
        )

    def _records(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        dataset = self.opened() if ids else None
        with translated(self.place):
            for start in range(0, len(ids) if dataset is not None else 0, _LOOKED_UP):
                among = f"id IN ({', '.join(map(quoted, ids[start : start + _LOOKED_UP]))})"
                rows = dataset.scanner(columns=RECORD, filter=among).to_table()  # type: ignore[union-attr]
                found.update((record.id, record) for record in records_of(rows))
        return found

    def _fragments(self, rows: Sequence[tuple[Record, Vectors]], *, facets: bool) -> Written:
        if not rows:
            return Written([], [])
        from lance.fragment import write_fragments

        records = [record for record, _ in rows]
        ids = [record.id for record in records]
        with translated(self.place):
            dataset = self.opened(facets=facets)
            if dataset is None:
                raise StoreError(f"{self.place}: the dataset was deleted during the run; run it again")
            table = table_of(records, unit_rows(np.stack([row for _, row in rows]), ids), dataset.schema, facets=facets)
            fragments = write_fragments(
                table, self.uri(facets=facets), schema=dataset.schema, mode="append", enable_stable_row_ids=True
            )
        return Written([json.dumps(fragment.to_json()) for fragment in fragments], ids)

    def commit(self, written: Written, since: int, *, facets: bool) -> int:
        """Make fragments a part of their dataset, all or none of them; the ids are new.

        Args:
            written: The fragments.
            since: The version up to which it is known that none of their ids is stored.
            facets: Whether they are facets.

        Returns:
            The version with them.

        Raises:
            StoreError: Somebody else has stored some of the ids meanwhile; nothing was committed.
        """
        lance = import_lance()
        with translated(self.place):
            dataset = lance.dataset(self.uri(facets=facets))
            if dataset.version != since:
                for start in range(0, len(written.ids), _LOOKED_UP):
                    among = f"id IN ({', '.join(map(quoted, written.ids[start : start + _LOOKED_UP]))})"
                    if dataset.count_rows(among):
                        raise StoreError(
                            f"{self.place}: somebody else stores the same items at the same time; run this again when "
                            "the other has ended, it goes on where it stopped"
                        )
            fragments = [lance.FragmentMetadata.from_json(one) for one in written.fragments]
            done = lance.LanceDataset.commit(
                self.uri(facets=facets), lance.LanceOperation.Append(fragments), read_version=dataset.version
            )
            return int(done.version)

    def versions(self) -> dict[bool, int]:
        """The present versions of the records (False) and the facets (True)."""
        return {facets: dataset.version if (dataset := self.opened(facets=facets)) else 0 for facets in (False, True)}

    def tidy(self, *, facets: bool) -> None:
        """Join small fragments where there are many."""
        dataset = self.opened(facets=facets)
        if dataset is not None:
            with translated(self.place):
                tidy(dataset)

    # -- what failed -----------------------------------------------------------------------------

    def failed(self) -> set[str]:
        """Places of items that failed before."""
        with translated(self.place):
            dataset = _opened(self.failed_uri, self.place)
            return set() if dataset is None else set(dataset.to_table(columns=["place"]).column(0).to_pylist())

    def put_failed(self, failures: Sequence[tuple[str, str, str]], passed: Sequence[str]) -> None:
        """Bring the table of failed items up to date, in one commit.

        Args:
            failures: (place, id, reason) of what failed now.
            passed: Places that had failed, and were read well now.
        """
        import pyarrow as pa

        lance = import_lance()
        with translated(self.place):
            dataset = _opened(self.failed_uri, self.place)
            before: list[dict[str, Any]] = [] if dataset is None else dataset.to_table().to_pylist()
            now = datetime.now(timezone.utc)
            rows = {row["place"]: row for row in before}
            for place in passed:
                rows.pop(place, None)
            rows |= {f[0]: {"place": f[0], "id": f[1], "reason": f[2], "time": now} for f in failures}
            if dataset is None and not rows:
                return
            table = pa.Table.from_pylist(list(rows.values()), schema=_failed_schema())
            lance.write_dataset(table, self.failed_uri, mode="create" if dataset is None else "overwrite")


def _failed_schema() -> pa.Schema:
    import pyarrow as pa

    names = [pa.field(name, pa.string(), nullable=False) for name in ("place", "id", "reason")]
    return pa.schema([*names, pa.field("time", pa.timestamp("us", "UTC"), nullable=False)])


def _opened(uri: str, place: str) -> lance.LanceDataset | None:
    lance = import_lance()
    with translated(place):
        try:
            return lance.dataset(uri)
        except (OSError, ValueError) as error:
            if is_missing(error):
                return None
            raise


def lake_of(place: str, collection: str) -> Lake:
    """The lake that a text names: ``lance://FOLDER``, a folder, or an object store."""
    rest = place.removeprefix("lance://")
    return Lake(rest.rstrip("/") if re.match(r"[a-z0-9+.-]+://", rest) else os.path.realpath(rest), collection)
