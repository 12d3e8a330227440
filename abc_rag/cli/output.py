r"""Everything that the command line prints goes through here.

Stored texts, file names and servers' answers are written by others. A terminal obeys some of their characters: they can
clear the screen, set its title or write the clipboard, and bidirectional overrides make a name read as another one.
Such characters are printed as text (``\x1b``, ``\u202e``); in JSON they are escaped.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RichCast
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from abc_rag.types import Record

__all__ = [
    "cell",
    "console",
    "heading",
    "in_options",
    "in_words",
    "labelled",
    "place_of",
    "plain_logs",
    "print_facts",
    "print_json",
    "print_table",
    "put",
    "read_line",
    "say",
    "tell",
    "visible",
]

# C0, DEL and C1 controls; bidirectional marks, embeddings, overrides and isolates; line and paragraph separators.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str, *, newlines: bool = False) -> str:
    """A text whose control characters are spelled out, so that a terminal shows them.

    Args:
        text: Anything.
        newlines: Keep line feeds as they are.
    """
    return _OBEYED.sub(lambda found: _spelled(found[0], newlines), text)


def _spelled(character: str, newlines: bool) -> str:
    if character == "\n" and newlines:
        return character
    return character.encode("unicode_escape").decode("ascii")


# What a Python caller passes, as the options that are the same.
_OPTIONS = (
    (re.compile(r"(?:limits=)?ImageLimits\((\w+)=(\S*?)\)"), r"--image-limit \1=\2"),
    (re.compile(r"DocumentOptions\(password=\.\.\.\)"), "--document-password"),
    (re.compile(r"ImageLimits\.(?=\w+=)"), "--image-limit "),
    (re.compile(r"ImageLimits\."), "the limit "),
    (re.compile(r"^(error: )?shape '(\w+)' needs"), r"\1--shape \2 needs"),
    (re.compile(r"choose a smaller shape, dtype='bfloat16'"), "choose a smaller --shape, --dtype bfloat16"),
    (re.compile(r"pass prune_most=1\b"), "pass --yes"),
    (re.compile(r"more than prune_most=\S+ of them"), "more than --prune takes for deleted"),
    (re.compile(r"load_embedder\(\.\.\., (\w+)='([^']*)'\)"), r"--\1 \2"),
)


# How the fingerprint of a model ends.
_TOKENS = re.compile(r" \((\d+)\.\.(\d+) image tokens\)")


def in_options(message: str) -> str:
    """A message that names arguments of functions, with the command's options in their place."""
    for pattern, option in _OPTIONS:
        message = pattern.sub(option, message)
    return in_words(message)


def in_words(text: str) -> str:
    """A text with fingerprints of models in it, which say in words how closely the model looks at a picture."""

    def said(found: re.Match[str]) -> str:
        least, most = found.groups()
        if most in ("0", "1"):  # a model without this setting
            return ""
        return f" ({most if least == most else f'{least} to {most}'} tokens for each picture)"

    return _TOKENS.sub(said, text)


class _Guarded:
    """What Rich renders, with the control characters of its texts spelled out. Rich's own codes pass."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._inner, options):
            yield segment if segment.control else Segment(visible(segment.text, newlines=True), segment.style)


class _Guard:
    def process_renderables(
        self, renderables: list[ConsoleRenderable | RichCast | str]
    ) -> list[ConsoleRenderable | RichCast | str]:
        return [_Guarded(one) for one in renderables]


def console(*, soft_wrap: bool = False) -> Console:
    """Standard output, as Rich writes to it."""
    # Without emoji, as a file's name or a passage may well hold ":key:".
    made = Console(highlight=False, emoji=False, soft_wrap=soft_wrap)
    made.push_render_hook(_Guard())  # type: ignore[arg-type]  # a RenderHook by its method
    return made


def cell(value: object) -> Text:
    """A table's cell: any text, without markup, with its line breaks."""
    return Text(visible(str(value), newlines=True))


def heading(title: str, *, note: str = "") -> Text:
    """A line in bold, and what is said beside it in grey."""
    return Text.assemble((visible(title), "bold"), *([("   " + visible(note), "dim")] if note else []))


def labelled(label: str, value: str) -> Text:
    """A line that begins with its label in grey."""
    return Text.assemble((label, "dim"), " ", visible(value))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """A table on standard output; all columns but the first are numbers."""
    table = Table(title=cell(title) if title else None)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(cell, row))
    console().print(table)


def print_facts(facts: Iterable[tuple[object, object]], *, title: object = "", numbers: bool = False) -> None:
    """Names and values in two columns on standard output, within a frame if they have a title."""
    table = Table(title=cell(title) if title else None, show_header=False, show_edge=bool(title), pad_edge=bool(title))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", justify="right" if numbers else "left")
    for name, value in facts:
        table.add_row(cell(name), cell(value))
    console().print(table)


def place_of(record: Record) -> str:
    """Where a record came from, as short as it can be opened from here: two cameras both have an IMG_0001.jpg."""
    here = os.path.join(os.getcwd(), "")
    if record.document:
        page = "" if record.page is None else f", p. {record.page_label}"
        return record.document.removeprefix(here) + page
    return (record.source.removeprefix(here) if record.source_type == "path" else record.source) or record.id


def say(message: str = "") -> None:
    """A line on standard output."""
    console(soft_wrap=True).print(Text(visible(message)))


def put(piece: str) -> None:
    """A piece of text on standard output, at once and without a line's end."""
    typer.echo(visible(piece, newlines=True), nl=False)
    sys.stdout.flush()


def tell(message: str = "") -> None:
    """A line on standard error: progress, warnings and errors."""
    typer.echo(visible(in_options(message)), err=True)


def read_line(prompt: str) -> str | None:
    """A line from standard input; None at its end.

    At a terminal it is asked for, and can be edited, with a history where Python has readline.
    """
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    try:
        import readline  # noqa: F401  (changes what input does)
    except ImportError:
        pass
    try:
        return input(visible(prompt))
    except EOFError:
        typer.echo(err=True)
        return None


def print_json(value: object, *, indent: int | None = 2) -> None:
    """A value as JSON on standard output. Control characters are escaped, as are those that the terminal lacks."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # The line feeds are those between values: in strings JSON has escaped them already.
    text = _OBEYED.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a terminal that is not UTF-8, or a file's name that is not
        text = json.dumps(value, indent=indent)
    typer.echo(text)


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(in_options(super().format(record)), newlines=True)


@contextmanager
def plain_logs() -> Iterator[None]:
    """Warnings that abc-rag logs are printed on standard error as `tell` prints."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible("warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("abc_rag")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
