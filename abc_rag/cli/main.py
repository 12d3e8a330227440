"""The command line: ``abc-rag COMMAND``; ``abc-rag --help`` lists the commands.

Exit status: 0 done; 1 failed; 2 the command line or an input is wrong; 3 done, but some files could not be used;
130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from abc_rag import __version__
from abc_rag.cli import ctrlbench_build, evaluate_search, mmeb
from abc_rag.cli.ask import ask
from abc_rag.cli.bench import bench
from abc_rag.cli.demo import demo
from abc_rag.cli.embed import embed
from abc_rag.cli.evaluate import evaluate
from abc_rag.cli.export import export
from abc_rag.cli.index import index
from abc_rag.cli.info import info
from abc_rag.cli.mcp import mcp
from abc_rag.cli.models import models
from abc_rag.cli.output import plain_logs, say, tell, visible
from abc_rag.cli.records import list_records, remove, show, stats
from abc_rag.cli.serve import serve
from abc_rag.cli.shell import shell
from abc_rag.cli.store import store
from abc_rag.cli.surveys import duplicates, groups
from abc_rag.cli.train import train
from abc_rag.errors import ABCRagError, InputError

__all__ = ["app", "main"]

# Typer has a copy of Click in some versions and imports it in others, but always has this subclass of its error.
_UsageError: Any = typer.BadParameter.__base__
# Importing these has added their commands to ``evaluate``.
_ = (ctrlbench_build, evaluate_search, mmeb)


class _InOrder(typer.core.TyperGroup):
    """Commands first, groups last; Typer would list groups first."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401  (Click's or Typer's own)
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: isinstance(self.commands[name], typer.core.TyperGroup))


app = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Ask questions of your pictures.",
)
app.command()(index)
app.command()(ask)
app.command()(shell)
app.command()(groups)
app.command()(duplicates)
app.command()(mcp)
app.command("list")(list_records)
for _command in (show, remove, stats, embed, info, models, demo, bench):
    app.command()(_command)
app.add_typer(serve, name="serve")
app.add_typer(store, name="store")
app.add_typer(evaluate, name="evaluate")
app.add_typer(train, name="train")
app.add_typer(export, name="export")


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        say(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on standard error, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name may hold what cannot be printed.
            stream.reconfigure(errors="backslashreplace")
    with plain_logs():
        sys.exit(_status(arguments))


def _status(arguments: list[str] | None) -> int:
    """Run a command and say what went wrong; the exit status."""
    try:
        return _run(arguments)
    except InputError as error:
        tell(f"error: {error}")
        return 2
    except ABCRagError as error:
        tell(f"error: {error}")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        tell("interrupted")
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # The system's refusals that no message above foresaw: a full disk, a name too long, no permission.
        tell(f"error: {error}")
        return 1


def _run(arguments: list[str] | None) -> int:
    try:
        result = app(args=arguments, standalone_mode=False)
    except _UsageError as error:
        # Usage errors quote the command line, which may hold the names of files.
        said = io.StringIO()
        error.show(file=said)
        typer.echo(visible(said.getvalue(), newlines=True), err=True, nl=False)
        return int(error.exit_code)
    if result == 130:  # what Typer makes of an interrupt, without a word
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0
