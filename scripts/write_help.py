"""Write the ``--help`` page of every command into the command line guide.

python scripts/write_help.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from abc_rag.cli.main import app

GUIDE = Path(__file__).parents[1] / "docs" / "command-line.md"
BEGIN, END = "<!-- help: begin -->\n", "<!-- help: end -->\n"
COLUMNS = 100


def names(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:  # noqa: ANN401
    """The words of a command and of its subcommands."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from names(below, (*path, name))


def page(words: tuple[str, ...]) -> str:
    """The help page of one command, as Markdown."""
    # The user's environment variables must not appear as defaults.
    variables = {name: None for name in os.environ if name.startswith("ABC_RAG_")}
    runner = CliRunner(env={**variables, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": str(COLUMNS)})
    done = runner.invoke(
        app, [*words, "--help"], prog_name="abc-rag", terminal_width=COLUMNS, max_content_width=COLUMNS
    )
    if done.exit_code != 0:
        raise SystemExit(f"abc-rag {' '.join(words)} --help: {done.output}")
    text = "\n".join(line.rstrip() for line in done.output.strip().splitlines())
    return f"### {' '.join(('abc-rag', *words))}\n\n```text\n{text}\n```\n"


def with_help(guide: str) -> str:
    """The guide with the current help pages between the two marks."""
    before, rest = guide.split(BEGIN)
    _, after = rest.split(END)
    pages = "\n".join(page(words) for words in names(get_command(app)))
    return f"{before}{BEGIN}\n{pages}\n{END}{after}"


if __name__ == "__main__":
    GUIDE.write_text(with_help(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
