"""The commands ``abc-rag export ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from abc_rag.cli.options import (
    DeviceOption,
    JsonOption,
    expanded,
)
from abc_rag.cli.output import in_words, print_json, say

__all__ = ["export"]

export = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write a model for other libraries.")


@export.command("sentence-transformers")
def export_sentence_transformers_command(
    checkpoint: Annotated[str, typer.Argument(help="abc-mini, abc, or a checkpoint folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in OUT.")] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Load the export and compare its vectors with the engine's.")
    ] = True,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Write a model that sentence-transformers 6 loads, for texts, pictures, and pictures with an instruction."""
    from abc_rag.adapters.sentence_transformers.export import export_sentence_transformers

    done = export_sentence_transformers(checkpoint, expanded(out), overwrite=overwrite, check=check, device=device)
    if as_json:
        print_json({"folder": str(done.folder), "fingerprint": str(done.fingerprint), "difference": done.difference})
        return
    compared = "" if done.difference is None else f"; largest difference to the engine's vectors: {done.difference:.0e}"
    say(f"{in_words(str(done.fingerprint))} is in {out}{compared}")
    say(f"how to load it, and its limits: {out / 'README.md'}")
