"""Finding the files to index."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from abc_rag.errors import InputError
from abc_rag.ingest.report import IndexReport
from abc_rag.types import Modality

__all__ = ["IMAGE_SUFFIXES", "TEXT_SUFFIXES"]


IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
TEXT_SUFFIXES = frozenset({".md", ".txt"})


def _files(paths: Iterable[str | os.PathLike[str]], report: IndexReport) -> list[Path]:
    """Every file to index, once each, in a fixed order; folders that cannot be listed are reported."""
    if isinstance(paths, (str, os.PathLike)):
        raise InputError(f"paths must be a list; got a single {type(paths).__name__}: pass [path]")

    def unlistable(error: OSError) -> None:
        report.failed.append((str(error.filename), f"cannot be listed ({error.strerror})"))

    found: dict[Path, None] = {}
    for given in paths:
        path = os.path.expanduser(given)
        if os.path.isdir(path):
            for folder, folders, names in os.walk(os.path.realpath(path), onerror=unlistable):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                for name in sorted(names):
                    if not name.startswith(".") and _modality(name) is not None:
                        found[Path(folder, name)] = None
        elif os.path.exists(path):
            # The folder without links, so that one file has one name; but its own name, which says what it is.
            found[Path(os.path.realpath(os.path.dirname(path)), os.path.basename(path))] = None
        else:
            raise InputError(f"{given}: no such file or folder")
    return list(found)


def _modality(path: str | os.PathLike[str]) -> Modality | None:
    suffix = os.path.splitext(path)[1].lower()
    return "image" if suffix in IMAGE_SUFFIXES else "text" if suffix in TEXT_SUFFIXES else None
