"""LlamaIndex's metadata filters as abc-rag's (`abc_rag.store.filters`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilters

from abc_rag.errors import InputError

__all__ = ["all_of", "to_where"]

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.CONTAINS: "$contains",
}
_CONDITIONS = {FilterCondition.AND: "$and", FilterCondition.OR: "$or"}


def to_where(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """abc-rag's filter for LlamaIndex's; None for none.

    Raises:
        InputError: There is no such operator or condition.
    """
    if filters is None or not filters.filters:
        return None
    condition = filters.condition or FilterCondition.AND
    if condition not in _CONDITIONS:
        raise InputError(f"filter condition {condition.value!r} is not supported; write it with 'and', 'or' and '!='")
    parts: list[dict[str, Any]] = []
    for one in filters.filters:
        if isinstance(one, MetadataFilters):
            parts += [where for where in (to_where(one),) if where]
            continue
        if one.operator not in _OPERATORS:
            known = ", ".join(repr(known.value) for known in _OPERATORS)
            raise InputError(
                f"filter operator {one.operator.value!r} on {one.key!r} is not supported; these are: {known}"
            )
        if one.value is None:
            raise InputError(f"the filter on {one.key!r} has no value; nothing stored is None, so leave it out")
        listed = one.operator in (FilterOperator.IN, FilterOperator.NIN)
        if listed != isinstance(one.value, list):
            takes = "a list" if listed else "one value"
            raise InputError(f"filter {one.operator.value!r} on {one.key!r} takes {takes}, not {one.value!r}")
        parts.append({one.key: {_OPERATORS[one.operator]: one.value}})
    return {_CONDITIONS[condition]: parts} if len(parts) > 1 else parts[0] if parts else None


def all_of(*conditions: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """One filter that asks for all of several."""
    parts = [dict(one) for one in conditions if one]
    return {"$and": parts} if len(parts) > 1 else parts[0] if parts else None
