"""The commands ``abc-rag train ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from abc_rag._cli_groups import train
from abc_rag._cli_shared import _say


@train.command("mini")
def train_mini_command(
    out: Annotated[Path, typer.Argument(help="Folder that receives base/, pretrain/ and instruct/.")],
    seed: Annotated[int, typer.Option("--seed")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the base stage, for a trial.")] = None,
) -> None:
    """Train abc-mini from nothing. A stage whose result is in OUT already is not repeated."""
    from dataclasses import replace

    from abc_rag.training.mini import MiniConfig, train_mini

    config = MiniConfig(seed=seed)
    if steps is not None:
        config = replace(config, base_steps=steps)
    train_mini(out, config, say=lambda line: typer.echo(line, err=True))
    _say(f"abc-mini is in {out}; its figures: abc-rag evaluate mini --model {out}")
