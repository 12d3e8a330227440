"""The commands ``abc-rag evaluate mini`` and ``abc-rag evaluate twins``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from abc_rag._cli_groups import evaluate
from abc_rag._cli_shared import DeviceOption, JsonOption, _console, _embedder, _print_json


@evaluate.command("mini")
def evaluate_mini_command(
    scenes: Annotated[int, typer.Option("--scenes", help="How many of the 1,000 held-out scenes.")] = 1000,
    model: Annotated[str, typer.Option("--model", "-m", help="abc-mini, or a checkpoint folder.")] = "abc-mini",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Ask held-out scenes everything, and compare with every phrase that abc-mini knows."""
    from abc_rag.evaluation.mini import evaluate_mini

    report = evaluate_mini(_embedder(model, device, None, None), scenes=scenes, progress=not as_json)
    if as_json:
        _print_json(report.as_dict())
        return
    table = Table(title=f"{report.model}: {report.scenes} held-out scenes, {report.questions} questions, "
                        f"{report.candidates} candidate phrases")  # fmt: skip
    table.add_column("measure")
    table.add_column("%", justify="right")
    rows = [
        ("picture + instruction -> phrase", report.accuracy),
        ("the same, in wordings never trained on", report.accuracy_unseen_wording),
        ("both sides of a picture answered rightly", report.both_sides),
        ("without the instruction -> phrase", report.without_instruction),
        ("asked object before the other, with the instruction", report.order_with_instruction),
        ("asked object before the other, without it (chance: 50)", report.order_without_instruction),
        ("caption -> picture, R@1", report.caption_to_picture),
        ("picture -> caption, R@1", report.picture_to_caption),
        *((f"aspect: {aspect}", share) for aspect, share in report.by_aspect.items()),
    ]
    for label, share in rows:
        table.add_row(escape(label), f"{100 * share:.1f}")
    _console().print(table)


@evaluate.command("twins")
def evaluate_twins_command(
    scenes: Annotated[int, typer.Option("--scenes", help="How many of the 1,000 pictures; an even number.")] = 1000,
    candidates: Annotated[int, typer.Option("--candidates", help="Pictures considered for a second look.")] = 50,
    model: Annotated[str, typer.Option("--model", "-m", help="abc-mini, or a checkpoint folder.")] = "abc-mini",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Ask for held-out pictures, each beside a twin that differs in the asked aspect only: what each step is worth."""
    from abc_rag.evaluation.twins import evaluate_twins

    report = evaluate_twins(
        _embedder(model, device, None, None), scenes=scenes, candidates=candidates, progress=not as_json
    )
    if as_json:
        _print_json(report.as_dict())
        return
    table = Table(title=f"{report.model}: {report.pictures} pictures, {report.questions} questions")
    table.add_column("path")
    for column in ("R@1", "R@10", "before its twin", "ms/query", "p90", "second looks", "vectors/picture"):
        table.add_column(column, justify="right")
    for path in report.paths:
        shares = (path.recall_at_1, path.recall_at_10, path.before_twin)
        cells = [f"{100 * share:.1f}" for share in shares] + [f"{path.ms:.0f}", f"{path.ms_p90:.0f}"]
        table.add_row(escape(path.name), *cells, f"{path.second_looks:.1f}", f"{path.vectors:.0f}")
    _console().print(table)
    aspects = Table(title="R@1 by aspect")
    aspects.add_column("path")
    for aspect in report.paths[0].by_aspect:
        aspects.add_column(aspect, justify="right")
    for path in report.paths:
        aspects.add_row(escape(path.name), *(f"{100 * share:.1f}" for share in path.by_aspect.values()))
    _console().print(aspects)
