"""The command ``abc-rag train mine-negatives``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from abc_rag._cli_groups import train
from abc_rag._cli_shared import (
    DeviceOption,
    JsonOption,
    MaxTokensOption,
    MinTokensOption,
    ModelOption,
    ResolutionOption,
    _console,
    _embedder,
    _expanded,
    _print_json,
    _say,
)


@train.command("mine-negatives")
def mine_negatives_command(
    data: Annotated[str, typer.Argument(help="Folder or file of JSON lines with captions, or 'abc-pretraining'.")],
    out: Annotated[Path, typer.Argument(help="JSONL to write; an unfinished one is taken up.")],
    model: ModelOption = None,
    images: Annotated[Path | None, typer.Option("--images", help="Folder that picture names are relative to.")] = None,
    epsilon: Annotated[
        float,
        typer.Option("--epsilon", help="Leave out what scores this part of the positive's own score, or more."),
    ] = 0.95,
    count: Annotated[int, typer.Option("--count", help="Negatives of each row.")] = 35,
    query: Annotated[
        Literal["text", "image"],
        typer.Option("--query", help="What searches: the caption (its own score is 1), or the picture."),
    ] = "text",
    index: Annotated[
        Literal["auto", "exact", "approximate"],
        typer.Option("--index", help="Compare with all captions, or search an index; auto: what memory allows."),
    ] = "auto",
    memory_gb: Annotated[
        float | None, typer.Option("--memory-gb", help="GiB for vectors. Default: half of what is free.")
    ] = None,
    keep_vectors: Annotated[
        bool, typer.Option("--keep-vectors", help="Keep OUT.work, to mine again with other settings.")
    ] = False,
    max_bad: Annotated[int, typer.Option("--max-bad", help="Most unusable rows.")] = 100,
    download: Annotated[bool, typer.Option("--download", help="Fetch a hub data set.")] = False,
    device: DeviceOption = "auto",
    min_tokens: MinTokensOption = None,
    max_tokens: MaxTokensOption = None,
    resolution: ResolutionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find captions that nearly describe each picture of a corpus: the hard negatives of 'train pretrain'."""
    from abc_rag.training.data import open_captions
    from abc_rag.training.negatives import mine_negatives

    source = open_captions(
        data, images=None if images is None else _expanded(images), max_bad=max_bad, allow_download=download
    )
    report = mine_negatives(
        source,
        _expanded(out),
        _embedder(model, device, min_tokens, max_tokens, resolution=resolution),
        epsilon=epsilon,
        count=count,
        query=query,
        index=index,
        memory_gb=memory_gb,
        keep_vectors=keep_vectors,
        progress=not as_json,
    )
    if as_json:
        _print_json(report.as_dict())
        return
    table = Table(title=escape(f"negatives by {report.model}"), show_header=False)
    recall = "" if report.recall is None else f", recall {report.recall:.3f}"
    for name, value in (
        ("rows", f"{report.rows:,}"),
        ("different captions", f"{report.captions:,}"),
        ("negatives a row", f"{report.negatives / report.rows:.1f} of {report.count}"),
        ("rows with fewer", f"{report.short:,}"),
        ("left out as probably true", f"{report.at_or_above_bar:,}"),
        ("search", f"{report.query}, {report.index}{recall}"),
        ("unusable rows", f"{report.bad['count']:,}"),
    ):
        table.add_row(name, value)
    _console().print(table)
    _say(f"written to {out}; train with: abc-rag train pretrain --data {data} --negatives-file {out} ...")
