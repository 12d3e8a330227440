"""The settings of a training run: defaults from the paper, a YAML file over them, the command line over that."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from abc_rag.errors import InputError, MissingExtraError

__all__ = [
    "AdapterConfig",
    "InstructConfig",
    "LoopConfig",
    "PretrainConfig",
    "TrainConfig",
    "VLM2VecConfig",
    "make_config",
    "parts_of",
    "read_config",
]

Config = TypeVar("Config", bound="LoopConfig")


@dataclass(frozen=True)
class LoopConfig:
    """What every run has, whatever it trains.

    Attributes:
        out: Folder of the run. A run in it with the same settings is taken up where it stopped.
        steps: Optimiser steps in all.
        lr: Highest learning rate; it rises over ``warmup`` and then falls along a cosine.
        warmup: Share of the steps over which the learning rate rises.
        final_lr: Share of ``lr`` that is left at the end.
        optimizer: ``"adamw"``, or ``"muon"`` for matrices with AdamW for the rest.
        weight_decay: Decoupled weight decay.
        beta2: AdamW's second decay rate.
        max_grad_norm: Gradients longer than this are shortened to it.
        seed: Of everything random.
        bf16: Compute in bfloat16; weights that are trained stay float32.
        checkpoint_every: Steps between checkpoints; the last two are kept.
        log_every: Steps between rows of ``metrics.jsonl``.
        tensorboard: Write TensorBoard files too.
        threads: Threads of a CPU run; torch's own choice if not given.
        workers: Threads that open pictures beside the computation.
    """

    out: str
    steps: int = 1000
    lr: float = 4e-5
    warmup: float = 0.03
    final_lr: float = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.01
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    seed: int = 0
    bf16: bool = True
    checkpoint_every: int = 100
    log_every: int = 1
    tensorboard: bool = True
    threads: int | None = None
    workers: int = 8


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(LoopConfig):
    """What training an adapter needs besides.

    Attributes:
        data: What to train on.
        images: Folder that the data's picture names are relative to, where the data does not say.
        base: What the adapter goes on: a hub id, or a folder if it starts with ``/``, ``./``, ``../`` or ``~``.
        base_revision: Hub commit, tag or branch of ``base``.
        chunk: Most pictures, or rows, computed at once on one process; the gradients do not depend on it (gradient
            caching). If not given, all at once.
        rank: Of the LoRA matrices.
        alpha: Scale of the LoRA matrices; ``2 * rank`` if not given.
        dropout: In front of the LoRA matrices.
        base_dtype: Precision that the frozen weights are kept in; ``"auto"`` is bfloat16 on a GPU.
        attention: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.
        gradient_checkpointing: Compute each layer again in the backward pass rather than keep its activations.
        save_dtype: Precision of the saved adapter.
        max_bad: Most rows that may be unusable.
    """

    data: str
    images: str | None = None
    base: str
    base_revision: str | None = None
    chunk: int | None = None
    rank: int
    alpha: int | None = None
    dropout: float = 0.05
    base_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_bad: int = 100


@dataclass(frozen=True, kw_only=True)
class TrainConfig(AdapterConfig):
    """What both stages of ABC have.

    Attributes:
        data: A folder or file of JSON lines, a hub data set by its name, or ``"scenes"``.
        base: Qwen2-VL; see `AdapterConfig`.
        head_hidden: Width inside the MLP head.
        pictures: Pictures of one step, over all processes together.
        rank: Of the LoRA matrices.
        label_smoothing: Share of the probability spread over all candidates.
        min_temperature: A lower temperature counts as this one.
        min_tokens: Fewest image tokens.
        max_tokens: Most image tokens in training.
        max_tokens_in_use: Most image tokens when the model is used. If not given: twice as many, as published (512 and
            1,024), or as many where ``min_tokens`` and ``max_tokens`` are one number.
        download: Fetch ``data`` from the hub if it is a data set there.
    """

    base: str = "Qwen/Qwen2-VL-7B-Instruct"
    head_hidden: int = 4096
    pictures: int = 512
    rank: int = 64
    label_smoothing: float = 0.1
    min_temperature: float = 0.01
    min_tokens: int = 256
    max_tokens: int = 512
    max_tokens_in_use: int | None = None
    download: bool = False

    @property
    def tokens_in_use(self) -> int:
        """Most image tokens when the model is used."""
        if self.max_tokens_in_use is not None:
            return self.max_tokens_in_use
        return self.max_tokens if self.min_tokens == self.max_tokens else 2 * self.max_tokens


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Pretraining, with the paper's values (arXiv 2503.00329): 4,000 steps of 512 pictures against 4,096 captions.

    Attributes:
        negatives: Mined negatives of each picture.
        negatives_file: What ``abc-rag train mine-negatives`` wrote for ``data``.
        temperature: What the learnt temperature starts at.
        head_init: ``"published"`` starts both layers of the head as identities, ``"neutral"`` the whole head.
        true_negatives: ``"all"``: a caption counts against every picture of the batch, on whichever process it was
            computed, and learns from all of them: two processes do what one would. ``"own"`` is what the published
            code does: it learns from its own process's pictures only.
    """

    steps: int = 4000
    negatives: int = 7
    negatives_file: str | None = None
    temperature: float = 0.07
    head_init: Literal["published", "neutral"] = "published"
    true_negatives: Literal["all", "own"] = "all"


@dataclass(frozen=True, kw_only=True)
class InstructConfig(TrainConfig):
    """Instruction finetuning, with the paper's values: 100 steps of 128 pictures with 4 instructions each.

    Attributes:
        pretrain: The pretrain adapter: a hub id or a folder, as for ``base``.
        pretrain_revision: Hub commit, tag or branch of ``pretrain``.
        pairs: Most (instruction, phrase) pairs of one picture in a batch.
    """

    steps: int = 100
    pictures: int = 128
    rank: int = 16
    pretrain: str = "TIGER-Lab/ABC-Qwen2VL-Pretrain"
    pretrain_revision: str | None = None
    pairs: int = 4


@dataclass(frozen=True, kw_only=True)
class VLM2VecConfig(AdapterConfig):
    """VLM2Vec, with the published values (arXiv 2410.05160): 2,000 steps of 1,024 rows, DoRA on all that is named.

    Attributes:
        data: A folder in the layout of ``TIGER-Lab/MMEB-train``, or one file of it; see `abc_rag.training.data.mmeb`.
        subsets: Names of the subsets of ``data``, with commas between them; all that it has if not given.
        split: Which files of a subset, where it has several kinds: those whose names begin so.
        rows_per_subset: Most rows of a subset, the first ones; all if not given. The published run took 50,000.
        base: A Qwen2-VL or a Phi-3.5-vision; see `AdapterConfig`.
        rows: Rows of one step, over all processes together. Their targets are the candidates, and their negatives.
        rank: Of the LoRA matrices.
        alpha: Scale of the LoRA matrices.
        dropout: In front of the LoRA matrices.
        dora: DoRA rather than plain LoRA.
        init: How the first of two matrices starts; the second is zero.
        targets: How the names of the layers end that get an adapter, with commas between them.
        temperature: What the cosines are divided by; not learnt.
        resolution: How pictures are opened: for Qwen2-VL ``"low"``, ``"mid"`` or ``"high"``, for Phi-3.5-vision a
            number of crops; the model's own way if not given.
        min_tokens: Fewest image tokens of a picture, where the model can be told so.
        max_tokens: Most image tokens of a picture, where the model can be told so.
    """

    steps: int = 2000
    lr: float = 2e-5
    warmup: float = 0.1
    weight_decay: float = 0.0
    subsets: str | None = None
    split: str = "original"
    rows_per_subset: int | None = None
    base: str = "Qwen/Qwen2-VL-2B-Instruct"
    rows: int = 1024
    rank: int = 8
    alpha: int | None = 64
    dropout: float = 0.1
    dora: bool = True
    init: Literal["gaussian", "uniform"] = "gaussian"
    targets: str = "q_proj,k_proj,v_proj,o_proj,out_proj,down_proj,gate_up_proj,qkv_proj"
    temperature: float = 0.02
    resolution: str | int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None


_AT_LEAST: dict[str, float] = {
    **dict.fromkeys(
        ("steps", "pictures", "chunk", "rank", "alpha", "checkpoint_every", "log_every", "workers", "threads", "pairs",
         "head_hidden", "min_tokens", "max_tokens", "max_tokens_in_use", "rows", "rows_per_subset"), 1,
    ),
    **dict.fromkeys(
        ("warmup", "final_lr", "weight_decay", "dropout", "label_smoothing", "min_temperature", "negatives", "max_bad"),
        0,
    ),
}  # fmt: skip
_BELOW_1 = ("warmup", "dropout", "label_smoothing", "beta2")
_POSITIVE = ("lr", "max_grad_norm", "temperature", "beta2")


def make_config(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A checked configuration from plain values.

    Raises:
        InputError: A name is unknown, a value is missing, or one is of the wrong type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(fields))}"
            raise InputError(f"{name!r} is not a setting of {kind.__name__}{hint}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise InputError(f"{kind.__name__} needs {' and '.join(missing)}")
    hints = typing.get_type_hints(kind)
    checked = {name: _checked(name, value, hints[name]) for name, value in values.items()}
    config = kind(**checked)
    if isinstance(config, (TrainConfig, VLM2VecConfig)):
        least, most = config.min_tokens, config.max_tokens
        if least is not None and most is not None and least > most:
            raise InputError(f"min_tokens ({least}) is larger than max_tokens ({most})")
    return config


def parts_of(model: str) -> dict[str, Any]:
    """The settings that a whole checkpoint gives: what it is built on, and the sizes that it was made for.

    Args:
        model: ``"abc-mini"``, or a folder with ``base/`` and ``pretrain/``.

    Raises:
        InputError: It is neither.
    """
    from abc_rag.models.abc.loader import checkpoint_folder
    from abc_rag.models.abc.network import ABCSettings

    folder = checkpoint_folder(model).resolve()
    settings = ABCSettings.read(folder)
    return {
        "base": str(folder / "base"), "pretrain": str(folder / "pretrain"), "head_hidden": settings.head_hidden,
        "min_tokens": settings.min_tokens, "max_tokens": settings.max_tokens,
    }  # fmt: skip


def _checked(name: str, value: Any, hint: Any) -> Any:  # noqa: ANN401
    origin = typing.get_origin(hint)
    choices = typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kinds = [h for h in choices if h is not type(None)]
        hint = type(value) if type(value) in kinds else kinds[0]
    elif origin is Literal:
        if value not in choices:
            raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
        return value
    if hint is float and type(value) in (int, float):
        value = float(value)
    elif hint is float and isinstance(value, str):
        # YAML 1.1 reads 4e-5 as a text.
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{name} must be a number, not {value!r}") from None
    elif type(value) is not hint:
        raise InputError(f"{name} must be of type {hint.__name__}, not {value!r}")
    if name in _AT_LEAST and not value >= _AT_LEAST[name]:
        raise InputError(f"{name} must be at least {_AT_LEAST[name]:g}, not {value!r}")
    if (name in _BELOW_1 and not value < 1) or (name in _POSITIVE and not value > 0):
        raise InputError(f"{name} is out of range: {value!r}")
    return value


def read_config(
    kind: type[Config],
    file: Path | None,
    overrides: Mapping[str, Any],
    assignments: typing.Iterable[str] = (),
    *,
    model: str | None = None,
) -> Config:
    """A configuration from a YAML file (or JSON, which is YAML), what the caller overrides, and ``name=value`` texts.

    Args:
        kind: Which configuration.
        file: A mapping of setting names to values; none is needed.
        overrides: Values by name; ``None`` leaves the file's or the default.
        assignments: ``"lr=1e-4"``: the value is read as YAML.
        model: See `parts_of`; whatever else is said goes over it.

    Raises:
        InputError: The file cannot be read, or `make_config` refuses what it says.
        MissingExtraError: PyYAML is not installed.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    values = {name: value for name, value in (parts_of(model) if model else {}).items() if name in known}
    if file is not None:
        try:
            read = _yaml(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: cannot be read as YAML ({error})") from error
        if not isinstance(read, dict) or not all(isinstance(name, str) for name in read):
            raise InputError(f"{file}: must hold settings as 'name: value' lines")
        values.update(read)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"{assignment!r} is not of the form name=value")
        try:
            values[name.strip()] = _yaml(text)
        except ValueError as error:
            raise InputError(f"{assignment!r}: the value cannot be read as YAML ({error})") from error
    values.update({name: value for name, value in overrides.items() if value is not None})
    return make_config(kind, values)


def _yaml(text: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("reading YAML needs PyYAML: pip install 'abc-rag[train]'") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
