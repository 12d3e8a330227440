"""What stores share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from abc_rag.errors import InputError
from abc_rag.types import Record, Vectors

if TYPE_CHECKING:
    pass

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


__all__ = ["image_id", "text_id"]


def text_id(text: str) -> str:
    """Id of a passage: equal texts have equal ids."""
    return "text-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def image_id(sha256: str) -> str:
    """Id of a picture, from the SHA-256 of its content (64 hexadecimal digits).

    Raises:
        InputError: ``sha256`` is not one.
    """
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"sha256 must be 64 hexadecimal digits, not {sha256!r}")
    return "image-" + sha256[:32].lower()


def _bytes(text: str, where: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is not valid Unicode ({error.reason}); clean it first") from error


def _checked_ids(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        raise InputError("ids must be a list; got a single str: pass [id]")
    checked = list(ids)
    for id_ in checked:
        if not isinstance(id_, str) or not id_:
            raise InputError(f"an id must be a non-empty str, not {id_!r}; abc_rag.store.text_id makes one")
        _bytes(id_, f"id {id_!r}")
    return checked


def _unit_rows(vectors: npt.ArrayLike, ids: Sequence[str] | None) -> Vectors:
    """Checked float32 unit rows of shape ``(n, dim)``; ``ids`` name the rows in messages."""
    try:
        rows = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"vectors must be an array of shape (n, dim): {error}") from error
    if rows.size == 0 and not ids and rows.ndim <= 2:
        return np.zeros((0, 0), dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"vectors must have shape (n, dim), not {rows.shape}")
    if ids is not None and len(ids) != len(rows):
        raise InputError(f"{len(ids)} records but {len(rows)} vectors; give one for each")
    largest = np.abs(rows).max(axis=1, initial=0.0)
    for bad, what in ((~np.isfinite(largest), "holds NaN or infinity"), (largest == 0, "is zero")):
        if bad.any():
            first = int(bad.argmax())
            name = f"row {first}" if ids is None else f"record {ids[first]!r}"
            raise InputError(f"{name}: its vector {what}; embed it again")
    rows = rows / largest[:, None]
    unit: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _checked_rows(records: Sequence[Record], vectors: npt.ArrayLike) -> Vectors:
    for record in records:
        if not isinstance(record, Record):
            raise InputError(f"records must be abc_rag.Record values, not {type(record).__name__}")
    return _unit_rows(vectors, [record.id for record in records])


def _check_instruction(instruction: object) -> str:
    if not isinstance(instruction, str) or not instruction.strip():
        raise InputError(f"a facet is an instruction, such as 'what is on the left?', not {instruction!r}")
    _bytes(instruction, f"facet {instruction!r}")
    return instruction
