"""Cutting a text file into passages."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from abc_rag.errors import InputError

__all__ = ["passages_of"]


_MAX_TEXT_BYTES = 20 * 2**20


def passages_of(path: Path) -> list[str]:
    """The paragraphs of a UTF-8 text file.

    Raises:
        InputError: It cannot be read, is larger than 20 MiB, or is not UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for its writer
            raise InputError(f"{path}: not a regular file but a device, a pipe or a socket")
        if status.st_size > _MAX_TEXT_BYTES:
            raise InputError(f"{path}: larger than {_MAX_TEXT_BYTES // 2**20} MiB; split it")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror})") from error
    paragraphs = ("\n".join(lines) for lines in _paragraphs(text))
    return [p for p in paragraphs if p]


def _paragraphs(text: str) -> Iterator[list[str]]:
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            lines.append(line.strip())
        elif lines:
            yield lines
            lines = []
