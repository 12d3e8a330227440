"""The commands ``abc-rag evaluate``, one a benchmark."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from abc_rag.cli.cluster import EngineFlags
from abc_rag.cli.options import (
    DeviceOption,
    JsonOption,
    MiniOption,
    ModelFlags,
    ModelOption,
    expanded,
    grouped,
    open_embedder,
)
from abc_rag.cli.output import console, print_json, say
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.answering.generator import Generator
    from abc_rag.embedding.embedder import Embedder
    from abc_rag.evaluation.results import Results


__all__ = ["ResultFlags", "RunFlags", "evaluate"]

evaluate = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure a model.")

ImagesOption = Annotated[
    Path | None, typer.Option("--images", help="Folder of the pictures. Default: the folder of the data.")
]
JudgeOption = Annotated[
    bool, typer.Option("--judge", help="Also measure the model's own judgement; it has to generate.")
]
LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", help='Labels, one per line, or JSON {"label": "words"}. Default: the labels in the data.'),
]


class RunKeywords(TypedDict):
    """What every evaluation takes."""

    out: Path | None
    limit: int | None
    max_bad: int
    progress: bool


@dataclass(frozen=True, kw_only=True)
class ResultFlags(EngineFlags):
    """Where results go, and where the model runs."""

    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for results.json, report.html and the vectors; a later run continues from it."
        ),
    ] = None
    as_json: JsonOption = False

    @property
    def folder(self) -> Path | None:
        """The folder for results."""
        return None if self.out is None else expanded(self.out)

    def require_here(self, why: str) -> None:
        """Refuse ``--ray`` for what needs the model itself.

        Raises:
            InputError: It was given.
        """
        if self.ray is not None:
            raise InputError(f"--ray: {why}; leave it out")

    def finish(self, results: Results) -> None:
        """Print and save results; the command line is added to their settings.

        Raises:
            InputError: The folder cannot be written to.
        """
        from abc_rag.evaluation.report import write_report

        if Path(sys.argv[0]).name in ("abc-rag", "abc-rag.exe", "cli.py"):
            results = replace(results, settings={**results.settings, "command": shlex.join(["abc-rag", *sys.argv[1:]])})
        files = None if self.folder is None else write_report(results, self.folder)
        if self.as_json:
            print_json(results.as_dict())
            return
        results.show(console())
        if files is not None:
            say(f"results: {files[0]}")
            say(f"page: {files[1]}")


@dataclass(frozen=True, kw_only=True)
class RunFlags(ResultFlags):
    """Which rows are used, and where results go."""

    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first rows.")] = None
    max_bad: Annotated[
        int, typer.Option(min=0, help="Maximum number of unusable rows and pictures; they are left out.")
    ] = 100

    def keywords(self) -> RunKeywords:
        """The options as evaluations take them."""
        return {"out": self.folder, "limit": self.limit, "max_bad": self.max_bad, "progress": not self.as_json}


@evaluate.command("ctrlbench")
@grouped
def ctrlbench_command(
    data: Annotated[
        str,
        typer.Argument(help="JSON lines of {image, pairs: [{instruction, phrase}]}; or 'scenes', which needs no data."),
    ],
    *,
    model: ModelFlags,
    run: RunFlags,
) -> None:
    """Measure whether instructions steer: picture and instruction to phrase, with and without the instruction."""
    from abc_rag.evaluation.ctrlbench import evaluate_ctrlbench

    with run.embedder(model.open()) as embedder:
        results = evaluate_ctrlbench(embedder, data, **run.keywords())
    run.finish(results)


@evaluate.command("steering")
@grouped
def steering_command(
    data: Annotated[
        str,
        typer.Argument(
            help="JSON lines of {image, pairs: [{instruction, phrase, aspect}]}, where aspect may be missing; or "
            "'scenes', which needs no data."
        ),
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="[MODELS]...", help="Further models.")] = None,
    models: Annotated[
        list[str] | None, typer.Option(metavar="MODEL [MODEL]...", help="Models to compare, as for --model.")
    ] = None,
    device: DeviceOption = "auto",
    *,
    run: RunFlags,
) -> None:
    """Compare models: what instructions gain over the ceiling without them, by aspect, and what each costs."""
    from abc_rag.evaluation.steering import evaluate_steering

    run.require_here("what each model costs is measured on this machine")
    named = dict.fromkeys([*(models or []), *(more or [])])
    opened = {name: partial(open_embedder, name, device) for name in named}
    run.finish(evaluate_steering(opened, data, **run.keywords()))


@evaluate.command("retrieval")
@grouped
def retrieval_command(
    data: Annotated[
        Path, typer.Argument(help="MSCOCO annotations, a Karpathy split file, or JSON lines of {image, captions}.")
    ],
    images: ImagesOption = None,
    split: Annotated[str | None, typer.Option(help="Split of a Karpathy file. Default: test.")] = None,
    captions: Annotated[
        int | None, typer.Option(min=1, help="Use only the first captions of each picture; published: 5.")
    ] = None,
    *,
    model: ModelFlags,
    run: RunFlags,
) -> None:
    """Measure retrieval of pictures by captions and back (MSCOCO, Flickr30K, your own): R@1, R@5, R@10."""
    from abc_rag.evaluation.retrieval import evaluate_retrieval

    with run.embedder(model.open()) as embedder:
        results = evaluate_retrieval(
            embedder,
            data,
            images=images,
            split=split,
            captions=captions,
            **run.keywords(),
        )
    run.finish(results)


@dataclass(frozen=True, kw_only=True)
class _SampleFlags(RunFlags):
    limit: Annotated[int | None, typer.Option(min=1, help="Use a random sample of pictures.")] = None


@evaluate.command("classification")
@grouped
def classification_command(
    data: Annotated[Path, typer.Argument(help="JSON lines of {image, label}, or one subfolder per label.")],
    labels: LabelsOption = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template", "-t", help="Text with {} for the label; repeat to average. Default: a photo of a {}"
        ),
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What to look at in every picture.")] = None,
    *,
    model: ModelFlags,
    run: _SampleFlags,
) -> None:
    """Measure zero-shot classification: accuracy overall and per label, and which labels are confused."""
    from abc_rag.evaluation.classification import TEMPLATE, evaluate_classification

    with run.embedder(model.open()) as embedder:
        results = evaluate_classification(
            embedder,
            data,
            labels=labels,
            templates=template or [TEMPLATE],
            instruction=instruction,
            **run.keywords(),
        )
    run.finish(results)


@evaluate.command("vqa")
@grouped
def vqa_command(
    data: Annotated[Path, typer.Argument(help="JSON lines of {image, question, answer, candidates}.")],
    instruction_template: Annotated[
        str, typer.Option(help="The instruction, with {question} for the question.")
    ] = "{question}",
    as_asked: Annotated[
        bool, typer.Option("--as-asked/--rewrite", help="Use the question as it stands, or rewrite it by rules.")
    ] = True,
    *,
    model: ModelFlags,
    run: RunFlags,
) -> None:
    """Measure visual question answering: the nearest of several candidate answers to picture and question."""
    from abc_rag.evaluation.vqa import evaluate_vqa

    with run.embedder(model.open()) as embedder:
        results = evaluate_vqa(
            embedder,
            data,
            instruction_template=instruction_template,
            rewrite=not as_asked,
            **run.keywords(),
        )
    run.finish(results)


@evaluate.command("resolution")
@grouped
def resolution_command(
    data: Annotated[str, typer.Argument(help="Data for the task; or 'scenes' for ctrlbench.")],
    task: Annotated[
        str, typer.Option(help="ctrlbench, retrieval, classification or vqa: how quality is measured.")
    ] = "ctrlbench",
    tokens: Annotated[
        str, typer.Option(help="Numbers of image tokens, separated by commas.")
    ] = "32,64,128,256,512,1024",
    images: ImagesOption = None,
    labels: LabelsOption = None,
    timed: Annotated[int, typer.Option(min=1, help="Number of pictures to time.")] = 16,
    passes: Annotated[int, typer.Option(min=1, help="Number of timed passes; the median is reported.")] = 5,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    *,
    run: RunFlags,
) -> None:
    """Compare quality and time at several numbers of image tokens, on your own data."""
    from abc_rag.evaluation.resolution import evaluate_resolution, resolutions

    run.require_here("times are measured on this machine")
    try:
        numbers = [int(one) for one in tokens.split(",")]
    except ValueError as error:
        raise InputError(f"--tokens takes numbers separated by commas, such as 64,256, not {tokens!r}") from error
    results = evaluate_resolution(
        resolutions(open_embedder(model, device)),
        data,
        task=task,  # type: ignore[arg-type]
        tokens=numbers,
        images=images,
        labels=labels,
        timed=timed,
        passes=passes,
        **run.keywords(),
    )
    run.finish(results)


@evaluate.command("mini")
@grouped
def evaluate_mini_command(
    scenes: Annotated[int, typer.Option(help="Number of the 1,000 held-out scenes to use.")] = 1000,
    model: MiniOption = "abc-mini",
    device: DeviceOption = "auto",
    *,
    run: ResultFlags,
) -> None:
    """Measure abc-mini on held-out scenes, against every phrase that it knows."""
    from abc_rag.evaluation.mini import evaluate_mini

    with run.embedder(open_embedder(model, device)) as embedder:
        results = evaluate_mini(embedder, scenes=scenes, progress=not run.as_json)
    run.finish(results)


@evaluate.command("pictures")
@grouped
def evaluate_pictures_command(
    kinds: Annotated[Path, typer.Argument(help="Drawings by scripts/draw_kinds.py, such as runs/kinds.npz.")],
    scenes: Annotated[int, typer.Option(help="Scenes of each set.")] = 300,
    model: MiniOption = "abc-mini",
    device: DeviceOption = "auto",
    *,
    run: ResultFlags,
) -> None:
    """Measure what abc-mini sees in drawings of kinds and styles that it was, or was never, trained on."""
    from abc_rag.evaluation.pictures import evaluate_pictures
    from abc_rag.scenes.kinds import load_kinds

    drawings = load_kinds(str(expanded(kinds)))
    with run.embedder(open_embedder(model, device)) as embedder:
        results = evaluate_pictures(embedder, drawings, scenes=scenes, progress=not run.as_json)
    run.finish(results)


@evaluate.command("speaking")
@grouped
def evaluate_speaking_command(
    scenes: Annotated[int, typer.Option(help="Number of held-out scenes.")] = 100,
    model: MiniOption = "abc-mini",
    device: DeviceOption = "auto",
    *,
    run: ResultFlags,
) -> None:
    """Measure the answers of abc-mini's base: about a picture, from sources, refusals, judgements."""
    from abc_rag.answering.load import load_generator
    from abc_rag.evaluation.speaking import evaluate_speaking

    run.require_here("the model generates on this machine")
    run.finish(evaluate_speaking(load_generator(model, device=device), scenes=scenes))


@evaluate.command("twins")
@grouped
def evaluate_twins_command(
    scenes: Annotated[int, typer.Option(help="Number of the 1,000 pictures; even.")] = 1000,
    candidates: Annotated[int, typer.Option(help="Pictures considered for reranking.")] = 50,
    judge: JudgeOption = False,
    model: MiniOption = "abc-mini",
    device: DeviceOption = "auto",
    *,
    run: ResultFlags,
) -> None:
    """Measure each step of a search on held-out pictures, each beside a twin that differs only in what is asked."""
    from abc_rag.evaluation.twins import evaluate_twins

    opened, generator = _both(model, device, judge)
    progress = not run.as_json
    with run.embedder(opened) as embedder:
        results = evaluate_twins(embedder, generator=generator, scenes=scenes, candidates=candidates, progress=progress)
    run.finish(results)


@evaluate.command("keywords")
@grouped
def evaluate_keywords_command(
    passages: Annotated[int, typer.Option(min=100, help="Passages of Python's manual to use.")] = 600,
    model: ModelOption = "abc-mini",
    device: DeviceOption = "auto",
    *,
    run: ResultFlags,
) -> None:
    """Measure what keywords add to vectors: 200 questions of four kinds over a generated corpus and Python's manual."""
    from abc_rag.evaluation.keywords import evaluate_keywords

    with run.embedder(open_embedder(model, device)) as embedder:
        results = evaluate_keywords(embedder, passages=passages, progress=not run.as_json)
    run.finish(results)


@evaluate.command("documents")
@grouped
def evaluate_documents_command(
    model: ModelOption = "abc-mini",
    device: DeviceOption = "auto",
    *,
    run: ResultFlags,
) -> None:
    """Measure words and vectors over documents, by the weight of keywords: 200 questions of four kinds."""
    from abc_rag.evaluation.documents import evaluate_documents

    with run.embedder(open_embedder(model, device)) as embedder:
        results = evaluate_documents(embedder, progress=not run.as_json)
    run.finish(results)


@evaluate.command("absent")
@grouped
def evaluate_absent_command(
    scenes: Annotated[int, typer.Option(min=10, max=200, help="Number of pictures in the store.")] = 40,
    judge: JudgeOption = False,
    model: ModelOption = "abc-mini",
    device: DeviceOption = "auto",
    *,
    run: ResultFlags,
) -> None:
    """Measure whether a search knows that nothing matches: AUROC and the best threshold, of scores and of judging."""
    from abc_rag.evaluation.absent import evaluate_absent

    opened, generator = _both(model, device, judge)
    with run.embedder(opened) as embedder:
        results = evaluate_absent(embedder, generator=generator, scenes=scenes, progress=not run.as_json)
    run.finish(results)


def _both(model: str | None, device: str, judge: bool) -> tuple[Embedder, Generator | None]:
    """An embedder and, to judge, the generator of the same weights."""
    if not judge:
        return open_embedder(model, device), None
    from abc_rag.answering.load import load_generator

    own = load_generator(model, device=device)
    return own.embedder, own
