"""Open untrusted files, and only regular ones."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from abc_rag.errors import InputError

__all__ = ["open_regular"]


def open_regular(path: Path) -> int:
    """A descriptor of a regular file for reading; opening never waits, as it would for a pipe's writer.

    Raises:
        InputError: It is a device, a pipe, a socket or a folder.
        OSError: It cannot be opened.
    """
    flags = os.O_RDONLY
    for flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, flag, 0)  # not every platform has each
    # Looked at before opening, for opening a device can have effects; and after, for it may have changed.
    _require_regular(path, os.stat(path))
    opened = os.open(path, flags)
    try:
        _require_regular(path, os.fstat(opened))
    except BaseException:
        os.close(opened)
        raise
    return opened


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a regular file but a device, a pipe, a socket or a folder")
