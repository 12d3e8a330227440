"""A changed document: parts whose content is as before keep their vectors, under the ids of the new document."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from abc_rag.ingest.documents.records import Made, is_part
from abc_rag.store.base import Store
from abc_rag.types import Record

__all__ = ["Carried"]

_PAGE = 256


class Carried:
    """What is stored of a document before it is read again, by content. What a model sees of a part is its content.

    Args:
        store: Where it is stored.
        ids: What came from the document's file.
    """

    def __init__(self, store: Store, ids: Collection[str]) -> None:
        self._store = store
        self._by_content: dict[tuple[str, str], tuple[str, str]] = {}
        waiting = iter(ids)
        while page := list(islice(waiting, _PAGE)):
            for record in store.get(page):
                if is_part(record):
                    self._by_content[_content(record)] = record.id, record.source

    def carry(self, chunk: Sequence[Made]) -> None:
        """Store those of some new parts whose content is known, with its vectors and facets."""
        known = [(made.record, self._by_content.get(_content(made.record))) for made in chunk]
        pairs = [(record, old) for record, old in known if old is not None and record.id != old[0]]
        stored = self._store.has(record.id for record, _ in pairs)
        vectors = self._store.vectors({id_ for _, (id_, _) in pairs})
        pairs = [(record, old) for record, old in pairs if record.id not in stored and old[0] in vectors]
        if not pairs:
            return
        # A picture is kept already, under its content.
        records = [
            replace(record, source=old[1] if record.modality == "image" else record.source) for record, old in pairs
        ]
        self._store.add(records, np.stack([vectors[id_] for _, (id_, _) in pairs]))
        names = self._store.facet_names({id_ for record, (id_, _) in pairs if record.modality == "image"})
        for facet in sorted(set().union(*names.values())):
            found = self._store.facet_vectors([id_ for id_ in names if facet in names[id_]], facet)
            having = [(record.id, found[id_]) for record, (id_, _) in pairs if id_ in found]
            self._store.add_facets([id_ for id_, _ in having], facet, np.stack([vector for _, vector in having]))


def _content(record: Record) -> tuple[str, str]:
    return record.modality, record.sha256 if record.modality == "image" else record.text
