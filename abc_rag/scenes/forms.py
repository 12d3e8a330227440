"""Reads lists of wordings: files with ``[name]`` lines and, below each, one form a line."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["read_forms"]


def read_forms(file: str) -> dict[str, list[str]]:
    """The forms of a file of this folder, by name; a form may stand twice, to be chosen twice as often."""
    found: dict[str, list[str]] = {}
    for line in files("abc_rag.scenes").joinpath(file).read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            found[line[1:-1]] = forms = []
        elif line:
            forms.append(line)
    return found
