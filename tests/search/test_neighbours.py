"""What stands around a hit, in every store there is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from helpers import MakeStore
from store_helpers import vectors

from abc_rag import ChromaStore, Retriever
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.search.neighbours import Neighbours, neighbours_of, page_of
from abc_rag.store import Store
from abc_rag.types import Hit, MetadataValue, Record


def part(kind: str, order: int, page: int | None, *, document: str = "a.pdf") -> Record:
    metadata: dict[str, MetadataValue] = {"document": document, "document_sha256": document, "part": kind}
    metadata |= {"order": order} | ({} if page is None else {"page": page})
    return Record(f"{document}-{order}", "image" if kind in ("page", "figure") else "text", kind, "", metadata)


def filled(store: Store, parts: list[Record]) -> Store:
    # In another order than they are read in.
    store.add(parts[::-1], vectors(len(parts)))
    return store


def orders(found: Neighbours) -> tuple[Any, ...]:
    page = None if found.page is None else found.page.metadata["order"]
    return (*([one.metadata["order"] for one in some] for some in (found.before, found.after, found.figures)), page)


PARTS = [
    *(part("page", 0, 1), part("passage", 1, 1), part("table", 2, 1)),
    *(part("page", 3, 2), part("figure", 4, 2), part("figure", 5, 2), part("passage", 6, 2), part("note", 7, 2)),
    *(part("passage", 8, 3), part("passage", 2, None, document="b.docx")),
]


def test_neighbours_in_every_store(make: MakeStore) -> None:
    store = filled(make(), [*PARTS, Record("other", "text", "of no document")])
    seen = {one.id: orders(neighbours_of(store, one)) for one in PARTS}
    assert seen == {
        "a.pdf-0": ([], [1], [], None),
        "a.pdf-1": ([], [2], [], 0),
        "a.pdf-2": ([1], [6], [], 0),
        "a.pdf-3": ([2], [6], [4, 5], None),
        "a.pdf-4": ([2], [6], [5], 3),
        "a.pdf-5": ([2], [6], [4], 3),
        "a.pdf-6": ([2], [7], [4, 5], 3),
        "a.pdf-7": ([6], [8], [4, 5], 3),
        "a.pdf-8": ([7], [], [], None),
        "b.docx-2": ([], [], [], None),
    }
    (six,) = store.get(["a.pdf-6"])
    assert orders(neighbours_of(store, Hit(six, 0.5), before=3, after=0)) == ([1, 2], [], [4, 5], 3)
    assert neighbours_of(store, Record("other", "text")) == Neighbours()
    assert [page_of(store, one) for one in (PARTS[5], PARTS[3], PARTS[8], PARTS[9])] == [PARTS[3], PARTS[3], None, None]


def test_passages_that_are_far_away_are_found(make: MakeStore) -> None:
    pictures = [part("figure", order, 1) for order in range(1, 200)]
    store = filled(make(), [part("passage", 0, 1), *pictures, part("passage", 200, 2), part("passage", 201, 2)])
    assert orders(neighbours_of(store, pictures[99], after=2))[:2] == ([0], [200, 201])
    first, last = store.get(["a.pdf-0", "a.pdf-201"])
    assert orders(neighbours_of(store, first))[:2] == ([], [200])
    assert orders(neighbours_of(store, last, before=9))[:2] == ([0, 200], [])


def test_without_pages_figures_are_those_between_the_passages(make: MakeStore) -> None:
    parts = [
        part(kind, order, None) for order, kind in enumerate("figure passage figure passage figure passage".split())
    ]
    store = filled(make(), [*parts, part("figure", 6, None)])
    assert orders(neighbours_of(store, parts[3])) == ([1], [5], [2, 4], None)
    assert orders(neighbours_of(store, parts[5])) == ([3], [], [4], None)
    assert orders(neighbours_of(store, parts[2])) == ([1], [3], [], None)


def test_of_what_was_indexed(manual_store: ChromaStore) -> None:
    retriever = Retriever(FakeEmbedder(), manual_store)
    found = retriever.search("rinse the filter", keywords=True, modality="text")[0]
    around = asyncio.run(retriever.aneighbours(found))
    assert [one.text for one in around.before] == ["Starting\n\nPress the red button to start the pump."]
    assert around.after == ()
    assert [one.text for one in around.figures] == ["Figure 1: The filter."]
    assert around.page is not None
    assert retriever.pictures.read(around.page).startswith(b"\x89PNG")
    assert around == retriever.neighbours(found.record)


def test_bad_input_is_named(make: MakeStore) -> None:
    store = make()
    for count in (-1, True, 1.0):
        with pytest.raises(InputError, match="before must be a number of passages, 0 or more"):
            neighbours_of(store, PARTS[0], before=count)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"not of a str; pass answer\[0\]"):
        neighbours_of(store, "a.pdf-0")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"not of a str"):
        page_of(store, "a.pdf-0")  # type: ignore[arg-type]
