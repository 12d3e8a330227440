"""The commands ``abc-rag evaluate mmeb`` and ``abc-rag evaluate mteb``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from abc_rag.cli.evaluate import ResultFlags, evaluate
from abc_rag.cli.options import ModelFlags, expanded, grouped

__all__ = ["evaluate_mmeb_command", "evaluate_mteb_command", "names_of"]


@evaluate.command("mmeb")
@grouped
def evaluate_mmeb_command(
    root: Annotated[Path, typer.Argument(help="Folder with MMEB's data sets, as TIGER-Lab/MMEB-eval has them.")],
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            help="Data sets or groups (classification, vqa, retrieval, grounding, ind, ood), separated by commas. "
            "Default: what is in the folder."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder where images.zip was unpacked. Default: images in ROOT.")
    ] = None,
    prompts: Annotated[
        Literal["auto", "mmeb", "abc", "vlm2vec"],
        typer.Option(
            help="The benchmark's words in the model's own prompt (mmeb) or to the letter (vlm2vec), or what ABC's "
            "authors measured with (abc)."
        ),
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first queries of each data set.")] = None,
    max_bad: Annotated[int, typer.Option(min=0, help="Maximum number of unusable rows.")] = 100,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch what is missing from the hub first; several GB.")
    ] = False,
    *,
    model: ModelFlags,
    run: ResultFlags,
) -> None:
    """Measure hit@1 on the data sets of MMEB, with means beside the published ones."""
    from abc_rag.evaluation.mmeb.run import evaluate_mmeb

    with run.embedder(model.open()) as embedder:
        results = evaluate_mmeb(
            embedder,
            expanded(root),
            datasets=names_of(datasets),
            images=None if images is None else expanded(images),
            prompts=prompts,
            out=run.folder,
            limit=limit,
            max_bad=max_bad,
            download=download,
            progress=not run.as_json,
        )
    run.finish(results)


@evaluate.command("mteb")
@grouped
def evaluate_mteb_command(
    tasks: Annotated[
        list[str],
        typer.Option(
            "--tasks", "-t", help="Names of mteb's tasks or benchmarks, separated by commas; may be repeated."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="organisation/model, under which mteb files the results.")] = None,
    *,
    model: ModelFlags,
    run: ResultFlags,
) -> None:
    """Run tasks of mteb (MIEB, ViDoRe, ...). mteb fetches their data from the Hugging Face hub."""
    from abc_rag.evaluation.mteb import evaluate_mteb

    with run.embedder(model.open()) as embedder:
        results = evaluate_mteb(
            embedder,
            names_of(tasks) or [],
            out=run.folder,
            name=name,
            progress=not run.as_json,
        )
    run.finish(results)


def names_of(given: list[str] | None) -> list[str] | None:
    """Names from repeated options or separated by commas. Commas in brackets belong to a name: ``MTEB(eng, v2)``."""
    if given is None:
        return None
    return [name.strip() for one in given for name in re.split(r",(?![^(]*\))", one) if name.strip()]
