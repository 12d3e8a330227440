"""Cutting a text file into passages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from abc_rag.errors import InputError
from abc_rag.ingest.regular import open_regular

__all__ = ["passages_in", "passages_of"]

_MAX_TEXT_BYTES = 20 * 2**20


def passages_of(path: Path) -> list[str]:
    """The paragraphs of a UTF-8 text file.

    Raises:
        InputError: It cannot be read, is larger than 20 MiB, or is not UTF-8.
    """
    try:
        with open(open_regular(path), "rb") as file:
            data = file.read(_MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror})") from error
    return passages_in(data, str(path))


def passages_in(data: bytes, name: str) -> list[str]:
    """The paragraphs of a UTF-8 text.

    Raises:
        InputError: It is larger than 20 MiB, or is not UTF-8; the message names it by ``name``.
    """
    if len(data) > _MAX_TEXT_BYTES:
        raise InputError(f"{name}: larger than {_MAX_TEXT_BYTES // 2**20} MiB; split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    return ["\n".join(lines) for lines in _paragraphs(text)]


def _paragraphs(text: str) -> Iterator[list[str]]:
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            lines.append(line.strip())
        elif lines:
            yield lines
            lines = []
