"""The commands ``abc-rag evaluate evidence`` and others that measure what a search can do."""

from __future__ import annotations

from typing import Annotated

import typer

from abc_rag.cli.evaluate import ResultFlags, evaluate
from abc_rag.cli.options import DeviceOption, ModelOption, grouped, open_embedder

__all__ = ["evaluate_evidence_command", "evaluate_groups_command", "evaluate_scale_command"]


@evaluate.command("evidence")
@grouped
def evaluate_evidence_command(
    scenes: Annotated[int, typer.Option("--scenes", help="Number of held-out pictures; even.")] = 200,
    passes: Annotated[int, typer.Option("--passes", min=4, help="Most passes of the language model for a map.")] = 32,
    model: ModelOption = "abc-mini",
    device: DeviceOption = "auto",
    *,
    run: ResultFlags,
) -> None:
    """Measure whether maps of evidence lie where the answer does, and say so where there is no answer."""
    from abc_rag.evaluation.evidence import evaluate_evidence

    run.require_here("maps of evidence need the model on this machine")
    run.finish(evaluate_evidence(open_embedder(model, device), scenes=scenes, passes=passes, progress=not run.as_json))


@evaluate.command("scale")
@grouped
def evaluate_scale_command(
    pictures: Annotated[int, typer.Option("--pictures", min=200, help="Number of pictures, such as 100000.")] = 20_000,
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Pictures considered for reranking.")] = 50,
    seen: Annotated[int, typer.Option("--seen", min=64, help="Pictures that a facet map is fitted to.")] = 512,
    model: ModelOption = "abc-mini",
    device: DeviceOption = "auto",
    *,
    run: ResultFlags,
) -> None:
    """Measure how an instruction reaches a large store: second look, facet maps, a projection, stored facets."""
    from abc_rag.evaluation.scale import evaluate_scale

    with run.embedder(open_embedder(model, device)) as embedder:
        results = evaluate_scale(
            embedder,
            pictures=pictures,
            candidates=candidates,
            seen=seen,
            out=run.folder,
            progress=not run.as_json,
        )
    run.finish(results)


@evaluate.command("groups")
@grouped
def evaluate_groups_command(
    scenes: Annotated[int, typer.Option("--scenes", min=20, help="Number of held-out pictures.")] = 500,
    model: ModelOption = "abc-mini",
    device: DeviceOption = "auto",
    *,
    run: ResultFlags,
) -> None:
    """Measure whether groups and duplicates by an instruction are what pictures have in common under it."""
    from abc_rag.evaluation.surveys import evaluate_groups

    with run.embedder(open_embedder(model, device)) as embedder:
        results = evaluate_groups(embedder, scenes=scenes)
    run.finish(results)
