"""A process that opens pictures for an engine: encoded bytes in, input of the vision tower out.

`abc_rag.embedding.engine.processes` starts it. Nothing is pickled: the recipe is named by its module and class, and its
fields are sent as JSON.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import numpy as np

from abc_rag.errors import ABCRagError, ImageError
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import rendered
from abc_rag.images.pixels import Rendering

__all__ = ["answering", "limits_as_json", "main", "read_exactly", "recipe_as_json", "write_message"]

_LENGTHS = struct.Struct(">QQ")


def recipe_as_json(recipe: Any) -> dict[str, Any]:  # noqa: ANN401
    """A recipe (`abc_rag.models.family.PictureRecipe`) as JSON, for another process."""
    made = type(recipe)
    return {"module": made.__module__, "class": made.__qualname__, "fields": dataclasses.asdict(recipe)}


def limits_as_json(limits: ImageLimits) -> dict[str, Any]:
    """Limits as JSON, for another process."""
    return {**dataclasses.asdict(limits), "formats": sorted(limits.formats)}


def write_message(out: Any, header: dict[str, Any], *parts: Any) -> None:  # noqa: ANN401
    """Write a header, and the bytes that belong to it."""
    encoded = json.dumps(header).encode()
    views = [memoryview(part).cast("B") for part in parts]
    out.write(_LENGTHS.pack(len(encoded), sum(view.nbytes for view in views)))
    out.write(encoded)
    for view in views:
        out.write(view)
    out.flush()


def read_exactly(source: Any, most_bytes: int | None = None) -> tuple[dict[str, Any], bytearray]:  # noqa: ANN401
    """Read what `write_message` wrote.

    Raises:
        EOFError: The other side has ended, or announces more than ``most_bytes``.
    """
    header_bytes, payload_bytes = _LENGTHS.unpack(_take(source, _LENGTHS.size))
    if most_bytes is not None and header_bytes + payload_bytes > most_bytes:
        raise EOFError("the other side announces more than it may send")
    header: dict[str, Any] = json.loads(_take(source, header_bytes))
    return header, _take(source, payload_bytes)


def _take(source: Any, count: int) -> bytearray:  # noqa: ANN401
    data = bytearray(count)
    view, at = memoryview(data), 0
    while at < count:
        got = source.readinto(view[at:])
        if not got:
            raise EOFError("the other side has ended")
        at += got
    return data


@lru_cache(maxsize=8)
def _made(told: str) -> tuple[Any, ImageLimits]:
    recipe, limits = json.loads(told)
    maker = getattr(importlib.import_module(recipe["module"]), recipe["class"])
    fields = {name: _tuples(value) for name, value in recipe["fields"].items()}
    return maker(**fields), ImageLimits(**{**limits, "formats": frozenset(limits["formats"])})


def _tuples(value: Any) -> Any:  # noqa: ANN401
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _answer(header: dict[str, Any], data: bytearray) -> tuple[dict[str, Any], list[Any]]:
    try:
        recipe, limits = _made(json.dumps([header["recipe"], header["limits"]]))
        rendering = Rendering(**header["rendering"])
        source = rendered(bytes(data), limits=limits, rendering=rendering, name=header["name"])
        opened = recipe.open(source, limits=limits, name=header["name"])
    except ImageError as error:
        return {"error": type(error).__name__, "source": error.source, "message": error.reason}, []
    except ABCRagError as error:
        return {"error": type(error).__name__, "message": str(error)}, []
    except Exception as error:
        return {"error": "", "message": f"{type(error).__name__}: {error}"}, []
    numbers, arrays, parts = {}, {}, []
    for field in dataclasses.fields(opened):
        value = getattr(opened, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = {"dtype": value.dtype.str, "shape": value.shape}
            parts.append(np.ascontiguousarray(value).reshape(-1))
        else:
            numbers[field.name] = value
    return {"numbers": numbers, "arrays": arrays}, parts


@contextmanager
def answering() -> Iterator[tuple[Any, Any]]:
    """Where a child process reads requests, and writes answers (buffered)."""
    # Ctrl-C reaches the whole process group, but the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not end up between the answers.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    source = os.fdopen(0, "rb", buffering=0, closefd=False)
    with open(out.fileno(), "wb", buffering=1 << 16, closefd=False) as buffered:
        yield source, buffered


def main() -> None:
    """Answer requests until the other side closes the pipe."""
    with answering() as (source, out), suppress(EOFError, BrokenPipeError):
        while True:
            header, data = read_exactly(source)
            answer, parts = _answer(header, data)
            write_message(out, answer, *parts)
