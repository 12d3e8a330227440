"""The command ``abc-rag evaluate ctrlbench-build``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abc_rag.cli.evaluate import evaluate
from abc_rag.cli.options import (
    PARTIAL,
    DeviceOption,
    JsonOption,
    expanded,
    open_embedder,
)
from abc_rag.cli.output import print_facts, print_json, say, tell
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.evaluation.authoring.build import BuildReport
    from abc_rag.evaluation.authoring.chat import OpenAIDescriber


__all__ = ["evaluate_ctrlbench_build_command"]


@evaluate.command("ctrlbench-build")
def evaluate_ctrlbench_build_command(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures, searched with its sub-folders.")],
    out: Annotated[Path, typer.Argument(help="Folder that receives ctrlbench.jsonl and what it is made of.")],
    chat_model: Annotated[
        str | None, typer.Option(help="Name of the vision chat model. The pictures are sent to it.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            help="Server that speaks OpenAI's chat completions, such as http://127.0.0.1:8000/v1. "
            "Default: https://api.openai.com/v1, to which the pictures then go."
        ),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable that holds the key. Default: OPENAI_API_KEY for OpenAI, none for other servers."
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Pairs to ask for per picture.")] = 5,
    side: Annotated[int, typer.Option(help="Longer side of the pictures that are sent, at most, in pixels.")] = 1024,
    near: Annotated[
        int, typer.Option(help="Bits of 256 in which near-identical pictures may differ; 0: identical files only.")
    ] = 10,
    concurrency: Annotated[int, typer.Option(help="Maximum number of concurrent requests.")] = 4,
    timeout: Annotated[float, typer.Option(help="Timeout of one request in seconds.")] = 120.0,
    limit: Annotated[int | None, typer.Option(help="Maximum number of pictures, for a trial run.")] = None,
    max_bad: Annotated[int, typer.Option(help="Maximum number of unusable pictures.")] = 100,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Leave out phrases of a picture that this embedder cannot tell apart, and pairs whose phrase it finds "
            "by the instruction alone, without the picture.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    review: Annotated[
        bool, typer.Option("--review/--no-review", help="Then review the pairs in a web page on this machine.")
    ] = False,
    review_only: Annotated[
        bool, typer.Option("--review-only", help="Ask nothing: review the pairs in OUT and write the file again.")
    ] = False,
    page: Annotated[
        bool, typer.Option("--page", help="Write OUT/review.html, a page for reviewing without this command.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the review page; 0: a free one.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send pictures to another machine without asking.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a CtrlBench file from a folder of pictures: a chat model writes pairs, you review them. Resumable.

    Answers and decisions are kept in OUT: run the same command again to continue. Without --chat-model nothing is
    asked and nothing is sent: the file is written again from what is in OUT, for example after a review.
    """
    from abc_rag.evaluation.authoring.build import build_ctrlbench, write_ctrlbench
    from abc_rag.evaluation.authoring.chat import DEFAULT_BASE_URL, OpenAIDescriber
    from abc_rag.evaluation.authoring.review import write_review_page

    if review_only and chat_model is not None:
        raise InputError("--review-only asks no chat model; leave --chat-model out")
    if base_url is not None and chat_model is None:
        raise InputError("--base-url needs --chat-model, the name of the model there")
    if not os.path.isdir(expanded(pictures)):
        raise InputError(f"{pictures}: no such folder")
    if chat_model is None:
        if not (review or review_only or page or (expanded(out) / "build.json").exists()):
            raise InputError("name the vision chat model that writes the pairs: --chat-model NAME [--base-url URL]")
        report = write_ctrlbench(expanded(out))
    else:
        describer = OpenAIDescriber(chat_model, base_url or DEFAULT_BASE_URL, api_key_env, timeout_s=timeout)
        report = build_ctrlbench(
            expanded(pictures),
            expanded(out),
            describer,
            pairs=pairs,
            side=side,
            near=near,
            concurrency=concurrency,
            limit=limit,
            embedder=None if model is None else open_embedder(model, device),
            max_bad=max_bad,
            confirm=lambda count: yes or _confirmed(count, describer),
            progress=not as_json,
        )
    if page:
        (tell if as_json else say)(f"page: {write_review_page(expanded(out))}")
    if review or review_only:
        report = _review(expanded(out), port)
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report, f"abc-rag evaluate ctrlbench-build {pictures} {out} --review-only")
    if chat_model is not None and report.bad["count"]:
        raise typer.Exit(PARTIAL)


def _confirmed(count: int, describer: OpenAIDescriber) -> bool:
    from abc_rag.embedding.endpoint import is_loopback

    if is_loopback(describer.base_url):
        return True
    what = f"{count} pictures" if count != 1 else "1 picture"
    question = f"{what} will be sent to {describer.base_url} ({describer.name}), which may cost money"
    if not sys.stdin.isatty():
        raise InputError(f"{question}; pass --yes to agree")
    if not typer.confirm(f"{question}. Go on?", err=True):
        raise typer.Exit(1)
    return True


def _review(out: Path, port: int) -> BuildReport:
    from abc_rag.evaluation.authoring.build import write_ctrlbench
    from abc_rag.evaluation.authoring.review import ReviewServer

    with ReviewServer(out, port=port) as server:
        tell(f"review: {server.url}")
        tell('Open it in a browser on this machine; end with "Finish" there, or with Ctrl-C here.')
        try:
            server.wait()
        except KeyboardInterrupt:
            # As good as the button: every decision has been saved.
            tell()
    return write_ctrlbench(out)


def _show(report: BuildReport, review: str) -> None:
    rows: list[tuple[str, Any]] = [
        ("pictures", report.pictures),
        ("pairs", report.pairs),
        ("different instructions", report.distinct_instructions),
        ("R@1 at most without instructions, %", f"{100 * report.ceiling:.1f}"),
        *((f"pictures with {count} pairs", number) for count, number in report.pairs_per_picture.items()),
        *((f"pairs {state}", number) for state, number in report.review.items() if report.reviewed),
        *((f"left out: {reason}", number) for reason, number in report.left_out.items()),
        ("identical pictures left out", report.run.get("identical", 0)),
        ("similar pictures left out", report.run.get("similar", 0)),
        *((f"unusable: {problem}", number) for problem, number in report.bad["by_problem"].items()),
    ]
    print_facts(rows, title=report.file, numbers=True)
    for row in report.bad["rows"][:5]:
        tell(f"failed: {row['where']}: {row['problem']} ({row['detail']})")
    if not report.reviewed:
        say(f"unreviewed: nobody has looked at these pairs. To do so: {review}")
    elif report.review["undecided"]:
        say(f"{report.review['undecided']} pairs are undecided and left out. To go on: {review}")
