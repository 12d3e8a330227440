"""Untrusted configuration files: JSON is read within limits, and each value is checked when it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from abc_rag.errors import CheckpointError

__all__ = [
    "ACTIVATIONS",
    "MAX_JSON_BYTES",
    "MAX_LAYERS",
    "MAX_LENGTH",
    "MAX_SIZE",
    "Config",
    "check_json",
    "part_file",
    "read_json",
    "shown",
]

# Beyond these a size is a mistake or an attack. The shapes of the tensors decide what exactly is right.
MAX_LAYERS, MAX_SIZE, MAX_LENGTH = 1000, 2**24, 2**24
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "relu")
MAX_JSON_BYTES = 64 * 2**20
"""Limit for a tokenizer's vocabulary; other files are far smaller."""
_MAX_BYTES = 4 * 2**20
_MAX_DEPTH = 32
_SHOWN = 60
_REQUIRED = object()


def part_file(folder: Path, name: str) -> Path:
    """A file of a checkpoint's folder, which need not exist; it cannot lie outside.

    The links of huggingface_hub's cache, which lead from ``snapshots`` to ``blobs`` of the same model, are followed.

    Args:
        folder: The folder.
        name: As a file of the checkpoint states it.

    Raises:
        CheckpointError: The name has folders in it, or is a link to somewhere else.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise CheckpointError(f"{folder}: {shown(name)} is no name of a file in this folder")
    file = folder / name
    if file.is_symlink():
        root, target = folder.resolve(), file.resolve()
        allowed = [root, *(above.parent / "blobs" for above in root.parents if above.name == "snapshots")]
        if not any(target.is_relative_to(place) for place in allowed):
            raise CheckpointError(
                f"{file}: is a link to {target}, outside the checkpoint; copy the file into the folder"
            )
    return file


def read_json(file: Path, *, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        file: The file; a link may not lead out of its folder.
        max_bytes: Refuse more.

    Raises:
        CheckpointError: It is missing, malformed, too long, nested too deeply, or lies elsewhere.
    """
    value = check_json(file, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value


def check_json(file: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:  # noqa: ANN401
    """Read any JSON; see `read_json`."""
    file = part_file(file.parent, file.name)
    try:
        if not file.exists():
            raise CheckpointError(f"{file}: not found; the folder is not a complete checkpoint")
        if not file.is_file():
            raise CheckpointError(f"{file}: not a file")
        if file.stat().st_size > max_bytes:
            raise CheckpointError(f"{file}: {file.stat().st_size:,} bytes; at most {max_bytes:,} are read")
        value = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error})") from error
    except RecursionError as error:
        raise CheckpointError(f"{file}: nested more than {_MAX_DEPTH} levels deep") from error
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, (dict, list))
        ]
    if level:
        raise CheckpointError(f"{file}: nested more than {_MAX_DEPTH} levels deep")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def shown(value: object) -> str:
    """``repr`` of a value of a file, cut short for a message."""
    if isinstance(value, (dict, list)):
        value = type(value)(value) if len(value) <= _SHOWN else list(value)[:_SHOWN]
    text = repr(value[:_SHOWN] if isinstance(value, str) and len(value) > _SHOWN else value)
    return text if len(text) <= _SHOWN + 2 else f"{text[:_SHOWN]} ..."


class Config:
    """A JSON object of a checkpoint, whose values are checked as they are read.

    Args:
        values: The object.
        where: Its file, and where in it, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: object) -> None:
        self.values = values
        self.where = where

    @classmethod
    def read(cls, file: Path) -> Config:
        """See `read_json`."""
        return cls(read_json(file), file)

    def __contains__(self, name: str) -> bool:
        """Whether a value is given; null is none."""
        return self.values.get(name) is not None

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Refuse a value.

        Args:
            name: Of the value.
            expected: What it has to be, or why it cannot be used.

        Raises:
            CheckpointError: Always.
        """
        said = f"is {shown(self.values[name])}" if name in self.values else "is missing"
        raise CheckpointError(f"{self.where}: {name} {said}; expected {expected}")

    def part(self, name: str) -> Config:
        """An object within; an empty one where there is none."""
        found = self.values.get(name)
        if not isinstance(found, (dict, type(None))):
            self.refuse(name, "an object")
        return Config(found or {}, f"{self.where}: {name}")

    def whole(self, name: str, default: Any = _REQUIRED, *, least: int = 1, most: int) -> int:  # noqa: ANN401
        """A whole number from ``least`` to ``most``."""
        found = default if name not in self and default is not _REQUIRED else self.values.get(name)
        if type(found) is not int or not least <= found <= most:
            self.refuse(name, f"a whole number from {least:,} to {most:,}")
        return found

    def number(self, name: str, default: Any = _REQUIRED, *, least: float, most: float) -> float:  # noqa: ANN401
        """A number from ``least`` to ``most``."""
        found = default if name not in self and default is not _REQUIRED else self.values.get(name)
        if not (isinstance(found, (int, float)) and type(found) is not bool and least <= found <= most):
            self.refuse(name, f"a number from {least:g} to {most:g}")
        return float(found)

    def numbers(self, name: str, *, count: int) -> tuple[float, ...]:
        """So many positive numbers."""
        found = self.values.get(name)
        if (
            not isinstance(found, list)
            or len(found) != count
            or not all(type(one) in (int, float) and 0 < one < math.inf for one in found)
        ):
            self.refuse(name, f"{count} positive numbers")
        return tuple(float(one) for one in found)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        found = self.values.get(name)
        if not isinstance(found, (bool, type(None))):
            self.refuse(name, "true or false")
        return default if found is None else found

    def text(self, name: str, default: Any = _REQUIRED, *, among: tuple[str, ...] = (), most: int = 200) -> str:  # noqa: ANN401
        """A text of up to ``most`` characters, or one of some words."""
        found = default if name not in self and default is not _REQUIRED else self.values.get(name)
        if not isinstance(found, str) or len(found) > most or (among and found not in among):
            self.refuse(
                name, f"one of {', '.join(map(repr, among))}" if among else f"a text of up to {most:,} characters"
            )
        return found
