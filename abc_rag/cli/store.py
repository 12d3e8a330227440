"""The commands ``abc-rag store check | repair``: whether everything that is stored can be found."""

from __future__ import annotations

import typer

from abc_rag.cli.options import JsonOption, KeywordStoreFlags, grouped
from abc_rag.cli.output import print_json, say

__all__ = ["store"]

store = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check that everything stored can be found, or repair the index."
)

_SHOWN = 20


@store.command()
@grouped
def check(
    *,
    place: KeywordStoreFlags,
    as_json: JsonOption = False,
) -> None:
    """Search for all records by their vectors, and check the keyword index; exit status 1 if something is not found."""
    place.require_filled()
    with place.open() as opened:
        problems, count = opened.check(), opened.count()
    if as_json:
        print_json({"records": count, "problems": problems})
    else:
        for problem in problems[:_SHOWN]:
            say(problem)
        if len(problems) > _SHOWN:
            say(f"and {len(problems) - _SHOWN} more")
        say(f"{count} records, {len(problems)} problems" if problems else f"{count} records, all are found")
    if problems:
        raise typer.Exit(1)


@store.command()
@grouped
def repair(
    *,
    place: KeywordStoreFlags,
) -> None:
    """Build the indexes of a store's folder anew from its journal, or a server's keyword index, without the model."""
    place.require_filled()
    with place.open() as opened:
        say(f"{opened.repair()} records, the index is built anew")
