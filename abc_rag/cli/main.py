"""The command line: ``abc-rag index | ask | embed | info | demo | evaluate | train | export | bench``.

Exit status: 0 done; 1 failed; 2 the command line or an input is wrong; 3 done, but some files could not be used;
130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from abc_rag import __version__
from abc_rag.cli import bench, build, evaluate, export, mmeb, search, train
from abc_rag.cli.options import app
from abc_rag.errors import ABCRagError, InputError

__all__ = ["app", "main"]

# Importing these has put their commands into the groups.
_ = (bench, build, evaluate, export, mmeb, search, train)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on standard error, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name may hold what cannot be printed.
            stream.reconfigure(errors="backslashreplace")
    try:
        _run(arguments)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except ABCRagError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # The system's refusals that no message above foresaw: a full disk, a name too long, no permission.
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def _run(arguments: list[str] | None) -> None:
    try:
        app(args=arguments, standalone_mode=True)
    except SystemExit as end:
        # Typer turns an interrupt into this exit, and says nothing.
        if end.code == 130:
            raise KeyboardInterrupt from None
        raise
