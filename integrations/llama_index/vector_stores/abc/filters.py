"""LlamaIndex's metadata filters as Chroma's."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilters

from abc_rag.errors import InputError

__all__ = ["all_of", "matches", "to_where"]

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
}
_CONDITIONS = {FilterCondition.AND: "$and", FilterCondition.OR: "$or"}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
    "$in": lambda value, wanted: value in wanted,
    "$nin": lambda value, wanted: value not in wanted,
}


def to_where(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """Chroma's ``where`` for LlamaIndex's filters; None for none.

    Raises:
        InputError: Chroma knows no such operator or condition.
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
    """One ``where`` that asks for all of several."""
    parts = [dict(one) for one in conditions if one]
    return {"$and": parts} if len(parts) > 1 else parts[0] if parts else None


def matches(where: Mapping[str, Any] | None, metadata: Mapping[str, Any]) -> bool:
    """Whether Chroma would find a record with this metadata; for lookups without a vector."""
    return all(_matches_one(key, wanted, metadata) for key, wanted in (where or {}).items())


def _matches_one(key: str, wanted: Any, metadata: Mapping[str, Any]) -> bool:  # noqa: ANN401
    if key == "$and":
        return all(matches(part, metadata) for part in wanted)
    if key == "$or":
        return any(matches(part, metadata) for part in wanted)
    if not isinstance(wanted, Mapping):
        wanted = {"$eq": wanted}
    for name, value in wanted.items():
        if key not in metadata:
            # As Chroma does: what is not there differs from everything.
            if name not in ("$ne", "$nin"):
                return False
            continue
        try:
            if not _COMPARISONS[name](metadata[key], value):
                return False
        except TypeError:  # a word is neither more nor less than a number
            return False
    return True
