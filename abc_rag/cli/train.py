"""The commands ``abc-rag train pretrain | instruct | vlm2vec | mini | push``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from abc_rag.cli.cluster import EngineFlags
from abc_rag.cli.options import JsonOption, ModelFlags, expanded, grouped, resolution_of
from abc_rag.cli.output import print_facts, print_json, say, tell

if TYPE_CHECKING:
    from abc_rag.training.config import Config

__all__ = ["train"]

train = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train a model.")


@dataclass(frozen=True, kw_only=True)
class _RunFlags:
    """A run: each option is a setting of its configuration, but ``config``, ``settings`` and ``push``."""

    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None
    data: Annotated[
        str | None,
        typer.Option(help="Folder or file of JSON lines, 'abc-pretraining', 'abc-vg-instruct', or 'scenes'."),
    ] = None
    out: Annotated[Path | None, typer.Option(help="Folder of the run; an unfinished run is resumed.")] = None
    images: Annotated[Path | None, typer.Option(help="Folder that picture names are relative to.")] = None
    base: Annotated[str | None, typer.Option(help="Qwen2-VL: a hub id, or a folder (./...).")] = None
    steps: Annotated[int | None, typer.Option(help="Number of optimiser steps.")] = None
    chunk: Annotated[int | None, typer.Option(help="Pictures computed at once: less memory, the same gradients.")] = (
        None
    )
    seed: Annotated[int | None, typer.Option()] = None
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, as name=value; repeat for more.")
    ] = None
    push: Annotated[str | None, typer.Option(help="Then upload to this hub repository (user/name).")] = None

    def read(self, kind: type[Config]) -> Config:
        """The configuration."""
        from abc_rag.training.config import read_config

        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        model = given.pop("model", None)
        for name in ("config", "settings", "push"):
            del given[name]
        if "resolution" in given:
            given["resolution"] = resolution_of(given["resolution"])
        return read_config(kind, self.config, given, self.settings or [], model=model)

    def finish(self, out: Path) -> None:
        """Say where the adapter is, and upload it."""
        from accelerate import PartialState

        if not PartialState().is_main_process:
            return
        say(f"the adapter is in {out}; what it is: {out / 'README.md'}")
        if self.push is not None:
            from abc_rag.training.running.card import push_to_hub

            say(f"uploaded: {push_to_hub(out, self.push)}")


@dataclass(frozen=True, kw_only=True)
class _ABCFlags(_RunFlags):
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Start from this checkpoint's parts: abc-mini, or a folder with base/, ..."),
    ] = None
    pictures: Annotated[int | None, typer.Option(help="Pictures per step, over all processes.")] = None
    download: Annotated[bool | None, typer.Option("--download", help="Fetch a hub data set.")] = None


@dataclass(frozen=True, kw_only=True)
class _PretrainFlags(_ABCFlags):
    negatives_file: Annotated[Path | None, typer.Option(help="Hard negatives from 'abc-rag train mine-negatives'.")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class _InstructFlags(_ABCFlags):
    pretrain: Annotated[str | None, typer.Option(help="The pretrain adapter: a hub id, or a folder (./...).")] = None


@dataclass(frozen=True, kw_only=True)
class _VLM2VecFlags(_RunFlags):
    data: Annotated[str | None, typer.Option(help="Folder in the layout of TIGER-Lab/MMEB-train, or a file of it.")] = (
        None
    )
    subsets: Annotated[str | None, typer.Option(help="Subsets, separated by commas. Default: all of --data.")] = None
    base: Annotated[str | None, typer.Option(help="Qwen2-VL or Phi-3.5-vision: a hub id, or a folder (./...).")] = None
    resolution: Annotated[str | None, typer.Option(help="low, mid or high (Qwen2-VL), or a number of crops (Phi).")] = (
        None
    )
    rows: Annotated[int | None, typer.Option(help="Rows per step, over all processes.")] = None
    chunk: Annotated[int | None, typer.Option(help="Rows computed at once: less memory, the same gradients.")] = None


@train.command("pretrain")
@grouped
def pretrain_command(*, run: _PretrainFlags) -> None:
    """Train a pretrain adapter: picture -> caption. On several GPUs: accelerate launch -m abc_rag.cli train ..."""
    from abc_rag.training.config import PretrainConfig
    from abc_rag.training.pretrain import pretrain

    run.finish(pretrain(run.read(PretrainConfig), say=tell))


@train.command("instruct")
@grouped
def instruct_command(*, run: _InstructFlags) -> None:
    """Train an instruct adapter: picture + instruction -> phrase. Its folder can be used as --model."""
    from abc_rag.training.config import InstructConfig
    from abc_rag.training.instruct import instruct

    run.finish(instruct(run.read(InstructConfig), say=tell))


@train.command("vlm2vec")
@grouped
def vlm2vec_command(*, run: _VLM2VecFlags) -> None:
    """Train a VLM2Vec adapter from queries and their answers. Its folder can be used as --model."""
    from abc_rag.training.config import VLM2VecConfig
    from abc_rag.training.vlm2vec import train_vlm2vec

    run.finish(train_vlm2vec(run.read(VLM2VecConfig), say=tell))


@train.command("push")
def push_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    repository: Annotated[str, typer.Argument(help="Hub repository: user/name.")],
    results: Annotated[
        Path | None, typer.Option(help="results.json of 'abc-rag evaluate', for the model card.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Upload a finished run's adapter, settings, metrics and card to a hub repository."""
    from abc_rag.training.running.card import push_to_hub

    say(f"uploaded: {push_to_hub(expanded(folder), repository, private=not public, results=results)}")


@train.command("mini")
def train_mini_command(
    out: Annotated[Path, typer.Argument(help="Folder that receives base/, pretrain/ and instruct/.")],
    seed: Annotated[int, typer.Option()] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of the base stage, for a trial run.")] = None,
    see_steps: Annotated[int | None, typer.Option(help="Steps of the stage that learns to see.")] = None,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16; slower on CPUs without support for it.")] = True,
    kinds: Annotated[
        Path | None, typer.Option(help="Drawings by scripts/draw_kinds.py; the package's own alone if not given.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Vectors of words by scripts/teach_words.py; words are learnt if not given.")
    ] = None,
    eyes: Annotated[
        Path | None, typer.Option(help="An earlier run's see/model.safetensors, which seeing begins with.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the layers: steps are faster, the first minutes slower.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Train abc-mini from scratch: its base, then the two adapters as 'pretrain' and 'instruct' do."""
    from dataclasses import replace

    from abc_rag.training.mini import MiniConfig, train_mini

    drawings, words, tower = ("" if file is None else str(expanded(file)) for file in (kinds, teacher, eyes))
    config = MiniConfig(seed=seed, bf16=bf16, threads=threads, kinds=drawings, teacher=words, eyes=tower)
    chosen: dict[str, Any] = {"see_steps": see_steps, "base_steps": steps}
    config = replace(config, compiled=compiled, **{k: count for k, count in chosen.items() if count is not None})
    train_mini(expanded(out), config, say=tell)
    say(f"abc-mini is in {out}; its figures: abc-rag evaluate mini --model {out}")


@train.command("mine-negatives")
@grouped
def mine_negatives_command(
    data: Annotated[str, typer.Argument(help="Folder or file of JSON lines with captions, or 'abc-pretraining'.")],
    out: Annotated[Path, typer.Argument(help="JSONL file to write; an unfinished one is resumed.")],
    *,
    images: Annotated[Path | None, typer.Option(help="Folder that picture names are relative to.")] = None,
    epsilon: Annotated[
        float, typer.Option(help="Leave out captions that score at least this fraction of the positive's score.")
    ] = 0.95,
    count: Annotated[int, typer.Option(help="Negatives per row.")] = 35,
    query: Annotated[
        Literal["text", "image"], typer.Option(help="Query with the caption (its own score is 1) or with the picture.")
    ] = "text",
    index: Annotated[
        Literal["auto", "exact", "approximate"],
        typer.Option(help="Search exactly, or in an approximate index; auto: as memory allows."),
    ] = "auto",
    memory_gb: Annotated[
        float | None, typer.Option(help="Memory for vectors in GiB. Default: half of the free memory.")
    ] = None,
    keep_vectors: Annotated[
        bool, typer.Option("--keep-vectors", help="Keep OUT.work, for mining again with other settings.")
    ] = False,
    max_bad: Annotated[int, typer.Option(help="Maximum number of unusable rows.")] = 100,
    download: Annotated[bool, typer.Option("--download", help="Fetch a hub data set.")] = False,
    model: ModelFlags,
    cluster: EngineFlags,
    as_json: JsonOption = False,
) -> None:
    """Find captions that nearly describe each picture of a corpus: the hard negatives of 'train pretrain'."""
    from abc_rag.training.data.open import open_captions
    from abc_rag.training.negatives.mine import mine_negatives

    source = open_captions(
        data, images=None if images is None else expanded(images), max_bad=max_bad, allow_download=download
    )
    with cluster.embedder(model.open()) as embedder:
        report = mine_negatives(
            source,
            expanded(out),
            embedder,
            epsilon=epsilon,
            count=count,
            query=query,
            index=index,
            memory_gb=memory_gb,
            keep_vectors=keep_vectors,
            progress=not as_json,
        )
    if as_json:
        print_json(report.as_dict())
        return
    recall = "" if report.recall is None else f", recall {report.recall:.3f}"
    facts = (
        ("rows", f"{report.rows:,}"),
        ("different captions", f"{report.captions:,}"),
        ("negatives a row", f"{report.negatives / report.rows:.1f} of {report.count}"),
        ("rows with fewer", f"{report.short:,}"),
        ("left out as probably correct", f"{report.at_or_above_bar:,}"),
        ("search", f"{report.query}, {report.index}{recall}"),
        ("unusable rows", f"{report.bad['count']:,}"),
    )
    print_facts(facts, title=f"negatives by {report.model}")
    say(f"written to {out}; train with: abc-rag train pretrain --data {data} --negatives-file {out} ...")
