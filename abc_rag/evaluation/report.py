"""Writes an evaluation to files: ``results.json`` for programs, ``report.html`` for people."""

from __future__ import annotations

from pathlib import Path

from abc_rag.errors import InputError
from abc_rag.evaluation.page import render_page
from abc_rag.evaluation.results import Results
from abc_rag.files import refused_as, write, write_json

__all__ = ["write_report"]


def write_report(results: Results, folder: Path) -> tuple[Path, Path]:
    """Write ``results.json`` and ``report.html`` into a folder, each whole or not at all.

    Returns:
        The two files.

    Raises:
        InputError: The folder cannot be written to.
    """
    data, page = folder / "results.json", folder / "report.html"
    with refused_as(InputError, f"{folder}: cannot be written", "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(data, results.as_dict())
        write(page, render_page(results))
    return data.resolve(), page.resolve()
