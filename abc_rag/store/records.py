"""Records and vectors on their way into a store: their ids, and the checks that every store makes."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import cast

import numpy as np
import numpy.typing as npt

from abc_rag.errors import InputError
from abc_rag.store.pictures import KEPT
from abc_rag.types import MetadataValue, Record, Vectors

__all__ = ["checked_ids", "checked_instruction", "checked_records", "filterable", "image_id", "text_id", "unit_rows"]

_RESERVED = ("abc:", "chroma:")


def text_id(text: str) -> str:
    """Id of a passage: equal texts have equal ids."""
    return "text-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def image_id(sha256: str, text: str = "", metadata: Mapping[str, MetadataValue] | None = None) -> str:
    """Id of a picture: equal pictures with equal captions and metadata have equal ids, and only they.

    Args:
        sha256: The SHA-256 of its content, as 64 hexadecimal digits.
        text: Its caption.
        metadata: Its metadata.

    Raises:
        InputError: ``sha256`` is not one.
    """
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"sha256 must be 64 hexadecimal digits, not {sha256!r}")
    id_ = "image-" + sha256[:32].lower()
    if not text and not metadata:
        return id_
    # What cannot be stored is refused later, with a better message.
    content = json.dumps(
        [text, {str(key): value for key, value in (metadata or {}).items()}], sort_keys=True, default=_plain
    )
    return f"{id_}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def filterable(value: object) -> MetadataValue | None:
    """What stands for a value in filters, in the stores of frameworks that keep the value itself elsewhere.

    Returns:
        Plain values as they are, numpy's as Python's, dates as ISO 8601 text, lists and tuples of such values as a list
        of one type (whole numbers among others become floats); None for everything else.
    """
    if isinstance(value, (list, tuple)):
        items = [filterable(item) for item in value]
        if any(item is None or isinstance(item, list) for item in items):
            return None
        kinds = {type(item) for item in items}
        if kinds == {int, float}:
            return [float(item) for item in items]  # type: ignore[arg-type]
        return cast("MetadataValue", items) if len(kinds) == 1 else None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, date):
        return value.isoformat() if value == value else None  # pandas' NaT equals nothing
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else repr(value)


def checked_ids(ids: Iterable[str]) -> list[str]:
    """The ids as a list.

    Raises:
        InputError: One of them is not a non-empty str, or ``ids`` is a single str.
    """
    if isinstance(ids, str):
        raise InputError("ids must be a list; got a single str: pass [id]")
    checked = list(ids)
    for id_ in checked:
        if not isinstance(id_, str) or not id_:
            raise InputError(f"an id must be a non-empty str, not {id_!r}; abc_rag.store.text_id makes one")
        _check_unicode(id_, f"id {id_!r}")
    return checked


def checked_instruction(instruction: object) -> str:
    """The instruction of a facet.

    Raises:
        InputError: It is blank, or not a str.
    """
    if not isinstance(instruction, str) or not instruction.strip():
        raise InputError(f"a facet is an instruction, such as 'what is on the left?', not {instruction!r}")
    _check_unicode(instruction, f"facet {instruction!r}")
    return instruction


def checked_records(records: Sequence[Record]) -> list[Record]:
    """Records that a store can give back as they are; metadata is copied, and numpy's scalars become Python's.

    Raises:
        InputError: One of them cannot be stored; the message names its id, and the field or the metadata key.
    """
    return [_checked(record) for record in records]


def unit_rows(vectors: npt.ArrayLike, ids: Sequence[str] | None = None) -> Vectors:
    """Vectors scaled to unit length: float32 of shape ``(n, dim)``.

    Args:
        vectors: Shape ``(n, dim)``.
        ids: One a row, for messages.

    Raises:
        InputError: The shape is another, a row is zero, or a value is not finite.
    """
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


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is not valid Unicode ({error.reason}); clean it first") from error


def _checked(record: Record) -> Record:
    if not isinstance(record, Record):
        raise InputError(f"records must be abc_rag.Record values, not {type(record).__name__}")
    checked_ids([record.id])
    where = f"record {record.id!r}"
    if record.modality not in ("text", "image"):
        raise InputError(f"{where}: modality must be 'text' or 'image', not {record.modality!r}")
    if record.source_type not in ("path", "url", KEPT):
        raise InputError(f"{where}: source_type must be 'path' or 'url', not {record.source_type!r}")
    for name in ("text", "source", "sha256", "mime_type"):
        text = getattr(record, name)
        if not isinstance(text, str):
            raise InputError(f"{where}: {name} must be a str, not {type(text).__name__}")
        _check_unicode(text, f"{where}: {name}")
    if not isinstance(record.metadata, Mapping):
        raise InputError(f"{where}: metadata must be a dict, not {type(record.metadata).__name__}")
    if not record.metadata:
        return record
    metadata = {}
    for key, value in record.metadata.items():
        place = f"{where}: metadata key {key!r}"
        if not isinstance(key, str) or not key:
            raise InputError(f"{place}: keys must be non-empty str")
        _check_unicode(key, place)
        if key.startswith(_RESERVED):
            raise InputError(f"{place}: keys starting with 'abc:' or 'chroma:' are reserved; rename it")
        metadata[key] = _plain_value(value, place)
    return replace(record, metadata=metadata)


def _plain_value(value: object, where: str) -> MetadataValue:
    if not isinstance(value, list):
        return _scalar(value, where)
    items = [_scalar(item, f"{where}[{position}]") for position, item in enumerate(value)]
    kinds = {type(item) for item in items}
    if len(kinds) != 1:
        raise InputError(f"{where}: a list must hold values, all of one type (str, int, float or bool), not {value!r}")
    return cast("MetadataValue", items)


def _scalar(value: object, where: str) -> str | int | float | bool:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        _check_unicode(value, where)
        return str(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InputError(f"{where}: {value} does not fit into 64 bits; store it as a str")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where}: {value} cannot be stored; leave the key out")
        return float(value)
    remedy = ""
    if value is None or (isinstance(value, date) and value != value):  # pandas' NaT equals nothing, itself included
        remedy = "; leave the key out"
    elif isinstance(value, date):
        remedy = "; store its ISO text (value.isoformat()), which filters compare as a date"
    raise InputError(
        f"{where}: values must be str, int, float, bool or a list of one of these, not {type(value).__name__}{remedy}"
    )
