"""The groups of commands; the modules that fill them are imported by `abc_rag.cli`."""

from __future__ import annotations

import typer

evaluate = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a model.")
train = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train a model.")
export = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write a model for other libraries.")
