"""Metadata filters of LlamaIndex over our Chroma store: searches and lookups mean the same by them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.abc import ABCVectorStore
from llama_index.vector_stores.abc.filters import to_where

from abc_rag import ChromaStore
from abc_rag.errors import InputError


def found(view: ABCVectorStore, filters: MetadataFilters) -> set[str]:
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=10, filters=filters)
    return set(view.query(query).ids or [])


def one(operator: FilterOperator, value: Any, key: str = "n") -> MetadataFilter:
    return MetadataFilter(key=key, value=value, operator=operator)


EQ_1, OR = one(FilterOperator.EQ, 1), FilterCondition.OR
FILTERS: list[tuple[MetadataFilters, set[str]]] = [
    (MetadataFilters(filters=[one(FilterOperator.EQ, 1)]), {"1"}),
    (MetadataFilters(filters=[one(FilterOperator.NE, 1)]), {"2", "3", "word", "none"}),
    (MetadataFilters(filters=[one(FilterOperator.GT, 1)]), {"2", "3"}),
    (MetadataFilters(filters=[one(FilterOperator.GTE, 2)]), {"2", "3"}),
    (MetadataFilters(filters=[one(FilterOperator.LT, 2)]), {"1"}),
    (MetadataFilters(filters=[one(FilterOperator.LTE, 2)]), {"1", "2"}),
    (MetadataFilters(filters=[one(FilterOperator.IN, [1, 3])]), {"1", "3"}),
    (MetadataFilters(filters=[one(FilterOperator.NIN, [1, 3])]), {"2", "word", "none"}),
    (MetadataFilters(filters=[one(FilterOperator.EQ, "word")]), {"word"}),
    (MetadataFilters(filters=[one(FilterOperator.EQ, 1), one(FilterOperator.EQ, "y", "m")]), set()),
    (
        MetadataFilters(
            filters=[one(FilterOperator.EQ, 1), one(FilterOperator.EQ, "y", "m")], condition=FilterCondition.OR
        ),
        {"1", "2"},
    ),
    (
        MetadataFilters(
            filters=[
                MetadataFilters(
                    filters=[one(FilterOperator.EQ, 1), one(FilterOperator.EQ, 2)], condition=FilterCondition.OR
                ),
                one(FilterOperator.EQ, "y", "m"),
            ]
        ),
        {"2"},
    ),
    (MetadataFilters(filters=[]), {"1", "2", "3", "word", "none"}),
]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ABCVectorStore]:
    metadata: dict[str, dict[str, Any]] = {
        "1": {"n": 1, "m": "x"},
        "2": {"n": 2, "m": "y"},
        "3": {"n": 3},
        "word": {"n": "word"},
        "none": {},
    }
    with ChromaStore(tmp_path_factory.mktemp("numbered")) as store:
        view = ABCVectorStore(store)
        view.add([TextNode(id_=i, text=i, metadata=m, embedding=[1.0, 0.0]) for i, m in metadata.items()])
        yield view


@pytest.mark.parametrize(("filters", "wanted"), FILTERS)
def test_filters_mean_the_same_in_searches_and_in_lookups(
    numbered: ABCVectorStore, filters: MetadataFilters, wanted: set[str]
) -> None:
    assert found(numbered, filters) == wanted
    assert {node.node_id for node in numbered.get_nodes(filters=filters)} == wanted


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (MetadataFilters(filters=[one(FilterOperator.TEXT_MATCH, "a")]), "'text_match' on 'n' is not supported"),
        (MetadataFilters(filters=[one(FilterOperator.IS_EMPTY, None)]), "'is_empty' on 'n' is not supported"),
        (MetadataFilters(filters=[one(FilterOperator.EQ, None)]), "'n' has no value"),
        (MetadataFilters(filters=[one(FilterOperator.IN, 3)]), "takes a list"),
        (MetadataFilters(filters=[one(FilterOperator.EQ, [3])]), "takes one value"),
        (MetadataFilters(filters=[one(FilterOperator.EQ, 3)], condition=FilterCondition.NOT), "'not' is not supported"),
    ],
)
def test_filters_that_cannot_be_kept_are_refused(
    numbered: ABCVectorStore, filters: MetadataFilters, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        found(numbered, filters)
    with pytest.raises(InputError, match=message):
        numbered.get_nodes(filters=filters)


def test_a_word_is_neither_more_nor_less_than_a_number(numbered: ABCVectorStore) -> None:
    more = MetadataFilters(filters=[one(FilterOperator.GT, 0)])
    assert "word" not in {node.node_id for node in numbered.get_nodes(filters=more)}
    assert to_where(None) is None


def test_dates_can_be_compared(tmp_path: Path) -> None:
    with ChromaStore(tmp_path) as store:
        view = ABCVectorStore(store)
        days = {"old": date(2020, 1, 31), "new": datetime(2024, 5, 1, 12), "text": "2023-01-01"}
        view.add([TextNode(id_=i, text=i, metadata={"day": d}, embedding=[1.0, 0.0]) for i, d in days.items()])
        for operator, day, wanted in (
            (FilterOperator.GTE, "2023-01-01", {"new", "text"}),
            (FilterOperator.LT, "2024-05-01T12:00", {"old", "text"}),
            (FilterOperator.EQ, "2020-01-31", {"old"}),
        ):
            filters = MetadataFilters(filters=[one(operator, day, "day")])
            assert found(view, filters) == {node.node_id for node in view.get_nodes(filters=filters)} == wanted
