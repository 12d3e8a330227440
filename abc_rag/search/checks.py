"""What the arguments of a search have to be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from abc_rag.errors import InputError
from abc_rag.types import Vectors

__all__ = ["check_options", "checked_share", "unit"]


def unit(vector: npt.ArrayLike, dim: int) -> Vectors:
    """The vector of a query with unit length.

    Raises:
        InputError: It is not one of ``dim`` numbers, or has no direction.
    """
    try:
        row = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"a query's vector must be an array of {dim} numbers: {error}") from error
    if row.shape != (dim,):
        raise InputError(
            f"the query's vector has shape {row.shape}, but this model's have ({dim},); search with the model that "
            "made it"
        )
    if not np.isfinite(row).all() or not row.any():
        raise InputError("the query's vector is zero or holds NaN or infinity; embed the query again")
    unit: Vectors = (row / np.linalg.norm(row)).astype(np.float32)
    return unit


def check_options(
    k: object,
    rerank: object,
    keywords: object,
    facet_map: object,
    mmr: object,
    min_score: object,
    min_confidence: object,
    judge: object,
) -> None:
    """Check what `Retriever.search` takes besides a question.

    Raises:
        InputError: One of them is unusable.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k must be a positive int, not {k!r}")
    if not isinstance(rerank, bool) and rerank not in ("auto", "judge"):
        raise InputError(f"rerank must be True, False, 'auto' or 'judge', not {rerank!r}")
    for name, value in (("keywords", keywords), ("facet_map", facet_map)):
        if not isinstance(value, bool) and value != "auto":
            raise InputError(f"{name} must be True, False or 'auto', not {value!r}")
    for name, share in (("mmr", mmr), ("min_score", min_score), ("min_confidence", min_confidence)):
        if share is not None:
            checked_share(name, share)
    if judge is None and (rerank == "judge" or min_confidence is not None):
        raise InputError(
            "judging needs a model that generates; make the retriever with abc_rag.Retriever(..., "
            "generator=load_generator(...)), or pass judge=..."
        )


def checked_share(name: str, value: object) -> float:
    """A number in [0, 1].

    Raises:
        InputError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise InputError(f"{name} must be a number in [0, 1], not {value!r}")
    return float(value)
