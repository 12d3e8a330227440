"""Lance as a package that may be missing, and the translation of its errors."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from types import ModuleType

from abc_rag.errors import ABCRagError, MissingExtraError, StoreError

__all__ = ["import_lance", "is_missing", "translated"]

# Messages of Lance and the system, each with its remedy. The first match is used.
_REMEDIES = (
    ("no space left|disk is full|disk full", "free some space on the disk"),
    ("readonly|read-only|permission denied|access denied|forbidden", "make the place writable, or use another one"),
    ("credential|unauthor|authent|signature", "pass the object store's access in storage_options"),
    ("conflict|concurren", "other processes write all the time: try again"),
    ("file exists|not a directory", "the place must be a folder: use another one"),
    ("connect|error sending request|timed out|timeout|unreachable|dns", "check the address and the network"),
    ("nosuchbucket|no such bucket", "create the bucket, or correct its name"),
    ("not found|no such file|no such key", "a file is missing: restore a copy, or use another place and index again"),
    ("corrupt|invalid|magic|decode|parse", "the files are damaged: restore a copy, or use another place"),
)  # fmt: skip


def import_lance() -> ModuleType:
    """The module ``lance``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import lance
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_module(error, "LanceStore", extra="lance") from error
    return lance  # type: ignore[no-any-return]


@contextlib.contextmanager
def translated(place: str) -> Iterator[None]:
    """Raise errors of Lance, Arrow, SQLite and the file system as errors of abc-rag."""
    try:
        yield
    except (ABCRagError, ImportError):
        raise
    except (OSError, ValueError, RuntimeError, ArithmeticError, TypeError, LookupError, sqlite3.Error) as error:
        # Lance has no errors of its own. What stands behind a comma is a path in its source code.
        text = re.sub(r",\s+\S*\.rs:\d+(:\d+)?", "", " ".join(str(error).split())) or type(error).__name__
        found = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE))
        raise StoreError(f"{place}: {text[:500]}; {next(found, 'try again, or use another place')}") from error


def is_missing(error: Exception) -> bool:
    """Whether Lance says that there is no dataset."""
    return isinstance(error, (ValueError, OSError)) and "was not found" in str(error)
